"""The weights of a direction network as a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from forebay.kernels import weight_file
from forebay.kernels.dcdm.network import DirectionNetwork
from forebay.kernels.weight_file import WeightsError

FORMAT = 1
"""Raised whenever the network's layers change."""
SHIPPED = Path(__file__).parents[1] / "weights" / "dcdm.safetensors"
"""What `training.RECIPE` gave."""
_KIND = "dcdm"


def save_network(path: Path, network: DirectionNetwork, facts: Mapping[str, str] | None = None) -> None:
    """Write the weights, whole or not at all; `facts` about the training go into the header."""
    arrays = {name: values.detach().cpu().contiguous().numpy() for name, values in network.state_dict().items()}
    weight_file.write(path, _KIND, FORMAT, arrays, facts or {})


def load_network(path: Path = SHIPPED) -> DirectionNetwork:
    """The network of a file, by default the one that is shipped.

    Raises:
        WeightsError: damaged, of another kind or format, with layers of another size, or not finite.
        FileNotFoundError: no such file.
    """
    _, arrays = weight_file.read(path, _KIND, FORMAT)
    network = DirectionNetwork()
    expected = {name: tuple(values.shape) for name, values in network.state_dict().items()}
    found = {name: array.shape for name, array in arrays.items()}
    if found != expected:
        wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))[0]
        raise WeightsError(
            f"{str(path)!r} has {wrong!r} of shape {found.get(wrong)}, the network {expected.get(wrong)}; retrain it"
        )
    weights = {name: torch.from_numpy(array) for name, array in arrays.items()}
    if broken := [name for name, values in weights.items() if not torch.isfinite(values).all()]:
        raise WeightsError(f"{broken[0]!r} of {str(path)!r} is not finite everywhere; take an earlier file, or retrain")
    network.load_state_dict(weights)
    return network.eval()

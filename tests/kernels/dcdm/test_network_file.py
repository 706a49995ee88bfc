from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from forebay.kernels import weight_file
from forebay.kernels.dcdm.fluid import fluid_poisson
from forebay.kernels.dcdm.network import DirectionNetwork
from forebay.kernels.dcdm.network_file import FORMAT, SHIPPED, load_network, save_network
from forebay.kernels.dcdm.solver import solve_dcdm
from forebay.kernels.records import Outcome
from forebay.kernels.weight_file import WeightsError


@pytest.fixture
def network():
    return DirectionNetwork(torch.Generator().manual_seed(7))


def arrays_of(network):
    return {name: values.contiguous().numpy() for name, values in network.state_dict().items()}


def test_a_network_survives_the_round_trip(network, tmp_path):
    path = tmp_path / "dcdm.safetensors"
    save_network(path, network, {"seed": "7"})
    loaded = load_network(path)
    residual = torch.randn(1, 6, 6, 6, generator=torch.Generator().manual_seed(11))
    assert torch.equal(loaded(residual), network(residual))
    header = json.loads(path.read_bytes()[8 : 8 + int.from_bytes(path.read_bytes()[:8], "little")])["__metadata__"]
    assert (header["seed"], header["kind"], header["format"]) == ("7", "dcdm", str(FORMAT))
    assert load_file(path).keys() == network.state_dict().keys()


def test_the_shipped_network_solves_boxes_and_obstacles_in_few_iterations():
    solid = torch.zeros(16, 16, 16, dtype=torch.bool)
    solid[5:10, 4:9, 6:11] = True
    network = load_network()
    b = torch.randn(16, 16, 16, generator=torch.Generator().manual_seed(13), dtype=torch.float64)
    for stencil in (fluid_poisson((16, 16, 16)), fluid_poisson((16, 16, 16), solid=solid)):
        _, record = solve_dcdm(stencil, b, network, rtol=1e-4)
        assert record.outcome is Outcome.CONVERGED
        assert record.iterations <= 12


def test_the_shipped_file_is_small():
    assert SHIPPED.stat().st_size < 700_000


def test_weights_of_another_kind_are_refused(network, tmp_path):
    weight_file.write(tmp_path / "w", "grid", FORMAT, arrays_of(network), {})
    with pytest.raises(WeightsError, match="holds weights of kind 'grid', not 'dcdm'"):
        load_network(tmp_path / "w")


def test_weights_of_another_version_are_refused(network, tmp_path):
    weight_file.write(tmp_path / "w", "dcdm", FORMAT + 6, arrays_of(network), {})
    with pytest.raises(WeightsError, match=f"has weights of format {FORMAT + 6}, this version reads {FORMAT}"):
        load_network(tmp_path / "w")


def test_layers_of_another_size_are_refused(network, tmp_path):
    arrays = arrays_of(network)
    arrays["head.bias"] = arrays["first.bias"]
    weight_file.write(tmp_path / "w", "dcdm", FORMAT, arrays, {})
    with pytest.raises(WeightsError, match=r"'head.bias' of shape \(16,\), the network \(1,\); retrain it"):
        load_network(tmp_path / "w")


def test_a_missing_layer_is_refused(network, tmp_path):
    arrays = arrays_of(network)
    del arrays["up.2.weight"]
    weight_file.write(tmp_path / "w", "dcdm", FORMAT, arrays, {})
    with pytest.raises(WeightsError, match=r"'up.2.weight' of shape None, the network \(16, 16, 3, 3, 3\)"):
        load_network(tmp_path / "w")


def test_weights_that_are_not_finite_are_refused(network, tmp_path):
    with torch.no_grad():
        network.head.bias[0] = float("nan")
    save_network(tmp_path / "w", network)
    with pytest.raises(WeightsError, match=r"'head.bias' of .* is not finite everywhere; take an earlier file"):
        load_network(tmp_path / "w")


def test_a_damaged_file_is_refused(network, tmp_path):
    save_network(tmp_path / "w", network)
    content = bytearray((tmp_path / "w").read_bytes())
    content[-7] ^= 1
    (tmp_path / "w").write_bytes(content)
    with pytest.raises(WeightsError, match="do not match its digest; copy it again or retrain"):
        load_network(tmp_path / "w")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no file of weights; train some, or name another file"):
        load_network(tmp_path / "none")

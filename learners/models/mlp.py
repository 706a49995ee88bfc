"""Multi-layer perceptron: scalars and flattened fields in, fields out."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from forebay.learners.options import option
from forebay.pipeline.errors import StudyError

if TYPE_CHECKING:
    from forebay.learners.surrogate import IOSpec

ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}
_MAX_WEIGHTS = 2**28


@dataclass(frozen=True, slots=True)
class MLPOptions:
    """Fully connected network; for problems driven by a few scalars, on any grid or mesh."""

    hidden: tuple[int, ...] = option((256, 256), "width of every hidden layer", low=1, high=65536)
    activation: str = option("relu", "nonlinearity", choices=tuple(ACTIVATIONS))

    def check(self, io: IOSpec) -> None:
        """Raise StudyError when there is no input at all, or when the layers would be absurdly large."""
        widths = _widths(self, io)
        if widths[0] == 0:
            raise StudyError(
                "learner.model.name = 'mlp' needs an input, but this problem has neither parameters nor fields"
            )
        weights = sum(a * b for a, b in itertools.pairwise(widths))
        if weights > _MAX_WEIGHTS:
            raise StudyError(
                f"learner.model.hidden = {list(self.hidden)} gives {weights:.3g} weights from {widths[0]} inputs to "
                f"{widths[-1]} outputs; at most {_MAX_WEIGHTS:.3g} are allowed: use smaller layers, or 'fno' on a grid"
            )

    def build(self, io: IOSpec) -> nn.Module:
        """The network with fresh weights."""
        return MLP(_widths(self, io), (len(io.outputs), *io.grid), ACTIVATIONS[self.activation])


class MLP(nn.Module):
    """u = W_L φ(... φ(W_1 [scalars, fields] + b_1) ...) + b_L, reshaped to (b, O, *grid).

    The published heat-equation case is 6 -> 256 -> 256 -> n², ReLU (Meyer et al., arXiv 2309.16743).
    """

    any_grid = False

    def __init__(self, widths: tuple[int, ...], shape: tuple[int, ...], activation: type[nn.Module]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for narrow, wide in itertools.pairwise(widths):
            layers += [nn.Linear(narrow, wide), activation()]
        self.layers = nn.Sequential(*layers[:-1])
        self.shape = shape

    def forward(self, fields: Tensor, scalars: Tensor) -> Tensor:
        """(b, C, *grid) and (b, S) to (b, O, *grid)."""
        inputs = torch.cat([scalars, fields.flatten(1)], 1)
        return self.layers(inputs).view(-1, *self.shape)


def _widths(options: MLPOptions, io: IOSpec) -> tuple[int, ...]:
    points = math.prod(io.grid)
    return (io.scalars + len(io.channels) * points, *options.hidden, len(io.outputs) * points)

"""The learned rule of the multigrid on grids, a torch module: smoothing and transfers conditioned on coefficients.

The formula stands in `kernels/grid_weights.py`; backends without torch evaluate it from the same arrays.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from forebay.kernels.grid_weights import FEATURES, GATE, SMOOTHING, GridWeights, require_dimension
from forebay.kernels.level_rows import LevelRows

_CLASSICAL = 1.6 - 1
"""s - 1 at initialisation: the classical smoother."""


class GridNetwork(nn.Module):
    """A `GridRule` with weights, some two hundred; the V-cycle is symmetric positive definite whatever they are.

    On initialisation it is the classical rule, s = 1.6 and no gates.  Features count as constants when derivatives are
    taken: what the network changes on one level does not train it through what it sees on the next.
    """

    def __init__(self, dimension: int, *, units: int = 8, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.dimension = dimension
        bound = 1 / math.sqrt(FEATURES)
        hidden = torch.empty(2, units, FEATURES).uniform_(-bound, bound, generator=generator)
        self.hidden = nn.Parameter(hidden)
        self.hidden_bias = nn.Parameter(torch.empty(2, units).uniform_(-bound, bound, generator=generator))
        self.smoother = nn.Parameter(torch.zeros(2, units))
        share = _CLASSICAL / SMOOTHING
        self.smoother_bias = nn.Parameter(torch.full((2,), share / (1 - share)))
        self.gate = nn.Parameter(torch.zeros(2, units))

    def forward(self, rows: LevelRows, *, finest: bool) -> tuple[Tensor, Tensor]:
        """Smoothing s in (0, 2), [b, *n], and gates e_d, [b, D, *n].

        Raises:
            WeightsError: rows of a grid of another dimension.
        """
        require_dimension(self.dimension, rows.dimension)
        index = 0 if finest else 1
        hidden = self._hidden(features(rows), index)
        by_cell = torch.einsum("h,bhd...->b...", self._typed(self.smoother, index, hidden), hidden.flatten(2, 3))
        u = self._typed(self.smoother_bias, index, hidden) + by_cell / (2 * rows.dimension)
        v = torch.einsum(
            "h,bhd...->bd...", self._typed(self.gate, index, hidden), hidden[:, :, :, 1] - hidden[:, :, :, 0]
        )
        gamma = GATE * v / (1 + v.abs())
        return 1 + SMOOTHING * u / (1 + u.abs()), (1 + gamma) / (1 - gamma)

    def weights(self, version: int = 0) -> GridWeights:
        """Copies of the numbers, for a file or for another backend."""
        arrays = {name: _plain(value) for name, value in self.named_parameters()}
        return GridWeights(dimension=self.dimension, version=version, **arrays)

    @classmethod
    def from_weights(cls, weights: GridWeights) -> GridNetwork:
        """The module with these numbers."""
        network = cls(weights.dimension, units=weights.hidden.shape[1])
        with torch.no_grad():
            for name, value in network.named_parameters():
                value.copy_(torch.from_numpy(weights.arrays[name]))
        return network

    def _hidden(self, inputs: Tensor, index: int) -> Tensor:
        """[b, H, D, 2, *n]"""
        matrix = self._typed(self.hidden, index, inputs)
        bias = self._typed(self.hidden_bias, index, inputs)
        return torch.relu(torch.einsum("hf,bf...->bh...", matrix, inputs) + bias.view(-1, *[1] * (inputs.ndim - 2)))

    def _typed(self, parameter: nn.Parameter, index: int, like: Tensor) -> Tensor:
        return parameter[index].to(like.device, like.dtype)


def features(rows: LevelRows) -> Tensor:
    """Features 0 ... 7 of `kernels/grid_weights.py` by direction, [b, 8, D, 2, *n]; side - comes first."""
    dimension = rows.dimension
    diagonal = rows.diagonal.detach()
    by_diagonal = 1 / torch.where(diagonal > 0, diagonal, 1.0)
    arms = torch.stack(
        [torch.stack([_arm(rows, axis, side, by_diagonal) for side in (-1, 1)], 1) for axis in range(dimension)], 1
    )
    ratios = torch.stack([_ratios(diagonal, axis) for axis in range(1, dimension + 1)], 1)
    by_axis = arms.sum(2)
    across = (by_axis.sum(1, keepdim=True) - by_axis) / (2 * (dimension - 1))
    # A difference of sums may be negative by rounding.
    transverse = across.clamp_min(0).sqrt()[:, :, None].expand_as(arms)
    common = [values[:, None, None].expand_as(arms) for values in _shares(rows, by_diagonal)]
    root = arms.sqrt()
    return torch.stack([root, root.flip(2), ratios, ratios.flip(2), transverse, *common], 1)


def _arm(rows: LevelRows, axis: int, side: int, by_diagonal: Tensor) -> Tensor:
    total = torch.zeros_like(by_diagonal)
    for offset in rows.values:
        if offset[axis] == side:
            total = total - rows.inner(offset).detach()
    return (total * by_diagonal).clamp(0, 1)


def _ratios(diagonal: Tensor, axis: int) -> Tensor:
    """A_ii / (A_ii + A_jj) for the neighbours on both sides along an axis, 1/2 at walls, [b, 2, *n]."""
    count = diagonal.shape[axis]
    low, high = diagonal.narrow(axis, 0, count - 1), diagonal.narrow(axis, 1, count - 1)
    total = low + high
    share = torch.where(total > 0, low / torch.where(total > 0, total, 1.0), 0.5)
    wall = torch.full_like(diagonal.narrow(axis, 0, 1), 0.5)
    return torch.stack([torch.cat([wall, 1 - share], axis), torch.cat([share, wall], axis)], 1)


def _shares(rows: LevelRows, by_diagonal: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Features 5, 6 and 7, [b, *n] each."""
    total, corners, positive = (torch.zeros_like(by_diagonal) for _ in range(3))
    for offset in rows.values:
        entry = rows.inner(offset).detach()
        total = total + entry
        steps = sum(map(abs, offset))
        if steps > 1:
            corners = corners + entry.abs()
        if steps:
            positive = positive + entry.clamp_min(0)
    absolute = rows.absolute_sum().detach()
    inverse = 1 / torch.where(absolute > 0, absolute, 1.0)
    return (total * by_diagonal).clamp(0, 1), corners * inverse, positive * inverse


def _plain(value: Tensor) -> np.ndarray:
    return value.detach().to("cpu", torch.float32).numpy().copy()

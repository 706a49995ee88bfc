"""The rows of a level's operator by offset, laid out so that every cell of one parity class is a plain strided view."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from forebay.kernels.hierarchy import Offset, coarsened

Parity = tuple[int, ...]
"""1 along the axes where a fine cell has an odd coordinate (it lies between two coarse cells), 0 along the others."""


def parities(dimension: int) -> tuple[Parity, ...]:
    """All classes of fine cells, those with fewer odd coordinates first."""
    return tuple(sorted(itertools.product((0, 1), repeat=dimension), key=sum))


@dataclass(frozen=True, slots=True, eq=False)
class LevelRows:
    """A[i, i + o] by offset o, each padded with zeros to the fine cells -1 ... 2 n_c - 1 along every axis.

    With that padding the class of a parity e holds the fine cells 2 J + e with J = 0 ... n_c - 1 along even axes and
    J = -1 ... n_c - 1 along odd ones, whatever the size of the grid, so no product of the set-up has a special case.
    """

    values: dict[Offset, Tensor]
    """[b, *(2 n_c + 1)]"""
    shape: tuple[int, ...]

    @property
    def dimension(self) -> int:
        """2 or 3."""
        return len(self.shape)

    @property
    def coarse_shape(self) -> tuple[int, ...]:
        """n_c."""
        return coarsened(self.shape)

    @property
    def diagonal(self) -> Tensor:
        """A[i, i], [b, *n]."""
        return self.inner((0,) * self.dimension)

    def inner(self, offset: Offset) -> Tensor:
        """A[i, i + offset] for the cells of the grid, [b, *n], a view."""
        view = self.values[offset]
        for axis, count in enumerate(self.shape, 1):
            view = view.narrow(axis, 1, count)
        return view

    def absolute_sum(self) -> Tensor:
        """Σ_j |A_ij|, [b, *n]."""
        total = torch.zeros_like(self.diagonal)
        for offset in self.values:
            total = total + self.inner(offset).abs()
        return total


def level_rows(diagonal: Tensor, off: Tensor, offsets: tuple[Offset, ...]) -> LevelRows:
    """Rows in full from the stored half: A[i, i - o] = A[i - o, i]."""
    shape = tuple(diagonal.shape[1:])
    values = {(0,) * len(shape): _placed(diagonal, (0,) * len(shape))}
    for index, offset in enumerate(offsets):
        opposite = tuple(-step for step in offset)
        values[offset] = _placed(off[:, index], (0,) * len(shape))
        # Where it is cropped, the half holds zeros: those cells have no neighbour at `offset`.
        values[opposite] = _placed(off[:, index], offset)
    return LevelRows(values, shape)


def of_parity(padded: Tensor, parity: Parity) -> Tensor:
    """The cells of one class out of an array that is padded as `LevelRows.values` are: a view."""
    view = padded
    for axis, odd in enumerate(parity, 1):
        count = padded.shape[axis]
        view = view.narrow(axis, 1 - odd, count - 1 + odd)
        # Slicing, not index_select: the stride stays a stride.
        view = view[(slice(None),) * axis + (slice(None, None, 2),)]
    return view


def padded_like_rows(array: Tensor, value: float = 0.0) -> Tensor:
    """An array [b, *n] with the padding of `LevelRows.values`."""
    return _placed(array, (0,) * (array.ndim - 1), value)


def _placed(array: Tensor, shift: Offset, value: float = 0.0) -> Tensor:
    """Pad to the cells -1 ... 2 n_c - 1 with the contents moved by `shift`."""
    amounts: list[int] = []
    for count, step in reversed(list(zip(array.shape[1:], shift, strict=True))):
        amounts += [1 + step, count % 2 - step]
    return pad(array, amounts, value=value)

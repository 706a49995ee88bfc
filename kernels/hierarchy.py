"""The multigrid hierarchy: one layout of numbers for every backend.  Importing this needs no torch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Offset = tuple[int, ...]
COARSEST = 64
"""A level of at most so many cells is the last one and is solved by its dense inverse."""


def box_offsets(dimension: int) -> tuple[Offset, ...]:
    """{-1, 0, 1}^D in lexicographic order: the order of `Level.prolong`."""
    return tuple(itertools.product((-1, 0, 1), repeat=dimension))


def half_offsets(dimension: int, *, finest: bool) -> tuple[Offset, ...]:
    """Offsets of `Level.off`, in order: the D of a star on the finest level, the 4 or 13 positive of a box below."""
    positive = tuple(offset for offset in box_offsets(dimension) if offset > (0,) * dimension)
    return tuple(offset for offset in positive if sum(map(abs, offset)) == 1) if finest else positive


def coarsened(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Cells of the next level: coarse cell I is the fine cell 2 I along each axis."""
    return tuple((count + 1) // 2 for count in shape)


def levels_of(shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Shapes of all levels, finest first, down to `COARSEST` cells or fewer."""
    shapes = [shape]
    while math.prod(shapes[-1]) > COARSEST:
        shapes.append(coarsened(shapes[-1]))
    return tuple(shapes)


@dataclass(frozen=True, slots=True, eq=False)
class Level:
    """One grid, n = (n_z, n_y, n_x) or (n_y, n_x) cells, for a batch of b operators A."""

    diagonal: Tensor
    """A[i, i], [b, *n]."""
    off: Tensor
    """A[i, i + o_k], signed, 0 where i + o_k is outside of the grid, [b, K, *n]; the other half follows by symmetry."""
    smoother: Tensor | None
    """m_i = s_i / Σ_j |A_ij| with s_i in (0, 2), [b, *n]; None on the last level."""
    prolong: Tensor | None
    """P[2 I + o, I], [b, 3^D, *n_coarse], 1 at o = 0, and 0 where 2 I + o is outside of the grid; None on the last."""
    inverse: Tensor | None
    """Inverse of A, or its pseudo-inverse where A is singular, [b, N, N] with N cells; on the last level only."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Cells along each axis."""
        return tuple(self.diagonal.shape[1:])

    @property
    def offsets(self) -> tuple[Offset, ...]:
        """o_k of `off`, in order."""
        dimension = len(self.shape)
        return half_offsets(dimension, finest=self.off.shape[1] == dimension)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Level:
        """The same elsewhere or in another precision."""
        return self._changed(lambda array: array.to(device=device, dtype=dtype))

    def select(self, indices: Tensor | slice) -> Level:
        """The systems at these positions."""
        return self._changed(lambda array: array[indices])

    def _changed(self, change: Callable[[Tensor], Tensor]) -> Level:
        return Level(
            change(self.diagonal),
            change(self.off),
            None if self.smoother is None else change(self.smoother),
            None if self.prolong is None else change(self.prolong),
            None if self.inverse is None else change(self.inverse),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Hierarchy:
    """All levels of a batch of systems, finest first; the finest holds scale · A."""

    levels: tuple[Level, ...]
    scale: Tensor
    """1 / mean of the diagonal over active cells, [b], float64: float32 then holds operators of any units."""

    @property
    def batch(self) -> int:
        """Number of systems."""
        return self.scale.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Cells of the finest level along each axis."""
        return self.levels[0].shape

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Hierarchy:
        """The same elsewhere or in another precision; `scale` stays in float64."""
        return replace(
            self, levels=tuple(level.to(device, dtype) for level in self.levels), scale=self.scale.to(device=device)
        )

    def select(self, indices: Tensor | slice) -> Hierarchy:
        """The systems at these positions, int64 or bool [b], or a slice of them."""
        return Hierarchy(tuple(level.select(indices) for level in self.levels), self.scale[indices])

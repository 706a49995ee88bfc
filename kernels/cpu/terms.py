"""The set-up as lists of products: which arrays times which, at which shift, added onto which.

A level is set up from its operator split into 2^D parities: `U[e, a][I]` is array a (0 the diagonal, then the stored
couplings) at the fine cell 2I + e.  Everything then lives on the coarse grid, every term is a product of two contiguous
arrays at constant shifts, and 2D and 3D, star and box differ in these lists alone.  Shifts are (slow, middle, x).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cache

import numpy as np

from forebay.kernels.cpu.layout import embed
from forebay.kernels.hierarchy import Offset, box_offsets, half_offsets


@dataclass(frozen=True, slots=True)
class Terms:
    """Lists for one kind of operator, int64."""

    classes: np.ndarray
    """[2^D - 1, 6]: parity of a class of interpolated cells, first and last row in `collapse`, first and last in
    `pass_on`, number of weights; those with fewer odd axes first."""
    collapse: np.ndarray
    """[., 5]: sum (0 the denominator, then the weights), array U, shift of it."""
    pass_on: np.ndarray
    """[., 6]: P that is added to, weight, P that is read, shift of both P."""
    fine: np.ndarray
    """[., 9]: A P that is added to, U, its shift, P, its shift."""
    coarse: np.ndarray
    """[., 6]: array of the coarse operator, P (not shifted), A P, its shift."""
    gates: np.ndarray
    """[2^D - 1, 3^D, D]: the offset c of every weight of a class."""
    products: int
    """Number of arrays A P."""


@cache
def terms_of(dimension: int, *, finest: bool) -> Terms:
    """Lists for a star (finest level) or a box of couplings in 2 or 3 dimensions."""
    maker = _Maker(dimension, finest)
    classes, collapse, pass_on, gates = maker.interpolation()
    fine, products = maker.fine_rows()
    coarse = maker.coarse_rows(products)
    return Terms(
        _table(classes, 6),
        _table(collapse, 5),
        _table(pass_on, 6),
        _table(fine, 9),
        _table(coarse, 6),
        gates,
        len(products),
    )


def _table(rows: list[tuple[int, ...]], width: int) -> np.ndarray:
    return np.array(rows, np.int64).reshape(-1, width)


class _Maker:
    def __init__(self, dimension: int, finest: bool) -> None:
        self.dimension = dimension
        self.zero = (0,) * dimension
        self.stored = (self.zero, *half_offsets(dimension, finest=finest))
        self.offsets = (*self.stored, *(tuple(-step for step in o) for o in self.stored[1:]))
        self.column = {offset: index for index, offset in enumerate(box_offsets(dimension))}
        self.parities = sorted(itertools.product((0, 1), repeat=dimension), key=lambda e: (sum(e), e))
        self.parity_index = {e: i for i, e in enumerate(itertools.product((0, 1), repeat=dimension))}

    def entry(self, parity: Offset, offset: Offset) -> tuple[int, ...]:
        """A[2I + parity, 2I + parity + offset] as (array U, shift); the lower half by symmetry."""
        if offset in self.stored:
            return self.parity_index[parity] * len(self.stored) + self.stored.index(offset), 0, 0, 0
        other, shift = _split(_plus(parity, offset))
        stored = self.stored.index(tuple(-step for step in offset))
        return self.parity_index[other] * len(self.stored) + stored, *embed(shift)

    def interpolation(self) -> tuple[list, list, list, np.ndarray]:
        classes: list[tuple[int, ...]] = []
        collapse: list[tuple[int, ...]] = []
        pass_on: list[tuple[int, ...]] = []
        gates = np.zeros((len(self.parities) - 1, 3**self.dimension, self.dimension), np.int64)
        for position, parity in enumerate(self.parities[1:]):
            reached = {_onto(offset, parity) for offset in self.offsets}
            targets = [c for c in box_offsets(self.dimension) if any(c) and c in reached]
            first, start = len(collapse), len(pass_on)
            for number, target in enumerate([self.zero, *targets]):
                gates[position, number] = target
                collapse += [(number, *self.entry(parity, o)) for o in self.offsets if _onto(o, parity) == target]
            for corner in itertools.product(*((0, 1) if odd else (0,) for odd in parity)):
                result = self.column[_minus(parity, corner)]
                for number, target in enumerate(targets, 1):
                    source = _plus(_plus(parity, target), tuple(-2 * side for side in corner))
                    if source in self.column:
                        pass_on.append((result, number, self.column[source], *embed(corner)))
            classes.append((self.parity_index[parity], first, len(collapse), start, len(pass_on), 1 + len(targets)))
        return classes, collapse, pass_on, gates

    def fine_rows(self) -> tuple[list, dict[tuple[Offset, Offset], int]]:
        """(A P)[2I + parity, I + reach]."""
        rows: list[tuple[int, ...]] = []
        products: dict[tuple[Offset, Offset], int] = {}
        for parity in self.parities:
            for reach in itertools.product(*((0, 1) if odd else (-1, 0, 1) for odd in parity)):
                for offset in self.offsets:
                    child = _plus(_plus(parity, offset), tuple(-2 * step for step in reach))
                    if child in self.column:
                        number = products.setdefault((parity, reach), len(products))
                        entry = self.entry(parity, offset)
                        rows.append((number, *entry, self.column[child], *embed(reach)))
        return rows, products

    def coarse_rows(self, products: dict[tuple[Offset, Offset], int]) -> list:
        rows: list[tuple[int, ...]] = []
        for number, offset in enumerate((self.zero, *half_offsets(self.dimension, finest=False))):
            for child, column in self.column.items():
                parity, shift = _split(child)
                product = products.get((parity, _plus(offset, tuple(-step for step in shift))))
                if product is not None:
                    rows.append((number, column, product, *embed(shift)))
        return rows


def _split(cell: Offset) -> tuple[Offset, Offset]:
    """Cell = 2 shift + parity."""
    return tuple(step % 2 for step in cell), tuple(step // 2 for step in cell)


def _plus(a: Offset, b: Offset) -> Offset:
    return tuple(x + y for x, y in zip(a, b, strict=True))


def _minus(parity: Offset, corner: Offset) -> Offset:
    return tuple(e - 2 * side for e, side in zip(parity, corner, strict=True))


def _onto(offset: Offset, parity: Offset) -> Offset:
    return tuple(step * odd for step, odd in zip(offset, parity, strict=True))

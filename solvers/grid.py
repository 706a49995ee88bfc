"""Cell-centred five-point finite volumes on the unit square: sparsity once, values by one gather a sample."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from forebay.pipeline.records import Coordinate


@dataclass(frozen=True)
class Grid:
    """n x n cells of side h = 1/n; cell (i, j) has its centre at y = (i + 1/2) h, x = (j + 1/2) h; row-major numbering."""

    n: int

    @property
    def h(self) -> float:
        """Side of a cell."""
        return 1.0 / self.n

    @property
    def unknowns(self) -> int:
        """Number of cells."""
        return self.n * self.n

    @cached_property
    def centres(self) -> np.ndarray:
        """Cell centres along one axis, shape (n,)."""
        return (np.arange(self.n) + 0.5) * self.h

    @property
    def coordinates(self) -> tuple[Coordinate, ...]:
        """The axes y and x for a schema."""
        return tuple(Coordinate(name, (name,), self.centres, "m") for name in ("y", "x"))


class FivePoint:
    """CSR pattern of the five-point stencil with Dirichlet walls, and the place of each coefficient in it.

    `fill` takes the diagonal and the four off-diagonal coefficient fields of the rows, each (n, n): entry (i, j) of
    `south` couples cell (i, j) with (i - 1, j), `north` with (i + 1, j), `west` with (i, j - 1), `east` with (i, j + 1).
    Couplings that would leave the square are ignored: the caller has put them into diagonal and right-hand side.
    """

    def __init__(self, n: int) -> None:
        cells = np.arange(n * n, dtype=np.int64).reshape(n, n)
        neighbours = (
            (cells, cells),
            (cells[1:], cells[:-1]),
            (cells[:-1], cells[1:]),
            (cells[:, 1:], cells[:, :-1]),
            (cells[:, :-1], cells[:, 1:]),
        )
        rows = np.concatenate([r.ravel() for r, _ in neighbours])
        columns = np.concatenate([c.ravel() for _, c in neighbours])
        stencil = np.concatenate([np.full(r.size, k) for k, (r, _) in enumerate(neighbours)])
        order = np.lexsort((columns, rows))
        self.indices = columns[order].astype(np.int32)
        self.indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=n * n))]).astype(np.int32)
        self._take = (stencil * n * n + rows)[order]
        self._stencil = np.empty((5, n, n))

    @property
    def pattern(self) -> tuple[np.ndarray, np.ndarray]:
        """`indptr` and sorted `indices`."""
        return self.indptr, self.indices

    def fill(self, values: np.ndarray, diagonal: object, south: object, north: object, west: object, east: object) -> None:
        """Write the CSR values; each argument broadcasts to (n, n)."""
        for k, coefficient in enumerate((diagonal, south, north, west, east)):
            self._stencil[k] = coefficient
        np.take(self._stencil.reshape(-1), self._take, out=values)


def transmissibilities(a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Face transmissibilities of a cell-wise coefficient a (n, n): harmonic means inside, 2a at the walls.

    Returns those of the y-faces, (n + 1, n), and of the x-faces, (n, n + 1).  Distances and areas cancel in two
    dimensions, except at a wall, which is half a cell away.
    """
    n = a.shape[0]
    across_y, across_x = np.empty((n + 1, n)), np.empty((n, n + 1))
    across_y[1:-1] = 2 * a[1:] * a[:-1] / (a[1:] + a[:-1])
    across_y[0], across_y[-1] = 2 * a[0], 2 * a[-1]
    across_x[:, 1:-1] = 2 * a[:, 1:] * a[:, :-1] / (a[:, 1:] + a[:, :-1])
    across_x[:, 0], across_x[:, -1] = 2 * a[:, 0], 2 * a[:, -1]
    return across_y, across_x

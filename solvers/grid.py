"""Cell-centred five-point finite volumes on the unit square: sparsity once, values by one gather a sample.

Equations are integrated over the cells and stay multiplied by the cell's area h²: a row of `-∇·(a∇u) = f` reads
Σ T (u_cell - u_neighbour) = f h², with the transmissibility T of each face.  Walls have Dirichlet values, half a cell
away from the nearest centre.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from forebay.pipeline.records import Coordinate


@dataclass(frozen=True)
class Grid:
    """n x n cells of side h = 1/n; cell (i, j) has its centre at y = (i + 1/2) h, x = (j + 1/2) h; row-major numbering.

    Raises:
        ValueError: fewer than two cells a side.
    """

    n: int

    def __post_init__(self) -> None:
        if self.n < 2:
            raise ValueError(f"a grid of {self.n} cells a side has no inner face; it needs at least 2")

    @property
    def h(self) -> float:
        """Side of a cell, [m]."""
        return 1.0 / self.n

    @property
    def shape(self) -> tuple[int, int]:
        """Of a field: (y, x)."""
        return self.n, self.n

    @cached_property
    def centres(self) -> np.ndarray:
        """Cell centres along one axis, shape (n,)."""
        return (np.arange(self.n) + 0.5) * self.h

    @property
    def coordinates(self) -> tuple[Coordinate, ...]:
        """The axes y and x for a schema."""
        return tuple(Coordinate(name, (name,), self.centres, "m") for name in ("y", "x"))

    @cached_property
    def stencil(self) -> FivePoint:
        """Sparsity of this grid and its scratch arrays; for one thread at a time."""
        return FivePoint(self.n)


class FivePoint:
    """CSR pattern of the five-point stencil on n x n cells, and the place of each coupling in it.

    Every filler writes the CSR values (nnz,) in place, by one gather that was planned when the object was made.
    Where the two cells at a face share its entry, as in diffusion, one array holds the diagonal and the entries of all
    faces, 3 n² numbers; else each neighbour has an array of its own, 5 n².
    """

    def __init__(self, n: int) -> None:
        self._n = n
        cells = np.arange(n * n, dtype=np.int64).reshape(n, n)
        _, across_y, across_x = _split(np.arange(_entries_of(n)), n)
        # Rows, columns, and the face between the two, by direction; the first is the diagonal.
        couplings = (
            (cells, cells, cells),
            (cells[1:], cells[:-1], across_y[1:-1]),
            (cells[:-1], cells[1:], across_y[1:-1]),
            (cells[:, 1:], cells[:, :-1], across_x[:, 1:-1]),
            (cells[:, :-1], cells[:, 1:], across_x[:, 1:-1]),
        )
        rows, columns, entries = (np.concatenate([c[k].ravel() for c in couplings]) for k in range(3))
        plane = np.concatenate([np.full(c[0].size, k) for k, c in enumerate(couplings)])
        order = np.lexsort((columns, rows))
        self.indices = columns[order].astype(np.int32)
        self.indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=n * n))]).astype(np.int32)
        self.diagonal = np.flatnonzero(plane[order] == 0)
        """Positions of the diagonal in the values, by row, (n²,)."""
        self._take = (plane * n * n + rows)[order]
        self._take_entries = entries[order]
        self._planes = np.empty((5, n, n))
        self._entries = np.empty(_entries_of(n))
        self._halves = np.empty((n, n))

    def __reduce__(self) -> tuple[type[FivePoint], tuple[int]]:
        return FivePoint, (self._n,)

    @property
    def pattern(self) -> tuple[np.ndarray, np.ndarray]:
        """`indptr` (n² + 1,) and sorted `indices` (nnz,), int32."""
        return self.indptr, self.indices

    @cached_property
    def laplacian(self) -> np.ndarray:
        """Values (nnz,) of -Δ h²; read-only."""
        values = np.empty(len(self.indices))
        self.fill_diffusion(values, np.ones(self._planes.shape[1:]))
        values.setflags(write=False)
        return values

    def fill(
        self, values: np.ndarray, *, south: np.ndarray, north: np.ndarray, west: np.ndarray, east: np.ndarray
    ) -> None:
        """Rows Σ c (u_cell - u_neighbour) with couplings c, each (n, n), to the cell at y - h, y + h, x - h and x + h.

        Couplings to a wall stay in the diagonal; c times the wall's value belongs to the right-hand side.
        """
        couplings = (south, north, west, east)
        for plane, coupling in zip(self._planes[1:], couplings, strict=True):
            np.negative(coupling, out=plane)
        diagonal = self._planes[0]
        np.add(south, north, out=diagonal)
        diagonal += west
        diagonal += east
        # Every index is valid by construction; only mode "raise" would gather into a second buffer first.
        np.take(self._planes.reshape(-1), self._take, out=values, mode="clip")

    def fill_diffusion(self, values: np.ndarray, a: np.ndarray) -> None:
        """-∇·(a ∇u) h² for cell-wise a (n, n) > 0; symmetric positive definite, second order where a is smooth."""
        diagonal, across_y, across_x = _split(self._entries, self._n)
        halves = np.divide(-0.5, a, out=self._halves)  # negative, as the entries off the diagonal are
        _sum_halves(across_y, halves)
        _sum_halves(across_x.T, halves.T)
        faces = self._entries[self._n**2 :]
        np.reciprocal(faces, out=faces)
        np.add(across_y[:-1], across_y[1:], out=diagonal)
        diagonal += across_x[:, :-1]
        diagonal += across_x[:, 1:]
        np.negative(diagonal, out=diagonal)
        np.take(self._entries, self._take_entries, out=values, mode="clip")

    def fill_transport(self, values: np.ndarray, flux_y: np.ndarray, flux_x: np.ndarray) -> None:
        """(-Δu + F·∇u) h², upwind, for the divergence-free fluxes F h through the faces, (n + 1, n) and (n, n + 1).

        What leaves a cell equals what enters it, so each row is the sum of inflow · (u_cell - u_upstream): an M-matrix
        at any speed, first order in the convective part.
        """
        unit_y, unit_x = self._unit_faces
        upward, rightward = np.maximum(flux_y, 0.0), np.maximum(flux_x, 0.0)
        downward, leftward = upward - flux_y, rightward - flux_x
        for inflow, unit in ((upward, unit_y), (downward, unit_y), (rightward, unit_x), (leftward, unit_x)):
            inflow += unit
        self.fill(values, south=upward[:-1], north=downward[1:], west=rightward[:, :-1], east=leftward[:, 1:])

    @cached_property
    def _unit_faces(self) -> tuple[np.ndarray, np.ndarray]:
        return transmissibilities(np.ones(self._planes.shape[1:]))


def transmissibilities(a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Face transmissibilities of a cell-wise coefficient a (n, n) > 0: harmonic means inside, 2a at the walls.

    T = 1 / (R₁ + R₂) with the resistance R = 1/(2a) of half a cell; a wall is half a cell away.  Returns those of the
    y-faces, (n + 1, n), and of the x-faces, (n, n + 1); distances and areas cancel in two dimensions.
    """
    n = a.shape[0]
    resistance = 0.5 / a
    across_y, across_x = np.empty((n + 1, n)), np.empty((n, n + 1))
    _sum_halves(across_y, resistance)
    _sum_halves(across_x.T, resistance.T)
    return np.reciprocal(across_y, out=across_y), np.reciprocal(across_x, out=across_x)


def _entries_of(n: int) -> int:
    return n * n + 2 * n * (n + 1)


def _split(flat: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Views of the cells (n, n), the y-faces (n + 1, n) and the x-faces (n, n + 1)."""
    cells, faces = n * n, n * (n + 1)
    return (
        flat[:cells].reshape(n, n),
        flat[cells : cells + faces].reshape(n + 1, n),
        flat[cells + faces :].reshape(n, n + 1),
    )


def _sum_halves(faces: np.ndarray, halves: np.ndarray) -> None:
    """At each face along the first axis the sum of the halves on its two sides; one half at a wall."""
    np.add(halves[1:], halves[:-1], out=faces[1:-1])
    faces[0], faces[-1] = halves[0], halves[-1]


def walls(cells: np.ndarray) -> tuple[np.ndarray, ...]:
    """Views of the cells at y = 0, y = 1, x = 0 and x = 1 of a field (n, n); a corner cell belongs to two walls."""
    return cells[0], cells[-1], cells[:, 0], cells[:, -1]

"""Cell-centred seven-point finite volumes on the unit cube: sparsity once, values by one gather a sample.

The three-dimensional sibling of `solvers.grid`.  Equations are integrated over the cells and stay multiplied by the
cell's volume h³: a row of `-∇·(a∇u) = f` reads Σ T (u_cell - u_neighbour) = f h³, with the transmissibility T of each
face (its area h² over the distance h is part of T here; in two dimensions they cancel).  Walls have Dirichlet values,
half a cell away from the nearest centre.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from forebay.pipeline.records import Coordinate


@dataclass(frozen=True)
class Grid3:
    """n x n x n cells of side h = 1/n; cell (i, j, l) has its centre at (z, y, x) = (i + 1/2, j + 1/2, l + 1/2) h.

    Row-major numbering: x is the fastest axis.

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
    def shape(self) -> tuple[int, int, int]:
        """Of a field: (z, y, x)."""
        return self.n, self.n, self.n

    @cached_property
    def centres(self) -> np.ndarray:
        """Cell centres along one axis, shape (n,)."""
        return (np.arange(self.n) + 0.5) * self.h

    @property
    def coordinates(self) -> tuple[Coordinate, ...]:
        """The axes z, y and x for a schema."""
        return tuple(Coordinate(name, (name,), self.centres, "m") for name in ("z", "y", "x"))

    @cached_property
    def stencil(self) -> SevenPoint:
        """Sparsity of this grid and its scratch arrays; for one thread at a time."""
        return SevenPoint(self.n)


class SevenPoint:
    """CSR pattern of the seven-point stencil on n x n x n cells, and the place of each face in it.

    Symmetric operators only: the two cells at a face share its entry.  So one array holds the diagonal and the entries
    of all faces, 4 n³ numbers instead of the 7 n³ of one array a neighbour, and one gather, planned when the object is
    made, puts them in CSR order.
    """

    def __init__(self, n: int) -> None:
        self._n = n
        self._entries = np.empty(n**3 + 3 * n * n * (n + 1))
        self._diagonal, *self._faces = _split(self._entries, n)
        self._halves = np.empty((n, n, n))
        # The seven entries of each row, by ascending column; those beyond a wall drop out, and the rest is CSR order.
        centre, across_z, across_y, across_x = _split(np.arange(self._entries.size), n)
        south_to_north = (across_z[:-1], across_y[:, :-1], across_x[:, :, :-1], centre, across_x[:, :, 1:])
        sources = np.stack([*south_to_north, across_y[:, 1:], across_z[1:]], axis=-1)
        inside = np.ones(sources.shape, dtype=bool)
        inside[0, :, :, 0] = inside[:, 0, :, 1] = inside[:, :, 0, 2] = False
        inside[:, :, -1, 4] = inside[:, -1, :, 5] = inside[-1, :, :, 6] = False
        columns = centre.astype(np.int32)[..., None] + np.array([-n * n, -n, -1, 0, 1, n, n * n], dtype=np.int32)
        self.indices = columns[inside]
        self.indptr = np.concatenate([[0], np.cumsum(inside.sum(axis=-1))]).astype(np.int32)
        self._take = sources[inside]
        self.diagonal = np.flatnonzero(self._take < n**3)
        """Positions of the diagonal in the values, by row, (n³,)."""

    def __reduce__(self) -> tuple[type[SevenPoint], tuple[int]]:
        # Pickled by parts, the views of the entries would come back as arrays of their own.
        return SevenPoint, (self._n,)

    @property
    def pattern(self) -> tuple[np.ndarray, np.ndarray]:
        """`indptr` (n³ + 1,) and sorted `indices` (nnz,), int32."""
        return self.indptr, self.indices

    @cached_property
    def laplacian(self) -> np.ndarray:
        """Values (nnz,) of -Δ h³; read-only."""
        values = np.empty(len(self.indices))
        self.fill_diffusion(values, np.ones(self._diagonal.shape))
        values.setflags(write=False)
        return values

    def fill_diffusion(self, values: np.ndarray, a: np.ndarray) -> None:
        """-∇·(a ∇u) h³ for cell-wise a (n, n, n) > 0, in place; symmetric positive definite.

        T = 1 / (R₁ + R₂) with the resistance R = 1/(2 a h) of half a cell: harmonic means of a inside, 2a at the walls,
        where one half cell lies between centre and wall.  Second order where a is smooth.
        """
        halves = np.divide(-0.5 * self._n, a, out=self._halves)  # negative, as the entries off the diagonal are
        for axis, faces in enumerate(self._faces):
            _sum_halves(np.moveaxis(faces, axis, 0), np.moveaxis(halves, axis, 0))
        entries = self._entries[self._n**3 :]
        np.reciprocal(entries, out=entries)
        across_z, across_y, across_x = self._faces
        diagonal = np.add(across_z[:-1], across_z[1:], out=self._diagonal)
        for face in (across_y[:, :-1], across_y[:, 1:], across_x[:, :, :-1], across_x[:, :, 1:]):
            diagonal += face
        np.negative(diagonal, out=diagonal)
        # Every index is valid by construction; only mode "raise" would gather into a second buffer first.
        np.take(self._entries, self._take, out=values, mode="clip")


def _split(flat: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Views of the cells (n, n, n) and of the z-faces (n + 1, n, n), y-faces (n, n + 1, n), x-faces (n, n, n + 1)."""
    cells, faces = n**3, n * n * (n + 1)
    parts = np.split(flat, [cells, cells + faces, cells + 2 * faces])
    shapes = ((n, n, n), (n + 1, n, n), (n, n + 1, n), (n, n, n + 1))
    centre, across_z, across_y, across_x = (part.reshape(shape) for part, shape in zip(parts, shapes, strict=True))
    return centre, across_z, across_y, across_x


def _sum_halves(faces: np.ndarray, halves: np.ndarray) -> None:
    """At each face along the first axis the sum of the halves on its two sides; one half at a wall."""
    np.add(halves[1:], halves[:-1], out=faces[1:-1])
    faces[0], faces[-1] = halves[0], halves[-1]

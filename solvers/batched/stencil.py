"""Five- and seven-point stencils read off an assembled CSR matrix: one gather an axis, planned once for a pattern."""

from __future__ import annotations

import math

import numpy as np

from forebay.pipeline.errors import StudyError

Faces = tuple[np.ndarray, ...]

ROUNDING = 16 * float(np.finfo(np.float64).eps)
"""Of a row's diagonal: what a sum of seven entries that cancel leaves."""


class StencilReader:
    """Where the faces of a box of cells stand in the values of a CSR pattern.

    (A u)ᵢ = Σ_{faces (i, j)} T (uᵢ - uⱼ) + sᵢ uᵢ: T = -A[i, j] of the face between two neighbours, and s, the sum of
    the row, is what reaction and Dirichlet walls put there.  The matrix must be symmetric; only its upper half is read.

    Raises:
        StudyError: the pattern is no such stencil.
    """

    def __init__(self, indptr: np.ndarray, indices: np.ndarray, grid: tuple[int, ...]) -> None:
        fault = stencil_fault(indptr, indices, grid)
        if fault:
            raise StudyError(f"a stencil solver {fault}")
        self.grid = tuple(grid)
        rows = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
        self._starts = np.asarray(indptr[:-1], dtype=np.intp)
        self._diagonal = np.flatnonzero(rows == indices)
        self._upper = tuple(self._positions(rows, indices, axis) for axis in range(len(grid)))

    def _positions(self, rows: np.ndarray, indices: np.ndarray, axis: int) -> np.ndarray:
        """Of the entries A[i, i + stride], by face."""
        stride = math.prod(self.grid[axis + 1 :])
        if self.grid[axis] == 1:  # its stride is that of another axis
            return np.empty(self._face_shape(axis), dtype=np.intp)
        return np.flatnonzero(indices - rows == stride).reshape(self._face_shape(axis))

    def _face_shape(self, axis: int) -> tuple[int, ...]:
        return tuple(n - (k == axis) for k, n in enumerate(self.grid))

    def allocate(self, count: int) -> tuple[Faces, np.ndarray]:
        """Zeros for the faces (by axis, slowest first) and the reaction of that many systems."""
        faces = tuple(np.zeros((count, *self._face_shape(axis))) for axis in range(len(self.grid)))
        return faces, np.zeros((count, *self.grid))

    def read(self, values: np.ndarray, faces: Faces, reaction: np.ndarray) -> str:
        """Fill the faces and the reaction of one system from its values (nnz,); what is wrong with them, or ""."""
        for face, positions in zip(faces, self._upper, strict=True):
            # Every index is valid by construction; only mode "raise" would gather into a second buffer first.
            np.take(values, positions, out=face, mode="clip")
            np.negative(face, out=face)
        np.add.reduceat(values, self._starts, out=reaction.reshape(-1))
        scale = np.abs(values[self._diagonal]).reshape(self.grid)
        # What cancels to rounding is zero: a negative rest would not be positive definite, a positive one hides that a
        # system without a Dirichlet wall is singular.
        reaction[np.abs(reaction) <= ROUNDING * scale] = 0.0
        if any((face < 0).any() for face in faces):
            return "an entry off the diagonal is positive: the stencil solver takes M-matrices only, direct takes all"
        if (reaction < 0).any():
            return "a row sums up to less than zero: the stencil solver needs dominant diagonals, direct does not"
        return ""


def stencil_fault(indptr: np.ndarray, indices: np.ndarray, grid: tuple[int, ...] | None) -> str:
    """Why a pattern is not the five- or seven-point stencil of a grid, as the end of a sentence; "" where it is."""
    instead = 'use method = "direct", or "cg" with preconditioner = "gamg"'
    if grid is None:
        return f"needs a problem on a structured grid (one with `grid_shape`); {instead}"
    if len(grid) not in (2, 3):
        return f"needs a grid of two or three axes, grid_shape = {grid} has {len(grid)}; {instead}"
    points = 2 * len(grid) + 1
    rows = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    away = np.abs(np.stack(np.unravel_index(indices, grid)) - np.stack(np.unravel_index(rows, grid))).sum(axis=0)
    if (strange := np.flatnonzero(away > 1)).size:
        i, j = rows[strange[0]], indices[strange[0]]
        return (
            f"needs the {points}-point stencil of neighbouring cells, but the pattern couples cells {i} and {j} of the "
            f"grid {' x '.join(map(str, grid))}, which share no face (up to {np.diff(indptr).max()} entries a row); "
            f"{instead}"
        )
    faces = sum(math.prod(n - (k == axis) for k, n in enumerate(grid)) for axis in range(len(grid)))
    missing = math.prod(grid) + 2 * faces - len(indices)
    if missing:
        return (
            f"needs the whole {points}-point stencil, but the pattern lacks {missing} of its "
            f"{len(indices) + missing} entries; add explicit zeros, or {instead}"
        )
    return ""

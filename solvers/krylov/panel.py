"""Products of a matrix with several vectors at once, which read the matrix once for four vectors."""

from __future__ import annotations

from typing import Any

import numpy as np

from forebay.solvers.petsc import petsc


class Panel:
    """Eight vectors at a time as dense matrices, float64 as PETSc wants them."""

    WIDTH = 8

    def __init__(self, matrix: Any) -> None:
        PETSc = petsc()
        n = matrix.getSize()[0]
        self._matrix = matrix
        self._x, self._y = (np.zeros((self.WIDTH, n)) for _ in range(2))
        # A C-ordered (width, n) array is PETSc's column-major n × width.
        self._x_mat, self._y_mat = (
            PETSc.Mat().createDense((n, self.WIDTH), array=array.reshape(-1), comm=PETSc.COMM_SELF)
            for array in (self._x, self._y)
        )

    def multiply(self, vectors: np.ndarray, images: np.ndarray) -> None:
        """Write A u for every row u."""
        for start in range(0, len(vectors), self.WIDTH):
            part = vectors[start : start + self.WIDTH]
            self._x[: len(part)] = part
            self._matrix.matMult(self._x_mat, result=self._y_mat)
            images[start : start + len(part)] = self._y[: len(part)]

    def destroy(self) -> None:
        """Free PETSc's side."""
        self._x_mat.destroy()
        self._y_mat.destroy()

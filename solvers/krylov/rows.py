"""Dot products of vectors whose entries are spread over processes: local BLAS, then one sum of a few numbers."""

from __future__ import annotations

from typing import Any

import numpy as np


class Rows:
    """Reductions over the communicator of a PETSc object; without communication when it is of size one."""

    def __init__(self, communicator: Any) -> None:
        self._comm = communicator.tompi4py() if communicator.size > 1 else None

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Elementwise over all processes; the same bits on each of them."""
        return values if self._comm is None else self._comm.allreduce(values)

    def all(self, condition: bool) -> bool:
        """Does it hold on every process?"""
        return condition if self._comm is None else bool(self._comm.allreduce(int(condition)) == self._comm.size)

    def largest(self, vector: np.ndarray) -> float:
        """Max |v| over all processes; NaN if any entry is."""
        own = float(np.abs(vector).max(initial=0.0))
        return own if self._comm is None else float(np.max(self._comm.allgather(own)))

    def norm(self, vector: np.ndarray) -> float:
        """‖v‖₂ of a float64 vector."""
        return float(np.sqrt(self.sum(np.dot(vector, vector))))

    def dots(self, basis: np.ndarray, vector: np.ndarray) -> np.ndarray:
        """Products of every row of a basis (rows, n) with a vector (n,), in float64 (rows,)."""
        return self.sum((basis @ vector.astype(basis.dtype, copy=False)).astype(np.float64))

    def gram(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Products of all rows of two bases, in float64."""
        return self.sum((first @ second.T).astype(np.float64))

"""The proof of an answer: its residual by the assembled CSR matrix, which no kernel has touched."""

from __future__ import annotations

import time

import numpy as np
from scipy.linalg.blas import dnrm2
from scipy.sparse import csr_array

from forebay.pipeline.records import Outcome
from forebay.solvers.batched.engine import Answer


class Certificate:
    """‖b - A x‖₂ / ‖b‖₂ in float64, A by its CSR values; the kernels only ever see its faces and row sums."""

    def __init__(self, indptr: np.ndarray, indices: np.ndarray, rtol: float) -> None:
        n = len(indptr) - 1
        self._matrix = csr_array((np.zeros(len(indices)), indices, indptr), shape=(n, n))
        self._rtol = rtol
        self.seconds = 0.0
        """Spent here so far."""

    def residual(self, values: np.ndarray, x: np.ndarray, rhs: np.ndarray) -> float:
        """Of values (nnz,), x and rhs (n,); 0 where b and the residual are zero, inf where b alone is."""
        start = time.perf_counter()
        self._matrix.data = values
        with np.errstate(over="ignore", invalid="ignore"):  # the residual says it
            size, norm = float(dnrm2(rhs - self._matrix @ x)), float(dnrm2(rhs))
        self.seconds += time.perf_counter() - start
        if norm == 0.0:
            return 0.0 if size == 0.0 else float("inf")
        return size / norm

    def judge(self, answer: Answer, residual: float) -> tuple[Outcome, str]:
        """Outcome and message: only the residual says that a sample converged, the kernel at most why it did not."""
        if residual <= self._rtol:
            return Outcome.CONVERGED, ""
        if answer.outcome is not Outcome.CONVERGED:
            return answer.outcome, answer.message
        return (
            Outcome.RESIDUAL_ABOVE_TOLERANCE if np.isfinite(residual) else Outcome.NONFINITE_SOLUTION,
            "the kernel's residual of the stencil was within the tolerance, that of the matrix is not; is the matrix "
            "symmetric?",
        )

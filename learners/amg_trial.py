"""Solves that decide whether weights are published: iterations on matrices of the run that were held back."""

from __future__ import annotations

import math

import numpy as np
from scipy.sparse import csr_array

from forebay.kernels.amg.solver import AmgSolver
from forebay.kernels.amg.weights import AmgWeights

RTOL, MOST = 1e-8, 2_000
"""Of the solves."""
_SMALLEST = 1e-300
"""Of a residual in a logarithm."""


class AmgTrial:
    """Whole matrices (k, nnz) of one pattern, each with a random right-hand side; values are copied.

    Training follows a few iterations on two levels; these solves have all levels and go to the end.

    Args:
        reference: what the aggregates come from.
        values: entries of the matrices.
        seed: of the right-hand sides.
    """

    def __init__(self, reference: csr_array, values: np.ndarray, *, seed: int) -> None:
        self._solver = AmgSolver(reference.indptr, reference.indices, reference.data, guard=False)
        self._values = values.copy()
        self._rhs = np.random.default_rng(seed).standard_normal((len(values), reference.shape[0]))

    def iterations(self, weights: AmgWeights) -> float:
        """Geometric mean of the iterations to 1e-8, in fractions: k ln(1e-8) / ln(residual); inf where one fails."""
        self._solver.use(weights)
        logarithms = []
        for values, rhs in zip(self._values, self._rhs, strict=True):
            self._solver.setup(values)
            _, (record,) = self._solver.solve(rhs, rtol=RTOL, max_iterations=MOST)
            if not record.valid:
                return math.inf
            residual = max(record.residual, _SMALLEST)
            logarithms.append(math.log(record.iterations * math.log(RTOL) / math.log(residual)))
        return math.exp(math.fsum(logarithms) / len(logarithms))

"""The chosen columns of a nonnegative least-squares problem, with the factor that makes one more of them cheap."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import cho_solve, solve_triangular

_DEPENDENT = 1e-12
"""A unit column is refused when the square of its distance from the span of the others is below this."""
_ZERO = 1e-14
"""Weights below this part of the largest are zero."""


@dataclass(frozen=True, slots=True, eq=False)
class PassiveSet:
    """Columns A = [g / |g|] with weights y > 0 that minimise |A y - b|, as a value: every change makes a new one.

    L Lᵀ = Aᵀ A grows by one row for a new column, at the cost of Aᵀ a; it is made anew when columns leave.
    Unit columns keep Aᵀ A well scaled, one step of iterative refinement makes up for its squared condition.
    """

    target: np.ndarray
    """b (rows,)."""
    keys: np.ndarray
    """What the caller calls the columns, (m,) int64."""
    columns: np.ndarray
    """Aᵀ (m, rows)."""
    norms: np.ndarray
    """|g| (m,)."""
    gram: np.ndarray
    """Aᵀ A (m, m)."""
    factor: np.ndarray
    """L (m, m), lower triangle."""
    scaled: np.ndarray
    """y = weight × |g|, (m,)."""

    @classmethod
    def empty(cls, target: np.ndarray) -> PassiveSet:
        """No columns yet."""
        none, square = np.empty(0), np.empty((0, 0))
        return cls(target, np.empty(0, dtype=np.int64), np.empty((0, len(target))), none, square, square, none)

    def __len__(self) -> int:
        """Columns, m."""
        return len(self.keys)

    @property
    def weights(self) -> np.ndarray:
        """Of the columns as they were given, (m,)."""
        return self.scaled / self.norms

    def residual(self) -> np.ndarray:
        """What is missed, b - A y, (rows,)."""
        return self.target - self.scaled @ self.columns

    def with_column(self, key: int, column: np.ndarray) -> PassiveSet | None:
        """With one column (rows,) more, of weight zero; None if it lies in the span of the others."""
        norm = np.linalg.norm(column)
        unit = column / norm
        products = self.columns @ unit
        row = solve_triangular(self.factor, products, lower=True, check_finite=False) if len(self) else products
        pivot = 1.0 - row @ row
        if pivot < _DEPENDENT:
            return None
        return PassiveSet(
            self.target,
            np.append(self.keys, np.int64(key)),
            np.vstack([self.columns, unit]),
            np.append(self.norms, norm),
            _bordered(self.gram, products, products, 1.0),
            _bordered(self.factor, row, np.zeros(len(row)), np.sqrt(pivot)),
            np.append(self.scaled, 0.0),
        )

    def without(self, gone: np.ndarray) -> PassiveSet:
        """Without the columns of a mask (m,); the weights of the others stay."""
        kept = ~gone
        gram = self.gram[np.ix_(kept, kept)]
        return PassiveSet(
            self.target,
            self.keys[kept],
            self.columns[kept],
            self.norms[kept],
            gram,
            np.linalg.cholesky(gram),
            self.scaled[kept],
        )

    def settled(self) -> PassiveSet:
        """Least squares with positive weights: the inner loop of Lawson and Hanson.

        Towards the unconstrained solution as far as weights stay positive, out with those that reach zero, again.
        The residual norm never grows.
        """
        state = self
        while len(state):
            solution = state._least_squares()
            if np.all(solution > 0):
                return replace(state, scaled=solution)
            blocked = solution <= 0
            room = state.scaled - solution
            steps = np.divide(state.scaled, room, out=np.zeros(len(state)), where=blocked & (room > 0))
            steps[~blocked] = np.inf
            first = int(np.argmin(steps))
            moved = state.scaled + steps[first] * (solution - state.scaled)
            gone = blocked & (moved <= _ZERO * moved.max())
            gone[first] = True
            state = replace(state, scaled=moved).without(gone)
        return state

    def uniform(self) -> PassiveSet:
        """The same columns with equal y of the best size, a feasible start for `settled`."""
        together = self.columns.sum(axis=0)
        size = max(together @ self.target, np.finfo(float).tiny) / max(together @ together, np.finfo(float).tiny)
        return replace(self, scaled=np.full(len(self), size))

    def removal_costs(self) -> np.ndarray:
        """By how much |A y - b|² grows without each column, (m,), if the others may take any weight.

        yᵢ² / [(Aᵀ A)⁻¹]ᵢᵢ at the least-squares solution.
        """
        inverse = solve_triangular(self.factor, np.eye(len(self)), lower=True, check_finite=False)
        return self.scaled**2 / np.einsum("ij,ij->j", inverse, inverse)

    def _least_squares(self) -> np.ndarray:
        factor = (self.factor, True)
        solution = cho_solve(factor, self.columns @ self.target, check_finite=False)
        remainder = self.target - solution @ self.columns
        return solution + cho_solve(factor, self.columns @ remainder, check_finite=False)


def _bordered(matrix: np.ndarray, row: np.ndarray, column: np.ndarray, corner: float) -> np.ndarray:
    """[[matrix, column], [row, corner]]."""
    size = len(matrix)
    grown = np.empty((size + 1, size + 1))
    grown[:size, :size], grown[size, :size], grown[:size, size], grown[size, size] = matrix, row, column, corner
    return grown

"""One cycle of flexible Arnoldi, kept orthogonal to a recycled image, with the least-squares problem of GMRES."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.linalg import solve_triangular

from forebay.solvers.krylov.rows import Rows

Apply = Callable[[], None]

_CANCELLED = 0.1
"""A second Gram-Schmidt pass is made when the first left less than this of the vector."""


@dataclass(slots=True, eq=False)
class Bases:
    """Row-major storage of a cycle, allocated once: A [U Z] = [C V] G, with `images` = [C; V] and `directions` = Z."""

    images: np.ndarray
    """(recycle + restart + 1, n)."""
    directions: np.ndarray
    """(restart, n): M⁻¹ v of every Krylov vector v, so that the preconditioner may change from step to step."""

    @classmethod
    def allocate(cls, restart: int, recycle: int, unknowns: int, dtype: np.dtype) -> Bases:
        """Zeros."""
        return cls(np.zeros((recycle + restart + 1, unknowns), dtype), np.zeros((restart, unknowns), dtype))


@dataclass(slots=True, eq=False)
class Cycle:
    """What one cycle found."""

    coupling: np.ndarray
    """G without its first k columns, shape (k + j + 1, j): A Z = [C V] G."""
    coefficients: np.ndarray
    """y (j,), the minimiser of ‖r - A Z y‖ over the complement of C."""
    broke_down: bool
    """A Krylov vector was zero or not finite: nothing more to gain from this cycle."""
    stopped: bool
    """The monitor asked to end the solve."""

    @property
    def steps(self) -> int:
        """Krylov vectors, j."""
        return len(self.coefficients)


def run_cycle(
    bases: Bases,
    rows: Rows,
    *,
    recycled: int,
    inverse_gram: np.ndarray | None,
    start: np.ndarray,
    vectors: tuple[np.ndarray, np.ndarray, np.ndarray],
    apply: Apply,
    steps: int,
    tolerance: float,
    monitor: Callable[[float], bool] | None,
) -> Cycle:
    """Arnoldi from the residual `start` until the estimate |g| falls to `tolerance`, at most `steps` times.

    `vectors` = (v, z, w) are shared with PETSc: `apply` computes z = M⁻¹ v and w = A z.  C's rows need not be
    orthonormal: `inverse_gram` is (C Cᵀ)⁻¹.  `monitor` sees every estimate and may end the solve.
    """
    v, z, w = vectors
    k = recycled
    norm = rows.norm(start)
    coupling = np.zeros((k + steps + 1, steps))
    least_squares = _LeastSquares(steps, norm)
    np.multiply(start, 1.0 / norm, out=v)
    bases.images[k] = v
    broke_down = stopped = False
    for j in range(steps):
        apply()
        bases.directions[j] = z
        column, length = _orthogonalise(w, bases.images[: k + j + 1], rows, k, inverse_gram)
        if not np.isfinite(length):
            broke_down, steps = True, j
            break
        coupling[: k + j + 1, j] = column
        coupling[k + j + 1, j] = length
        estimate = least_squares.append(coupling[k : k + j + 2, j])
        stopped = monitor is not None and monitor(estimate)
        if length > 0:
            np.multiply(w, 1.0 / length, out=v)
            bases.images[k + j + 1] = v
        if estimate <= tolerance or length == 0 or stopped:
            broke_down, steps = length == 0, j + 1
            break
    return Cycle(coupling[: k + steps + 1, :steps], least_squares.solve(steps), broke_down, stopped)


def _orthogonalise(
    w: np.ndarray, basis: np.ndarray, rows: Rows, recycled: int, inverse_gram: np.ndarray | None
) -> tuple[np.ndarray, float]:
    """Classical Gram-Schmidt of w against [C; V] in place; returns the coefficients and what is left of ‖w‖."""
    column = np.zeros(len(basis))
    for _ in range(2):
        products = rows.dots(basis, w)
        weights = products.copy()
        if inverse_gram is not None:
            weights[:recycled] = inverse_gram @ products[:recycled]
        w -= weights.astype(basis.dtype) @ basis
        column += weights
        after = rows.norm(w)
        removed = float(products @ weights)  # ‖w‖² lost, since V is orthonormal and C's Gram matrix is in the weights
        if not after**2 < _CANCELLED**2 * (after**2 + removed):
            break
    return column, after


class _LeastSquares:
    """min ‖β e₁ - H y‖ by Givens rotations, one column at a time."""

    def __init__(self, steps: int, beta: float) -> None:
        self._triangle = np.zeros((steps + 1, steps))
        self._rotations: list[tuple[float, float]] = []
        self._rhs = np.zeros(steps + 1)
        self._rhs[0] = beta

    def append(self, column: np.ndarray) -> float:
        """Take the next column (j + 2,) of H; returns the norm of the remaining residual."""
        j = len(self._rotations)
        rotated = column.tolist()
        for i, (cosine, sine) in enumerate(self._rotations):
            upper, lower = rotated[i], rotated[i + 1]
            rotated[i], rotated[i + 1] = cosine * upper + sine * lower, cosine * lower - sine * upper
        length = float(np.hypot(rotated[j], rotated[j + 1]))
        cosine, sine = (rotated[j] / length, rotated[j + 1] / length) if length > 0 else (1.0, 0.0)
        self._rotations.append((cosine, sine))
        rotated[j] = length
        self._triangle[: j + 1, j] = rotated[: j + 1]
        self._rhs[j + 1] = -sine * self._rhs[j]
        self._rhs[j] *= cosine
        return abs(float(self._rhs[j + 1]))

    def solve(self, steps: int) -> np.ndarray:
        """Coefficients y (steps,); directions that A maps to nothing are left out."""
        triangle = self._triangle[:steps, :steps]
        diagonal = np.abs(np.diag(triangle))
        if steps == 0 or diagonal.min() > 1e-14 * diagonal.max():
            return solve_triangular(triangle, self._rhs[:steps]) if steps else np.zeros(0)
        return np.linalg.lstsq(triangle, self._rhs[:steps], rcond=1e-14)[0]

"""Conjugate gradients in float64 with a cycle in float32 or float64, several right-hand sides at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from forebay.kernels.amg.krylov import advance, dot, multiply_dot, redirect, residual, scaled
from forebay.kernels.records import Outcome

if TYPE_CHECKING:
    from forebay.kernels.amg.hierarchy import Hierarchy

Matrix = tuple[np.ndarray, np.ndarray, np.ndarray]
"""indptr, indices (unsigned) and float64 values, CSR."""
Cycle = Callable[[np.ndarray], np.ndarray]
"""r (n,) or (n, c) to B r; linear, symmetric positive definite, and the same up to a factor at every call."""
MOST_RESTARTS = 8
"""From the true residual; one is usual where the recurrence and the truth part below 1e-10."""
_PROGRESS = 0.5
"""A restart that leaves more than this share of the true residual ends the refinement of its column."""


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """How each column ended."""

    outcomes: list[Outcome]
    iterations: np.ndarray
    """Cycles that were applied to the column, (c,)."""
    refinements: np.ndarray
    """Corrections from the true residual, (c,)."""
    residuals: np.ndarray
    """True ‖b - A x‖ / ‖b‖, (c,)."""


class Workspace:
    """Vectors of the iteration for one shape, allocated once."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype) -> None:
        columns = shape[1] if len(shape) == 2 else 1
        self.shape = shape
        self.x, self.r, self.p, self.q = (np.zeros(shape) for _ in range(4))
        self.low = np.zeros(shape, dtype=dtype)
        self.products, self.squares = np.zeros(columns), np.zeros(columns)


@dataclass(slots=True, eq=False)
class Columns:
    """What is known of each column."""

    scale: np.ndarray
    """‖b‖; 1 for a zero right-hand side, whose residual is absolute then."""
    iterations: np.ndarray
    refinements: np.ndarray
    residuals: np.ndarray
    broken: np.ndarray
    """p·Ap <= 0 or r·Br <= 0 was met, or a number that is not finite."""
    stalled: np.ndarray


class Iteration(Protocol):
    """Where the conjugate gradients between two certificates run."""

    backend: str
    """For the records."""

    def set_up(self, matrix: Matrix, hierarchy: Hierarchy) -> None:
        """Take another matrix, which the hierarchy has been set up for; both change in place, before the next call."""

    def run(self, work: Workspace, columns: Columns, active: np.ndarray, rtol: float, max_iterations: int) -> None:
        """Correct `work.x` from `work.r` = b - A x in the active columns until their recurrences claim rtol ‖b‖.

        `work.squares` has ‖r‖².  Adds to `columns.iterations`, at most to `max_iterations`, and marks what is broken.
        """


class HostIteration:
    """On the processor, see `Iteration`."""

    backend = "cpu"

    def set_up(self, matrix: Matrix, hierarchy: Hierarchy) -> None:
        """See `Iteration`."""
        self._matrix, self._cycle = matrix, hierarchy.cycle

    def run(self, work: Workspace, columns: Columns, active: np.ndarray, rtol: float, max_iterations: int) -> None:
        """See `Iteration`."""
        _iterate(self._matrix, self._cycle, work, columns, active, rtol, max_iterations)


def solve(
    matrix: Matrix,
    iteration: Iteration,
    rhs: np.ndarray,
    work: Workspace,
    *,
    rtol: float,
    max_iterations: int,
) -> Result:
    """Solve A x = b from the guess in `work.x`, which the solution replaces.

    Args:
        matrix: A.
        iteration: set up for it.
        rhs: b, (n,) or (n, c) C-contiguous float64, finite.
        work: of this shape.
        rtol: of the true residual in float64, recomputed when the recurrence claims to be done.
        max_iterations: of a column, restarts included.
    """
    norms = np.linalg.norm(np.atleast_2d(rhs.T), axis=1)
    count = len(norms)
    columns = Columns(
        np.where(norms > 0, norms, 1.0),
        np.zeros(count, dtype=np.int64),
        np.zeros(count, dtype=np.int64),
        np.full(count, math.inf),
        np.zeros(count, dtype=bool),
        np.zeros(count, dtype=bool),
    )
    for restart in range(MOST_RESTARTS + 1):
        open_columns = _certify(matrix, rhs, work, columns, rtol, restart)
        open_columns &= columns.iterations < max_iterations
        if restart == MOST_RESTARTS or not open_columns.any():
            break
        columns.refinements += open_columns
        iteration.run(work, columns, open_columns, rtol, max_iterations)
    outcomes = [_outcome(columns, c, rtol, max_iterations) for c in range(count)]
    return Result(outcomes, columns.iterations, columns.refinements, columns.residuals)


def _certify(
    matrix: Matrix,
    rhs: np.ndarray,
    work: Workspace,
    columns: Columns,
    rtol: float,
    restart: int,
) -> np.ndarray:
    """Recompute the residuals; returns which columns go on."""
    residual(*matrix, rhs, work.x, work.r, work.squares)
    found = np.sqrt(work.squares) / columns.scale
    if restart:
        columns.stalled |= ~(found <= _PROGRESS * columns.residuals)
    columns.residuals = found
    return (found > rtol) & ~columns.broken & ~columns.stalled & np.isfinite(found)


def _iterate(
    matrix: Matrix,
    cycle: Cycle,
    work: Workspace,
    columns: Columns,
    active: np.ndarray,
    rtol: float,
    max_iterations: int,
) -> None:
    """Conjugate gradients from the residual in `work.r` until the recurrence claims rtol; idle columns stand still."""
    active = active.copy()
    # The cycle's float32 covers 1e-38 ... 1e38; conjugate gradients do not see a factor of the preconditioner.
    size = np.sqrt(work.squares)
    factor = 1 / np.where(active & (size > 0), size, 1.0)
    old = np.zeros(len(active))
    work.p[...] = 0.0
    scaled(work.r, factor, work.low)
    while active.any():
        z = cycle(work.low)
        dot(work.r, z, work.products)
        new = work.products.copy()
        columns.broken |= active & ~(new > 0)
        active &= ~columns.broken
        redirect(_quotient(new, old, active & (old > 0)), z, work.p)
        multiply_dot(*matrix, work.p, work.q, work.products)
        columns.broken |= active & ~(work.products > 0)
        active &= ~columns.broken
        columns.iterations += active
        alpha = _quotient(new, work.products, active)
        advance(alpha, work.p, work.q, work.x, work.r, work.squares, factor, work.low)
        active &= (np.sqrt(work.squares) > rtol * columns.scale) & (columns.iterations < max_iterations)
        old = new


def _quotient(above: np.ndarray, below: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Ratio above / below where it holds, 0 elsewhere, so that columns that are done stand still."""
    return np.divide(above, below, out=np.zeros(len(above)), where=where)


def _outcome(columns: Columns, c: int, rtol: float, max_iterations: int) -> Outcome:
    if columns.residuals[c] <= rtol:
        return Outcome.CONVERGED
    if not math.isfinite(columns.residuals[c]):
        return Outcome.NONFINITE_SOLUTION
    if columns.broken[c]:
        return Outcome.DIVERGED
    if columns.iterations[c] >= max_iterations:
        return Outcome.MAX_ITERATIONS
    return Outcome.RESIDUAL_ABOVE_TOLERANCE

"""How the solve of one system ended, as data."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Outcome(enum.IntEnum):
    """How the solve of one system ended; only of a `CONVERGED` one may the field be used.

    Names and codes are those of `forebay.pipeline.records.Outcome`, as far as they apply.
    """

    CONVERGED = 0
    MAX_ITERATIONS = 1
    DIVERGED = 2
    NONFINITE_INPUT = 3
    NONFINITE_SOLUTION = 4
    RESIDUAL_ABOVE_TOLERANCE = 5

    @property
    def advice(self) -> str:
        """What probably happened and which knob to turn."""
        return _ADVICE[self]


_ADVICE = {
    Outcome.CONVERGED: "",
    Outcome.MAX_ITERATIONS: 'residual still above rtol: raise `max_iterations`, or use preconditioner="multigrid"',
    Outcome.DIVERGED: "the iteration broke down: the system is singular and its right-hand side is not in the range, "
    "or the preconditioner is not positive definite",
    Outcome.NONFINITE_INPUT: "a coefficient, the right-hand side or the guess holds NaN or inf: look upstream",
    Outcome.NONFINITE_SOLUTION: "the solution holds NaN or inf: coefficients beyond what float64 can represent",
    Outcome.RESIDUAL_ABOVE_TOLERANCE: "refinement stalled above rtol, which is below what float64 allows at this "
    "condition number: loosen `rtol`",
}


@dataclass(frozen=True, slots=True)
class SystemRecord:
    """What certifies the field of one system."""

    outcome: Outcome
    iterations: int
    """Of the Krylov method, summed over the refinements."""
    refinements: int
    """Corrections that were added in float64."""
    residual: float
    """True relative residual ‖b - A u‖₂ / ‖b‖₂ of the returned field in float64; NaN where there is no field."""
    preconditioner: str
    """What was used in the end: "multigrid", "jacobi", "none", "learned", or "multigrid(guard)" where the guard
    replaced learned weights by the classical cycle."""
    backend: str
    """"cpu", "torch" or "cuda"."""
    message: str = ""

    @property
    def valid(self) -> bool:
        """May the field be used?"""
        return self.outcome is Outcome.CONVERGED

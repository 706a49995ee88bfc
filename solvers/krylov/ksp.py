"""GCRO-DR as a PETSc solver: `-ksp_type python -ksp_python_type forebay.solvers.krylov.ksp.GcroDrKsp`.

Options, behind the KSP's prefix: `-ksp_gcrodr_restart 60`, `-ksp_gcrodr_recycle 30`, `-ksp_gcrodr_variant economical`.
Tolerances, monitors, the convergence history, the initial guess and the PC are PETSc's own; the norm is that of the
unpreconditioned residual, and preconditioning is from the right, whatever side is set.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from forebay.pipeline.records import Outcome
from forebay.solvers.krylov.gcrodr import GcroDr, GcroDrRecord, Variant
from forebay.solvers.krylov.space import RecycleSpace
from forebay.solvers.petsc import petsc


class GcroDrKsp:
    """Context of a KSP of type python; `space` is what the next solve starts from and what the last one left.

    Read it with `ksp.getPythonContext().space`, keep it, and set it before a later solve.
    """

    def __init__(self, *, restart: int = 60, recycle: int = 30, variant: Variant = "economical") -> None:
        self.space: RecycleSpace | None = None
        self.record: GcroDrRecord | None = None
        """What the last solve took."""
        self._solver = GcroDr(restart=restart, recycle=recycle, variant=variant)
        self._operators: tuple[int, int] | None = None

    def setFromOptions(self, ksp: Any) -> None:
        """Read the options above."""
        options = petsc().Options(ksp.getOptionsPrefix() or "")
        now = self._solver
        self._solver = GcroDr(
            restart=options.getInt("ksp_gcrodr_restart", now.restart),
            recycle=options.getInt("ksp_gcrodr_recycle", now.recycle),
            variant=options.getString("ksp_gcrodr_variant", now.variant),
        )
        now.destroy()
        self._operators = None

    def _take_operators(self, ksp: Any) -> None:
        """PETSc calls `setUp` of a python KSP once only, not when the operators are replaced."""
        matrix, preconditioner = ksp.getOperators()[0], ksp.getPC()
        operators = (matrix.handle, preconditioner.handle)
        if operators != self._operators:
            self._solver.init(matrix, preconditioner)
            self._operators = operators

    def solve(self, ksp: Any, b: Any, x: Any) -> None:
        """One system, from `self.space`."""
        self._take_operators(ksp)
        rtol, atol, _, max_iterations = ksp.getTolerances()
        rhs = b.getArray(readonly=True).copy()
        norm = b.norm()
        guess = x.getArray().copy() if ksp.getInitialGuessNonzero() else None
        answer, record, space = self._solver.solve(
            rhs,
            self.space,
            rtol=min(max(rtol, atol / norm if norm > 0 else 0.0), 0.5),
            max_iterations=max_iterations,
            guess=guess,
            monitor=lambda iteration, estimate: _report(ksp, iteration, estimate),
        )
        self.space, self.record = space, record
        x.setArray(answer)
        ksp.setIterationNumber(record.iterations)
        ksp.setResidualNorm(record.residual * norm if np.isfinite(record.residual) else np.inf)
        ksp.setConvergedReason(_reason(record.outcome))

    def view(self, ksp: Any, viewer: Any) -> None:
        """One line for -ksp_view."""
        solver = self._solver
        kept = 0 if self.space is None else self.space.dimension
        viewer.printfASCII(
            f"  GCRO-DR: restart {solver.restart}, recycle {solver.recycle}, {solver.variant}; space of {kept}\n"
        )

    def destroy(self, ksp: Any) -> None:
        """Free PETSc's side."""
        self._solver.destroy()


def _report(ksp: Any, iteration: int, estimate: float) -> None:
    ksp.setIterationNumber(iteration)
    ksp.setResidualNorm(estimate)
    ksp.logConvergenceHistory(estimate)
    ksp.monitor(iteration, estimate)


def _reason(outcome: Outcome) -> Any:
    reasons = petsc().KSP.ConvergedReason
    return {
        Outcome.CONVERGED: reasons.CONVERGED_RTOL,
        Outcome.MAX_ITERATIONS: reasons.DIVERGED_MAX_IT,
        Outcome.NONFINITE_INPUT: reasons.DIVERGED_NANORINF,
    }.get(outcome, reasons.DIVERGED_BREAKDOWN)

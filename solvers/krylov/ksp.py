"""Recycling methods as PETSc solvers: `-ksp_type python -ksp_python_type forebay.solvers.krylov.ksp.GcroDrKsp`.

Options, behind the KSP's prefix: `-ksp_gcrodr_restart 80`, `-ksp_gcrodr_recycle 40`, `-ksp_gcrodr_variant economical`.
Of `DeflatedCgKsp`: `-ksp_deflated_cg_recycle 20`, `-ksp_deflated_cg_variant economical`, `-ksp_deflated_cg_search 40`,
`-ksp_deflated_cg_flexible`.
Tolerances, monitors, the convergence history, the initial guess and the PC are PETSc's own; the norm is that of the
unpreconditioned residual, whatever norm is set, and GCRO-DR preconditions from the right, whatever side is set.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from forebay.pipeline.records import Outcome
from forebay.solvers.krylov.deflated_cg import DeflatedCg, DeflatedCgRecord
from forebay.solvers.krylov.gcrodr import GcroDr, GcroDrRecord, Monitor, Variant
from forebay.solvers.krylov.space import RecycleSpace
from forebay.solvers.petsc import petsc


class GcroDrKsp:
    """Context of a KSP of type python; `space` is what the next solve starts from and what the last one left.

    Read it with `ksp.getPythonContext().space`, keep it, and set it before a later solve.
    """

    def __init__(self, *, restart: int = 80, recycle: int = 40, variant: Variant = "economical") -> None:
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

    def solve(self, ksp: Any, b: Any, x: Any) -> None:
        """One system, from `self.space`."""
        self._operators = _take_operators(self._solver, ksp, self._operators)
        self.record, self.space = _solve(self._solver, self.space, ksp, b, x)

    def recall(self, space: RecycleSpace | None) -> None:
        """Start the next solve from that space and from nothing else: images kept for a further b go too."""
        self.space, self._operators = space, None

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


class DeflatedCgKsp:
    """The same for deflated CG: context of a KSP of type python for symmetric positive definite systems."""

    def __init__(
        self,
        *,
        recycle: int = 20,
        variant: Variant = "economical",
        search: int | None = None,
        flexible: bool = False,
    ) -> None:
        self.space: RecycleSpace | None = None
        self.record: DeflatedCgRecord | None = None
        """What the last solve took."""
        self._solver = DeflatedCg(recycle=recycle, variant=variant, search=search, flexible=flexible)
        self._operators: tuple[int, int] | None = None

    def setFromOptions(self, ksp: Any) -> None:
        """Read the options above."""
        options = petsc().Options(ksp.getOptionsPrefix() or "")
        now = self._solver
        recycle = options.getInt("ksp_deflated_cg_recycle", now.recycle)
        self._solver = DeflatedCg(
            recycle=recycle,
            variant=options.getString("ksp_deflated_cg_variant", now.variant),
            search=options.getInt(
                "ksp_deflated_cg_search", now.search if recycle == now.recycle else max(1, 2 * recycle)
            ),
            flexible=options.getBool("ksp_deflated_cg_flexible", now.flexible),
        )
        now.destroy()
        self._operators = None

    def solve(self, ksp: Any, b: Any, x: Any) -> None:
        """One system, from `self.space`."""
        self._operators = _take_operators(self._solver, ksp, self._operators)
        self.record, self.space = _solve(self._solver, self.space, ksp, b, x)

    def recall(self, space: RecycleSpace | None) -> None:
        """Start the next solve from that space and from nothing else: images kept for a further b go too."""
        self.space, self._operators = space, None

    def view(self, ksp: Any, viewer: Any) -> None:
        """One line for -ksp_view."""
        solver = self._solver
        kept = 0 if self.space is None else self.space.dimension
        viewer.printfASCII(
            f"  deflated CG: recycle {solver.recycle}, search {solver.search}, {solver.variant}"
            f"{', flexible' if solver.flexible else ''}; space of {kept}\n"
        )

    def destroy(self, ksp: Any) -> None:
        """Free PETSc's side."""
        self._solver.destroy()


class _Solver[Record](Protocol):
    """What the methods have in common."""

    def init(self, matrix: Any, preconditioner: Any = None) -> None: ...

    def solve(
        self,
        rhs: np.ndarray,
        space: RecycleSpace | None = None,
        *,
        rtol: float = 1e-8,
        max_iterations: int = 10_000,
        guess: np.ndarray | None = None,
        monitor: Monitor | None = None,
    ) -> tuple[np.ndarray, Record, RecycleSpace | None]: ...


def _take_operators(solver: GcroDr | DeflatedCg, ksp: Any, taken: tuple[int, int] | None) -> tuple[int, int]:
    """PETSc calls `setUp` of a python KSP once only, not when the operators are replaced."""
    matrix, preconditioner = ksp.getOperators()[0], ksp.getPC()
    operators = (matrix.handle, preconditioner.handle)
    if operators != taken:
        solver.init(matrix, preconditioner)
    return operators


def _solve[Record: (GcroDrRecord, DeflatedCgRecord)](
    solver: _Solver[Record], space: RecycleSpace | None, ksp: Any, b: Any, x: Any
) -> tuple[Record, RecycleSpace | None]:
    """Solve with the KSP's settings, and tell it how that ended."""
    rtol, atol, _, max_iterations = ksp.getTolerances()
    norm = b.norm()
    answer, record, next_space = solver.solve(
        b.getArray(readonly=True).copy(),
        space,
        rtol=min(max(rtol, atol / norm if norm > 0 else 0.0), 0.5),
        max_iterations=max_iterations,
        guess=x.getArray().copy() if ksp.getInitialGuessNonzero() else None,
        monitor=lambda iteration, estimate: _report(ksp, iteration, estimate),
    )
    x.setArray(answer)
    ksp.setIterationNumber(record.iterations)
    ksp.setResidualNorm(record.residual * norm if np.isfinite(record.residual) else np.inf)
    ksp.setConvergedReason(_reason(record.outcome))
    return record, next_space


def _report(ksp: Any, iteration: int, estimate: float) -> bool:
    """Tell PETSc; true when a monitor has lowered the limit of iterations, as compiled solvers notice too."""
    ksp.setIterationNumber(iteration)
    ksp.setResidualNorm(estimate)
    ksp.logConvergenceHistory(estimate)
    ksp.monitor(iteration, estimate)
    return bool(ksp.getTolerances()[3] <= iteration)


def _reason(outcome: Outcome) -> Any:
    reasons = petsc().KSP.ConvergedReason
    return {
        Outcome.CONVERGED: reasons.CONVERGED_RTOL,
        Outcome.MAX_ITERATIONS: reasons.DIVERGED_MAX_IT,
        Outcome.NONFINITE_INPUT: reasons.DIVERGED_NANORINF,
    }.get(outcome, reasons.DIVERGED_BREAKDOWN)

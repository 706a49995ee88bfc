"""One reused PETSc solver for a sequence of systems with one sparsity, and the proof of each answer.

Whatever PETSc reports, a solution counts only by its recomputed residual ‖b - A x‖₂ / ‖b‖₂ in float64.  When that
misses `rtol`, the solver goes on with A d = r, x ← x + d: iterative refinement for a factorisation, a restart for a
Krylov method that had stopped by another norm.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg.blas import dnrm2

from forebay.pipeline.errors import StudyError
from forebay.pipeline.records import Outcome
from forebay.pipeline.stages import Symmetry
from forebay.solvers.assemble import System
from forebay.solvers.batched.weights import Weights
from forebay.solvers.configure import make_ksp, one_line
from forebay.solvers.krylov.reuse import RefreshRule
from forebay.solvers.krylov.space import RecycleSpace
from forebay.solvers.methods import Choice, Method
from forebay.solvers.petsc import petsc

log = logging.getLogger(__name__)

REFINEMENTS = 2
"""Steps of iterative refinement after a direct solve; a third has never helped where two had not."""
CORRECTIONS = 8
"""Restarts of a Krylov method whose own norm was met before the true residual was."""

RHS_NOT_FINITE = "the right-hand side holds NaN or inf"

_prefixes = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Solution:
    """One answer; `x` (n,) is the solver's own array and is overwritten by the next solve."""

    x: np.ndarray
    outcome: Outcome
    iterations: int
    residual: float
    label: str
    """Name of the method that made it, as the records carry it."""
    message: str = ""


@dataclass(frozen=True, slots=True)
class Factorisation:
    """PETSc's factored matrix, or why there is none."""

    matrix: Any
    outcome: Outcome
    message: str = ""


class LinearSolver:
    """A KSP, made once: analysis, preconditioner and vectors are reused, numbers are redone when the matrix changed.

    After a failed solve the KSP is made anew, because MUMPS, Eisenstat and GAMG keep the fault otherwise.  Unless
    `choice.remembers`, results never depend on the samples solved before; `recall` sets what such a method remembers.

    Raises:
        StudyError: the method does not fit the matrix, is missing from this PETSc, or an option is not known to it.
    """

    def __init__(
        self, system: System, method: Method, *, symmetry: Symmetry, grid: tuple[int, ...] | None = None
    ) -> None:
        self._PETSc = petsc()
        self.system = system
        self.method = method
        self.choice: Choice = method.resolve(symmetry, len(system.rhs), structured=grid is not None)
        self._prefix = f"forebay{next(_prefixes)}_"
        n = len(system.rhs)
        self._x, self._r, self._d = np.zeros(n), np.zeros(n), np.zeros(n)
        self._rhs_vec, self._x_vec, self._r_vec, self._d_vec = (
            self._PETSc.Vec().createWithArray(array, comm=self._PETSc.COMM_SELF)
            for array in (system.rhs, self._x, self._r, self._d)
        )
        self._grid = grid
        self._rule = RefreshRule()
        self._watched = False
        self._ksp: Any = None
        self._aggregation: Any = None
        """The context of the preconditioner "amg", whose weights can be replaced."""
        self._weights: Weights | None = None
        self._checked_state: int | None = None
        self._options_checked = not method.options
        self.seconds_certifying = 0.0
        self._build()

    @property
    def label(self) -> str:
        """The method's name in the records: "direct:petsc-cholesky", "cg+gamg", "cg+amg(learned-v0003)"."""
        if self._aggregation is None:
            return self.choice.label
        return f"{self.choice.ksp}+{self.choice.pc}{self._aggregation.detail}"

    @property
    def space(self) -> RecycleSpace | None:
        """What a recycling method has learned."""
        return self._ksp.getPythonContext().space if self.choice.recycles else None

    def recall(self, space: RecycleSpace | None = None) -> None:
        """Forget the samples solved before, but for that space."""
        self._rule.reset()
        if self.choice.ksp == "lgmres":
            self._ksp.destroy()
            self._build()
        self._take_space(space)

    def use(self, weights: Weights) -> None:
        """Precondition by other weights of smoothed aggregation from the next solve on."""
        self._weights = weights
        self._aggregation.use(weights)

    def _take_space(self, space: RecycleSpace | None) -> None:
        if self.choice.recycles:
            self._ksp.getPythonContext().recall(space)

    def solve(self, guess: np.ndarray | None = None, *, cap_s: float | None = None) -> Solution:
        """Solve for the system's present matrix and right-hand side, from the guess (n,) or from 0.

        An iteration that is not done after `cap_s` processor seconds ends with `MAX_ITERATIONS`; set-up cannot be
        interrupted.
        """
        fault = self._matrix_fault()
        if fault is not None:
            return self._unsolved(*fault)
        if not np.isfinite(self.system.rhs).all():
            return self._unsolved(Outcome.NONFINITE_INPUT, RHS_NOT_FINITE)
        norm = float(dnrm2(self.system.rhs))
        if norm == 0.0:
            self._x[:] = 0.0
            return Solution(self._x, Outcome.CONVERGED, 0, 0.0, self.label)
        self._watch(cap_s)
        renewed = self._renew()
        solution = self._attempt(norm, guess)
        if solution.outcome is not Outcome.CONVERGED and not renewed:
            # The kept preconditioner was too far away; the failed attempt has reset the rule.
            self._watch(cap_s)
            self._renew()
            solution = self._attempt(norm, guess)
        self._rule.solved(solution.iterations)
        return solution

    def _watch(self, cap_s: float | None) -> None:
        """Let a monitor look at the clock: PETSc's loops notice when it lowers their limit, all but that of BCGSL."""
        if cap_s is None and not self._watched:
            return
        self._ksp.monitorCancel()
        if self.choice.ksp == "bcgsl":
            self._ksp.setConvergenceTest(None)
        self._watched = cap_s is not None
        if cap_s is None:
            return
        deadline = time.thread_time() + cap_s
        if self.choice.ksp == "bcgsl":
            self._ksp.setConvergenceTest(_relative_until(deadline))
            return

        def stop_when_late(ksp: Any, iteration: int, _: float) -> None:
            if time.thread_time() > deadline:
                ksp.setTolerances(max_it=max(iteration, 1))

        self._ksp.setMonitor(stop_when_late)

    def _renew(self) -> bool:
        """Decide whether this solve makes its preconditioner; True when it does."""
        due = not self.choice.reuses or self._rule.due
        if self.choice.reuses:
            self._ksp.getPC().setReusePreconditioner(not due)
            if due:
                self._rule.renewed()
        return due

    def _attempt(self, norm: float, guess: np.ndarray | None) -> Solution:
        try:
            with np.errstate(over="ignore", invalid="ignore"):  # the residual says it
                solution = self._iterate(norm, guess)
        except (self._PETSc.Error, np.linalg.LinAlgError) as error:
            solution = self._unsolved(Outcome.DIVERGED, one_line(error))
            space = self.space
            self._abandon()
            self._build()
            self._take_space(space)
        else:
            if solution.outcome is not Outcome.CONVERGED:
                space = self.space
                self._ksp.destroy()
                self._build()
                self._take_space(space)
        return solution

    def _iterate(self, norm: float, guess: np.ndarray | None) -> Solution:
        """The solve and its corrections; `norm` = ‖b‖₂ > 0."""
        method, iterations, residual = self.method, 0, 1.0
        limit = method.max_iterations
        if guess is not None:
            self._x[:] = guess
            residual = self._certify(norm)
            if residual <= method.rtol:
                return Solution(self._x, Outcome.CONVERGED, 0, residual, self.label)
            if not residual < 1.0:
                guess, residual = None, 1.0
        for attempt in range(1 + (REFINEMENTS if self.choice.direct else CORRECTIONS)):
            if not self.choice.direct:
                self._set_tolerances(method.rtol / residual, attempt, limit - iterations)
            if attempt == 0 and guess is None:
                self._x_vec.stateIncrease()  # numpy wrote to it; PETSc does not zero what it remembers as zero
                self._ksp.solve(self._rhs_vec, self._x_vec)
            else:
                self._ksp.solve(self._r_vec, self._d_vec)
                self._x += self._d
            self._check_options()
            reason = self._ksp.getConvergedReason()
            iterations += int(attempt > 0) if self.choice.direct else self._ksp.getIterationNumber()
            previous, residual = residual, self._certify(norm)
            if residual <= method.rtol:
                return Solution(self._x, Outcome.CONVERGED, iterations, residual, self.label)
            patience = 0 if self.choice.direct or self.choice.monitors_true_norm else 3
            stalled = attempt > patience and not residual < 0.9 * previous
            if reason < 0 or stalled or not np.isfinite(residual) or iterations >= limit:
                break
        return Solution(self._x, self._failure(reason, residual, iterations), iterations, residual, self.label)

    def _set_tolerances(self, reduction: float, attempt: int, max_iterations: int) -> None:
        """Ask for the reduction that is still missing, with a margin; a larger one where PETSc watches another norm."""
        # The preconditioned norm can fall without the true one, so each correction asks for more.
        margin = 0.9 if self.choice.monitors_true_norm and attempt == 0 else 0.25 ** (attempt + 1)
        self._ksp.setTolerances(rtol=min(margin * reduction, 0.5), atol=0.0, max_it=max_iterations)

    def _certify(self, norm: float) -> float:
        """Recompute r = b - A x; returns ‖r‖₂ / ‖b‖₂."""
        start = time.perf_counter()
        self.system.matrix.mult(self._x_vec, self._r_vec)
        np.subtract(self.system.rhs, self._r, out=self._r)
        residual = float(dnrm2(self._r)) / norm
        self.seconds_certifying += time.perf_counter() - start
        return residual

    def _failure(self, reason: int, residual: float, iterations: int) -> Outcome:
        why = self._PETSc.KSP.ConvergedReason
        if reason == why.DIVERGED_PCSETUP_FAILED:
            return Outcome.FACTORISATION_FAILED
        if not np.isfinite(residual):
            return Outcome.NONFINITE_SOLUTION
        if reason == why.DIVERGED_MAX_IT or (not self.choice.direct and iterations >= self.method.max_iterations):
            return Outcome.MAX_ITERATIONS
        if self.choice.recycles and reason < 0:
            return self._ksp.getPythonContext().record.outcome
        return Outcome.DIVERGED if reason < 0 else Outcome.RESIDUAL_ABOVE_TOLERANCE

    def _matrix_fault(self) -> tuple[Outcome, str] | None:
        """What makes a solve pointless; the matrix is looked at only when it is new."""
        state = self.system.matrix.stateGet()
        if state == self._checked_state:
            return None
        if not np.isfinite(self.system.values).all():
            return Outcome.NONFINITE_INPUT, "the matrix holds NaN or inf"
        # PETSc raises from within the iteration then, which leaves Eisenstat's matrices swapped.
        if self.choice.pc in ("sor", "eisenstat", "mg") and not np.all(self.system.diagonal):
            return Outcome.FACTORISATION_FAILED, f"zero on the diagonal, which {self.choice.pc} divides by"
        self._checked_state = state
        return None

    def _unsolved(self, outcome: Outcome, message: str) -> Solution:
        self._x[:] = np.nan
        return Solution(self._x, outcome, 0, float("nan"), self.label, message)

    def factor(self) -> Factorisation:
        """The factorised matrix of a direct method, made anew only if the matrix changed."""
        if not self.choice.direct:
            raise ValueError(f"{self.label} does not factorise; use `solve`")
        fault = self._matrix_fault()
        if fault is not None:
            return Factorisation(None, *fault)
        pc = self._ksp.getPC()
        try:
            # KSPSetUp alone does not look whether the matrix changed; PCSetUp does.
            self._ksp.setUp()
            pc.setUp()
        except self._PETSc.Error as error:
            self._abandon()
            self._build()
            return Factorisation(None, Outcome.FACTORISATION_FAILED, one_line(error))
        self._check_options()
        if pc.getFailedReason():
            self._ksp.destroy()
            self._build()
            return Factorisation(None, Outcome.FACTORISATION_FAILED)
        return Factorisation(pc.getFactorMatrix(), Outcome.CONVERGED)

    def _build(self) -> None:
        """Make the KSP; cheap until its first solve."""
        self._ksp = make_ksp(self.system.matrix, self.method, self.choice, self._prefix, self._grid)
        if self.choice.pc == "amg":
            self._aggregation = self._ksp.getPC().getPythonContext()
            if self._weights is not None:
                self._aggregation.use(self._weights)
        self._rule.lost()
        self._watched = False

    def _check_options(self) -> None:
        """After the first set-up every valid option has been asked for by some part of PETSc."""
        if self._options_checked:
            return
        options = self._PETSc.Options()  # `used` ignores a prefix of the object
        for name, value in self.method.options.items():
            if not options.used(self._prefix + name):
                raise StudyError(
                    f"solver.options.{name} = {value!r} is not an option of {self.label}; look it up in the PETSc "
                    f"manual page of the method or preconditioner"
                )
        self._options_checked = True

    def _abandon(self) -> None:
        """Leave a KSP that raised to the end of the process: destroying Eisenstat in that state crashes PETSc 3.25."""
        log.warning("PETSc raised during a solve with %s; its solver object is replaced", self.label)
        if self.choice.pc == "eisenstat":
            self._ksp.incRef()
        else:
            self._ksp.destroy()

    def destroy(self) -> None:
        """Free PETSc's side, the system's not; collective over the matrix's communicator."""
        self._ksp.destroy()
        for vec in (self._rhs_vec, self._x_vec, self._r_vec, self._d_vec):
            vec.destroy()
        options = self._PETSc.Options(self._prefix)
        for name in list(options.getAll()):
            options.delValue(name)


def _relative_until(deadline: float) -> Callable[[Any, int, float], int]:
    """PETSc's test of the relative residual, which gives up when the thread's processor time is past the deadline."""
    first = 0.0

    def test(ksp: Any, iteration: int, norm: float) -> int:
        nonlocal first
        reasons = petsc().KSP.ConvergedReason
        if iteration == 0:
            first = norm
        if not np.isfinite(norm):
            return int(reasons.DIVERGED_NANORINF)
        if norm <= ksp.getTolerances()[0] * first:
            return int(reasons.CONVERGED_RTOL)
        return int(reasons.DIVERGED_MAX_IT if time.thread_time() > deadline else reasons.CONVERGED_ITERATING)

    return test

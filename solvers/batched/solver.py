"""One system at a time by the stencil kernels, behind the interface of `linear.LinearSolver`: an arm of `auto`."""

from __future__ import annotations

import time

import numpy as np

from forebay.pipeline.records import Outcome
from forebay.solvers.assemble import System
from forebay.solvers.batched.certificate import Certificate
from forebay.solvers.batched.engine import Answer, Engine, make_engine
from forebay.solvers.batched.stencil import StencilReader
from forebay.solvers.batched.weights import Weights, load_weights
from forebay.solvers.linear import RHS_NOT_FINITE, Solution
from forebay.solvers.methods import Choice, Method

MATRIX_NOT_FINITE = "the matrix holds NaN or inf"


class StencilSolver:
    """Multigrid-preconditioned CG on the cells of a grid, float32 inside, certified in float64 by the matrix itself.

    Nothing is remembered from sample to sample but the set-up for a matrix that has not changed.  Solving a block of
    samples together (`block.StencilBlock`) gives the same bits on the CPU.

    Raises:
        StudyError: a matrix that is no symmetric stencil of the grid, weights that cannot be used, or no such device.
    """

    def __init__(self, system: System, method: Method, *, grid: tuple[int, ...] | None, threads: int = 1) -> None:
        self.system = system
        self.method = method
        self.choice: Choice = method.resolve("spd", len(system.rhs), structured=grid is not None)
        indptr, indices = system.matrix.getRowIJ()
        self.reader = StencilReader(indptr, indices, grid or ())
        self.certificate = Certificate(indptr, indices, method.rtol)
        weights = load_weights(method.learned, len(self.reader.grid))
        self.engine: Engine = make_engine(method, self.reader.grid, weights=weights, threads=threads)
        self._faces, self._reaction = self.reader.allocate(1)
        self._x = np.zeros((1, len(system.rhs)))
        self._state: int | None = None
        self._fault: tuple[Outcome, str] | None = None
        self._pace_s = 0.0
        self.generation = 0
        """Of the weights: what others have set up with the engine before `use` is void."""

    @property
    def label(self) -> str:
        """As records carry it, for example "batched:multigrid" or "batched:learned-v0003"."""
        return f"batched:{self.engine.preconditioner}"

    @property
    def seconds_certifying(self) -> float:
        """Recomputing residuals."""
        return self.certificate.seconds

    def solve(self, guess: np.ndarray | None = None, *, cap_s: float | None = None) -> Solution:
        """Solve for the system's present matrix and right-hand side, from the guess (n,) or from 0.

        A cap in processor seconds becomes one of iterations, by the time that they have taken so far; set-up is not
        interrupted.
        """
        fault = self._matrix_fault()
        if fault is not None:
            return self._unsolved(*fault)
        rhs = self.system.rhs
        if not np.isfinite(rhs).all():
            return self._unsolved(Outcome.NONFINITE_INPUT, RHS_NOT_FINITE)
        limit = self.method.max_iterations if cap_s is None else self._iterations_within(cap_s)
        answer = self._timed(limit, None if guess is None else guess[None])
        residual = self.certificate.residual(self.system.values, self._x[0], rhs)
        outcome, message = self.certificate.judge(answer, residual)
        return Solution(self._x[0], outcome, answer.iterations, residual, answer.label, message)

    def _matrix_fault(self) -> tuple[Outcome, str] | None:
        """Read and set up a matrix that is new; what makes a solve with it pointless."""
        state = self.system.matrix.stateGet()
        if state != self._state:
            self._fault = stencil_outcome(self.reader, self.system.values, self._faces, self._reaction)
            if self._fault is None:
                self.engine.setup(self._faces, self._reaction)
            self._state = state
        return self._fault

    def _timed(self, limit: int, guess: np.ndarray | None = None) -> Answer:
        start = time.thread_time()
        answer = self.engine.solve(self.system.rhs[None], self._x, guess=guess, max_iterations=limit)[0]
        if answer.iterations:
            self._pace_s = (time.thread_time() - start) / answer.iterations
        return answer

    def _iterations_within(self, cap_s: float) -> int:
        if not self._pace_s:
            self._timed(1)
        return min(self.method.max_iterations, max(1, int(cap_s / max(self._pace_s, 1e-9))))

    def _unsolved(self, outcome: Outcome, message: str) -> Solution:
        self._x[:] = np.nan
        return Solution(self._x[0], outcome, 0, float("nan"), self.label, message)

    def use(self, weights: Weights | None) -> None:
        """Precondition by other weights from the next solve on; what was set up is set up anew."""
        self.engine.use(weights)
        self._state = None
        self.generation += 1

    def destroy(self) -> None:
        """Nothing of PETSc's is owned here."""


def stencil_outcome(
    reader: StencilReader, values: np.ndarray, faces: tuple[np.ndarray, ...], reaction: np.ndarray, position: int = 0
) -> tuple[Outcome, str] | None:
    """Fill one entry of arrays (k, ...) from CSR values; the sample's outcome where they cannot be solved."""
    if not np.isfinite(values).all():
        return Outcome.NONFINITE_INPUT, MATRIX_NOT_FINITE
    message = reader.read(values, tuple(face[position] for face in faces), reaction[position])
    return (Outcome.DIVERGED, message) if message else None

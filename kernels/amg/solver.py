"""Smoothed aggregation, classical or learned, as a preconditioner and a solver for one mesh and many matrices."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np

from forebay.kernels.amg import pcg
from forebay.kernels.amg.hierarchy import Hierarchy
from forebay.kernels.amg.krylov import scaled
from forebay.kernels.amg.probe import probe
from forebay.kernels.amg.symbolic import THRESHOLD, make_symbolic
from forebay.kernels.amg.watch import Watch
from forebay.kernels.amg.weights import CLASSICAL, AmgWeights
from forebay.kernels.guard import PROBE_STEPS, UNPROBED, Decision, Probation, decide
from forebay.kernels.records import Outcome, SystemRecord

PROBE_COST = 2 * PROBE_STEPS + 8
"""Of a probe, in iterations: the steps of both cycles, and the set-up of the one not in use, which takes 4 to 8."""
_BAD_INPUT = "the right-hand side or the guess holds NaN or inf: look upstream"


class AmgSolver:
    r"""One cycle of smoothed aggregation for symmetric positive definite matrices of one CSR pattern, and PCG with it.

    On a level with matrix A, m_i = s_i / Σ_j |a_ij|, and the cycle is

        z = m r;   z += P cycle(Pᵀ (r - A z));   z += m (r - A z);

    A_c = Pᵀ A P below, the inverse on the coarsest level.  Aggregates, sparsity and the plans of all products come
    from the reference matrix, once; `setup` makes the numbers of a sample in them.  `numbers` has the formulae,
    classical and learned.  The cycle is linear and symmetric positive definite for any weights, so plain conjugate
    gradients apply.

    Aggregates of the reference serve coefficients of any contrast in three dimensions.  In two, contrasts of 1e4 and
    more take up to twice the iterations of the sample's own aggregates: make another solver with it as reference.

    Args:
        indptr: CSR row pointers of all matrices.
        indices: CSR column numbers, ascending in a row; the diagonal stands in every row.
        reference: entries (nnz,) of a typical matrix.
        candidates: near-null space (n, k), such as the rigid motions of elasticity; constants by default.
        block_size: unknowns a node, numbered node by node.
        weights: learned weights, or `AmgWeights.constant(omega, damping)`; classical by default.
        precision: of the cycle; float64 takes the same iterations and some 1.1 times the time.
        guard: when learned weights are compared with the classical cycle, and what serves until then (the classical
            one, see `Probation`); False trusts them.
        threshold: of strong couplings; 0.08 for diffusion, 0 with the candidates of elasticity.
        sweeps: ν of a V(ν,ν) cycle; 2 takes 0.7 times the iterations of 1 at 1.7 times the time of a cycle.
        iteration: what `solve` iterates on: the processor, or an `on_device.DeviceIteration`.

    Raises:
        ValueError: arrays that make no such matrix; the message says which and why.
    """

    def __init__(
        self,
        indptr: np.ndarray,
        indices: np.ndarray,
        reference: np.ndarray,
        *,
        candidates: np.ndarray | None = None,
        block_size: int = 1,
        weights: AmgWeights = CLASSICAL,
        precision: Literal["float32", "float64"] = "float32",
        guard: Probation | bool = True,
        threshold: float = THRESHOLD,
        sweeps: int = 1,
        iteration: pcg.Iteration | None = None,
    ) -> None:
        if sweeps < 1:
            raise ValueError(f"sweeps = {sweeps}; a V(1,1) cycle has 1, at least one is needed")
        self._iteration = iteration or pcg.HostIteration()
        self.symbolic = make_symbolic(
            indptr, indices, reference, candidates=candidates, block_size=block_size, threshold=threshold
        )
        self._dtype = np.dtype(precision)
        self._sweeps = sweeps
        self.probation = Probation() if guard is True else guard or None
        """Of learned weights, those of a later `use` included; None trusts them."""
        self._take(weights)
        self._matrix = (indptr.astype(np.uint32), indices.astype(np.uint32), np.array(reference, dtype=np.float64))
        self._diagonal = np.flatnonzero(np.repeat(np.arange(len(indptr) - 1), np.diff(indptr)) == indices)
        self._workspaces: dict[tuple[int, ...], pcg.Workspace] = {}
        self._fault = ""
        self.setup(reference)

    @property
    def preconditioner(self) -> str:
        """What serves now: "amg", "amg:learned", or "amg(guard)" where the guard holds learned weights back."""
        return "amg(guard)" if self._active is not self._chosen else self._label

    @property
    def decision(self) -> Decision | None:
        """What the guard last found; None without one."""
        if self.guard and self.watch.withdrawn:
            ratio = self.watch.ratio
            return Decision(
                False, ratio, f"learned slower than classical: {ratio:.2f} times the iterations of its solves"
            )
        return self.guard.decision if self.guard else None

    @property
    def hierarchy(self) -> Hierarchy:
        """The numbers that serve the present matrix."""
        return self._active

    def setup(self, values: np.ndarray) -> None:
        """Make the numbers for a matrix with these entries (nnz,); values are copied.

        Entries that are not finite or a diagonal that is not positive are a fault of the sample, which `solve` records.

        Raises:
            ValueError: another number of entries.
        """
        if values.shape != self._matrix[2].shape:
            raise ValueError(
                f"{values.shape} values for a pattern of {len(self._matrix[2])} entries; pass those of a matrix "
                f"with the pattern that the solver was made for"
            )
        self._matrix[2][:] = values
        self._fault = self._find_fault()
        if self._fault:
            return
        if self.guard and not self.watch.withdrawn and self.guard.due(PROBE_COST):
            self._probe(self.guard)
        trusted = not self.guard or (self.guard.decision.learned and not self.watch.withdrawn)
        self._active = self._chosen if trusted else self._classical
        self._active.set_up(self._matrix[2])
        self._iteration.set_up(self._matrix, self._active)

    def use(self, weights: AmgWeights) -> None:
        """Other weights from now on, for the present matrix too; aggregates and plans stay.

        Probation begins anew, the classical cycle serving until a probe, within the budget of the whole stream.
        """
        if self.probation:
            self.probation = replace(self.probation, decision=UNPROBED)
        self._take(weights)
        self.setup(self._matrix[2])

    def cycle(self, r: np.ndarray, z: np.ndarray) -> None:
        """Write z = B r for float64 vectors (n,) or panels (n, c); B is symmetric positive definite to rounding."""
        work = self._workspace(r.shape)
        # To the middle of the range of float32, column by column.
        size = np.atleast_1d(np.abs(r).max(axis=0))
        factor = np.where(size > 0, size, 1.0)
        scaled(np.ascontiguousarray(r), 1 / factor, work.low)
        np.multiply(self._active.cycle(work.low), factor / self._active.scale, out=z)

    def solve(
        self, rhs: np.ndarray, *, rtol: float = 1e-8, max_iterations: int = 200, guess: np.ndarray | None = None
    ) -> tuple[np.ndarray, tuple[SystemRecord, ...]]:
        """Solve A x = b for one or several right-hand sides at once.

        Args:
            rhs: b, (n,) or (n, c), float64.
            rtol: ‖b - A x‖ <= rtol ‖b‖ in float64, from the true residual; good values 1e-6 ... 1e-10.
            max_iterations: of a right-hand side.
            guess: where to start, shaped like `rhs`; zero by default.

        Returns:
            x, shaped like `rhs`, and a record a right-hand side; x holds only where the record is `valid`.

        Raises:
            ValueError: shapes that do not fit, or a tolerance out of range.
        """
        self._check(rhs, rtol, guess)
        finite = np.atleast_1d(np.isfinite(rhs).all(axis=0))
        if guess is not None:
            finite &= np.atleast_1d(np.isfinite(guess).all(axis=0))
        if self._fault or not finite.any():
            message = self._fault or _BAD_INPUT
            return np.full(rhs.shape, np.nan), tuple(self._refused(message) for _ in finite)
        work = self._workspace(rhs.shape)
        work.x[:] = 0.0 if guess is None else np.where(finite, guess, 0.0)
        wanted = np.where(finite, rhs, 0.0)
        result = pcg.solve(self._matrix, self._iteration, wanted, work, rtol=rtol, max_iterations=max_iterations)
        if self.probation:
            self.probation.advanced(float(result.iterations.max()))
        if self.guard and guess is None:
            slowest = int(result.iterations.argmax())
            self.watch.solved(
                learned=self._active is self._chosen,
                residual=float(result.residuals[slowest]),
                iterations=int(result.iterations[slowest]),
            )
        records = [self._record(result, c) if finite[c] else self._refused(_BAD_INPUT) for c in range(len(finite))]
        return np.where(finite, work.x, np.nan), tuple(records)

    def _take(self, weights: AmgWeights) -> None:
        learned = len(weights.hidden) > 0
        self.guard = self.probation if learned else None
        self._chosen = Hierarchy(self.symbolic, weights, self._dtype, self._sweeps)
        self._classical = Hierarchy(self.symbolic, CLASSICAL, self._dtype, self._sweeps) if self.guard else self._chosen
        self._active = self._classical
        self.watch: Watch = Watch()
        self._label = "amg:learned" if learned else "amg"

    def _probe(self, guard: Probation) -> None:
        """Compare both cycles on the present matrix."""
        work = self._workspace((self.symbolic.unknowns,))
        contractions = []
        for hierarchy in (self._chosen, self._classical):
            hierarchy.set_up(self._matrix[2])
            contractions.append(probe(self._matrix, hierarchy.cycle, work))
        guard.probed(decide(*contractions), PROBE_COST)

    def _find_fault(self) -> str:
        values = self._matrix[2]
        if not np.isfinite(values).all():
            return "the matrix holds NaN or inf: look at what assembled it"
        diagonal = values[self._diagonal]
        if diagonal.min() <= 0:
            row = int(diagonal.argmin())
            return (
                f"diagonal entry {row} of the matrix is {diagonal[row]:g}; a symmetric positive definite matrix has "
                f"positive ones: coefficients must be positive"
            )
        return ""

    def _check(self, rhs: np.ndarray, rtol: float, guess: np.ndarray | None) -> None:
        if rhs.ndim not in (1, 2) or len(rhs) != self.symbolic.unknowns or rhs.size == 0:
            raise ValueError(
                f"a right-hand side of shape {rhs.shape} for {self.symbolic.unknowns} unknowns; it must be "
                f"({self.symbolic.unknowns},) or ({self.symbolic.unknowns}, c)"
            )
        if guess is not None and guess.shape != rhs.shape:
            raise ValueError(
                f"a guess of shape {guess.shape} for right-hand sides of shape {rhs.shape}; they must be equal"
            )
        if not 0 < rtol < 1:
            raise ValueError(f"rtol = {rtol:g} must lie between 0 and 1; 1e-8 is good")

    def _record(self, result: pcg.Result, column: int) -> SystemRecord:
        outcome = result.outcomes[column]
        return SystemRecord(
            outcome,
            int(result.iterations[column]),
            int(result.refinements[column]),
            float(result.residuals[column]),
            self.preconditioner,
            self._iteration.backend,
            outcome.advice,
        )

    def _refused(self, message: str) -> SystemRecord:
        outcome = Outcome.NONFINITE_INPUT if "NaN" in message else Outcome.DIVERGED
        return SystemRecord(outcome, 0, 0, float("nan"), self.preconditioner, self._iteration.backend, message)

    def _workspace(self, shape: tuple[int, ...]) -> pcg.Workspace:
        if shape not in self._workspaces:
            self._workspaces[shape] = pcg.Workspace(shape, self._dtype)
        return self._workspaces[shape]

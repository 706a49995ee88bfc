"""One workspace for one grid shape: set-up of a system, certified solves, and the bare cycle."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from forebay.kernels.cpu import cg_loops, load_loops
from forebay.kernels.cpu.builder import Builder
from forebay.kernels.cpu.cycle_loops import cycle
from forebay.kernels.cpu.layout import CORRECTION, RESIDUAL
from forebay.kernels.cpu.results import CpuResult, Preconditioner
from forebay.kernels.grid_weights import GridWeights
from forebay.kernels.guard import PROBE_STEPS, Probation, contraction, decide
from forebay.kernels.records import Outcome

_KINDS = {"none": cg_loops.NONE, "jacobi": cg_loops.JACOBI, "multigrid": cg_loops.MULTIGRID}
COST_RATIO = 1.1
"""Time of a solve with learned weights over one with the classical cycle at equal iterations: the set-up is longer."""
_SEED = 2026


class GridSolver:
    r"""Solves A u = b, (A u)_i = Σ_f T_f (u_i - u_j) + s_i u_i, on the cells of one box; not for two threads at once.

    Conjugate gradients preconditioned by one V-cycle of black-box multigrid in float32.  The iterate and the residual
    are float64: every iteration recomputes b - A u, so what is reported is the true residual, and float32 never
    limits it.  p·A p is summed up as an energy, Σ T (p_i - p_j)² + Σ s p_i², without cancellation.

    Operators are coarsened in float32 where coefficients differ by less than `builder.CONTRAST`, else in float64.
    The smoother is l1-Jacobi, m = 1.6 / Σ|A_ij|, in two Chebyshev steps before and two after the coarse correction.

    Source of the cycle: J. E. Dendy, "Black box multigrid", J. Comput. Phys. 48 (1982) 366-386,
    doi:10.1016/0021-9991(82)90057-2; differences as in `kernels/multigrid.py`, and the two steps: 7 iterations for 11.

    Args:
        shape: cells, (ny, nx) or (nz, ny, nx), of any size.
        preconditioner: learned weights are guarded: a probe compares them with the classical cycle as soon as it is
            paid for (`kernels.guard.Probation`), and until then and where they lose the classical cycle serves.
        sweeps: smoothing steps before and after; 1 is the cycle of the other backends.
        guard: False uses learned weights unseen, for measuring them.

    Raises:
        ValueError: a shape, preconditioner or number of sweeps that does not exist; see also `GridWeights`.
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        preconditioner: Preconditioner = "multigrid",
        sweeps: int = 2,
        guard: bool = True,
    ) -> None:
        self.shape = tuple(int(n) for n in shape)
        weights = preconditioner if isinstance(preconditioner, GridWeights) else None
        if weights is None and preconditioner not in _KINDS:
            raise ValueError(
                f'preconditioner={preconditioner!r}; it must be "multigrid", "jacobi", "none" or GridWeights'
            )
        self._builder = Builder(self.shape, weights, sweeps)
        self._kind = "multigrid" if weights is not None else str(preconditioner)
        self._weights, self._guard = weights, guard
        self.probation = Probation()
        """What the guard of learned weights has found."""
        self._state = 0
        self._ready = False

    @property
    def finite(self) -> bool:
        """Do the present coefficients hold neither NaN nor inf?"""
        return not self._state & load_loops.NOT_FINITE

    @property
    def label(self) -> str:
        """Name of the preconditioner in use."""
        if self._weights is None:
            return self._kind
        return "learned" if self._builder.learned else "multigrid(guard)"

    def setup(self, faces: Sequence[np.ndarray], reaction: np.ndarray, active: np.ndarray | None = None) -> None:
        """Take the coefficients of one system; arrays are copied.

        Coefficients that are not finite are an outcome of the solves to come, not an error.

        Args:
            faces: T >= 0 between neighbours along each axis, in the order of the axes; one cell fewer along its own.
            reaction: s >= 0 of the shape; 0 everywhere makes a singular system.
            active: bool of the shape; other cells are left out, and their solution is 0.

        Raises:
            ValueError: shapes that do not fit, or negative coefficients.
        """
        self._state = self._builder.load(faces, reaction, active)
        self._ready = True
        if self._state & load_loops.NOT_FINITE:
            return
        if self._state & load_loops.NEGATIVE:
            self._ready = False
            raise ValueError(
                "faces or reaction hold a negative number; all must be >= 0 for a positive definite system: check the "
                "sign of the diffusion coefficient"
            )
        if not 0 < self._builder.scale < math.inf:
            # Sums of these coefficients are beyond float64.
            return
        if self._kind == "multigrid":
            self._choose()
        else:
            self._builder.start()

    def solve(
        self,
        rhs: np.ndarray,
        out: np.ndarray,
        *,
        rtol: float = 1e-8,
        max_iterations: int = 200,
        guess: np.ndarray | None = None,
    ) -> CpuResult:
        """Solve for one right-hand side into `out`, float64 of the shape, which holds NaN if there is no field.

        Where A is singular `out` has mean zero, and a right-hand side out of its range is DIVERGED.

        Args:
            rhs: b, in the units of A u.
            out: u.
            rtol: bound of ‖b - A u‖₂ / ‖b‖₂; 1e-8 is good, 1e-13 about what float64 can certify.
            max_iterations: 7 to 15 are usual for multigrid.
            guess: where to start; 0 by default.

        Raises:
            ValueError: no set-up, shapes that do not fit, or a tolerance or number out of range.
        """
        self._check(rhs, out, rtol, max_iterations, guess)
        result = self._solve(rhs, out, rtol, max_iterations, guess)
        self.probation.advanced(result.iterations)
        if result.outcome in (Outcome.NONFINITE_INPUT, Outcome.NONFINITE_SOLUTION):
            out[...] = np.nan
        return result

    def cycle(self, residual: np.ndarray, out: np.ndarray) -> None:
        """One V-cycle, out ≈ A⁻¹ residual: linear, symmetric and positive definite; arrays of the shape.

        Raises:
            ValueError: no set-up, or another preconditioner than multigrid.
        """
        builder = self._builder
        if not self._ready or self._kind != "multigrid":
            raise ValueError('a cycle needs preconditioner="multigrid" or weights, and `setup` first')
        if self._state:
            out[...] = np.nan
            return
        largest = max(float(residual.max()), -float(residual.min()))  # |residual| would be an array
        # Also false for NaN.
        if not 0 < largest < math.inf:
            out[...] = 0.0 if largest == 0 else np.nan
            return
        # float32 holds residuals of any size only when they are scaled.
        np.divide(residual, largest, out=builder.view(0, RESIDUAL), casting="same_kind")
        if builder.active is not None:
            builder.view(0, RESIDUAL)[~builder.active] = 0
        cycle(*builder.hierarchy_arguments)
        np.multiply(builder.view(0, CORRECTION), builder.scale * largest, out=out, dtype=np.float64)

    def hierarchy(self) -> list[dict[str, np.ndarray]]:
        """Copies of all levels in the layout of `kernels/hierarchy.py`, without the batch axis, float32.

        Keys: diagonal, off, smoother, prolong; of the last level diagonal, off, inverse.
        """
        return self._builder.hierarchy()

    def _check(self, rhs: np.ndarray, out: np.ndarray, rtol: float, limit: int, guess: np.ndarray | None) -> None:
        if not self._ready:
            raise ValueError("no system to solve; call `setup` first")
        for name, array in (("rhs", rhs), ("out", out), ("guess", guess)):
            if array is not None and array.shape != self.shape:
                raise ValueError(f"{name} has shape {array.shape}; it must have the grid's, {self.shape}")
        if not 0 < rtol < 1:
            raise ValueError(f"rtol = {rtol} must lie between 0 and 1; try 1e-8")
        if limit < 0:
            raise ValueError(f"max_iterations = {limit} must not be negative; 200 is good")

    def _solve(self, rhs: np.ndarray, out: np.ndarray, rtol: float, limit: int, guess: np.ndarray | None) -> CpuResult:
        builder = self._builder
        largest = builder.load_rhs(rhs, guess)
        if self._state or not math.isfinite(largest):
            return self._result(Outcome.NONFINITE_INPUT, 0, math.nan)
        if not 0 < builder.scale < math.inf:
            return self._result(Outcome.NONFINITE_SOLUTION, 0, math.nan)
        if largest == 0:
            out[...] = 0.0
            return self._result(Outcome.CONVERGED, 0, 0.0)
        norm, outside = builder.norm_and_mean()
        if outside > rtol:
            out[...] = np.nan
            return self._result(Outcome.DIVERGED, 0, outside)
        inner = math.sqrt(rtol**2 - outside**2)
        kind = _KINDS[self._kind]
        code, iterations, residual = cg_loops.iterate(
            kind, builder.exact, *builder.hierarchy_arguments, builder.scale, norm, inner, limit
        )
        builder.store_solution(out, largest)
        outcome = Outcome(code)
        if not np.isfinite(out).all():
            outcome, residual = Outcome.NONFINITE_SOLUTION, math.nan
        if outcome in (Outcome.NONFINITE_SOLUTION, Outcome.DIVERGED):
            # What is not finite must not reach the next solve.
            builder.clean()
        return self._result(outcome, iterations, math.hypot(residual, outside))

    def _result(self, outcome: Outcome, iterations: int, residual: float) -> CpuResult:
        return CpuResult(outcome, iterations, iterations, residual, self.label)

    def _choose(self) -> None:
        """Classical or learned cycle, by the guard's present verdict or a new probe."""
        if self._weights is None or not self._guard:
            self._builder.build(learned=self._weights is not None)
            return
        if self.probation.due():
            self.probation.probed(decide(*self.contractions(), cost_ratio=COST_RATIO))
        self._builder.build(learned=self.probation.decision.learned)

    def contractions(self) -> tuple[float, float]:
        """Of the learned and of the classical cycle on the present system, which is left with the latter."""
        found = []
        for learned in (True, False):
            self._builder.build(learned=learned)
            energies = np.zeros(PROBE_STEPS + 1)
            self._builder.load_probe(_SEED)
            cg_loops.probe(self._builder.exact, *self._builder.hierarchy_arguments, self._builder.scale, energies)
            found.append(contraction(energies.tolist()))
        return found[0], found[1]

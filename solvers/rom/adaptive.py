"""A reduced simulation that asks the full model whenever it doubts itself, and learns from the answer.

    step k in the reduced model ─► estimates within the tolerances? ─► yes: keep it
                                          │ no, or no equilibrium
                                          ▼
    replay the law at all points up to k - 1 ─► full step k ─► enrich modes and cubature ─► go on, reduced

Source: Casenave & Akkari, "An error indicator-based adaptive reduced order model for nonlinear structural mechanics",
Math. Comput. Appl. 24(2):41 (2019).  Differs from it: two calibrated indicators, the calibration learns from each full
step, and the cubature starts from the points that it has.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from forebay.solvers.materials.history import History
from forebay.solvers.materials.law import plastic_strain
from forebay.solvers.rom.basis import Run
from forebay.solvers.rom.calibration import Calibration
from forebay.solvers.rom.collective import from_root, total
from forebay.solvers.rom.equilibrium import norm
from forebay.solvers.rom.errors import calibration_pairs
from forebay.solvers.rom.offline import Origin, Reduced, calibrated, make_package
from forebay.solvers.rom.online import ReducedModel, ReducedSolveError, ReducedState, ReducedTrajectory, StepResult

if TYPE_CHECKING:
    from forebay.solvers.fem.solid import SolidModel, SolidState

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Largest estimated relative errors of a step that stays reduced.

    They refer to the fields as they are, but to at least `floor` of the largest that the training knows: an error of a
    few percent of a p that has just begun to grow is nothing beside what p becomes, and would cost a full step each.
    Good values of `floor`: 0.1 ... 0.3; 0 asks for the relative error from the first plastic point on.

    Raises:
        ValueError: a tolerance that is not positive, or a floor outside [0, 1].
    """

    displacement: float = 0.01
    p: float = 0.03
    floor: float = 0.3

    def __post_init__(self) -> None:
        if not (self.displacement > 0 and self.p > 0):
            raise ValueError(f"tolerances {self.displacement} and {self.p} must be positive; 0.01 and 0.03 are usual")
        if not 0 <= self.floor <= 1:
            raise ValueError(f"floor {self.floor} must lie in [0, 1], a share of the training's scale; 0.3 is usual")

    def accepts(self, displacement: float, p: float, *, shares: tuple[float, float] = (1.0, 1.0)) -> bool:
        """Are both estimates within it?  `shares` are |u| and |p| in those of the training; NaN is not accepted."""
        return displacement <= self.displacement * self._room(shares[0]) and p <= self.p * self._room(shares[1])

    def _room(self, share: float) -> float:
        """How much larger than the tolerance an error relative to a field of that share may be."""
        return max(1.0, self.floor / share) if share > 0 else math.inf if self.floor else 1.0


@dataclass(frozen=True, slots=True)
class Decision:
    """What was done in one step, and why; plain values for a journal."""

    step: int
    time: float
    """[s]"""
    reduced: bool
    reason: str
    """"" for a step that stayed reduced."""
    gappy: float
    equilibrium: float
    displacement_error: float
    """Estimate of the reduced step, NaN where it failed."""
    p_error: float
    modes: int
    """n after the step."""
    points: int
    """m after the step."""
    seconds: float
    """Processor time of this process."""


@dataclass(frozen=True, slots=True, eq=False)
class AdaptiveTrajectory:
    """One simulation, rows as owned; row k belongs to times[k]."""

    times: np.ndarray
    displacement: np.ndarray
    """(s + 1, dofs), [mm]."""
    p: np.ndarray
    """(s + 1, points): gappy POD in reduced steps, the law's in full ones."""
    decisions: tuple[Decision, ...]
    """Of steps 1 ... s."""
    reduced: Reduced
    """The model as it is at the end."""
    seconds: float
    """Processor time of this process."""

    @property
    def full_steps(self) -> int:
        """Steps that the full model solved."""
        return sum(not decision.reduced for decision in self.decisions)


def run_adaptive(
    model: SolidModel,
    reduced: Reduced,
    origin: Origin,
    history: History,
    tolerance: Tolerance,
    *,
    observe: Callable[[Decision], None] | None = None,
) -> AdaptiveTrajectory:
    """Simulate a history, reduced where the estimates allow it; collective over the model's communicator.

    The model that comes back knows all full steps; pass it to the next simulation.

    Raises:
        SolveError: the full model fails in a step.
        CubatureError: an enriched cubature misses its tolerance.
    """
    start = time.process_time()
    march = _March(model, reduced, origin, history, tolerance)
    for k in range(1, history.steps + 1):
        decision = march.step(k)
        if observe is not None:
            observe(decision)
    fields = np.array(march.displacement), np.array(march.p)
    return AdaptiveTrajectory(
        history.times, *fields, tuple(march.decisions), march.reduced, time.process_time() - start
    )


class _March:
    """The state of one adaptive simulation."""

    def __init__(
        self, model: SolidModel, reduced: Reduced, origin: Origin, history: History, tolerance: Tolerance
    ) -> None:
        self.model, self.reduced, self.history = model, reduced, history
        self._origin, self._tolerance = origin, tolerance
        self._solver = ReducedModel(reduced.package, origin.law)
        self._state = self._solver.initial()
        self._full: SolidState = model.initial(history.law)
        self._full_at = 0
        self.displacement = [self._full.displacement]
        self.p = [np.zeros(model.points)]
        self.decisions: list[Decision] = []

    def step(self, k: int) -> Decision:
        """Reduced if it may be, else full."""
        start = time.process_time()
        state, result, reason = self._try(k)
        if result is not None and not reason:
            assert state is not None
            self._keep(k, state, result)
        else:
            self._solve_full(k, state, result)
        package = self.reduced.package
        indicators = (result.indicators.gappy, result.indicators.equilibrium) if result else (np.nan, np.nan)
        errors = (result.displacement_error, result.p_error) if result else (np.nan, np.nan)
        seconds = time.process_time() - start
        at = float(self.history.times[k])
        decision = Decision(k, at, not reason, reason, *indicators, *errors, package.modes, package.points, seconds)
        if reason:
            log.info("step %d by the full model: %s; now %d modes, %d points", k, reason, package.modes, package.points)
        self.decisions.append(decision)
        return decision

    def _try(self, k: int) -> tuple[ReducedState | None, StepResult | None, str]:
        """The reduced step and "", or why it cannot be kept."""
        try:
            found, _ = from_root(
                self.model.comm,
                lambda: (self._solver.step(self.history, k, self._state), [None] * self.model.comm.size),
            )
        except ReducedSolveError as error:
            return None, None, f"no reduced equilibrium: {error.cause}"
        state, result = found
        shares = self._shares(state)
        if self._tolerance.accepts(result.displacement_error, result.p_error, shares=shares):
            return state, result, ""
        percent = [100 * value for value in (result.displacement_error, result.p_error)]
        allowed = [100 * value for value in (self._tolerance.displacement, self._tolerance.p)]
        reason = "estimated errors {:.2g} % and {:.2g} %, allowed are {:.2g} % and {:.2g} %"
        return state, result, reason.format(*percent, *allowed)

    def _shares(self, state: ReducedState) -> tuple[float, float]:
        """|u| and |p| of a state in the training's largest."""
        package = self.reduced.package
        p = plastic_strain(self.history.law, state.variables)
        largest = package.p_scale * np.sqrt(package.points)
        return state.peak / package.displacement_scale, float(norm(p) / largest) if largest else 1.0

    def _keep(self, k: int, state: ReducedState, result: StepResult) -> None:
        self._state = state
        self.displacement.append(self._displacement(k, state))
        self.p.append(self._p(result))

    def _displacement(self, k: int, state: ReducedState) -> np.ndarray:
        basis = self.reduced.basis
        return basis.displacement.modes[:, : basis.modes] @ state.coefficients + self._lifted(k)

    def _lifted(self, k: int) -> np.ndarray:
        return self.model.lifts @ self.history.displacements[k]

    def _p(self, result: StepResult) -> np.ndarray:
        p = self.reduced.basis.p
        return np.maximum(p.modes @ result.p_coefficients, 0.0) if p is not None else np.zeros(self.model.points)

    def _solve_full(self, k: int, state: ReducedState | None, result: StepResult | None) -> None:
        """Replay, solve, enrich; the refused reduced step and the full one are a pair for the calibration."""
        past = np.array(self.displacement[self._full_at :])
        before = self.model.replay(self.history, past, first=self._full_at, start=self._full)
        full, _ = self.model.step(self.history, k, before)
        run = Run(*self._single(k, before, full))
        calibration = self.reduced.package.calibration
        if state is not None and result is not None:
            calibration = self._learned(calibration, run, state, result)
        version = self.reduced.package.version + 1
        basis = self.reduced.basis.extended(self.model, [run])
        enriched = make_package(self.model, basis, replace(self._origin, version=version), rough=True)
        self.reduced = calibrated(enriched, calibration)
        self._full, self._full_at = full, k
        self.displacement.append(full.displacement)
        self.p.append(plastic_strain(self.history.law, full.variables))
        self._solver = ReducedModel(self.reduced.package, self._origin.law)
        self._state = self._reduced_state(k, full)

    def _single(self, k: int, before: SolidState, after: SolidState) -> tuple[History, _Single]:
        """One step as a history and a trajectory of its own."""
        rows = slice(k - 1, k + 1)
        history = self.history
        part = History(
            history.times[rows], history.loads[rows], history.displacements[rows], history.temperature, history.law
        )
        states = (before, after)
        return part, _Single(
            np.array([state.displacement for state in states]),
            np.array([state.stress for state in states]),
            np.array([plastic_strain(history.law, state.variables) for state in states]),
        )

    def _learned(self, calibration: Calibration, run: Run, state: ReducedState, result: StepResult) -> Calibration:
        rows = np.array([self._state.coefficients, state.coefficients])
        p_rows = np.array([np.zeros_like(result.p_coefficients), result.p_coefficients])
        stress = np.array([self._state.stress, state.stress])
        p = np.array([plastic_strain(self.history.law, s.variables) for s in (self._state, state)])
        part = run.history
        found = ReducedTrajectory(
            part.times, part.loads, part.displacements, rows, stress, p, p_rows, (result,), state, 0.0
        )
        return calibration.update(calibration_pairs(self.model, self.reduced.basis, run, found, peak=self._state.peak))

    def _reduced_state(self, k: int, full: SolidState) -> ReducedState:
        """The full state as the enriched model sees it."""
        comm, basis = self.model.comm, self.reduced.basis
        coefficients = basis.displacement.project(full.displacement - self._lifted(k), comm)[: basis.modes]
        rows = self._at_points(np.hstack([full.variables, full.stress]))
        width = full.variables.shape[1]
        norm = float(np.sqrt(total(comm, self.model.dof_weights @ full.displacement**2)))
        variables, stress = np.ascontiguousarray(rows[:, :width]), np.ascontiguousarray(rows[:, width:])
        return ReducedState(coefficients, variables, stress, None, max(self._state.peak, norm))

    def _at_points(self, values: np.ndarray) -> np.ndarray:
        """Rows of owned values (points, c) at the package's points, on every process."""
        wanted = self.reduced.package.point_ids
        owned = np.flatnonzero(np.isin(self.model.point_ids, wanted))
        everyone = self.model.comm.allgather((self.model.point_ids[owned], values[owned]))
        ids, rows = (np.concatenate(parts) for parts in zip(*everyone, strict=True))
        order = np.argsort(ids)
        return rows[order[np.searchsorted(ids[order], wanted)]]


@dataclass(frozen=True, slots=True, eq=False)
class _Single:
    """What a basis and the true errors read of a trajectory, here of one step."""

    displacement: np.ndarray
    stress: np.ndarray
    p: np.ndarray

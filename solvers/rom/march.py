"""The reduced half of an adaptive simulation: which steps may stay reduced, without the mesh.

Driver of `full_steps.FullSteps`, which may be in this process or on MPI ranks that sleep while steps stay reduced.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from forebay.solvers.materials.history import History
from forebay.solvers.materials.law import Law, plastic_strain
from forebay.solvers.rom.calibration import Indicators
from forebay.solvers.rom.collective import from_root
from forebay.solvers.rom.equilibrium import norm
from forebay.solvers.rom.online import ReducedModel
from forebay.solvers.rom.package import RomPackage
from forebay.solvers.rom.trajectory import ReducedSolveError, ReducedState, ReducedTrajectory, StepResult

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Largest estimated relative errors of a step that stays reduced.

    They refer to the fields as they are, but to at least `floor` of the largest that are known: an error of a
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
        """Are both estimates within it?  `shares` are |u| and |p| in the largest known; NaN is not accepted."""
        return displacement <= self.displacement * self._room(shares[0]) and p <= self.p * self._room(shares[1])

    def _room(self, share: float) -> float:
        """How much larger than the tolerance an error relative to a field of that share may be."""
        return max(1.0, self.floor / share) if share > 0 else math.inf if self.floor else 1.0


@dataclass(frozen=True, slots=True)
class Scales:
    """The largest fields that are known, to which the tolerance's floor refers."""

    displacement: float
    """L2 norm, [mm^2.5]."""
    p: float
    """Root mean square over a package's points."""

    @classmethod
    def of_training(cls, package: RomPackage) -> Scales:
        """The largest of the training."""
        return cls(package.displacement_scale, package.p_scale)

    @classmethod
    def of_trajectory(cls, reduced: ReducedTrajectory) -> Scales:
        """The largest of a simulation, which is known roughly where it was tried and refused."""
        return cls(reduced.state.peak, max(_mean_root(p) for p in reduced.p))


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
    iterations: int = 0
    """Newton corrections of the reduced step."""
    residual: float = 0.0
    """Of its own equations."""


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """Reduced steps since the last full one, all of one package; what their fields are made from."""

    coefficients: np.ndarray
    """γ, (r, n)."""
    p_coefficients: np.ndarray
    """z, (r, q)."""


@dataclass(frozen=True, slots=True, eq=False)
class Refused:
    """A reduced step that the full one replaces: beside it, a pair for the calibration."""

    coefficients: np.ndarray
    """γ, (n,)."""
    p_coefficients: np.ndarray
    """z, (q,)."""
    gappy: float
    equilibrium: float


@dataclass(frozen=True, slots=True, eq=False)
class Taught:
    """What the reduced half gets back from a full step."""

    package: RomPackage
    """Knows the step."""
    state: ReducedState
    """Of the full model, as that package sees it."""


class FullHalf(Protocol):
    """What solves steps in full; see `full_steps.FullSteps`."""

    def solve(self, k: int, kept: Kept, refused: Refused | None, peak: float, *, enrich: bool = True) -> Taught:
        """Step k, after the reduced steps since the last full one; without `enrich` it is learned later.

        Raises:
            SolveError: the full model fails.
            CubatureError: the enriched cubature misses its tolerance.
        """
        ...


class March:
    """One simulation, step by step; where `comm` has several processes the first computes the reduced steps.

    With `hurry`, a step that is refused right after a full one lets the full model go on for two steps, then four,
    eight, ..., before modes and cubature are enriched and a reduced step is tried again: an enrichment costs about as
    much as a full step, and where all of a simulation is new it is for nothing.
    """

    def __init__(
        self,
        package: RomPackage,
        law: Law,
        history: History,
        tolerance: Tolerance,
        full: FullHalf,
        *,
        comm: Any = None,
        scales: Scales | None = None,
        hurry: bool = False,
        rtol: float = 1e-6,
    ) -> None:
        """`law` is that of the training; `scales` are those of the package unless given; `rtol` of reduced steps."""
        self.package, self.history = package, history
        self._law, self._tolerance, self._full, self._comm = law, tolerance, full, comm
        self._scales = scales
        self._rtol = rtol
        self._solver = ReducedModel(package, law, rtol=rtol)
        self._state = self._solver.initial()
        self._kept: list[tuple[np.ndarray, np.ndarray]] = []
        self._hurry = hurry
        self._streak, self._left = 0, 0
        """Full steps at once when the last was refused, and those of them that are still to come."""
        self.decisions: list[Decision] = []

    @property
    def kept(self) -> Kept:
        """Reduced steps since the last full one."""
        package = self.package
        rows = self._kept
        return Kept(
            np.array([gamma for gamma, _ in rows]).reshape(len(rows), package.modes),
            np.array([z for _, z in rows]).reshape(len(rows), package.p_modes.shape[1]),
        )

    @property
    def full_steps(self) -> int:
        """Steps that the full model solved so far."""
        return sum(not decision.reduced for decision in self.decisions)

    def step(self, k: int) -> Decision:
        """Reduced if it may be, else full.

        Raises:
            SolveError: the full model fails.
            CubatureError: an enriched cubature misses its tolerance.
        """
        start = time.process_time()
        state, result, reason = self._try(k) if not self._left else (None, None, "the step before was not believed")
        if result is not None and state is not None and not reason:
            self._state, self._streak = state, 0
            self._kept.append((state.coefficients, result.p_coefficients))
        else:
            self._ask(k, state, result)
        decision = self._decision(k, result, reason, time.process_time() - start)
        if reason:
            log.info(
                "step %d by the full model: %s; now %d modes, %d points", k, reason, decision.modes, decision.points
            )
        self.decisions.append(decision)
        return decision

    def _decision(self, k: int, result: StepResult | None, reason: str, seconds: float) -> Decision:
        missing = Indicators(np.nan, np.nan)
        indicators = missing if result is None else result.indicators
        return Decision(
            k,
            float(self.history.times[k]),
            not reason,
            reason,
            indicators.gappy,
            indicators.equilibrium,
            np.nan if result is None else result.displacement_error,
            np.nan if result is None else result.p_error,
            self.package.modes,
            self.package.points,
            seconds,
            0 if result is None or reason else result.iterations,
            0.0 if result is None or reason else result.residual,
        )

    def _try(self, k: int) -> tuple[ReducedState | None, StepResult | None, str]:
        """The reduced step and "", or why it cannot be kept."""
        try:
            state, result = self._reduced_step(k)
        except ReducedSolveError as error:
            return None, None, f"no reduced equilibrium: {error.cause}"
        if self._tolerance.accepts(result.displacement_error, result.p_error, shares=self._shares(state)):
            return state, result, ""
        percent = [100 * value for value in (result.displacement_error, result.p_error)]
        allowed = [100 * value for value in (self._tolerance.displacement, self._tolerance.p)]
        reason = "estimated errors {:.2g} % and {:.2g} %, allowed are {:.2g} % and {:.2g} %"
        return state, result, reason.format(*percent, *allowed)

    def _reduced_step(self, k: int) -> tuple[ReducedState, StepResult]:
        if self._comm is None:
            return self._solver.step(self.history, k, self._state)
        size = self._comm.size
        found, _ = from_root(self._comm, lambda: (self._solver.step(self.history, k, self._state), [None] * size))
        state, result = found
        return state, result

    def _shares(self, state: ReducedState) -> tuple[float, float]:
        """|u| and |p| of a state in the largest known."""
        scales = self._scales or Scales.of_training(self.package)
        p = _mean_root(plastic_strain(self.history.law, state.variables))
        displacement = state.peak / scales.displacement if scales.displacement else 1.0
        return displacement, p / scales.p if scales.p else 1.0

    def _ask(self, k: int, state: ReducedState | None, result: StepResult | None) -> None:
        if self._left:
            self._left -= 1
        elif self._hurry:
            self._streak = 2 * self._streak or 1
            self._left = self._streak - 1
        refused = None
        if state is not None and result is not None:
            indicators = result.indicators
            refused = Refused(state.coefficients, result.p_coefficients, indicators.gappy, indicators.equilibrium)
        taught = self._full.solve(k, self.kept, refused, self._state.peak, enrich=not self._left)
        self._state, self._kept = taught.state, []
        if taught.package is not self.package:
            self.package = taught.package
            self._solver = ReducedModel(taught.package, self._law, rtol=self._rtol)


def _mean_root(p: np.ndarray) -> float:
    return float(norm(p) / np.sqrt(len(p)))

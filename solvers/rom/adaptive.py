"""A reduced simulation that asks the full model whenever it doubts itself, and learns from the answer.

    step k in the reduced model ─► estimates within the tolerances? ─► yes: keep it
                                          │ no, or no equilibrium
                                          ▼
    replay the law at all points up to k - 1 ─► full step k ─► enrich modes and cubature ─► go on, reduced

Source: Casenave & Akkari, "An error indicator-based adaptive reduced order model for nonlinear structural mechanics",
Math. Comput. Appl. 24(2):41 (2019).  Differs from it: two calibrated indicators, the calibration learns from each full
step, and the cubature starts from the points that it has.

Here both halves (`march`, `full_steps`) run side by side on all processes; a study has the first in its solver actor
and the second there or on MPI ranks, see `tasks`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from forebay.solvers.materials.history import History
from forebay.solvers.rom.full_steps import FullSteps
from forebay.solvers.rom.march import Decision, March, Tolerance
from forebay.solvers.rom.offline import Origin, Reduced

if TYPE_CHECKING:
    from forebay.solvers.fem.solid import SolidModel

__all__ = ["AdaptiveTrajectory", "Decision", "Tolerance", "run_adaptive"]


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
    full = FullSteps(model, reduced, origin, history)
    march = March(reduced.package, origin.law, history, tolerance, full, comm=model.comm)
    for k in range(1, history.steps + 1):
        decision = march.step(k)
        if observe is not None:
            observe(decision)
    full.extend(march.kept)
    fields = np.array(full.displacement), np.array(full.p)
    return AdaptiveTrajectory(history.times, *fields, tuple(march.decisions), full.reduced, time.process_time() - start)

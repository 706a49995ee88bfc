"""The full half of an adaptive simulation: replay, one full step, enrichment; collective over the model's communicator.

Between two calls it keeps what is as large as the mesh (fields, state, basis); what comes and goes is small.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from forebay.solvers.materials.history import History
from forebay.solvers.materials.law import plastic_strain
from forebay.solvers.rom.basis import Run
from forebay.solvers.rom.collective import total
from forebay.solvers.rom.errors import calibration_pairs
from forebay.solvers.rom.march import Kept, Refused, Taught
from forebay.solvers.rom.offline import Origin, Reduced, calibrated, make_package
from forebay.solvers.rom.trajectory import ReducedState

if TYPE_CHECKING:
    from forebay.solvers.fem.solid import SolidModel, SolidState


class FullSteps:
    """Steps of one history that the full model solves, and what the reduced one learns from them.

    Rows of `displacement` and `p` are times, from the initial state to the last step that is known here.
    """

    def __init__(self, model: SolidModel, reduced: Reduced, origin: Origin, history: History) -> None:
        self.model, self.reduced, self.history = model, reduced, history
        self._origin = origin
        self._state: SolidState = model.initial(history.law)
        self._at = 0
        self.displacement = [self._state.displacement]
        self.p = [np.zeros(model.points)]
        self.runs: list[Run] = []
        """Of one step each."""
        self.pairs: list[np.ndarray] = []
        """For a calibration, as `errors.calibration_pairs` gives them."""
        self._learned = self._judged = 0
        self.iterations = 0
        """Newton corrections of all full steps."""
        self.residual = 0.0
        """The largest relative one of them."""

    def solve(self, k: int, kept: Kept, refused: Refused | None, peak: float, *, enrich: bool = True) -> Taught:
        """Replay the law along the reduced steps, solve step k, enrich modes and cubature, update the calibration.

        Args:
            k: the step, from times[k - 1] to times[k].
            kept: the reduced steps since the last full one, in the present basis.
            refused: the reduced step k, where there is one.
            peak: largest L2 norm of the displacement before it, [mm^2.5].
            enrich: now; else with the next step that is to, or by `settle`.

        Raises:
            SolveError: the full model fails.
            CubatureError: the enriched cubature misses its tolerance.
        """
        self.extend(kept)
        past = np.array(self.displacement[self._at :])
        before = self.model.replay(self.history, past, first=self._at, start=self._state)
        full, record = self.model.step(self.history, k, before)
        self.iterations += record.iterations
        self.residual = max(self.residual, record.residuals[-1])
        run = Run(*self._single(k, before, full))
        if refused is not None:
            self.pairs.append(self._pairs(run, refused, peak))
        self.runs.append(run)
        if enrich:
            self.settle()
        self._state, self._at = full, k
        self.displacement.append(full.displacement)
        self.p.append(plastic_strain(self.history.law, full.variables))
        return Taught(self.reduced.package, self._reduced_state(k, full, peak))

    def extend(self, kept: Kept) -> None:
        """Add the fields of reduced steps, the next ones in time."""
        basis, first = self.reduced.basis, len(self.displacement)
        modes = basis.displacement.modes[:, : basis.modes]
        for k, (gamma, z) in enumerate(zip(kept.coefficients, kept.p_coefficients, strict=True), start=first):
            self.displacement.append(modes @ gamma + self._lifted(k))
            p = np.zeros(self.model.points) if basis.p is None else np.maximum(basis.p.modes @ z, 0.0)
            self.p.append(p)

    def settle(self) -> None:
        """Enrich modes and cubature by the full steps that are not learned yet, and update the calibration.

        Raises:
            CubatureError: the enriched cubature misses its tolerance.
        """
        if self._learned == len(self.runs):
            return
        package = self.reduced.package
        basis = self.reduced.basis.extended(self.model, self.runs[self._learned :])
        origin = replace(self._origin, version=package.version + 1)
        enriched = make_package(self.model, basis, origin, rough=True)
        pairs = np.vstack([np.empty((0, 4)), *self.pairs[self._judged :]])
        self.reduced = calibrated(enriched, package.calibration.update(pairs))
        self._learned, self._judged = len(self.runs), len(self.pairs)

    def sizes(self) -> np.ndarray:
        """L2 norms of displacement and p at all times known here, (rows, 2), on every process."""
        model = self.model
        squares = [
            (model.dof_weights @ u**2, model.weights @ p**2) for u, p in zip(self.displacement, self.p, strict=True)
        ]
        return np.sqrt(total(model.comm, np.array(squares)))

    def _lifted(self, k: int) -> np.ndarray:
        return self.model.lifts @ self.history.displacements[k]

    def _single(self, k: int, before: SolidState, after: SolidState) -> tuple[History, _Single]:
        """One step as a history and a trajectory of its own."""
        rows, history = slice(k - 1, k + 1), self.history
        part = History(
            history.times[rows], history.loads[rows], history.displacements[rows], history.temperature, history.law
        )
        states = (before, after)
        return part, _Single(
            np.array([state.displacement for state in states]),
            np.array([state.stress for state in states]),
            np.array([plastic_strain(history.law, state.variables) for state in states]),
        )

    def _pairs(self, run: Run, refused: Refused, peak: float) -> np.ndarray:
        gamma, z = refused.coefficients, refused.p_coefficients
        found = _Step(
            np.array([np.zeros_like(gamma), gamma]),
            run.history.displacements,
            np.array([np.zeros_like(z), z]),
            np.array([[refused.gappy, refused.equilibrium]]),
        )
        return calibration_pairs(self.model, self.reduced.basis, run, found, peak=peak)

    def _reduced_state(self, k: int, full: SolidState, peak: float) -> ReducedState:
        """The full state as the enriched model sees it."""
        comm, basis = self.model.comm, self.reduced.basis
        coefficients = basis.displacement.project(full.displacement - self._lifted(k), comm)[: basis.modes]
        rows = self._at_points(np.hstack([full.variables, full.stress]))
        width = full.variables.shape[1]
        size = float(np.sqrt(total(comm, self.model.dof_weights @ full.displacement**2)))
        variables, stress = np.ascontiguousarray(rows[:, :width]), np.ascontiguousarray(rows[:, width:])
        return ReducedState(coefficients, variables, stress, peak=max(peak, size))

    def _at_points(self, values: np.ndarray) -> np.ndarray:
        """Rows of owned values (points, c) at the package's points, on every process."""
        wanted = self.reduced.package.point_ids
        owned = np.flatnonzero(np.isin(self.model.point_ids, wanted))
        everyone = self.model.comm.allgather((self.model.point_ids[owned], values[owned]))
        ids, rows = (np.concatenate(parts) for parts in zip(*everyone, strict=True))
        order = np.argsort(ids)
        return np.asarray(rows[order[np.searchsorted(ids[order], wanted)]])


@dataclass(frozen=True, slots=True, eq=False)
class _Single:
    """What a basis and the true errors read of a trajectory, here of one step."""

    displacement: np.ndarray
    stress: np.ndarray
    p: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class _Step:
    """What the true errors read of a reduced trajectory, here of one step whose start does not count."""

    coefficients: np.ndarray
    displacements: np.ndarray
    p_coefficients: np.ndarray
    indicators: np.ndarray

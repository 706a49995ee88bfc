"""The reduced model at work: histories in, trajectories out, on one core and without the mesh."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from forebay.solvers.materials.history import History
from forebay.solvers.materials.law import Law, LawError, columns, plastic_strain, width
from forebay.solvers.rom.calibration import Indicators
from forebay.solvers.rom.equilibrium import Drive, NotConvergedError, Points, ReducedEquilibrium, Solution
from forebay.solvers.rom.indicator import Estimator
from forebay.solvers.rom.package import RomPackage
from forebay.solvers.rom.trajectory import Observe, ReducedSolveError, ReducedState, ReducedTrajectory, StepResult

__all__ = ["Observe", "ReducedModel", "ReducedSolveError", "ReducedState", "ReducedTrajectory", "StepResult"]


class ReducedModel:
    """Solves histories in the n modes of a package: no mesh, no MPI, 0.3 to 0.5 ms a step for n = 10 and 100 points.

    `law` is that of the training, and the package refuses any other.  A history brings the law of its sample, which may
    have other constants, as they may be parameters of a study, but must have the same name and variables.
    A step is taken whole if possible; when the law or Newton's method fails, its part is halved, up to `max_cuts`
    times, loads, prescribed displacements and time being linear within the step, and doubled after a success.

    `rtol` bounds the residual of the reduced equations.  What the modes leave out is larger by far: on held-out necked
    bars 1e-6 changed p by 2e-6 of it where its error is 1 %, and took a seventh less evaluations of the law than 1e-8.

    One object serves many histories, one after another; it keeps nothing between calls but buffers.

    Raises:
        PackageError: another law than that of the training.
        ValueError: the law has no variable "p".
    """

    def __init__(
        self, package: RomPackage, law: Law, *, rtol: float = 1e-6, max_iterations: int = 20, max_cuts: int = 8
    ) -> None:
        package.require_law(law)
        _require_p(law)
        self.package = package
        self._law = law
        self._max_cuts = max_cuts
        self._equilibrium = ReducedEquilibrium(package, law, rtol=rtol, max_iterations=max_iterations)
        self._watched = Points(package, slice(package.force_points, package.points), law)
        self._estimator = Estimator(package)
        self._fits: History | None = None
        """The last history that was found to fit the package."""

    def initial(self) -> ReducedState:
        """The virgin material without stress, at γ = 0."""
        points = self.package.points
        return ReducedState(np.zeros(self.package.modes), self._law.initial(points), np.zeros((points, 6)))

    def run(self, history: History, *, observe: Observe | None = None, until: int | None = None) -> ReducedTrajectory:
        """All steps, or those up to number `until`; `observe(k, state, result)` is called after each.

        Raises:
            ReducedSolveError: a step failed; what was observed before is good.
            ValueError: the history has other loads, displacements or variables than the package.
        """
        last = history.steps if until is None else until
        if not 0 <= last <= history.steps:
            raise ValueError(f"until = {until} must lie in 0 ... {history.steps}, the steps of the history")
        start = time.process_time()
        states, results = [self.initial()], []
        for k in range(1, last + 1):
            state, result = self.step(history, k, states[-1])
            states.append(state)
            results.append(result)
            if observe is not None:
                observe(k, state, result)
        return self._trajectory(history, states, results, time.process_time() - start)

    def step(self, history: History, k: int, state: ReducedState) -> tuple[ReducedState, StepResult]:
        """Step k, from times[k - 1] to times[k].

        Raises:
            ReducedSolveError: no equilibrium, not even in small parts.
            ValueError: no such step, or a history or state that does not fit the package.
        """
        self._require(history, k, state)
        done, size, cuts, iterations = 0.0, 1.0, 0, 0
        found, part = state, None
        while done < 1.0:
            end = min(1.0, done + size)
            try:
                found, part = self._advance(history, k, (done, end), found, predict=cuts == 0)
            except (LawError, NotConvergedError) as failure:
                cuts += 1
                size = (end - done) / 2
                if size < 0.5**self._max_cuts:
                    raise ReducedSolveError(k, history.time_at(k, end), str(failure)) from failure
            else:
                iterations += part.iterations
                done, size = end, 2 * size
        assert part is not None
        return self._judge(history, k, found, iterations, cuts, part.residual)

    def _advance(
        self, history: History, k: int, part: tuple[float, float], state: ReducedState, *, predict: bool
    ) -> tuple[ReducedState, Solution]:
        """One part of a step."""
        law, end = history.law, history.time_at(k, part[1])
        drive = Drive(
            history.loads_at(k, part[1]),
            history.displacements_at(k, part[1]),
            np.ascontiguousarray(history.temperature(self.package.positions, end), float),
            end - history.time_at(k, part[0]),
        )
        guess = state.coefficients
        if predict and state.rate is not None:
            guess = guess + drive.dt * state.rate
        solution = self._equilibrium.solve(law, drive, state.variables, guess)
        self._watched.lift(drive.displacements)
        self._watched.update(law, drive, state.variables, solution.coefficients, tangent=False)
        responses = self._equilibrium.points.response, self._watched.response
        step = (solution.coefficients - state.coefficients) / drive.dt, drive.dt
        variables = np.concatenate([response.state for response in responses])
        stress = np.concatenate([response.stress for response in responses])
        rate = _expected(state.step, step)
        return ReducedState(solution.coefficients, variables, stress, rate, step, state.peak, state.worst), solution

    def _judge(
        self, history: History, k: int, state: ReducedState, iterations: int, cuts: int, residual: float
    ) -> tuple[ReducedState, StepResult]:
        """Indicators and estimates at the end of a step, while the tangents of its last part are still there."""
        norm = self._estimator.displacement_norm(state.coefficients, history.displacements[k])
        peak = max(state.peak, norm)
        fitted, gappy = self._estimator.gappy(plastic_strain(history.law, state.variables))
        response = self._equilibrium.points.response
        imbalance = self._estimator.imbalance(history.loads[k], response, self._equilibrium.stiffness)
        worst = max(state.worst, imbalance)
        indicators = Indicators(gappy, self._estimator.equilibrium(imbalance, worst, peak))
        errors = self.package.calibration.estimate(indicators)
        judged = replace(state, peak=peak, worst=worst)
        return judged, StepResult(iterations, cuts, residual, indicators, fitted, *errors)

    def _trajectory(
        self, history: History, states: list[ReducedState], results: list[StepResult], seconds: float
    ) -> ReducedTrajectory:
        rows = slice(0, len(states))
        first = np.zeros((1, self.package.p_modes.shape[1]))
        return ReducedTrajectory(
            history.times[rows].copy(),
            history.loads[rows].copy(),
            history.displacements[rows].copy(),
            np.stack([state.coefficients for state in states]),
            np.stack([state.stress for state in states]),
            np.stack([plastic_strain(history.law, state.variables) for state in states]),
            np.vstack([first, *(result.p_coefficients for result in results)]),
            tuple(results),
            states[-1],
            seconds,
        )

    def _require(self, history: History, k: int, state: ReducedState) -> None:
        package = self.package
        if not 1 <= k <= history.steps:
            raise ValueError(f"step {k} must lie in 1 ... {history.steps}, the steps of the history")
        if history is not self._fits:
            self._require_fit(history)
            self._fits = history
        expected = (package.modes,), (package.points, width(self._law))
        if (state.coefficients.shape, state.variables.shape) != expected:
            raise ValueError(
                f"the state has coefficients {state.coefficients.shape} and variables {state.variables.shape}, due are "
                f"{expected[0]} and {expected[1]}; start from `initial()`, or convert it after an enrichment"
            )

    def _require_fit(self, history: History) -> None:
        package = self.package
        for what, given, names in (
            ("loads", history.loads, package.load_names),
            ("prescribed displacements", history.displacements, package.displacement_names),
        ):
            if given.shape[1] != len(names):
                raise ValueError(
                    f"the history has {given.shape[1]} {what}, the package {len(names)}: {list(names)}; give their "
                    f"amplitudes in this order"
                )
        if history.law is not self._law and _layout(history.law) != _layout(self._law):
            raise ValueError(
                f"the history's law {_layout(history.law)} is not the package's {_layout(self._law)}; only constants "
                f"may differ"
            )


def _expected(before: tuple[np.ndarray, float] | None, last: tuple[np.ndarray, float]) -> np.ndarray:
    """The rate of the next step, as long as the last, on the line through those of the last two."""
    rate, dt = last
    if before is None:
        return rate
    return np.asarray(rate + (rate - before[0]) * (2 * dt / (dt + before[1])))


def _layout(law: Law) -> tuple[str, list[tuple[str, int]]]:
    return law.name, [(variable.name, variable.components) for variable in law.variables]


def _require_p(law: Law) -> None:
    try:
        columns(law, "p")
    except KeyError:
        raise ValueError(
            f"law {law.name!r} has no variable 'p', the accumulated plastic strain that reduced models watch; give it "
            f"a column 'p', of zeros if need be"
        ) from None

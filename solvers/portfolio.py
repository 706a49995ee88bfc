"""`method = "auto"`: several solvers over one system, and a choice that learns from seconds alone."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from forebay.pipeline.records import Outcome, Parameter, Schema
from forebay.pipeline.stages import Draw
from forebay.solvers.arms import MatrixFacts
from forebay.solvers.assemble import System
from forebay.solvers.krylov.bandit import ArmSelector
from forebay.solvers.linear import LinearSolver, Solution
from forebay.solvers.methods import Method
from forebay.solvers.single import make_single

if TYPE_CHECKING:
    from forebay.solvers.batched.solver import StencilSolver

WORTH_A_DECISION_S = {False: 5e-3, True: 2e-2}
"""A decision costs 60 µs, with features 200, so it holds for as many like samples as this has room for."""
CELLS = 6
"""Along each feature; samples of one cell are alike."""
LONGEST_HOLD = 50
INPUT_FAULTS = (Outcome.NONFINITE_INPUT,)
"""Outcomes that no arm is to blame for, and that no other arm would mend."""


class Context:
    """What a sample's cost may depend on: its first two bounded scalar parameters, scaled to [-1, 1].

    Those of a normal distribution are left out: they are coefficients of a random field, many and alike.
    """

    def __init__(self, schema: Schema) -> None:
        self._parameters = [
            (k, parameter) for k, parameter in enumerate(schema.parameters) if parameter.distribution != "normal"
        ][:2]
        self.features = len(self._parameters)

    def of(self, draw: Draw) -> list[float]:
        """The features of one sample."""
        return [_scaled(parameter, float(draw["parameters"][k])) for k, parameter in self._parameters]


def _scaled(parameter: Parameter, value: float) -> float:
    low, high = parameter.low, parameter.high
    if parameter.distribution == "log_uniform":
        low, high, value = math.log(low), math.log(high), math.log(max(value, low))
    return min(max(2.0 * (value - low) / (high - low) - 1.0, -1.0), 1.0)


class Portfolio:
    """Solves each sample by the arm that the selector names; a sample whose arm failed goes to the next best one.

    What an arm costs is the time until the sample was certified: an arm that fails pays for its own attempt, and the
    arm that saved the sample for its own.  The set-up of every sample counts; that of a solver object does not: it is
    made when its arm is first tried, and may have to wait for a compiler, once on a machine.  `features` numbers in
    [-1, 1] may describe each sample; costs are then regressed on them, and an arm that fails on some samples is given
    up among their like only.  Seconds are processor time of this thread, so that a neighbour on the same core does not
    decide.
    """

    def __init__(
        self, system: System, methods: Sequence[Method], facts: MatrixFacts, *, seed: int, features: int = 0
    ) -> None:
        self._system = system
        self._methods = tuple(methods)
        self._facts = facts
        self._solvers: dict[int, LinearSolver | StencilSolver] = {}
        self._labels = [
            method.resolve(facts.symmetry, facts.unknowns, structured=facts.grid is not None).label
            for method in self._methods
        ]
        self._selector = ArmSelector(len(self._methods), seed=seed, features=features)
        self._solved = [0] * len(self._methods)
        self._worth_s = WORTH_A_DECISION_S[features > 0]
        self._factored_state: int | None = None
        """Of the matrix that arm `_factored_by` has factorised: nothing beats another right-hand side of that one."""
        self._factored_by = 0
        self._held: dict[tuple[int, ...], tuple[int, int]] = {}
        """By cell of the context: the arm last decided for, and the samples for which that still holds."""

    @property
    def label(self) -> str:
        """Name for a sample that no arm has touched."""
        return "auto"

    @property
    def seconds_certifying(self) -> float:
        """Of all arms."""
        return sum(solver.seconds_certifying for solver in self._solvers.values())

    def solve(self, guess: np.ndarray | None = None, context: Sequence[float] = ()) -> Solution:
        """Solve for the system's present matrix and right-hand side; `context` as the number of features says."""
        cell = tuple(int((feature + 1.0) * 0.5 * CELLS) for feature in context)
        state = self._system.matrix.stateGet()
        factored = state == self._factored_state
        arm, left = (self._factored_by, 1) if factored else self._held.get(cell, (0, 0))
        if left:
            if not factored:
                self._held[cell] = arm, left - 1
            started = time.thread_time()
            solution = self._count(arm, self._solvers[arm].solve(guess))
            if solution.outcome is Outcome.CONVERGED or solution.outcome in INPUT_FAULTS:
                return solution
            self._held.clear()
            self._factored_state = None
            self._selector.choose(context)
            self._selector.observe(arm, time.thread_time() - started, converged=False)
            others = self._selector.ranking()
            return self._solve_by(others[0], guess, cell) if others else solution
        return self._solve_by(self._selector.choose(context), guess, cell)

    def _solve_by(self, arm: int, guess: np.ndarray | None, cell: tuple[int, ...]) -> Solution:
        """With that arm, and with those left over after it until one has converged.

        An arm that was stopped at its cap is left over too, for a second go without a cap.
        """
        while True:
            solution = self._try(arm, guess, cell)
            if solution.outcome is Outcome.CONVERGED or solution.outcome in INPUT_FAULTS:
                return solution
            left = self._selector.ranking()
            if not left:
                return solution
            arm = left[0]

    def _try(self, arm: int, guess: np.ndarray | None, cell: tuple[int, ...]) -> Solution:
        if arm not in self._solvers:
            self._solvers[arm] = make_single(self._system, self._methods[arm], self._facts)
        started = time.thread_time()
        chosen = self._selector.reason == "policy" and arm == self._selector.chosen
        solution = self._count(arm, self._solvers[arm].solve(guess, cap_s=self._selector.cap(arm)))
        seconds = time.thread_time() - started
        if solution.outcome is Outcome.CONVERGED and self._solvers[arm].choice.direct:
            self._factored_state, self._factored_by = self._system.matrix.stateGet(), arm
        if solution.outcome not in INPUT_FAULTS:
            converged = solution.outcome is Outcome.CONVERGED
            self._selector.observe(arm, seconds, converged=converged)
            if converged and chosen:
                self._held[cell] = arm, min(LONGEST_HOLD, int(self._worth_s / max(seconds, 1e-6)))
        return solution

    def _count(self, arm: int, solution: Solution) -> Solution:
        self._solved[arm] += solution.outcome is Outcome.CONVERGED
        return solution

    def table(self) -> tuple[Mapping[str, Any], ...]:
        """What has been learned, one plain dict an arm, best first."""
        rows = self._selector.table()
        return tuple({"method": self._labels[row["arm"]], "solved": self._solved[row["arm"]], **row} for row in rows)

    def destroy(self) -> None:
        """Free PETSc's side, the system's not."""
        for solver in self._solvers.values():
            solver.destroy()
        self._solvers.clear()

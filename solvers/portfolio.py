"""`method = "auto"`: several solvers over one system, and a choice that learns from seconds alone."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from forebay.pipeline.records import Outcome
from forebay.solvers.arms import MatrixFacts
from forebay.solvers.assemble import System
from forebay.solvers.krylov.bandit import ArmSelector
from forebay.solvers.linear import LinearSolver, Solution
from forebay.solvers.methods import Method

WORTH_A_DECISION_S = 5e-3
"""A decision costs some 60 µs, so it holds for as many samples as this has room for."""
LONGEST_HOLD = 50
INPUT_FAULTS = (Outcome.NONFINITE_INPUT,)
"""Outcomes that no arm is to blame for, and that no other arm would mend."""


class Portfolio:
    """Solves each sample by the arm that the selector names; a sample whose arm failed goes to the next best one.

    What an arm costs is the time until the sample was certified: an arm that fails pays for its own attempt, and the
    arm that saved the sample for its own.  Solver objects are made when their arm is first tried, and that time counts,
    as does the set-up of every sample.  Seconds are processor time of this thread, so that a neighbour on the same core
    does not decide.
    """

    def __init__(self, system: System, methods: Sequence[Method], facts: MatrixFacts, *, seed: int) -> None:
        self._system = system
        self._methods = tuple(methods)
        self._facts = facts
        self._solvers: dict[int, LinearSolver] = {}
        self._labels = [
            method.resolve(facts.symmetry, facts.unknowns, structured=facts.grid is not None).label
            for method in self._methods
        ]
        self._selector = ArmSelector(len(self._methods), seed=seed)
        self._solved = [0] * len(self._methods)
        self._arm = 0
        self._held = 0
        """Samples for which the last decision still holds."""

    @property
    def label(self) -> str:
        """Name for a sample that no arm has touched."""
        return "auto"

    @property
    def seconds_certifying(self) -> float:
        """Of all arms."""
        return sum(solver.seconds_certifying for solver in self._solvers.values())

    def solve(self, guess: np.ndarray | None = None) -> Solution:
        """Solve for the system's present matrix and right-hand side."""
        arm, tried = self._arm, set[int]()
        if self._held:
            self._held -= 1
            started = time.thread_time()
            solution = self._count(arm, self._solvers[arm].solve(guess))
            if solution.outcome is Outcome.CONVERGED or solution.outcome in INPUT_FAULTS:
                return solution
            self._held = 0
            tried.add(arm)
            self._selector.choose()
            self._selector.observe(arm, time.thread_time() - started, converged=False)
            arm = next(other for other in self._selector.ranking() if other not in tried)
        else:
            arm = self._arm = self._selector.choose()
        return self._solve_by(arm, tried, guess)

    def _solve_by(self, arm: int, tried: set[int], guess: np.ndarray | None) -> Solution:
        """With that arm, and with those left over after it until one has converged."""
        while True:
            tried.add(arm)
            solution = self._try(arm, guess)
            if solution.outcome is Outcome.CONVERGED or solution.outcome in INPUT_FAULTS:
                return solution
            left = [other for other in self._selector.ranking() if other not in tried]
            if not left:
                return solution
            arm = left[0]

    def _try(self, arm: int, guess: np.ndarray | None) -> Solution:
        started = time.thread_time()
        if arm not in self._solvers:
            self._solvers[arm] = LinearSolver(
                self._system, self._methods[arm], symmetry=self._facts.symmetry, grid=self._facts.grid
            )
        by_policy = self._selector.reason == "policy"
        solution = self._count(arm, self._solvers[arm].solve(guess, cap_s=self._selector.cap(arm)))
        seconds = time.thread_time() - started
        if solution.outcome not in INPUT_FAULTS:
            converged = solution.outcome is Outcome.CONVERGED
            self._selector.observe(arm, seconds, converged=converged)
            if converged and by_policy and arm == self._arm:
                self._held = min(LONGEST_HOLD, int(WORTH_A_DECISION_S / seconds))
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

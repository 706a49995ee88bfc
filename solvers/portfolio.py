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
        self._closed_certifying = 0.0

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
        arm = self._selector.choose()
        tried: set[int] = set()
        while True:
            tried.add(arm)
            solution = self._try(arm, guess)
            left = [other for other in self._selector.ranking() if other not in tried]
            if solution.outcome is Outcome.CONVERGED or solution.outcome in INPUT_FAULTS or not left:
                return solution
            arm = left[0]

    def _try(self, arm: int, guess: np.ndarray | None) -> Solution:
        started = time.thread_time()
        if arm not in self._solvers:
            self._solvers[arm] = LinearSolver(
                self._system, self._methods[arm], symmetry=self._facts.symmetry, grid=self._facts.grid
            )
        solution = self._solvers[arm].solve(guess, cap_s=self._selector.cap(arm))
        if solution.outcome not in INPUT_FAULTS:
            converged = solution.outcome is Outcome.CONVERGED
            self._selector.observe(arm, time.thread_time() - started, converged=converged)
        return solution

    def table(self) -> tuple[Mapping[str, Any], ...]:
        """What has been learned, one plain dict an arm, best first."""
        return tuple({"method": self._labels[row["arm"]], **row} for row in self._selector.table())

    def destroy(self) -> None:
        """Free PETSc's side, the system's not."""
        for solver in self._solvers.values():
            solver.destroy()
        self._solvers.clear()

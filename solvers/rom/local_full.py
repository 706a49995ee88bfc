"""Full samples and full steps in the process that asks for them."""

from __future__ import annotations

import importlib
from functools import cached_property
from typing import TYPE_CHECKING

from forebay.pipeline.stages import Draw
from forebay.solvers.petsc import petsc
from forebay.solvers.problems.solid import SolidProblem
from forebay.solvers.rom.basis import Settings
from forebay.solvers.rom.growth import Growth, Place
from forebay.solvers.rom.library import Library
from forebay.solvers.rom.step_tasks import Adaptation
from forebay.solvers.rom.tasks import FullSample, solve_and_learn

if TYPE_CHECKING:
    from forebay.solvers.fem.solid import SolidModel


class LocalFull:
    """Solves on COMM_SELF; `learn` is the library that grows by samples, and how fine its models are."""

    def __init__(
        self, problem: SolidProblem, *, name: str, rtol: float, learn: tuple[Library, Settings] | None
    ) -> None:
        self._problem, self._name, self._rtol, self._learn = problem, name, rtol, learn

    @cached_property
    def model(self) -> SolidModel:
        """Made when first needed."""
        petsc()
        comm = importlib.import_module("mpi4py.MPI").COMM_SELF
        return self._problem.model(comm, rtol=self._rtol)

    def solve(self, draw: Draw, *, learn: bool) -> FullSample:
        """One sample; see `tasks.solve_and_learn` for what it raises."""
        return solve_and_learn(self.model, self._problem, draw, name=self._name, learn=self._learn if learn else None)

    def adapt(self, draw: Draw, base: Place) -> Adaptation:
        """Full steps of one sample; see `step_tasks.Adaptation` for what it raises."""
        assert self._learn is not None, "a study without a library has no reduced steps"
        return Adaptation(self.model, Growth(*self._learn, self._name, self._problem), draw, base)

    def close(self) -> None:
        """Free PETSc's side."""
        if "model" in self.__dict__:
            self.model.destroy()

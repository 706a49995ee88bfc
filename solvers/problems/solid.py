"""What a problem of nonlinear solid mechanics is: no linear system per sample, but a simulation in time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard

import numpy as np

from forebay.pipeline.records import Schema
from forebay.pipeline.stages import Draw
from forebay.solvers.materials.history import History
from forebay.solvers.materials.law import Law

if TYPE_CHECKING:
    from forebay.solvers.fem.solid import SolidModel


class SolidProblem(Protocol):
    """A parametric solid under a history of loads, solved by its full model or by a reduced one.

    A frozen dataclass whose fields are the options of the study's `[problem]` table, like every problem.  A sample is
    one history; its frames are the stored times.  Arrays over degrees of freedom or quadrature points are in the
    order of `SolidModel.dof_ids` and `point_ids`, which does not depend on the number of processes.
    """

    @property
    def schema(self) -> Schema:
        """Parameters, fields, coordinates; `times` are those that are stored, [s]."""
        ...

    @property
    def law(self) -> Law:
        """The material without scatter, for which reduced models are trained."""
        ...

    @property
    def stored_steps(self) -> np.ndarray:
        """Numbers k >= 1 of the history's times that `schema.times` keeps, ascending, int64."""
        ...

    def model(self, comm: Any, *, rtol: float = 1e-8) -> SolidModel:
        """The full model over a communicator; collective."""
        ...

    def draw(self, parameters: np.ndarray, rng: np.random.Generator) -> Mapping[str, np.ndarray]:
        """Random input fields of one sample, by name; `parameters` are already drawn, shape (p,)."""
        ...

    def history(self, draw: Draw) -> History:
        """Loads, prescribed displacements, temperature and law of one sample."""
        ...

    def fields(self, displacement: np.ndarray, p: np.ndarray) -> Mapping[str, np.ndarray]:
        """Output fields by name at t times, each (t, *shape), from u (t, dofs) [mm] and p (t, points)."""
        ...


def is_solid(problem: object) -> TypeGuard[SolidProblem]:
    """Does it claim to be a `SolidProblem`?  `check_contract` looks whether it is one."""
    return hasattr(type(problem), "history")

"""Newton's method with a line search for one increment of a solid."""

from __future__ import annotations

import contextlib
import importlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from forebay.solvers.fem.solid_loads import Constraints
from forebay.solvers.fem.solid_space import SolidSpace
from forebay.solvers.fem.solid_tangent import Tangent, internal_force_form
from forebay.solvers.fem.solid_types import Effort, SolidState
from forebay.solvers.materials.law import Law, LawError, Response, width

_MOST_ITERATIONS = 25
_BACKTRACKS = 4
_DECREASE = 1e-4
"""Armijo's constant: the norm must fall by at least this part of what the linear model promises."""
_WORK = 0.8
"""Or the residual's work along the correction must come down to this part of what it was."""
_NO_DESCENT = "no step along the correction lowers the residual or its work"
_SETTLED = 1e-12
"""A correction this small relative to the displacement is rounding: forces that cancel have no better residual."""
_CANCELLED = 1e-3
"""Times the largest forces met in an increment: the least scale of a residual, where all forces cancel in the end."""
_IDLE = 1e-3
"""Times rtol: below it nothing has changed, and no correction is computed."""


@dataclass(frozen=True, slots=True, eq=False)
class Increment:
    """What holds at the end of an increment."""

    start: SolidState
    force: np.ndarray
    """External nodal forces (dofs,), zero at fixed degrees of freedom."""
    prescribed: np.ndarray
    """Amplitudes of the prescribed displacements (D,)."""
    temperature: np.ndarray
    """(points,), [°C]."""
    dt: float
    law: Law


@dataclass(frozen=True, slots=True, eq=False)
class Solved:
    """The outcome of an increment: a state where it converged, otherwise the reason why it did not."""

    state: SolidState | None
    residuals: tuple[float, ...]
    reason: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class _Trial:
    residual: np.ndarray
    """External minus internal forces, zero at fixed degrees of freedom."""
    norm: float
    """NaN where the law had no answer."""
    scale: float
    """The larger of the norms of internal forces, reactions included, and external ones."""


class Newton:
    """∫ σ(ε(u), T, Δt, zₙ):ε(v) dx = f(v), u = g on supports.

    The first correction carries the change of g through the consistent tangent, which is linear extrapolation; later
    ones are halved, up to four times, until r = f - f_int becomes shorter or its work r·Δu along the correction
    smaller.  Where some points yield and others unload, the norm rises along a correction that lowers the energy, and
    falls only long after; the work, which is the slope of the energy, says so at once.  The criterion is that of H.
    Matthies and G. Strang, "The solution of nonlinear finite element equations", Int. J. Numer. Meth. Eng. 14 (1979),
    doi 10.1002/nme.1620141104; theirs asks for half of the work and never looks at the norm.
    Converged: ‖r‖ <= rtol max(‖f‖, ‖f_int‖), reactions included; where all forces cancel in the end, as in free thermal
    expansion, they count as at least a thousandth of the largest that were met in the increment.
    """

    def __init__(self, space: SolidSpace, constraints: Constraints, tangent: Tangent, rtol: float) -> None:
        self._space, self._constraints, self._tangent, self._rtol = space, constraints, tangent, rtol
        self._form = internal_force_form(space)
        self._fem = importlib.import_module("dolfinx.fem")
        la = importlib.import_module("dolfinx.la")
        self._add = la.InsertMode.add
        self._internal = self._fem.create_vector(space.space)
        self._failure = ""

    def solve(self, increment: Increment, effort: Effort) -> Solved:
        """From the increment's start to its end; collective."""
        space = self._space
        variables = np.empty((space.points, width(increment.law)))
        response = Response(space.stress, space.tangent, variables)
        space.set_displacement(increment.start.displacement)
        jump = self._constraints.prescribe(increment.prescribed) - increment.start.displacement[self._constraints.fixed]
        moves = space.norm(jump) > 0
        trial = self._evaluate(increment, response, effort)
        residuals: list[float] = []
        largest = 0.0
        for iteration in range(_MOST_ITERATIONS + 1):
            if not np.isfinite(trial.norm):
                return Solved(None, tuple(residuals), self._failure or "the stress is not finite")
            largest = max(largest, trial.scale)
            scale = max(trial.scale, _CANCELLED * largest)
            residuals.append(trial.norm / scale if scale > 0 else 0.0)
            if self._accepts(residuals, moves and iteration == 0):
                return Solved(self._state(variables), tuple(residuals))
            lifts = moves and iteration == 0
            correction = self._correct(trial, jump if lifts else None, effort)
            size = space.norm(correction)
            if not np.isfinite(size):
                return Solved(None, tuple(residuals), "the linear solver failed: the tangent may be singular")
            if not lifts and size <= _SETTLED * space.norm(self._displacement()):
                return Solved(self._state(variables), tuple(residuals))
            searched = self._search(increment, response, trial, correction, lifts, effort)
            if searched is None:
                return Solved(None, tuple(residuals), self._failure or _NO_DESCENT)
            trial = searched
        return Solved(None, tuple(residuals), f"{_MOST_ITERATIONS} corrections were not enough")

    def internal_force(self, stress: np.ndarray) -> np.ndarray:
        """∫ σ:ε(v) dx of given stresses (points, 6), owned values (dofs,); collective."""
        self._space.stress[:] = stress
        return self._assemble_internal().copy()

    def _accepts(self, residuals: list[float], moves: bool) -> bool:
        if len(residuals) == 1:
            return not moves and residuals[0] <= _IDLE * self._rtol
        return residuals[-1] <= self._rtol

    def _correct(self, trial: _Trial, jump: np.ndarray | None, effort: Effort) -> np.ndarray:
        with _timed(effort, "assembly"):
            self._tangent.assemble()
        with _timed(effort, "linear"):
            correction, iterations = self._tangent.correction(trial.residual, jump)
        effort.iterations += 1
        effort.linear_iterations += iterations
        return correction

    def _search(
        self,
        increment: Increment,
        response: Response,
        before: _Trial,
        correction: np.ndarray,
        whole: bool,
        effort: Effort,
    ) -> _Trial | None:
        """Go along a correction until the residual or its work falls; None where neither does.

        `whole`: the correction moves the supports, and the norms before and after cannot be compared.
        """
        start, length = self._displacement(), 1.0
        work = _WORK * self._space.dot(before.residual, correction)
        for backtracks in range(1 if whole else _BACKTRACKS + 1):
            length = 0.5**backtracks
            self._space.set_displacement(start + length * correction)
            trial = self._evaluate(increment, response, effort)
            if not np.isfinite(trial.norm):
                continue
            shorter = trial.norm <= (1 - _DECREASE * length) * before.norm
            if whole or shorter or abs(self._space.dot(trial.residual, correction)) <= work:
                effort.backtracks += backtracks > 0
                return trial
        return None

    def _evaluate(self, increment: Increment, response: Response, effort: Effort) -> _Trial:
        """Stress, tangent and residual of the current displacement."""
        with _timed(effort, "strain"):
            strain = self._space.strains()
        with _timed(effort, "law"):
            self._failure = _agree(self._space.mesh.comm, _update(increment, strain, response))
        if self._failure:
            return _Trial(increment.force, np.nan, np.nan)
        with _timed(effort, "assembly"):
            internal = self._assemble_internal()
        scale = max(self._space.norm(internal), self._space.norm(increment.force))
        residual = increment.force - internal
        residual[self._constraints.fixed] = 0.0
        return _Trial(residual, self._space.norm(residual), scale)

    def _assemble_internal(self) -> np.ndarray:
        self._internal.array[:] = 0.0
        self._fem.assemble_vector(self._internal.array, self._form)
        self._internal.scatter_reverse(self._add)
        return np.asarray(self._internal.array[: self._space.dofs])

    def _displacement(self) -> np.ndarray:
        return np.array(self._space.displacement.x.array[: self._space.dofs])

    def _state(self, variables: np.ndarray) -> SolidState:
        return SolidState(self._displacement(), variables, self._space.stress.copy())


def _update(increment: Increment, strain: np.ndarray, response: Response) -> Exception | None:
    """Run the law; what it raised."""
    if len(strain) == 0:
        return None
    try:
        increment.law.update(strain, increment.temperature, increment.dt, increment.start.variables, response)
    except Exception as error:  # raised again by `_agree`, once the other processes know
        return error
    return None


def _agree(comm: Any, error: Exception | None) -> str:
    """The text of a `LawError` on any process, "" if there is none; any other exception is raised on all of them."""
    mine = "" if error is None else str(error)
    broken = error is not None and not isinstance(error, LawError)
    everyone = [(mine, broken)] if comm.size == 1 else comm.allgather((mine, broken))
    if broken and error is not None:
        raise error
    for rank, (text, fatal) in enumerate(everyone):
        if fatal:
            raise RuntimeError(f"the law raised an error on process {rank}: {text}")
    texts = [text for text, _ in everyone if text]
    return f"the law failed: {texts[0]}" if texts else ""


@contextlib.contextmanager
def _timed(effort: Effort, what: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        effort.seconds[what] += time.perf_counter() - start

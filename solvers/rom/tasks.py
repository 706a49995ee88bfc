"""One full sample and what the reduced model learns from it: in this process, or as an MPI task on several.

`solve_and_learn` is collective over the model's communicator.  `full_sample` has the signature of an MPI task
(`cluster.mpi`): arrays and plain values in, arrays and plain values out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from forebay.pipeline.errors import ForebayError
from forebay.pipeline.stages import Draw
from forebay.solvers.fem.solid_types import SolveError
from forebay.solvers.materials.history import History, Temperature
from forebay.solvers.problems import load_problem
from forebay.solvers.problems.solid import SolidProblem
from forebay.solvers.rom.basis import Run, Settings
from forebay.solvers.rom.growth import Growth
from forebay.solvers.rom.library import Library

if TYPE_CHECKING:
    from forebay.solvers.fem.solid import SolidModel

_models: dict[str, tuple[SolidProblem, SolidModel]] = {}
"""Models of a process that lives on between tasks, by everything that they are made from."""


class FullSolveError(RuntimeError):
    """The full model failed in a sample; the text says in which step and why."""


class HistoryError(ValueError):
    """A sample's history cannot be simulated: the problem's code raised, or model or law refuse what it says."""


@dataclass(frozen=True, slots=True, eq=False)
class FullSample:
    """What a full simulation left behind, in canonical order; arrays are None but on the first process."""

    displacement: np.ndarray | None
    """(s + 1, dofs), [mm]."""
    p: np.ndarray | None
    """(s + 1, points)."""
    iterations: int
    residual: float
    """Relative, the largest over the steps."""
    version: int
    """Of the reduced model that knows this sample; 0 where none was asked to learn."""
    note: str = ""
    """What went wrong before it was solved."""


def solve_and_learn(
    model: SolidModel, problem: SolidProblem, draw: Draw, *, name: str, learn: tuple[Library, Settings] | None
) -> FullSample:
    """Simulate one sample in full, and publish the version of the reduced model that knows it; collective.

    Raises:
        HistoryError: the sample's history is at fault.
        FullSolveError: the full model fails.
        CubatureError: the enriched cubature misses its tolerance.
        DatasetError: the disk is full.
    """
    history = history_of(problem, draw)
    try:
        with told_of_history():
            trajectory = model.run(history)
    except SolveError as error:
        raise FullSolveError(str(error)) from error
    version = 0
    if learn is not None:
        version = Growth(*learn, name, problem).learn_run(model, draw, Run(history, trajectory))
    return FullSample(
        in_order(model, trajectory.displacement, model.dof_ids),
        in_order(model, trajectory.p, model.point_ids),
        iterations=sum(record.iterations for record in trajectory.records),
        residual=max(record.residuals[-1] for record in trajectory.records),
        version=version,
    )


def history_of(problem: SolidProblem, draw: Draw) -> History:
    """The history of a sample; what the problem's code raises, its temperature later on included, is a `HistoryError`.

    Raises:
        HistoryError: the problem's code raised.
    """
    with _as_history_error("history", Exception):
        history = problem.history(draw)
        return replace(history, temperature=_Temperature(history.temperature))


def told_of_history() -> contextlib.AbstractContextManager[None]:
    """Inside runs a model; its ValueError says that it, or its law, refuses the history, and becomes a HistoryError."""
    return _as_history_error("history", ValueError)


@dataclass(frozen=True, slots=True)
class _Temperature:
    """A problem's temperature, guarded."""

    function: Temperature

    def __call__(self, positions: np.ndarray, time: float) -> np.ndarray:
        with _as_history_error("temperature", Exception):
            return np.ascontiguousarray(self.function(positions, time), float)


@contextlib.contextmanager
def _as_history_error(what: str, kind: type[Exception]) -> Iterator[None]:
    try:
        yield
    except (ForebayError, HistoryError):
        raise
    except kind as error:
        raise HistoryError(f"{what}: {type(error).__name__}: {error}") from error


def full_sample(
    comm: Any, arrays: Mapping[str, np.ndarray], options: Mapping[str, Any]
) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """`solve_and_learn` as an MPI task: `arrays` are the draw, `options` say which problem and where it learns.

    Options: problem, problem_options, folder (of the study), rtol, and library and settings where it is to learn.
    Where the full model fails the value is {"failure": why, "kind": of error}.
    """
    problem, model = model_of(comm, options)
    learn = None
    if options.get("library"):
        learn = Library(Path(options["library"])), Settings(**options["settings"])
    try:
        sample = solve_and_learn(model, problem, dict(arrays), name=options["problem"], learn=learn)
    except FullSolveError as error:
        return {}, {"failure": str(error), "kind": type(error).__name__}
    if sample.displacement is None or sample.p is None:
        return None
    facts = {"iterations": sample.iterations, "residual": sample.residual, "version": sample.version}
    return {"displacement": sample.displacement, "p": sample.p}, facts


def in_order(model: SolidModel, rows: np.ndarray, ids: np.ndarray) -> np.ndarray | None:
    """Columns of all processes in canonical order, for rows of times; None but on the first; collective."""
    gathered = model.gather(np.ascontiguousarray(rows.T), ids)
    return None if gathered is None else np.ascontiguousarray(gathered.T)


def model_of(comm: Any, options: Mapping[str, Any]) -> tuple[SolidProblem, SolidModel]:
    """Problem and model that the options of a task name, made once in a process; collective."""
    key = repr([options[name] for name in ("problem", "problem_options", "folder", "rtol")])
    if key not in _models:
        problem: Any = load_problem(options["problem"], options["problem_options"], folder=Path(options["folder"]))
        _models[key] = problem, problem.model(comm, rtol=options["rtol"])
    return _models[key]

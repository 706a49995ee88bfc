"""From a problem and the study's `[solver]` table to the object that solves blocks, and what is refused before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

from forebay.pipeline.errors import StudyError
from forebay.pipeline.records import ChunkPlan, Split
from forebay.pipeline.sampling import DesignKind
from forebay.pipeline.stages import Problem, StructuredProblem
from forebay.pipeline.study import SolverTable
from forebay.solvers.arms import check_method, check_order, check_weights, facts_of, parse_method
from forebay.solvers.batched.weights import (
    NAMED_WEIGHTS,
    ONLINE,
    Weights,
    WeightsFolder,
    load_aggregation_weights,
    load_weights,
)
from forebay.solvers.methods import Method
from forebay.solvers.problems.solid import SolidProblem, is_solid
from forebay.solvers.trainable import check_trainable

_SOLID_METHODS = ("full", "rom")
_SOLID_KEYS = ("method", "rtol", "actors", "rom")
LIBRARY = "rom"
"""Folder of the reduced model's versions in a run folder."""
PRECONDITIONER = "preconditioner"
"""Folder of the learned preconditioner's versions in a run folder."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """Which samples there are, and what each is drawn from."""

    run_seed: int
    plans: Mapping[Split, ChunkPlan]
    design: DesignKind = "random"
    redraws: int = 0
    """How often a sample that failed is drawn anew."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where samples are solved, which leaves no trace in them."""

    study_folder: Path = Path()
    """Where relative names in the study start."""
    run_folder: Path | None = None
    threads: int = 1
    """Cores of one solver, for methods that can use several."""
    keep_resident: bool = False
    """Leave what a device has solved there as well: the learner is in this process."""


def check_solver(problem: Problem | SolidProblem, table: SolverTable, place: Place | None = None) -> None:
    """Refuse what cannot work, before anything is solved.

    Raises:
        StudyError: a method that does not fit the problem, a key that would be passed over in silence, or weights that
            cannot be used.
        ProblemError: a pattern and a grid that contradict each other.
    """
    if is_solid(problem):
        solid_method(table)
        return
    if table.method in _SOLID_METHODS or table.rom != SolverTable().rom:
        what = "method = " + repr(table.method) if table.method in _SOLID_METHODS else "rom"
        raise StudyError(
            f"solver.{what} is for solids (necked_bar, blade), whose samples are simulations; this problem is a linear "
            f"system: choose direct, cg, gmres, gcrodr, ..., or auto"
        )
    linear = cast(Problem, problem)
    method, facts = parse_method(linear_table(table, place)), facts_of(linear)
    check_method(method, facts)
    check_order(method, facts, sort=table.sort, guesses=table.guesses)
    for arm in (method,) if isinstance(method, Method) else method.arms:
        check_weights(arm, facts)
    if table.learned == ONLINE and table.preconditioner == "amg":
        check_trainable(linear, facts)


def linear_table(table: SolverTable, place: Place | None = None) -> dict[str, Any]:
    """What of it concerns linear systems; files of weights by their whole path."""
    folder = (place or Place()).study_folder
    tree = table.model_dump(exclude={"rom"})
    for entry in (tree, *tree["arms"]):
        if entry["learned"] not in NAMED_WEIGHTS:
            entry["learned"] = str(folder / entry["learned"])
    return tree


def solid_method(table: SolverTable) -> str:
    """Either "full" or "rom"; the table's default, "direct", stands for the first.

    Raises:
        StudyError: another method, or a key that a solid has no use for.
    """
    default = SolverTable()
    method = "full" if table.method == default.method else table.method
    if method not in _SOLID_METHODS:
        raise StudyError(
            f"solver.method = {table.method!r} solves linear systems, and this problem is a solid; choose "
            f'"full", or "rom", which learns a reduced model'
        )
    for key in SolverTable.model_fields:
        if key not in _SOLID_KEYS and getattr(table, key) != getattr(default, key):
            raise StudyError(f"solver.{key} = {getattr(table, key)!r} has no use for a solid; leave it out")
    if method == "full" and table.rom.model_copy(update={"ranks": 1}) != default.rom:
        raise StudyError('solver.rom has no use with solver.method = "full", but for ranks; set method = "rom"')
    return method


def make_linear(problem: Problem, table: SolverTable, sampling: Sampling, place: Place | None = None) -> Any:
    """The solver of linear systems."""
    from forebay.solvers.block_solver import BlockSolver

    place = place or Place()
    return BlockSolver(
        problem,
        parse_method(linear_table(table, place)),
        run_seed=sampling.run_seed,
        plans=sampling.plans,
        design=sampling.design,
        sort=table.sort,
        guesses=table.guesses,
        threads=place.threads,
        published=_published(problem, table, place),
        keep_resident=place.keep_resident,
        redraws=sampling.redraws,
    )


def _published(problem: Problem, table: SolverTable, place: Place) -> WeightsFolder | None:
    """Where a run's versions appear; None where none will."""
    if table.learned != ONLINE or place.run_folder is None:
        return None
    load: Callable[[str], Weights | None] = load_aggregation_weights
    if table.method == "batched":
        load = partial(load_weights, dimension=len(cast(StructuredProblem, problem).grid_shape))
    return WeightsFolder(place.run_folder / PRECONDITIONER, load)


@dataclass(frozen=True, slots=True)
class SolidStudy:
    """What a full sample is made from, wherever it is solved."""

    name: str
    """`problem.name` of the study."""
    options: Mapping[str, Any]
    study_folder: Path
    run_folder: Path
    table: SolverTable

    @property
    def library(self) -> Path | None:
        """Where the reduced model's versions are; None for a study without."""
        return self.run_folder / LIBRARY if solid_method(self.table) == "rom" else None

    @property
    def settings(self) -> dict[str, Any]:
        """Fields of `rom.basis.Settings`."""
        return self.table.rom.model_dump(include={"displacement", "stress", "p", "cubature", "test_modes", "bases"})


def learns_by(study: SolidStudy) -> Any:
    """Library and `rom.basis.Settings` of a study; None where it learns no reduced model."""
    from forebay.solvers.rom.basis import Settings
    from forebay.solvers.rom.library import Library

    return None if study.library is None else (Library(study.library), Settings(**study.settings))


def make_solid(problem: SolidProblem, study: SolidStudy, sampling: Sampling, *, full: Any = None) -> Any:
    """The solver of solids; `full` solves whole samples, by default in this process."""
    from forebay.solvers.rom.block_solver import SolidBlockSolver
    from forebay.solvers.rom.local_full import LocalFull
    from forebay.solvers.rom.verdict import RomRule

    rom, learn = study.table.rom, learns_by(study)
    if full is None:
        full = LocalFull(problem, name=study.name, rtol=study.table.rtol, learn=learn)
    return SolidBlockSolver(
        problem,
        full,
        library=None if learn is None else learn[0],
        rule=RomRule(rom.tolerance, rom.training, rom.audit, rom.adapt, study.table.rtol),
        run_seed=sampling.run_seed,
        plans=sampling.plans,
        design=sampling.design,
        redraws=sampling.redraws,
    )

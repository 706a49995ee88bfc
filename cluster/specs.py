"""What a process needs to build its stage: plain values that travel, and the functions that turn them into objects.

Each function imports one stack only: a solver process never loads torch, a learner process never loads PETSc.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forebay.pipeline.dataset_layout import DATASETS
from forebay.pipeline.errors import RunError
from forebay.pipeline.messages import BlockKey
from forebay.pipeline.plan import Plan
from forebay.pipeline.records import Block, Schema, Split
from forebay.pipeline.study import Study

if TYPE_CHECKING:
    from forebay.learners.learner import StreamLearner
    from forebay.learners.team import Team
    from forebay.pipeline.dataset import DatasetWriter
    from forebay.solvers.block_solver import BlockSolver
    from forebay.solvers.rom.block_solver import SolidBlockSolver


@dataclass(frozen=True, slots=True)
class RunSpec:
    """A resolved study and where it runs."""

    study: Study
    plan: Plan
    schema: Schema
    folder: Path
    """The run folder."""
    study_folder: Path
    """Where relative names in the study ("my_problem.py:MyProblem") start."""

    @property
    def learned(self) -> Schema:
        """The schema with the output fields that the learner is to learn."""
        return self.schema.only(self.study.learner.fields)

    def dataset(self, split: Split) -> Path:
        """Folder of a split's data set."""
        return self.folder / DATASETS[split]


def trains_preconditioner(spec: RunSpec) -> bool:
    """Does the run train the preconditioner that its solvers use?"""
    return spec.study.solver.learned == "online"


def gpu_share(spec: RunSpec, available: float) -> float:
    """GPUs that each solver actor asks for, given how many there are; several solvers share one.

    Raises:
        RunError: the study wants a GPU, and there is none.
    """
    table = spec.study.solver
    if table.method != "batched" or table.backend not in ("auto", "cuda"):
        return 0.0
    if available:
        # Ray counts in ten thousandths; rounded up, the last solver would wait for ever.
        return min(1.0, math.floor(1e4 * available / spec.plan.solvers) / 1e4)
    if table.backend == "cuda":
        raise RunError(
            "solver.backend = 'cuda' needs a GPU, and Ray knows of none; use 'auto', which takes the processor then, "
            "or start Ray on a machine with a GPU"
        )
    return 0.0


def make_solver(spec: RunSpec, *, threads: int = 1, keep_resident: bool = False) -> BlockSolver | SolidBlockSolver:
    """The PETSc stack; `threads` cores for methods that can use several, `keep_resident` with the learner beside it."""
    from forebay.solvers.compose import Place, Sampling, SolidStudy, make_linear, make_solid
    from forebay.solvers.problems import load_problem
    from forebay.solvers.problems.solid import is_solid

    name, options, table = spec.study.problem.name, spec.study.problem.options, spec.study.solver
    problem: Any = load_problem(name, options, folder=spec.study_folder)
    sampling = Sampling(spec.study.seed, spec.plan.chunks, spec.study.design, spec.study.faults.redraws)
    if not is_solid(problem):
        return make_linear(problem, table, sampling, Place(spec.study_folder, spec.folder, threads, keep_resident))
    solid = SolidStudy(name, options, spec.study_folder, spec.folder, table)
    full = None
    if table.rom.ranks > 1:
        from forebay.cluster.mpi_full import MpiFull

        full = MpiFull(problem, solid)
    return make_solid(problem, solid, sampling, full=full)


def make_sinks(spec: RunSpec) -> dict[Split, DatasetWriter]:
    """Writers of both splits."""
    from forebay.pipeline.dataset import DatasetWriter

    return {split: DatasetWriter(spec.dataset(split), spec.schema, plan) for split, plan in spec.plan.chunks.items()}


def load_block(spec: RunSpec, key: BlockKey) -> Block:
    """A stored block, read back."""
    from forebay.pipeline.dataset import DatasetReader

    split, chunk = key
    return DatasetReader(spec.dataset(split)).read_block(chunk)


def make_team(spec: RunSpec, rank: int, address: str | None) -> Team:
    """The learners that train together, seen from one of them; waits until all have come to `address`."""
    from forebay.learners.device import learner_device
    from forebay.learners.team import Solo, TorchTeam

    ranks = spec.study.learner.ranks
    if ranks == 1 or address is None:
        return Solo()
    return TorchTeam(rank, ranks, address, learner_device(spec.study.learner.device))


def make_learner(spec: RunSpec, *, clock_zero: float, resume: bool, team: Team | None = None) -> StreamLearner:
    """The torch stack; with `resume`, as the latest checkpoint left it (or fresh when there is none)."""
    from forebay.learners.learner import SOLO, StreamLearner

    return StreamLearner.open(
        spec.learned,
        spec.study.learner,
        spec.plan,
        policy=spec.study.buffer.policy,
        validate_every=spec.study.validation.every,
        seed=spec.study.seed,
        folder=spec.folder,
        clock_zero=clock_zero,
        keep_checkpoints=spec.study.run.keep_checkpoints,
        load=lambda key: load_block(spec, key),
        resume=resume,
        team=team or SOLO,
    )

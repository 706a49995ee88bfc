"""What controller and executor say to each other: commands down, events up; frozen values without behaviour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from forebay.pipeline.records import Care, SolveRecord, Split

BlockKey = tuple[Split, int]


@dataclass(frozen=True, slots=True)
class Solve:
    """Command: let that solver make that block."""

    key: BlockKey
    solver: str
    care: Care | None = None
    """Given once a solver was lost at this block; the solver then marks which sample it is at."""


@dataclass(frozen=True, slots=True)
class Store:
    """Command: make the block durable."""

    key: BlockKey


@dataclass(frozen=True, slots=True)
class Feed:
    """Command: hand the block to the learner."""

    key: BlockKey


@dataclass(frozen=True, slots=True)
class LoadAndFeed:
    """Command: hand a block that is already in the data set to the learner."""

    key: BlockKey


@dataclass(frozen=True, slots=True)
class StartTraining:
    """Command: the validation set is complete; train as data comes."""


@dataclass(frozen=True, slots=True)
class EndProduction:
    """Command: tell the learner that no more data will come."""


@dataclass(frozen=True, slots=True)
class RestartSolver:
    """Command: put a fresh solver in the place of a lost one; `SolverReady` tells when it can work."""

    solver: str


@dataclass(frozen=True, slots=True)
class RestartWriter:
    """Command: put a fresh writer in the place of the lost one."""


@dataclass(frozen=True, slots=True)
class RestartLearner:
    """Command: put a learner made from the latest checkpoint in the place of the lost one; then `LearnerReady`."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Command: save what a resume needs."""


@dataclass(frozen=True, slots=True)
class Finish:
    """Command: let go of everything."""

    status: Literal["complete", "stopped", "failed"]
    reason: str = ""


Command = (
    Solve
    | Store
    | Feed
    | LoadAndFeed
    | StartTraining
    | EndProduction
    | RestartSolver
    | RestartWriter
    | RestartLearner
    | Checkpoint
    | Finish
)


def stage_of(command: Command) -> str:
    """Who carries a command out; names the culprit in `StageFailed`."""
    match command:
        case Solve() | RestartSolver():
            return "solver"
        case Store() | RestartWriter():
            return "data set"
        case _:
            return "learner"


@dataclass(frozen=True, slots=True, eq=False)
class BlockSolved:
    """Event: a solver has made a block."""

    key: BlockKey
    solver: str
    records: Sequence[SolveRecord]
    parameters: np.ndarray
    """Scalar parameters of the samples, float64 (k, p)."""
    seconds: float
    choices: Sequence[Mapping[str, Any]] = ()
    """As in `Block`."""
    path: tuple[float, float] = (0.0, 0.0)
    """As in `Block`."""


@dataclass(frozen=True, slots=True)
class BlockStored:
    """Event: a block is durable."""

    key: BlockKey


@dataclass(frozen=True, slots=True)
class BlockIngested:
    """Event: the learner holds the block's valid frames."""

    key: BlockKey
    frames: int


@dataclass(frozen=True, slots=True)
class SolverReady:
    """Event: a solver has set its problem up and can work."""

    solver: str


@dataclass(frozen=True, slots=True)
class SolverLost:
    """Event: a solver died; what it was solving must be solved again."""

    solver: str
    reason: str
    sample: tuple[Split, int] | None = None
    """Split and id of the sample that it was at, where it had been asked to mark it."""


@dataclass(frozen=True, slots=True)
class WriterLost:
    """Event: the writer died; what it had not made durable must be stored again."""

    reason: str


@dataclass(frozen=True, slots=True)
class BlockLost:
    """Event: a block that was still to be stored or fed is gone from memory, with its node for example."""

    key: BlockKey
    reason: str


@dataclass(frozen=True, slots=True)
class LearnerLost:
    """Event: the learner died; training goes on from its latest checkpoint."""

    reason: str


@dataclass(frozen=True, slots=True)
class LearnerReady:
    """Event: a restarted learner is where its checkpoint was."""

    batches: int
    chunks: frozenset[int]
    """Training chunks that the checkpoint accounts for."""


@dataclass(frozen=True, slots=True)
class TrainingEnded:
    """Event: the batch budget is spent or the data is exhausted."""

    batches: int


@dataclass(frozen=True, slots=True)
class CheckpointSaved:
    """Event: a checkpoint is durable."""

    batch: int
    path: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Event: nothing happened, but time has passed."""

    wall_s: float


@dataclass(frozen=True, slots=True)
class StopRequested:
    """Event: somebody wants the run to end early, and to be resumable."""

    reason: str


@dataclass(frozen=True, slots=True)
class StageFailed:
    """Event: a stage cannot go on (full disk, learner lost, training diverged)."""

    stage: str
    reason: str


Event = (
    BlockSolved
    | BlockStored
    | BlockIngested
    | BlockLost
    | SolverReady
    | SolverLost
    | WriterLost
    | LearnerLost
    | LearnerReady
    | TrainingEnded
    | CheckpointSaved
    | Tick
    | StopRequested
    | StageFailed
)

"""What controller and executor say to each other: commands down, events up; frozen values without behaviour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from forebay.pipeline.records import SolveRecord, Split

BlockKey = tuple[Split, int]


@dataclass(frozen=True, slots=True)
class Solve:
    """Command: let that solver make that block."""

    key: BlockKey
    solver: str


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
    """Command: put a fresh solver in the place of a lost one."""

    solver: str


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Command: save what a resume needs."""


@dataclass(frozen=True, slots=True)
class Finish:
    """Command: let go of everything."""

    status: Literal["complete", "stopped", "failed"]
    reason: str = ""


Command = Solve | Store | Feed | LoadAndFeed | StartTraining | EndProduction | RestartSolver | Checkpoint | Finish


def stage_of(command: Command) -> str:
    """Who carries a command out; names the culprit in `StageFailed`."""
    match command:
        case Solve():
            return "solver"
        case Store():
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
class SolverLost:
    """Event: a solver died; what it was solving must be solved again."""

    solver: str
    reason: str


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
    | SolverLost
    | TrainingEnded
    | CheckpointSaved
    | Tick
    | StopRequested
    | StageFailed
)

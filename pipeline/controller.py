"""The run as a state machine: events in, commands out; no Ray, no torch, no files, no clock of its own.

    pending ─Solve─► solver ─BlockSolved─Store─► data set ─BlockStored─Feed─► learner ─BlockIngested─► credit back
       ▲                │
       └── SolverLost ──┘     (a chunk that an earlier attempt stored is not solved but fed by LoadAndFeed)

| loop     | consumes | produces      | waits for                         | unblocked by                |
|----------|----------|---------------|-----------------------------------|-----------------------------|
| solver   | Solve    | BlockSolved   | a request                         | credit of an earlier block  |
| sink     | Store    | BlockStored   | a block                           | BlockSolved                 |
| ingest   | Feed     | BlockIngested | BlockStored, room in the ring     | a draw that frees or sees   |
| training | frames   | TrainingEnded | more than `threshold` frames there| BlockIngested, end of data  |
| driver   | events   | commands      | any event                         | everything                  |

The validation split is solved, stored and handed over completely before the first training chunk is requested.
A block is fed once it is durable, so whatever a checkpoint of the learner refers to can be read back.
The run is complete when every training chunk is stored and training has ended.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from forebay.pipeline.records import ChunkPlan, SolveRecord, Split

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


@dataclass(slots=True)
class Controller:
    """Decides; carries out nothing.  `handle` takes one event and returns the commands that follow from it."""

    plans: Mapping[Split, ChunkPlan]
    solvers: Sequence[str]
    credits: int
    """Training blocks per solver that may be requested and not yet both stored and ingested."""
    stored: Collection[BlockKey] = ()
    """Blocks of earlier attempts that are in the data set."""
    ingested: Collection[BlockKey] = ()
    """Blocks of earlier attempts whose frames the learner's checkpoint accounts for."""
    batches_ended: bool = False
    """Did an earlier attempt finish training?"""
    checkpoint_every_s: float = 60.0
    solver_restarts: int = 3
    """Losses of one solver in a row (without a block in between) after which the run fails."""

    finished: Finish | None = field(default=None, init=False)
    _pending: deque[BlockKey] = field(default_factory=deque, init=False)
    _solving: dict[BlockKey, str] = field(default_factory=dict, init=False)
    _open: dict[BlockKey, set[str]] = field(default_factory=dict, init=False)
    """Blocks with what still has to happen to them: "store", "feed"."""
    _stored: set[BlockKey] = field(default_factory=set, init=False)
    _ingested: set[BlockKey] = field(default_factory=set, init=False)
    _losses: dict[str, int] = field(default_factory=dict, init=False)
    _phase: Literal["validation", "training"] = field(default="validation", init=False)
    _production_ended: bool = field(default=False, init=False)
    _training_ended: bool = field(default=False, init=False)
    _stopping: Finish | None = field(default=None, init=False)
    _last_checkpoint_s: float = field(default=0.0, init=False)

    def start(self) -> list[Command]:
        """First commands of the run."""
        self._stored = set(self.stored)
        self._ingested = set(self.ingested)
        self._training_ended = self.batches_ended
        self._queue("validation")
        return self._proceed()

    def handle(self, event: Event) -> list[Command]:
        """Commands that follow from one event; duplicates and late events of lost solvers change nothing."""
        if self.finished:
            return []
        match event:
            case BlockSolved(key=key, solver=solver):
                return self._on_solved(key, solver)
            case BlockStored(key=key):
                return self._on_stored(key)
            case BlockIngested(key=key):
                self._ingested.add(key)
                self._settle(key, "feed")
            case SolverLost(solver=solver, reason=reason):
                return self._on_lost(solver, reason)
            case TrainingEnded():
                self._training_ended = True
                for key in [k for k, todo in self._open.items() if "feed" in todo]:
                    self._settle(key, "feed")
            case StopRequested(reason=reason):
                return self._stop(Finish("stopped", reason))
            case StageFailed(stage=stage, reason=reason):
                if self._stopping:  # the checkpoint that was to end the run could not be saved
                    return self._finish(self._stopping)
                return self._stop(Finish("failed", f"{stage}: {reason}"))
            case CheckpointSaved():
                if self._stopping:
                    return self._finish(self._stopping)
            case Tick(wall_s=wall_s):
                return self._on_tick(wall_s)
        return self._proceed()

    def validate(self) -> None:
        """Invariants that hold between any two events; tests call it after each."""
        assert not set(self._pending) & set(self._solving), "a chunk is pending and being solved"
        assert not set(self._pending) & self._stored & self._ingested, "a finished chunk is pending"
        assert not set(self._solving) & self._stored, "a stored chunk is solved again"
        assert self._in_flight <= self._credit_limit, "more blocks in flight than credits"
        assert self._phase == "training" or not any(k[0] == "train" for k in self._open), "training before validation"

    @property
    def _in_flight(self) -> int:
        return len(self._open)

    @property
    def _credit_limit(self) -> int:
        return self.credits * len(self.solvers)

    def _queue(self, split: Split) -> None:
        """Chunks of a split that are not both stored and known to the learner, in order."""
        for chunk in range(self.plans[split].chunks):
            key: BlockKey = (split, chunk)
            fed = key in self._ingested or (split == "train" and self._training_ended)
            if key not in self._stored or not fed:
                self._pending.append(key)

    def _proceed(self) -> list[Command]:
        """Issue whatever the state allows now."""
        if self._stopping:
            return []
        commands = self._issue()
        if not self._pending and not self._open:
            commands += self._advance_phase()
        return commands

    def _issue(self) -> list[Command]:
        commands: list[Command] = []
        waiting: list[BlockKey] = []
        while self._pending and self._in_flight < self._credit_limit:
            key = self._pending.popleft()
            if key in self._stored:
                self._open[key] = {"feed"}
                commands.append(LoadAndFeed(key))
            elif (solver := self._least_loaded()) is not None:
                self._open[key] = {"store"} if key[0] == "train" and self._training_ended else {"store", "feed"}
                self._solving[key] = solver
                commands.append(Solve(key, solver))
            else:
                waiting.append(key)
                break
        self._pending.extendleft(reversed(waiting))
        return commands

    def _least_loaded(self) -> str | None:
        """The solver with the fewest requests, if it has fewer than two: one to work on and one in its queue."""
        load = dict.fromkeys(self.solvers, 0)
        for name in self._solving.values():
            load[name] += 1
        name = min(self.solvers, key=load.__getitem__)
        return name if load[name] < 2 else None

    def _advance_phase(self) -> list[Command]:
        if self._phase == "validation":
            self._phase = "training"
            self._queue("train")
            start: list[Command] = [] if self._training_ended else [StartTraining()]
            return start + self._proceed()
        commands: list[Command] = []
        if not self._production_ended:
            self._production_ended = True
            commands.append(EndProduction())
        if self._training_ended:
            commands += self._finish(Finish("complete"))
        return commands

    def _on_solved(self, key: BlockKey, solver: str) -> list[Command]:
        if self._solving.get(key) != solver:
            return []  # solved elsewhere meanwhile: this solver had been given up
        del self._solving[key]
        self._losses[solver] = 0
        return [Store(key), *self._proceed()]

    def _on_stored(self, key: BlockKey) -> list[Command]:
        self._stored.add(key)
        feed: list[Command] = [Feed(key)] if "feed" in self._open.get(key, ()) and not self._stopping else []
        self._settle(key, "store")
        return feed + self._proceed()

    def _settle(self, key: BlockKey, what: str) -> None:
        todo = self._open.get(key)
        if todo is None:
            return
        todo.discard(what)
        if not todo:
            del self._open[key]

    def _on_lost(self, solver: str, reason: str) -> list[Command]:
        lost = sorted(key for key, name in self._solving.items() if name == solver)
        for key in lost:
            del self._solving[key], self._open[key]
        self._pending.extendleft(reversed(lost))
        self._losses[solver] = self._losses.get(solver, 0) + 1
        if self._losses[solver] > self.solver_restarts:
            return self._stop(
                Finish("failed", f"{solver} was lost {self._losses[solver]} times without finishing a block: {reason}")
            )
        return [RestartSolver(solver), *self._proceed()]

    def _on_tick(self, wall_s: float) -> list[Command]:
        due = wall_s - self._last_checkpoint_s >= self.checkpoint_every_s
        if due and self._phase == "training" and not self._stopping:
            self._last_checkpoint_s = wall_s
            return [Checkpoint()]
        return []

    def _stop(self, ending: Finish) -> list[Command]:
        if self._stopping:
            return []
        if self._phase == "validation" or (ending.status == "failed" and ending.reason.startswith("learner")):
            return self._finish(ending)  # nothing trained yet, or nobody left who could save it
        self._stopping = ending
        return [Checkpoint()]

    def _finish(self, ending: Finish) -> list[Command]:
        self.finished = ending
        return [ending]

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

Whatever dies is replaced, and what it had in hand is done again: a solver's blocks are solved, the writer's stored
again; a learner comes back as its latest checkpoint was, is given the validation split anew and every training block
that the checkpoint does not account for.  `losses.py` counts, and `Losses.decide` says when to give up.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from forebay.pipeline.losses import Losses
from forebay.pipeline.messages import (
    BlockIngested,
    BlockKey,
    BlockLost,
    BlockSolved,
    BlockStored,
    Checkpoint,
    CheckpointSaved,
    Command,
    EndProduction,
    Event,
    Feed,
    Finish,
    LearnerLost,
    LearnerReady,
    LoadAndFeed,
    RestartLearner,
    RestartSolver,
    RestartWriter,
    Solve,
    SolverLost,
    SolverReady,
    StageFailed,
    StartTraining,
    StopRequested,
    Store,
    Tick,
    TrainingEnded,
    WriterLost,
)
from forebay.pipeline.records import ChunkPlan, Split

QUEUE = 2
"""Blocks that a solver has at most: one to work on and one in its queue."""


@dataclass(slots=True)
class Controller:
    """Decides; carries out nothing.  `handle` takes one event and returns the commands that follow from it."""

    plans: Mapping[Split, ChunkPlan]
    solvers: Sequence[str]
    credits: int
    """Blocks per solver that may be requested and not yet both stored and ingested."""
    losses: Losses
    """What has gone wrong so far, and what is to be done about it."""
    ready: Collection[str] | None = None
    """Solvers that can work now; the others tell by `SolverReady`.  By default all can."""
    stored: Collection[BlockKey] = ()
    """Blocks of earlier attempts that are in the data set."""
    ingested: Collection[BlockKey] = ()
    """Blocks of earlier attempts whose frames the learner's checkpoint accounts for."""
    batches_ended: bool = False
    """Did an earlier attempt finish training?"""
    checkpoint_every_s: float = 60.0

    finished: Finish | None = field(default=None, init=False)
    _pending: deque[BlockKey] = field(default_factory=deque, init=False)
    _solving: dict[BlockKey, str] = field(default_factory=dict, init=False)
    _open: dict[BlockKey, set[str]] = field(default_factory=dict, init=False)
    """Blocks with what still has to happen to them: "store", "feed"."""
    _stored: set[BlockKey] = field(default_factory=set, init=False)
    _ingested: set[BlockKey] = field(default_factory=set, init=False)
    _storing: set[BlockKey] = field(default_factory=set, init=False)
    _able: set[str] = field(default_factory=set, init=False)
    """Solvers that can work now."""
    _load: dict[str, int] = field(default_factory=dict, init=False)
    """Blocks that each solver is at or has in its queue."""
    _place: dict[str, int] = field(default_factory=dict, init=False)
    _listed: set[tuple[int, int]] = field(default_factory=set, init=False)
    _free: list[tuple[int, int]] = field(default_factory=list, init=False)
    """Heap of (load, place in `solvers`) of those with room for a block; an entry that no longer holds is dropped when
    it comes up.  Of thousands of solvers none has to be looked at that is not chosen."""
    _learner_ready: bool = field(default=True, init=False)
    _phase: Literal["validation", "training"] = field(default="validation", init=False)
    _production_ended: bool = field(default=False, init=False)
    _training_ended: bool = field(default=False, init=False)
    _stopping: Finish | None = field(default=None, init=False)
    _last_checkpoint_s: float = field(default=0.0, init=False)
    _saving: int = field(default=0, init=False)
    """Checkpoints that were asked for and are not saved yet."""

    def start(self) -> list[Command]:
        """First commands of the run."""
        self._stored = set(self.stored)
        self._ingested = set(self.ingested)
        self._training_ended = self.batches_ended
        self._place = {name: place for place, name in enumerate(self.solvers)}
        for name in self.solvers if self.ready is None else self.ready:
            self._welcome(name)
        self._queue("validation")
        return self._proceed()

    def handle(self, event: Event) -> list[Command]:
        """Commands that follow from one event; duplicates and late events of lost solvers change nothing."""
        if self.finished:
            return []
        match event:
            case BlockSolved():
                return self._on_solved(event)
            case BlockStored(key=key):
                return self._on_stored(key)
            case BlockIngested(key=key):
                self._ingested.add(key)
                self._settle(key, "feed")
            case BlockLost(key=key, reason=reason):
                return self._on_block_lost(key, reason)
            case SolverReady(solver=solver):
                self._welcome(solver)
            case SolverLost():
                return self._on_solver_lost(event)
            case WriterLost(reason=reason):
                return self._on_writer_lost(reason)
            case LearnerLost(reason=reason):
                return self._on_learner_lost(reason)
            case LearnerReady(chunks=chunks):
                return self._on_learner_ready(chunks)
            case TrainingEnded(batches=batches):
                return self._on_training_ended(batches)
            case StopRequested(reason=reason):
                return self._stop(Finish("stopped", reason))
            case StageFailed(stage=stage, reason=reason):
                return self._on_failed(stage, reason)
            case CheckpointSaved():
                self.losses.progress("learner")
                self._saving = max(0, self._saving - 1)
                if self._stopping and not self._saving:
                    return self._finish(self._stopping)
            case Tick(wall_s=wall_s):
                return self._on_tick(wall_s)
        return self._proceed()

    def validate(self) -> None:
        """Invariants that hold between any two events; tests call it after each."""
        assert not set(self._pending) & set(self._solving), "a chunk is pending and being solved"
        assert not set(self._pending) & self._stored & self._ingested, "a finished chunk is pending"
        assert not set(self._solving) & self._stored, "a stored chunk is solved again"
        assert self.in_flight <= self._credit_limit, "more blocks in flight than credits"
        assert self._storing <= set(self._open), "a block is being stored that nobody waits for"
        loads = Counter(self._solving.values())
        assert all(self._load[name] == loads[name] for name in self._able), "a solver's load is not what it solves"
        assert all(load <= QUEUE for load in loads.values()), "a solver has more blocks than it may have"
        rooms = {(self._load[name], self._place[name]) for name in self._able if self._load[name] < QUEUE}
        assert rooms <= self._listed, "a solver has room that nobody knows of"
        assert sorted(self._listed) == sorted(self._free), "an entry of the heap is in it twice, or not at all"
        fed = {key for key, todo in self._open.items() if todo == {"feed"}}
        assert self._phase == "training" or not any(k[0] == "train" for k in fed), "training before validation"

    @property
    def in_flight(self) -> int:
        """Blocks that are requested and not yet both stored and ingested."""
        return len(self._open)

    @property
    def _credit_limit(self) -> int:
        return self.credits * len(self.solvers)

    def _queue(self, split: Split) -> None:
        """Chunks of a split that are not both stored and known to the learner, in order."""
        for chunk in range(self.plans[split].chunks):
            key: BlockKey = (split, chunk)
            if key in self._open:
                continue
            fed = key in self._ingested or (split == "train" and self._training_ended)
            if key not in self._stored or not fed:
                self._pending.append(key)

    def _proceed(self) -> list[Command]:
        """Issue whatever the state allows now."""
        if self._stopping:
            return []
        commands = self._issue()
        validating = self._phase == "validation"
        busy = any(key[0] == "validation" for key in self._open) if validating else bool(self._open)
        if not self._pending and not busy and self._learner_ready:
            commands += self._advance_phase()
        return commands

    def _issue(self) -> list[Command]:
        commands: list[Command] = []
        while self._pending and self.in_flight < self._credit_limit:
            key = self._pending[0]
            if key in self._stored:
                if not self._learner_ready:
                    break
                self._open[key] = {"feed"}
                commands.append(LoadAndFeed(key))
            elif (solver := self._least_loaded()) is not None:
                self._open[key] = {"store"} if key[0] == "train" and self._training_ended else {"store", "feed"}
                self._solving[key] = solver
                self._shift(solver, 1)
                commands.append(Solve(key, solver, self.losses.care.get(key)))
            else:
                break
            self._pending.popleft()
        return commands

    def _least_loaded(self) -> str | None:
        """The solver with the fewest requests, if it has room for one more; of equals the first."""
        while self._free:
            load, place = self._free[0]
            name = self.solvers[place]
            if name in self._able and self._load[name] == load:
                return name
            self._listed.discard(heapq.heappop(self._free))
        return None

    def _welcome(self, solver: str) -> None:
        if solver not in self._able:
            self._able.add(solver)
            self._load[solver] = 0
            self._shift(solver, 0)

    def _shift(self, solver: str, by: int) -> None:
        self._load[solver] += by
        entry = (self._load[solver], self._place[solver])
        if entry[0] < QUEUE and entry not in self._listed:
            self._listed.add(entry)
            heapq.heappush(self._free, entry)

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

    def _on_solved(self, event: BlockSolved) -> list[Command]:
        key = event.key
        if self._solving.get(key) != event.solver:
            return []  # solved elsewhere meanwhile: this solver had been given up
        del self._solving[key]
        self._shift(event.solver, -1)
        self._storing.add(key)
        self.losses.progress(event.solver)
        hopeless = self.losses.of_samples(event.records)
        return [Store(key), *(self._stop(Finish("failed", hopeless)) if hopeless else self._proceed())]

    def _on_stored(self, key: BlockKey) -> list[Command]:
        self._stored.add(key)
        self._storing.discard(key)
        self.losses.progress("writer")
        self._settle(key, "store")
        if self._phase == "validation" and key[0] == "train":
            self._settle(key, "feed")  # a restarted learner waits for the validation split; then this is queued again
        due = "feed" in self._open.get(key, ()) and self._learner_ready and not self._stopping
        return [*([Feed(key)] if due else []), *self._proceed()]

    def _settle(self, key: BlockKey, what: str) -> None:
        todo = self._open.get(key)
        if todo is None:
            return
        todo.discard(what)
        if not todo:
            del self._open[key]

    def _on_solver_lost(self, event: SolverLost) -> list[Command]:
        lost = sorted(key for key, name in self._solving.items() if name == event.solver)
        for key in lost:
            del self._solving[key], self._open[key]
        self._pending.extendleft(reversed(lost))
        self._able.discard(event.solver)
        size = self.plans[event.sample[0]].size if event.sample else 1
        hopeless = self.losses.of_solver(event, lost, size)
        if hopeless:
            return self._stop(Finish("failed", hopeless))
        return [RestartSolver(event.solver), *self._proceed()]

    def _on_writer_lost(self, reason: str) -> list[Command]:
        hopeless = self.losses.of_actor("writer", reason)
        if hopeless:
            return self._stop(Finish("failed", hopeless))
        return [RestartWriter(), *(Store(key) for key in sorted(self._storing))]

    def _on_block_lost(self, key: BlockKey, reason: str) -> list[Command]:
        if key not in self._open:
            return []
        hopeless = self.losses.of_actor(f"block {key[1]} of the {key[0]} split", reason)
        if hopeless:
            return self._stop(Finish("failed", hopeless))
        del self._open[key]
        self._storing.discard(key)
        self._pending.appendleft(key)
        return self._proceed()

    def _on_learner_lost(self, reason: str) -> list[Command]:
        if self._stopping:
            return self._finish(self._stopping)  # nobody is left to save; its last checkpoint stands
        if self._training_ended:
            return []
        hopeless = self.losses.of_actor("learner", reason)
        if hopeless:
            return self._stop(Finish("failed", hopeless))
        self._learner_ready = False
        self._saving = 0
        return [RestartLearner()]

    def _on_learner_ready(self, chunks: frozenset[int]) -> list[Command]:
        self._learner_ready = True
        self._ingested = {("train", chunk) for chunk in chunks}
        self._phase, self._production_ended = "validation", False
        for key in [key for key, todo in self._open.items() if todo == {"feed"}]:
            del self._open[key]
        self._pending.clear()
        self._queue("validation")
        return self._proceed()

    def _on_training_ended(self, batches: int) -> list[Command]:
        if not batches:
            return self._finish(
                Finish("failed", "learner: no training sample is valid, so nothing was trained; see the outcomes")
            )
        self._training_ended = True
        for key in [k for k, todo in self._open.items() if "feed" in todo]:
            self._settle(key, "feed")
        # Nobody draws any more: a block that is only to be fed would wait for room for ever.
        self._pending = deque(key for key in self._pending if key not in self._stored)
        return self._proceed()

    def _on_failed(self, stage: str, reason: str) -> list[Command]:
        if self._stopping is None:
            return self._stop(Finish("failed", f"{stage}: {reason}"))
        if stage == "learner":  # nobody will save the checkpoint that was to end the run
            return self._finish(Finish("failed", f"{self._stopping.reason}, then {stage}: {reason}"))
        return []

    def _on_tick(self, wall_s: float) -> list[Command]:
        due = wall_s - self._last_checkpoint_s >= self.checkpoint_every_s
        training = self._phase == "training" and not self._training_ended and not self._stopping
        if not due or not training or self._saving or not self._learner_ready:
            return []
        self._last_checkpoint_s = wall_s
        return self._save()

    def _save(self) -> list[Command]:
        self._saving += 1
        return [Checkpoint()]

    def _stop(self, ending: Finish) -> list[Command]:
        if self._stopping:
            return []
        gone = not self._learner_ready or (ending.status == "failed" and ending.reason.startswith("learner"))
        if self._phase == "validation" or gone:
            return self._finish(ending)  # nothing trained since the last checkpoint, or nobody left who could save it
        self._stopping = ending
        return self._save()

    def _finish(self, ending: Finish) -> list[Command]:
        self.finished = ending
        return [ending]

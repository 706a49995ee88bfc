"""Carries out a run's commands with Ray actors.

Blocks never pass through the driver: a solver leaves a block in the object store, the driver forwards the reference to
the writer and to the learner, and drops it when both are done.  At most credits × solvers blocks exist at a time, which
bounds the object store's memory.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import ObjectLostError, RayActorError, RayError, RayTaskError

from forebay.cluster.actors.learner import GROUPS, LearnerActor, Shard
from forebay.cluster.actors.preconditioner import PreconditionerActor
from forebay.cluster.actors.solver import SolverActor
from forebay.cluster.actors.writer import WriterActor
from forebay.cluster.marks import read_mark
from forebay.cluster.ready import ReadyQueue, get_all
from forebay.cluster.routing import Router
from forebay.cluster.specs import RunSpec, gpu_share, trains_preconditioner
from forebay.cluster.spilling import SpillWatch
from forebay.pipeline.errors import ForebayError, RunError
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
    Store,
    Tick,
    TrainingEnded,
    WriterLost,
    stage_of,
)

log = logging.getLogger(__name__)

TICK_S = 0.25

SOLVER_ENVIRONMENT: Mapping[str, str] = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
LEARNER_ENVIRONMENT: Mapping[str, str] = {
    # Activations beyond glibc's 32 MB mmap ceiling are otherwise mapped and zeroed anew in every step.
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
    "MALLOC_TOP_PAD_": "268435456",
    # Training runs in a thread, and the limits above hold for the main arena only: steps took 5 to 10 % longer.
    "MALLOC_ARENA_MAX": "1",
}


WRITER, LEARNER = "writer", "learner"
"""Names of actors beside those of the solvers."""
PATIENCE_S = 60.0
"""Time without a single solver after which the user is told."""


@dataclass(frozen=True, slots=True)
class _Pending:
    """What a reference stands for, and which life of which actor it was asked of."""

    command: Command
    actor: str
    generation: int
    rank: int = 0
    """Of several learners; the first answers for all."""


@dataclass(slots=True)
class RayExecutor:
    """Solver actors, one writer, one learner or a team of them."""

    spec: RunSpec
    clock: Callable[[], float]
    clock_zero: float
    resume: bool
    writer_busy_s: float = field(default=0.0, init=False)
    _solvers: dict[str, Any] = field(default_factory=dict, init=False)
    _generation: dict[str, int] = field(default_factory=dict, init=False)
    _writer: Any = field(default=None, init=False)
    _learners: list[Any] = field(default_factory=list, init=False)
    _router: Router = field(default_factory=lambda: Router((), []), init=False)
    _homes: dict[str, str] = field(default_factory=dict, init=False)
    """Nodes of the solvers."""
    _made_by: dict[BlockKey, str] = field(default_factory=dict, init=False)
    """Solvers of blocks that are to be fed."""
    _waiting: dict[Any, _Pending] = field(default_factory=dict, init=False)
    _ready: ReadyQueue = field(default_factory=ReadyQueue, init=False)
    _blocks: dict[BlockKey, Any] = field(default_factory=dict, init=False)
    """References of blocks that are being solved or stored, or were stored in the event before."""
    _handed_over: list[BlockKey] = field(default_factory=list, init=False)
    _events: deque[Event] = field(default_factory=deque, init=False)
    _ticked_s: float = field(default=0.0, init=False)
    _closed: bool = field(default=False, init=False)
    _trainer: Any = field(default=None, init=False)
    """Of the solvers' preconditioner, where the study wants one."""
    _lesson: Any = field(default=None, init=False)
    """What it is at; blocks that come meanwhile are not learned from."""
    _spilling: SpillWatch = field(default_factory=SpillWatch, init=False)
    _gpus: float = field(default=0.0, init=False)
    """Of each solver."""

    def start(self, solvers: list[str]) -> list[str]:
        """Start all actors at once and wait for the learner and one solver; the solvers that can work already.

        The others tell by `SolverReady` when a node has room for them.

        Raises:
            RunError: a stage could not be built, and the text is the stage's own; or the study wants a GPU in vain.
        """
        self._gpus = gpu_share(self.spec, ray.cluster_resources().get("GPU", 0.0))
        self._spilling.start()
        self._start_writer()
        learners = self._start_learners(resume=self.resume)
        waiting = {self._start_solver(name): name for name in solvers}
        needed = list(learners)
        if trains_preconditioner(self.spec):
            one_core = {"env_vars": {**LEARNER_ENVIRONMENT, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}}
            trainer = ray.remote(num_cpus=0, max_restarts=0, runtime_env=one_core)(PreconditionerActor)
            self._trainer = trainer.remote(self.spec)
            needed.append(self._trainer.ready.remote())
        try:
            get_all(needed)
            self._settle_in(ray.get(learners[0])[1])
            ready = self._first_ready(list(waiting))
            self._homes |= {waiting[reference]: ray.get(reference) for reference in ready}
        except RayError as error:
            self.close()
            raise RunError(f"a stage could not be started: {_reason(error)}") from None
        for reference, name in waiting.items():
            if reference not in ready:
                self._await(reference, RestartSolver(name), name)
        return [waiting[reference] for reference in ready]

    def _first_ready(self, references: list[Any]) -> list[Any]:
        """What is ready once at least one is; those that take a moment longer than the first are waited for."""
        while not ray.wait(references, num_returns=1, timeout=PATIENCE_S)[0]:
            log.warning(
                "no solver could be started for %.0f s: does any node have a free core? (%s are asked for)",
                PATIENCE_S,
                len(references),
            )
        return ray.wait(references, num_returns=len(references), timeout=1.0)[0]

    def submit(self, command: Command) -> None:
        """Send a command to the actor that carries it out."""
        match command:
            case Solve(key=(split, chunk), solver=name, care=care):
                told, block = self._solvers[name].solve.remote(split, chunk, care)
                self._blocks[command.key] = block
                self._await(told, command, name)
            case Store(key=key):
                self._await(self._writer.store.remote(self._blocks[key]), command, WRITER)
                self._teach(self._blocks[key])
            case Feed(key=key):
                self._await(self._learner_for(key).ingest.remote(self._blocks[key]), command, LEARNER)
            case LoadAndFeed(key=key):
                self._await(self._learner_for(key).ingest_stored.remote(key), command, LEARNER)
            case StartTraining():
                for rank, learner in enumerate(self._learners):
                    self._await(learner.train.remote(), command, LEARNER, rank)
            case EndProduction():
                for rank, learner in enumerate(self._learners):
                    self._await(learner.end_production.remote(), command, LEARNER, rank)
            case Checkpoint():
                self._await(self._learners[0].checkpoint.remote(), command, LEARNER)
            case RestartSolver(solver=name):
                self._await(self._start_solver(name), command, name)
            case RestartWriter():
                self._start_writer()
            case RestartLearner():
                for rank, opened in enumerate(self._start_learners(resume=True)):
                    self._await(opened, command, LEARNER, rank)
            case Finish():
                self._waiting.clear()

    @property
    def spilled_bytes(self) -> int:
        """Bytes that the object stores have moved to disk since they were started."""
        return self._spilling.bytes

    @property
    def blocks_near(self) -> int:
        """Blocks that went to a learner on the node where they were made."""
        return self._router.local

    def post(self, event: Event) -> None:
        """Let a signal handler put an event in front."""
        self._events.append(event)

    def next_event(self) -> Event:
        """Posted events, a tick when one is due however busy the run is, then whatever finished first."""
        for key in self._handed_over:  # its commands hold the reference now; the driver's would pin the memory
            self._blocks.pop(key, None)
            self._made_by.pop(key, None)
        self._handed_over.clear()
        if self._events:
            return self._events.popleft()
        if time.monotonic() - self._ticked_s >= TICK_S:
            return self._tick()
        reference = self._ready.next(self._waiting, TICK_S)
        return self._tick() if reference is None else self._event_of(reference, self._waiting.pop(reference))

    def _tick(self) -> Event:
        self._ticked_s = time.monotonic()
        return Tick(self.clock())

    def close(self) -> None:
        """Let the actors exit by dropping their handles; waiting threads of the learner are released first."""
        if self._closed:
            return
        self._closed = True
        self._spilling.stop()
        try:
            ray.get([learner.interrupt.remote() for learner in self._learners], timeout=10)
        except RayError as error:  # the learner is the thing that died, or is still being built
            log.info("the learner did not answer at the end: %s", error)
        self._waiting.clear()
        self._blocks.clear()
        self._solvers.clear()
        self._learners = []
        self._writer = self._trainer = self._lesson = None

    def _teach(self, block: Any) -> None:
        """Let the trainer of the preconditioner see a block, unless it is still at another one."""
        if self._trainer is None:
            return
        if self._lesson is not None:
            if not ray.wait([self._lesson], timeout=0)[0]:
                return
            try:
                ray.get(self._lesson)
            except RayError as error:  # solvers go on with the last version
                log.warning("the preconditioner is trained no further: %s", _reason(error))
                self._trainer = self._lesson = None
                return
        self._lesson = self._trainer.learn.remote(block)

    def _start_solver(self, name: str) -> Any:
        """Begin to start it; a reference that is ready when it is."""
        self._generation[name] = self._generation.get(name, 0) + 1
        # A restart would come back with an empty queue and no word: a lost solver is an event for the controller.
        environment = {"env_vars": dict(SOLVER_ENVIRONMENT)}
        solver = ray.remote(
            num_cpus=self.spec.study.solver.rom.ranks,
            num_gpus=self._gpus,
            max_restarts=0,
            runtime_env=environment,
            scheduling_strategy="SPREAD",
        )(SolverActor)
        self._solvers[name] = solver.remote(self.spec, name)
        return self._solvers[name].ready.remote()

    def _start_writer(self) -> None:
        self._generation[WRITER] = self._generation.get(WRITER, 0) + 1
        self._writer = ray.remote(num_cpus=0, max_restarts=0)(WriterActor).remote(self.spec)

    def _start_learners(self, *, resume: bool) -> list[Any]:
        """Begin to start the learner, or all of a team; references to what each says once its model is built."""
        self._generation[LEARNER] = self._generation.get(LEARNER, 0) + 1
        threads = str(self.spec.plan.learner_threads_after)
        environment = {**LEARNER_ENVIRONMENT, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        ranks = self.spec.study.learner.ranks
        learner = ray.remote(
            num_cpus=0,
            max_restarts=0,
            concurrency_groups=GROUPS,
            runtime_env={"env_vars": environment},
            **({"scheduling_strategy": "SPREAD"} if ranks > 1 else {}),
        )(LearnerActor)
        self._learners = [learner.remote(self.spec, self.clock_zero, resume, rank) for rank in range(ranks)]
        address = self._learners[0].meeting_point.remote() if ranks > 1 else None
        return [learner.open.remote(address) for learner in self._learners]

    def _settle_in(self, shards: list[Shard]) -> None:
        self._router = Router([node for _, node in shards], [len(chunks) for chunks, _ in shards])

    def _learner_for(self, key: BlockKey) -> Any:
        """The first learner validates; training blocks are shared out."""
        solver = self._made_by.get(key, "")
        if key[0] == "validation":
            return self._learners[0]
        return self._learners[self._router.choose(self._homes.get(solver))]

    def _await(self, reference: Any, command: Command, actor: str, rank: int = 0) -> None:
        self._waiting[reference] = _Pending(command, actor, self._generation[actor], rank)

    def _event_of(self, reference: Any, pending: _Pending) -> Event:
        try:
            value = ray.get(reference)
        except RayTaskError as error:
            if isinstance(error.cause, ObjectLostError):
                return self._on_block_lost(pending, _reason(error))
            if len(self._learners) > 1 and pending.actor == LEARNER and not isinstance(error.cause, ForebayError):
                return self._on_actor_lost(pending, _reason(error))  # its connection to another one broke
            return StageFailed(stage_of(pending.command), _reason(error))  # the stage raised
        except RayActorError as error:
            return self._on_actor_lost(pending, _reason(error))
        except RayError as error:  # what was made or handed over was lost with its node
            return self._on_block_lost(pending, _reason(error))
        if pending.rank:
            return Tick(self.clock())
        match pending.command:
            case Solve(key=key):
                self._made_by[key] = pending.actor
                return BlockSolved(key, pending.actor, *value)
            case Store(key=key):
                self._handed_over.append(key)
                self.writer_busy_s += value
                return BlockStored(key)
            case Feed(key=key) | LoadAndFeed(key=key):
                return BlockIngested(key, value)
            case StartTraining():
                return TrainingEnded(value)
            case Checkpoint():
                return CheckpointSaved(*value)
            case RestartSolver(solver=name):
                self._homes[name] = value
                return SolverReady(name)
            case RestartLearner():
                batches, shards = value
                self._settle_in(shards)
                return LearnerReady(batches, frozenset().union(*(chunks for chunks, _ in shards)))
        return Tick(self.clock())

    def _on_actor_lost(self, pending: _Pending, reason: str) -> Event:
        if pending.generation != self._generation[pending.actor]:
            return Tick(self.clock())  # asked of an actor that has been replaced already
        for reference, other in list(self._waiting.items()):
            if other.actor == pending.actor:
                del self._waiting[reference]
        match pending.actor:
            case "writer":
                return WriterLost(reason)
            case "learner":
                if len(self._learners) > 1:  # the others wait for it, and would do so for long
                    for learner in self._learners:
                        ray.kill(learner)
                return LearnerLost(reason)
        at = read_mark(self.spec.folder, pending.actor) if isinstance(pending.command, Solve) else None
        return SolverLost(pending.actor, reason, at)

    def _on_block_lost(self, pending: _Pending, reason: str) -> Event:
        if pending.generation != self._generation[pending.actor]:
            return Tick(self.clock())
        match pending.command:
            case Store(key=key) | Feed(key=key):
                return BlockLost(key, reason)
        return self._on_actor_lost(pending, reason)


def _reason(error: RayError) -> str:
    """The exception that the stage raised, or why its process is gone."""
    text = str(getattr(error, "cause", None) or error).strip()
    # An actor that fails while it is built passes its traceback on as text, whose last line is the exception.
    return text.splitlines()[-1].strip() if "creation task" in text else text

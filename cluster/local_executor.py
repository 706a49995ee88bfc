"""Carries out a run's commands in this process, one after the other, in an order that the state alone decides.

The Ray executor's twin: the same commands, the same data set bit for bit, no processes.  Training is paced by the data:
after a block has been ingested, batches are trained in proportion to the frames seen so far, so that a resumed run
takes up exactly where the interrupted one would have gone on.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from forebay.learners.learner import StreamLearner
from forebay.pipeline.errors import ForebayError, RunError
from forebay.pipeline.messages import (
    BlockIngested,
    BlockKey,
    BlockSolved,
    BlockStored,
    Checkpoint,
    CheckpointSaved,
    Command,
    EndProduction,
    Event,
    Feed,
    Finish,
    LoadAndFeed,
    RestartSolver,
    Solve,
    StageFailed,
    StartTraining,
    Store,
    Tick,
    TrainingEnded,
    stage_of,
)
from forebay.pipeline.records import Block, Split
from forebay.pipeline.stages import Sink, Solver

SLICE_S = 0.25
"""Training between two looks at the command queue; bounds the delay of a signal."""


@dataclass(slots=True)
class LocalExecutor:
    """One solver, the sinks and one learner, called in turn."""

    solver: Solver
    sinks: Mapping[Split, Sink]
    learner: StreamLearner
    load: Callable[[BlockKey], Block]
    """Reads a stored block back from the data set."""
    clock: Callable[[], float] = time.time
    """Seconds of this run, over all attempts."""
    learn_from: Callable[[Block], None] | None = None
    """Sees every block before the next is solved: trains the solver's preconditioner."""
    writer_busy_s: float = field(default=0.0, init=False)
    spilled_bytes: int = field(default=0, init=False)
    blocks_near: int = field(default=0, init=False)
    _commands: deque[Command] = field(default_factory=deque, init=False)
    _events: deque[Event] = field(default_factory=deque, init=False)
    _blocks: dict[BlockKey, Block] = field(default_factory=dict, init=False)
    _training: bool = field(default=False, init=False)
    _ticked_s: float = field(default=0.0, init=False)

    def submit(self, command: Command) -> None:
        """Queue a command; `StartTraining` takes effect at once."""
        match command:
            case StartTraining():
                self._training = True
            case RestartSolver(solver=name):
                raise ForebayError(f"{name} cannot be restarted: it runs in this process")
            case Finish():
                self._commands.clear()
            case _:
                self._commands.append(command)

    def post(self, event: Event) -> None:
        """Let a signal handler put an event in front."""
        self._events.append(event)

    def next_event(self) -> Event:
        """Posted events, a tick when one is due, then training that is due, then the next command."""
        if self._events:
            return self._events.popleft()
        if time.monotonic() - self._ticked_s >= SLICE_S:
            self._ticked_s = time.monotonic()
            return Tick(self.clock())
        if self._training and not self._learner_command_is_next and self._training_is_due:
            return self._guarded(self._train, "learner")
        if self._commands:
            command = self._commands.popleft()
            return self._guarded(lambda: self._execute(command), stage_of(command))
        raise ForebayError("the run waits for an event that nobody will send; please report this as a bug")

    def close(self) -> None:
        """What TensorBoard has buffered is written, and what the solver has started is ended."""
        self._commands.clear()
        try:
            self.learner.metrics.close()
        finally:
            destroy = getattr(self.solver, "destroy", None)  # not every solver holds what outlives it
            if destroy is not None:
                destroy()

    def _guarded(self, work: Callable[[], Event], stage: str) -> Event:
        """What the user can mend ends the run with a checkpoint; anything else is a bug and keeps its traceback."""
        try:
            return work()
        except ForebayError as error:
            if stage == "learner":
                self._training = False
            return StageFailed(stage, str(error))

    @property
    def _learner_command_is_next(self) -> bool:
        """The learner must hear that production has ended before it trains on, since it decides when the buffer closes.

        A checkpoint may be ahead of it in the queue, or be the end of a run that resumes with it.
        """
        return bool(self._commands) and isinstance(self._commands[0], EndProduction | Checkpoint)

    @property
    def _training_is_due(self) -> bool:
        return not self._commands or self.learner.behind or self.learner.ended

    def _train(self) -> Event:
        end = time.monotonic() + SLICE_S
        while self._training_is_due and not self.learner.ended:
            if not self.learner.advance(1) and not self.learner.ended:
                raise RunError("no batch can be drawn although no more data will come; please report this as a bug")
            if time.monotonic() >= end:
                break
        if not self.learner.ended:
            return Tick(self.clock())
        self._training = False
        self.learner.finish()
        return TrainingEnded(self.learner.batches)

    def _execute(self, command: Command) -> Event:
        match command:
            case Solve(key=(split, chunk), solver=name):
                block = self.solver.solve_block(split, chunk)
                self._blocks = {command.key: block}  # one block is in flight at a time
                if self.learn_from is not None:
                    self.learn_from(block)
                parameters = block.arrays["parameters"]
                return BlockSolved(
                    command.key, name, block.records, parameters, block.seconds, block.choices, block.path
                )
            case Store(key=key):
                start = time.perf_counter()
                self.sinks[key[0]].store(self._blocks[key])
                self.writer_busy_s += time.perf_counter() - start
                return BlockStored(key)
            case Feed(key=key):
                return self._feed(key, self._blocks.pop(key))
            case LoadAndFeed(key=key):
                return self._feed(key, self.load(key))
            case EndProduction():
                self.learner.end_production()
                return Tick(self.clock())
            case Checkpoint():
                batch, path = self.learner.checkpoint()
                return CheckpointSaved(batch, str(path))
        raise ForebayError(f"unknown command {command!r}")

    def _feed(self, key: BlockKey, block: Block) -> Event:
        if key[0] == "validation":
            self.learner.add_validation(block)
            return BlockIngested(key, 0)
        frames = 0
        while not self.learner.ended:  # afterwards nobody draws, and a full ring would stay full
            done = self.learner.offer(block)
            frames += self.learner.last_accepted
            if done:
                break
            if not self.learner.advance(1) and not self.learner.ended:
                raise RunError("the ring is full and no batch can be drawn; raise buffer.capacity")
        return BlockIngested(key, frames)

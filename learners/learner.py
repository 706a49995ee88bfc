"""The learner: owns the ring, draws batches, trains, validates, checkpoints.

One plain object without processes of its own.  In-process runs call `offer` and `advance` in turn; the actor calls
`ingest` and `train` from two threads.  Whatever else wants the weights between two batches (a checkpoint) is asked of
the training thread, so no lock is held during a step.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
import torch

from forebay.learners.arrivals import Arrivals
from forebay.learners.device import learner_device
from forebay.learners.evaluate import Evaluation, evaluate
from forebay.learners.frames import frames_by_key, frames_of, ring_specs
from forebay.learners.learner_checkpoint import Clock, save_learner, shard_in, shard_of
from forebay.learners.metrics import MetricsLog
from forebay.learners.ring import Ring
from forebay.learners.step import TrainOptions, TrainState, make_state, train_step
from forebay.learners.surrogate import IOSpec, Surrogate, SurrogateConfig
from forebay.learners.team import Solo, Team, Word
from forebay.learners.threads import ThreadChoice
from forebay.learners.validation_set import ValidationSet
from forebay.learners.weights import latest_checkpoint, load_checkpoint
from forebay.pipeline.buffer import Policy, make_buffer
from forebay.pipeline.messages import BlockKey
from forebay.pipeline.plan import Plan
from forebay.pipeline.records import Block, Schema
from forebay.pipeline.sampling import sample_seed
from forebay.pipeline.study import LearnerTable

log = logging.getLogger(__name__)

SOLO = Solo()
LOG_EVERY = 10
"""Batches that one line of metrics.jsonl averages over."""
WAIT_S = 0.1
"""Longest wait for data before the training thread looks for requests."""


@dataclass(slots=True, eq=False)
class StreamLearner:
    """Trains on what has arrived so far; see `open` for how one is made."""

    schema: Schema
    options: LearnerTable
    plan: Plan
    ring: Ring
    state: TrainState
    metrics: MetricsLog
    folder: Path
    validate_every: int
    keep_checkpoints: int
    validation: ValidationSet
    team: Team = SOLO
    """Those that train together; this learner's ring holds its share of the frames."""
    last_accepted: int = field(default=0, init=False)
    """Frames that the latest block brought in."""
    _chunks: set[int] = field(default_factory=set, init=False)
    """Training chunks whose frames are all accounted for by the buffer."""
    _arrivals: Arrivals = field(init=False)
    """Training chunks for the normaliser."""
    _threads: ThreadChoice = field(init=False)
    _clock: Clock = field(default_factory=Clock, init=False)
    _losses: list[float] = field(default_factory=list, init=False)
    _production_ended: threading.Event = field(default_factory=threading.Event, init=False)
    _interrupted: threading.Event = field(default_factory=threading.Event, init=False)
    _training: threading.Event = field(default_factory=threading.Event, init=False)
    _changing_hands: threading.Lock = field(default_factory=threading.Lock, init=False)
    """Held while a thread begins or ends to train, and while another one saves in between."""
    _requests: SimpleQueue[Future[tuple[int, Path]]] = field(default_factory=SimpleQueue, init=False)
    _over: bool = field(default=False, init=False)
    """Has some member of the team no frames left?"""
    _leaving: bool = field(default=False, init=False)
    """Has the team been told to stop here?"""

    def __post_init__(self) -> None:
        self._threads = ThreadChoice(self.plan.learner_threads, self.plan.learner_threads_after)
        self._arrivals = Arrivals(self.metrics.normalised)

    @classmethod
    def open(
        cls,
        schema: Schema,
        options: LearnerTable,
        plan: Plan,
        *,
        policy: Policy,
        validate_every: int,
        seed: int,
        folder: Path,
        clock_zero: float,
        keep_checkpoints: int,
        load: Callable[[BlockKey], Block],
        resume: bool,
        team: Team = SOLO,
    ) -> StreamLearner:
        """A fresh learner, or with `resume` the one that the latest checkpoint describes.

        Weights, ring and validation data lie on `options.device`, whatever the device of the run before.  `load` reads
        stored blocks back: a checkpoint keeps which frames the ring held, the data set keeps the frames.

        Raises:
            StudyError: a device that is not there.
        """
        device = learner_device(options.device)
        torch.set_num_threads(plan.learner_threads)
        config = SurrogateConfig(
            IOSpec.from_schema(schema), options.model.name, options.model.options, options.freeze_normaliser_after
        )
        surrogate = Surrogate(config, seed=sample_seed(seed, "weights", 0) % 2**63).to(device)
        buffer = make_buffer(
            policy,
            capacity=plan.capacity // team.size,
            threshold=plan.threshold // team.size,
            seed=sample_seed(seed, "buffer", team.rank),
        )
        learner = cls(
            schema,
            options,
            plan,
            Ring(ring_specs(schema), buffer, device=device),
            make_state(surrogate, TrainOptions.from_study(options, batches=plan.batches), forward=team.wrap(surrogate)),
            MetricsLog(folder, clock_zero, team.rank),
            folder,
            validate_every,
            keep_checkpoints,
            ValidationSet(schema, device, plan.chunks["validation"].samples),
            team,
        )
        checkpoint = latest_checkpoint(folder / "checkpoints") if resume else None
        if checkpoint is not None:
            learner._restore(checkpoint, load)
        learner.metrics.begin(learner.batches, learner._arrivals.taken)
        return learner

    @property
    def batches(self) -> int:
        """Batches trained."""
        return self.state.batches

    @property
    def chunks(self) -> frozenset[int]:
        """Training chunks whose frames are all accounted for."""
        return frozenset(self._chunks)

    @property
    def ended(self) -> bool:
        """Is the batch budget spent, or the data exhausted?"""
        return self.batches >= self.plan.batches or (self.ring.exhausted if self.team.size == 1 else self._over)

    @property
    def behind(self) -> bool:
        """Has training fallen behind the share of frames that have arrived?  Paces the in-process executor."""
        due = self.plan.batches * self.ring.statistics(with_uses=False).put // self.plan.frames
        return not self.ended and self.batches < due and self.ring.can_draw(self.options.batch_size)

    def add_validation(self, block: Block) -> None:
        """Keep a block of the validation split; the same chunk twice is kept once."""
        self.validation.add(block)

    def ingest(self, block: Block) -> int:
        """Accept a training block's valid frames, waiting for room; frames that are new."""
        keys, arrays = self._prepare(block)
        accepted = self.ring.put(keys, arrays)
        if not self._interrupted.is_set():
            self._chunks.add(block.chunk)
        return accepted

    def offer(self, block: Block) -> bool:
        """Accept what fits without waiting; True once every frame of the block is accounted for."""
        keys, arrays = self._prepare(block)
        before = self.ring.statistics(with_uses=False).put
        done = self.ring.offer(keys, arrays) >= len(keys)
        self.last_accepted = self.ring.statistics(with_uses=False).put - before
        if done:
            self._chunks.add(block.chunk)
        return done

    def advance(self, batches: int) -> int:
        """Train up to that many batches with the data at hand; returns how many."""
        done = 0
        while done < batches and not self.ended and self._train_one(timeout=0.0):
            done += 1
        return done

    def train(self) -> int:
        """Train until the budget is spent or the data is exhausted, waiting for data; returns all batches so far."""
        torch.set_num_threads(self.plan.learner_threads)
        with self._changing_hands:
            self._training.set()
        try:
            while not self.ended and not self._leaving:
                if self.team.size > 1:
                    self._train_together()
                    continue
                self._serve_requests()
                self._train_one(timeout=WAIT_S)
                self._leaving = self._interrupted.is_set()
            if self.ended:
                self.finish()
        finally:
            with self._changing_hands:
                self._training.clear()
                self._serve_requests()
        return self.batches

    def end_production(self) -> None:
        """No more data will come; the training thread sees to the rest before its next batch."""
        self._production_ended.set()

    def interrupt(self) -> None:
        """Let waiting threads return; the learner is not used afterwards."""
        self._interrupted.set()
        self.ring.interrupt()

    def checkpoint(self) -> tuple[int, Path]:
        """Save weights, optimiser, normaliser, generator and buffer state between two batches; batch and folder."""
        with self._changing_hands:
            if not self._training.is_set():
                return self._save_alone()
            request: Future[tuple[int, Path]] = Future()
            self._requests.put(request)
        return request.result()

    def finish(self) -> Evaluation | None:
        """Last evaluation, last checkpoint, the surrogate for users, and the examples for the report.

        Of a team the first does it, and the others return None.
        """
        self._flush()
        evaluation = self._validate()
        shards = self.team.gather(self._shard())
        if evaluation is None or shards is None:
            return None
        self._save(shards)
        self.state.surrogate.save(self.folder / "surrogate")
        self.validation.keep_examples(self.folder / "predictions.npz", self.state.surrogate, evaluation)
        return evaluation

    def _prepare(self, block: Block) -> tuple[np.ndarray, Mapping[str, Any]]:
        keys, arrays = frames_of(block, self.schema, self.ring.device)
        if len(keys) and not self.state.surrogate.normaliser.frozen:
            self._arrivals.put(block.chunk, arrays)
        return keys, arrays

    def _normalise(self) -> None:
        self._arrivals.into(self.state.surrogate.normaliser)

    def _train_together(self) -> None:
        """One round of the team: agree, then save, normalise, train or leave, all alike."""
        self._close_when_due()
        start = time.perf_counter()
        ready = self.ring.wait_data(self._share, timeout=WAIT_S)
        normaliser = self.state.surrogate.normaliser
        news = not self._arrivals.empty and not normaliser.frozen
        mine = Word(ready, self.ring.exhausted, not self._requests.empty(), bool(news), self._interrupted.is_set())
        word = self.team.agree(mine)
        self._over, self._leaving = word.exhausted, word.leave
        if word.news:
            self._arrivals.into_all(normaliser, self.team)
        if word.save:
            shards = self.team.gather(self._shard())
            if shards is not None:
                self._serve_requests(shards)
        if word.ready and not word.exhausted and not word.leave:
            self._clock.wait_s += time.perf_counter() - start
            self._train_one(timeout=0.0)
        else:
            self._clock.wait_s += time.perf_counter() - start

    @property
    def _share(self) -> int:
        """Frames of a batch that this learner draws."""
        return self.options.batch_size // self.team.size

    def _train_one(self, timeout: float) -> bool:
        self._close_when_due()
        start = time.perf_counter()
        batch = self.ring.draw(self._share, timeout=timeout)
        drawn = time.perf_counter()
        if self.team.size == 1:
            self._normalise()
        if batch is None:
            self._clock.wait_s += drawn - start
            return False
        self.metrics.draw(self.batches + 1, batch.keys, torch.get_num_threads())
        self.state, step = train_step(self.state, batch.arrays)
        self._clock.draw_s += drawn - start
        seconds = time.perf_counter() - drawn
        self._threads.step(seconds)
        self._clock.step_s += seconds
        self._clock.frames += len(batch.keys)
        if not step.skipped:
            self._losses.append(step.loss)
        if self.batches % LOG_EVERY == 0:
            self._flush()
        if self.batches % self.validate_every == 0 and not self.ended:
            self._validate()
        return True

    def _close_when_due(self) -> None:
        """Close the buffer ("over") once nothing more comes and draining it fits the rest of the budget.

        Melissa's rule closes at the end of production; with more batches to train than frames to drain, drawing goes
        on without removal until the two meet, so that the last frames are used up in the last batches.
        """
        if not self._production_ended.is_set():
            return
        self._threads.widen()
        if self.ring.closed:
            return
        counts = self.ring.statistics(with_uses=False)
        left = (self.plan.batches - self.batches) * self._share
        starved = not self.ring.can_draw(self._share)
        if self.ring.policy != "reservoir" or left <= counts.unseen + counts.seen or starved:
            self.ring.close()

    def _serve_requests(self, shards: list[dict[str, Any]] | None = None) -> None:
        while True:
            try:
                request = self._requests.get_nowait()
            except Empty:
                return
            try:
                request.set_result(self._save(shards) if shards else self._save_alone())
            except Exception as error:
                request.set_exception(error)

    def _flush(self) -> None:
        if not self._losses and self.team.size == 1:
            return
        loss = self.team.mean(sum(self._losses) / len(self._losses) if self._losses else math.nan)
        self._losses.clear()
        if self.team.rank or math.isnan(loss):
            return
        counts = self.ring.statistics(with_uses=False)
        self.metrics.train(
            batch=self.batches,
            loss=loss,
            lr=self.state.lr,
            **self._clock.counters(self.team.size),
            unseen=counts.unseen,
            seen=counts.seen,
            capacity=self.ring.capacity,
        )

    def _validate(self) -> Evaluation | None:
        """Judge the surrogate; by the first of the team alone, whom the others wait for."""
        if self.team.rank:
            return None
        _, data = self.validation.frames()
        evaluation = evaluate(self.state.surrogate, data)
        self.metrics.validation(self.batches, evaluation, self.ring.statistics().uses)
        return evaluation

    def _shard(self) -> dict[str, Any]:
        return shard_of(self.ring, self._chunks, self._arrivals.taken)

    def _save(self, shards: Sequence[dict[str, Any]]) -> tuple[int, Path]:
        root, together = self.folder / "checkpoints", self.team.size > 1
        path = save_learner(root, self.state, shards, together=together, clock=self._clock, keep=self.keep_checkpoints)
        return self.batches, path

    def _save_alone(self) -> tuple[int, Path]:
        """Save without a word to the team, which has saved at its end and says nothing more, or has not begun."""
        if self.team.size == 1:
            self._normalise()
        elif (path := latest_checkpoint(self.folder / "checkpoints")) is not None:
            return self.batches, path
        return self._save([self._shard()])

    def _restore(self, path: Path, load: Callable[[BlockKey], Block]) -> None:
        restored = load_checkpoint(path, device=self.ring.device, options=self.state.options, wrap=self.team.wrap)
        self.state = restored.state
        self._clock = Clock(**restored.extra["clock"])
        shard = shard_in(restored, self.team.rank)
        if shard is not None:
            self._chunks = set(shard["ingested_chunks"])
            self._arrivals.taken.update(shard["normalised_chunks"])
            fetch = frames_by_key(load, self.schema, self.plan.chunks["train"].size)
            self.ring.refill(shard["buffer"], fetch)

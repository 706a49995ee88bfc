"""Training again from the data set, batch for batch as a run did it.

    draws.jsonl ─► schedule ─► frames by key ◄─ chunks ◄─ data set
                       │             │
                       └─ normaliser ┴─► train_step, evaluate, checkpoint

With the run's own model the weights come out bit for bit on the same kind of processor, since frames, order, threads
and the moments of normalisation are those of the run; with another model or other options, both have seen the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from forebay.learners.evaluate import Evaluation, evaluate
from forebay.learners.frames import frames_of, tensor_of
from forebay.learners.metrics import MetricsLog
from forebay.learners.schedule import ScheduledBatch
from forebay.learners.step import TrainState, train_step
from forebay.learners.weights import latest_checkpoint, load_checkpoint, save_checkpoint
from forebay.pipeline.errors import RunError
from forebay.pipeline.records import Block, Schema

LOG_EVERY = 10
"""Batches that one line of metrics.jsonl averages over."""


class FrameStore:
    """Frames by key, from chunks that are read when needed and dropped when they are needed last.

    The schedule tells when each is needed: of the chunks in memory the one goes first whose next use is farthest away
    (Belady, doi:10.1147/sj.52.0078), which reads the fewest chunks that any rule could.
    """

    def __init__(
        self,
        load: Callable[[int], Block],
        schema: Schema,
        samples_per_chunk: int,
        schedule: Sequence[ScheduledBatch],
        *,
        memory_bytes: float,
    ) -> None:
        self.reads = 0
        """Chunks that were read, again and again counted."""
        self._load, self._schema = load, schema
        self._frames = samples_per_chunk * schema.steps
        self._memory = memory_bytes
        self._uses: dict[int, list[int]] = {}
        for batch in reversed(schedule):
            for chunk in np.unique(batch.keys // self._frames).tolist():
                self._uses.setdefault(chunk, []).append(batch.number)
        self._held: dict[int, tuple[np.ndarray, Mapping[str, np.ndarray]]] = {}
        self._bytes = 0
        self._touched: set[int] = set()
        """Chunks asked for since the batch before."""

    def batch(self, number: int, keys: np.ndarray) -> dict[str, torch.Tensor]:
        """The arrays of one batch, (b, *shape) each, in the order of the keys; batches must be asked for in order.

        Raises:
            RunError: a frame that the data set does not have.
        """
        arrays: dict[str, torch.Tensor] = {}
        chunks = keys // self._frames
        for chunk in np.unique(chunks).tolist():
            places = np.flatnonzero(chunks == chunk)
            have, held = self.chunk(chunk)
            rows = np.searchsorted(have, keys[places])
            if (rows >= len(have)).any() or (have[rows] != keys[places]).any():
                raise RunError(f"batch {number} has frames that chunk {chunk} of the data set lacks; was it changed?")
            for name, array in held.items():
                if name not in arrays:
                    arrays[name] = torch.empty((len(keys), *array.shape[1:]), dtype=torch.float32)
                arrays[name][places] = tensor_of(array[rows])
        self._drop_after(number)
        return arrays

    def chunk(self, chunk: int) -> tuple[np.ndarray, Mapping[str, np.ndarray]]:
        """Keys and arrays of a chunk's valid frames."""
        self._touched.add(chunk)
        if chunk not in self._held:
            self.reads += 1
            self._held[chunk] = frames_of(self._load(chunk), self._schema)
            self._bytes += self._size(chunk)
        return self._held[chunk]

    def _drop_after(self, number: int) -> None:
        for chunk in self._touched:
            uses = self._uses.get(chunk, [])
            while uses and uses[-1] <= number:
                uses.pop()
            if not uses:
                self._drop(chunk)
        self._touched.clear()
        while len(self._held) > 1 and self._bytes > self._memory:
            self._drop(max(self._held, key=lambda chunk: self._uses[chunk][-1]))

    def _drop(self, chunk: int) -> None:
        self._bytes -= self._size(chunk)
        del self._held[chunk]

    def _size(self, chunk: int) -> int:
        return sum(array.nbytes for array in self._held[chunk][1].values())


@dataclass(slots=True)
class Replay:
    """One training along a schedule; writes metrics, checkpoints and the surrogate into a folder of its own."""

    state: TrainState
    schedule: Sequence[ScheduledBatch]
    frames: FrameStore
    validation: Mapping[str, torch.Tensor]
    """Arrays of the validation frames."""
    folder: Path
    metrics: MetricsLog
    validate_every: int
    checkpoint_every_s: float = 60.0
    errors: list[tuple[int, Evaluation]] = field(default_factory=list, init=False)
    """Evaluations of this process by batch."""

    def run(self, told: Callable[[int, float], None] = lambda batch, loss: None) -> Evaluation:
        """Train from where a checkpoint in the folder left off, or from the start, to the end of the schedule.

        `told` hears every batch's number and loss.
        """
        self._resume()
        saved_s, losses = time.monotonic(), []
        for batch in self.schedule[self.state.batches :]:
            losses.append(self._step(batch))
            told(batch.number, losses[-1])
            if batch.number % LOG_EVERY == 0:
                self.metrics.train(batch=batch.number, loss=sum(losses) / len(losses), lr=self.state.lr)
                losses.clear()
            last = batch.number == len(self.schedule)
            if batch.number % self.validate_every == 0 and not last:
                self._validate()
            if time.monotonic() - saved_s >= self.checkpoint_every_s or last:
                save_checkpoint(self.folder / "checkpoints", self.state)
                saved_s = time.monotonic()
        self.state.surrogate.save(self.folder / "surrogate")
        return self._validate()

    def _step(self, batch: ScheduledBatch) -> float:
        normaliser = self.state.surrogate.normaliser
        for chunk in batch.normalised:
            normaliser.update(self.frames.chunk(chunk)[1])
        arrays = self.frames.batch(batch.number, batch.keys)
        if torch.get_num_threads() != batch.threads:
            torch.set_num_threads(batch.threads)
        device = self.state.surrogate.device
        self.state, step = train_step(self.state, {name: array.to(device) for name, array in arrays.items()})
        return step.loss

    def _validate(self) -> Evaluation:
        evaluation = evaluate(self.state.surrogate, dict(self.validation))
        self.metrics.validation(self.state.batches, evaluation, ())
        self.errors.append((self.state.batches, evaluation))
        return evaluation

    def _resume(self) -> None:
        checkpoint = latest_checkpoint(self.folder / "checkpoints")
        if checkpoint is not None:
            device = self.state.surrogate.device
            self.state = load_checkpoint(checkpoint, device=device, options=self.state.options).state


def validation_arrays(blocks: Iterable[Block], schema: Schema) -> dict[str, torch.Tensor]:
    """All valid frames of the validation split."""
    parts = [frames_of(block, schema)[1] for block in blocks]
    if not any(len(part["parameters"]) for part in parts):
        raise RunError("the validation data set has no valid sample, so nothing can be judged")
    return {name: torch.cat([tensor_of(part[name]) for part in parts]) for name in parts[0]}

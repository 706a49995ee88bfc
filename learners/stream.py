"""Batches for a training script of one's own: from a finished run's data set, or from a run that is still going on.

    for batch in StreamDataset("runs/NAME", batch_size=32): ...                  # one pass, shuffled
    for batch in StreamDataset("runs/NAME", batch_size=32, follow=True): ...     # while the run adds samples

The samples themselves stay in the data set's files, which are mapped into memory; only their keys are buffered, so a
buffer of a million frames costs some 50 MiB whatever the size of a frame.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from forebay.pipeline.buffer import Buffer, Policy, make_buffer
from forebay.pipeline.dataset_layout import DATASETS
from forebay.pipeline.dataset_reader import DatasetReader
from forebay.pipeline.errors import DatasetError
from forebay.pipeline.journal import is_being_written
from forebay.pipeline.records import Schema, Split

LARGEST_BUFFER = 1_000_000
"""Frames that are buffered unless `capacity` says otherwise."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Share:
    """Every `of`-th chunk belongs to one process: chunks, not frames, so that no two of them read the same files."""

    number: int
    of: int
    epoch_seed: int
    """What torch draws anew for the workers of every epoch; 0 without workers."""

    def keys(self, reader: DatasetReader, first: int, end: int) -> np.ndarray:
        """Keys of the valid frames in the share's chunks of `first` to `end` - 1, ascending, int64."""
        steps = reader.schema.steps
        chunk = reader.valid // reader.plan.size
        valid = reader.valid[(first <= chunk) & (chunk < end) & (chunk % self.of == self.number)]
        return (valid[:, None] * steps + np.arange(steps)).reshape(-1)


class StreamDataset(IterableDataset[dict[str, torch.Tensor]]):
    """Batches of frames: dicts of float32 tensors, every field (b, *shape), "parameters" (b, p) and, for problems in
    time, "time" (b, 1) in seconds.  Only valid samples are given.

    Iterate over it as it is, or hand it to `DataLoader(stream, batch_size=None, num_workers=n)`: the workers divide the
    chunks of the data set among themselves.

    **From a finished run** an iteration is one pass over all frames in random order, the last batch of which may be
    shorter; every further iteration has another order.  With `batches` it goes on to that many.

    **With `follow`** it takes part in a run that another process is doing: new samples enter the buffer as they are
    published (`run.publish_every_s` of the study), `policy` decides which are drawn (see `pipeline.buffer`), and the
    iteration ends when the run has made its last sample, or has ended otherwise, and the buffer is drained, or after
    `batches`.  A Reservoir does not wait for the solvers once it has more than `threshold` frames: a fast loop sees the
    first samples often, so give `batches`; "fifo" and "firo" give every frame once.  A run on another machine is seen
    through a shared file system whose `flock` reaches across machines.

    Args:
        run: run folder, or a data set in one.
        batch_size: frames in a batch.
        split: "train" or "validation", of a run folder.
        fields: names of the fields wanted; all by default.
        follow: wait for samples that are still to come.
        policy: "reservoir", "firo" or "fifo"; only with `follow`.
        capacity: frames buffered with `follow`; by default all of the run, at most `LARGEST_BUFFER`.
        threshold: frames that must be exceeded before the first draw; by default four batches.
        batches: how many to give in all, over all workers; by default one pass, or until the run has ended.
        seed: of the order; two iterations from disk with equal seeds, workers and `torch.manual_seed` are equal.
        device: where the tensors lie; with workers leave it at "cpu" and move batches in the loop.
        shard: (number, how many): this process's part of the chunks in training on several processes.
        poll_s: seconds between two looks for new samples.
        patience_s: seconds to wait for a run to begin.

    Raises:
        DatasetError: no data set there within `patience_s` (at once without `follow`), or none that can be read.
        ValueError: arguments out of range, unknown fields, a GPU in a worker.
    """

    def __init__(
        self,
        run: Path | str,
        *,
        batch_size: int,
        split: Split = "train",
        fields: Sequence[str] = (),
        follow: bool = False,
        policy: Policy = "reservoir",
        capacity: int | None = None,
        threshold: int | None = None,
        batches: int | None = None,
        seed: int = 7,
        device: str | torch.device = "cpu",
        shard: tuple[int, int] = (0, 1),
        poll_s: float = 0.5,
        patience_s: float = 60.0,
    ) -> None:
        super().__init__()
        if batch_size < 1 or (batches is not None and batches < 1):
            raise ValueError(f"batch_size = {batch_size} and batches = {batches}: both must be at least 1")
        if not 0 <= shard[0] < shard[1]:
            raise ValueError(f"shard = {shard} is no (number, how many) with 0 <= number < how many")
        self._path = _dataset_path(Path(run), split)
        self._batch_size, self._fields, self._follow = batch_size, tuple(fields), follow
        self._policy: Policy = policy
        self._capacity, self._threshold = capacity, threshold
        self._batches, self._seed, self._device, self._shard = batches, seed, torch.device(device), shard
        self._poll_s, self._patience_s = poll_s, patience_s
        self._epoch = 0
        if not follow:
            self._check_fields(DatasetReader(self._path))

    @property
    def schema(self) -> Schema:
        """Fields, parameters and coordinates; with `follow` waits for the run to begin."""
        return self._open().schema

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        """The batches of one pass, or of the run."""
        share = self._share()
        reader = self._open()
        self._check_fields(reader)
        epoch, self._epoch = self._epoch, self._epoch + 1
        keys = self._followed(reader, share, epoch) if self._follow else self._stored(reader, share, epoch)
        most, memory = self._most(share), _Memory()
        for number, batch in enumerate(keys):
            if most is not None and number >= most:
                return
            wanted = {n: i.shape for n, i in reader.layout.fields.items() if n in self._fields or not self._fields}
            out = {name: memory.array(name, (len(batch), *shape)) for name, shape in wanted.items()}
            arrays = reader.read_frames(batch, out, fields=wanted)
            del out  # from here on only the tensors keep the memory
            yield {name: torch.from_numpy(array).to(self._device) for name, array in arrays.items()}

    # -- keys of the batches -------------------------------------------------------------------------------------------

    def _stored(self, reader: DatasetReader, share: _Share, epoch: int) -> Iterator[np.ndarray]:
        if not len(reader.valid):
            raise DatasetError(f"{self._path} has no valid samples; with follow=True they are waited for")
        keys = share.keys(reader, 0, reader.plan.chunks)
        for further in count():
            rng = np.random.default_rng([self._seed, share.epoch_seed, epoch, further])
            order = rng.permutation(keys)
            for start in range(0, len(order), self._batch_size):
                yield order[start : start + self._batch_size]
            if self._batches is None or not len(keys):
                return

    def _followed(self, reader: DatasetReader, share: _Share, epoch: int) -> Iterator[np.ndarray]:
        buffer = self._buffer(reader, share, epoch)
        source = _Growing(reader, share, self._poll_s, time.monotonic() + self._patience_s)
        while not buffer.exhausted:
            source.fill(buffer)
            if buffer.can_draw(self._batch_size):
                drawn = buffer.draw(self._batch_size).keys
                if len(drawn):
                    yield drawn
            elif not buffer.over:
                time.sleep(self._poll_s)

    def _buffer(self, reader: DatasetReader, share: _Share, epoch: int) -> Buffer:
        frames = reader.plan.samples * reader.schema.steps
        capacity = self._capacity or max(min(frames, LARGEST_BUFFER), self._batch_size)
        threshold = self._threshold
        if threshold is None:
            threshold = 0 if self._policy == "fifo" else min(4 * self._batch_size, capacity // 2)
        seed = int(np.random.SeedSequence([self._seed, share.number, epoch]).generate_state(1, np.uint64)[0])
        buffer = make_buffer(self._policy, capacity=capacity, threshold=threshold, seed=seed)
        buffer.can_draw(self._batch_size)  # refuses a batch that can never be drawn
        return buffer

    # -- set-up --------------------------------------------------------------------------------------------------------

    def _open(self) -> DatasetReader:
        end = time.monotonic() + self._patience_s
        while self._follow and not (self._path / "zarr.json").exists() and time.monotonic() < end:
            time.sleep(self._poll_s)
        return DatasetReader(self._path)

    def _share(self) -> _Share:
        info = get_worker_info()
        workers, worker = (info.num_workers, info.id) if info else (1, 0)
        if info and self._device.type != "cpu":
            raise ValueError(
                f"device = {str(self._device)!r} in a worker of a DataLoader: give device='cpu' and move each batch in "
                f"the loop, or use no workers"
            )
        number, of = self._shard
        return _Share(number * workers + worker, of * workers, info.seed - info.id if info else 0)

    def _most(self, share: _Share) -> int | None:
        """Batches of this worker."""
        if self._batches is None:
            return None
        workers = share.of // self._shard[1]
        return self._batches // workers + (share.number % workers < self._batches % workers)

    def _check_fields(self, reader: DatasetReader) -> None:
        if unknown := sorted(set(self._fields) - set(reader.layout.fields)):
            raise ValueError(f"{self._path} has no field {unknown[0]!r}; it has {', '.join(reader.layout.fields)}")


class _Memory:
    """Arrays for batches, used again once nobody holds their tensors any more.

    A megabyte from the system costs more than filling it: 0.3 ms of page faults, and 0.1 ms for the copy.
    """

    def __init__(self) -> None:
        self._arrays: dict[tuple[str, tuple[int, ...]], list[np.ndarray]] = {}

    def array(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Float32, with anything in it."""
        held = self._arrays.setdefault((name, shape), [])
        for position in range(len(held)):
            # Besides the list and this call, a tensor of that memory, or whatever shares it, would hold a reference.
            if sys.getrefcount(held[position]) == _UNUSED:
                return held[position]
        made = np.empty(shape, np.float32)
        if len(held) < _SPARE:
            held.append(made)
        return made


_SPARE = 4
"""Arrays of a kind that are kept: a loop holds one batch, or two, while it is given the next."""
_HELD = [object()]
_UNUSED = sys.getrefcount(_HELD[0])
"""References that Python counts for something that only a list holds."""


class _Growing:
    """Hands the frames of a growing data set to a buffer, in the order of their samples."""

    def __init__(self, reader: DatasetReader, share: _Share, poll_s: float, begun_by: float) -> None:
        self._reader, self._share, self._poll_s, self._begun_by = reader, share, poll_s, begun_by
        self._journal = reader.path.parent / "journal.jsonl"
        self._chunks = 0
        self._next_look = 0.0
        self._waiting = np.empty(0, np.int64)
        """Keys for which the buffer has had no room yet."""

    def fill(self, buffer: Buffer) -> Self:
        """Take in what is new and fits; close the buffer when nothing more will come."""
        if not buffer.over and time.monotonic() >= self._next_look:
            # First whether the run goes on, then what it has made: in the other order its last samples could be missed.
            going_on = self._is_going_on()
            self._look()
            self._next_look = time.monotonic() + self._poll_s
            over = self._chunks == self._reader.plan.chunks or not going_on
        else:
            over = False
        while len(self._waiting):
            placement = buffer.reserve(self._waiting)
            buffer.publish(placement.slots)
            self._waiting = self._waiting[placement.done :]
            if not placement.done:
                return self
        if over:
            self._tell_if_short()
            buffer.close()
        return self

    def _look(self) -> None:
        plan = self._reader.plan
        samples = self._reader.refresh()
        # Published samples end at the end of a chunk.
        chunks = plan.chunks if samples == plan.samples else samples // plan.size
        new = self._share.keys(self._reader, self._chunks, chunks)
        self._waiting = np.concatenate([self._waiting, new])
        self._chunks = chunks

    def _is_going_on(self) -> bool:
        if not self._journal.exists():  # a run makes its data set first
            return time.monotonic() < self._begun_by
        return is_being_written(self._journal)

    def _tell_if_short(self) -> None:
        if self._chunks < self._reader.plan.chunks:
            _logger.warning(
                "%s: its run has ended with %d of %d samples; `forebay resume` makes the others",
                self._reader.path,
                self._reader.samples,
                self._reader.plan.samples,
            )


def _dataset_path(run: Path, split: Split) -> Path:
    if split not in DATASETS:
        raise ValueError(f"split = {split!r} is none of {', '.join(DATASETS)}")
    return run if run.suffix == ".zarr" or (run / "zarr.json").exists() else run / DATASETS[split]

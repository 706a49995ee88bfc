"""Claim: the learner's ring gives batches at memory speed, ten times faster than a DataLoader over files.

For 64 x 64 and 128 x 128 float32 frames, batches of 32, one torch thread:

- `draw` of a full Reservoir against `copy_` of contiguous rows of a store as large into a reused output, the fastest
  way there is to bring a batch of that size together;
- `put` of blocks of 64 into scattered slots against `copy_` of such a block into contiguous rows;
- both at once from two threads, for each policy;
- a torch DataLoader that draws at random from the same samples in files, with 0 and 2 workers, the better one quoted:
  the run's Zarr data set through zarr-python and xarray, a Zarr array with one sample a chunk, HDF5 contiguous and with
  one sample a chunk, each sample by sample and batch by batch; and our own memmap reader, not part of the target but
  the strongest offline baseline.  The files are in the page cache, the best case for them; the rows marked "cold" read
  every sample once from the disk, as with a data set that is larger than memory.

The column "copy_ / it" says what is possible: where it is below 10, nothing in memory is ten times faster.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, get_args

import h5py
import numpy as np
import torch
import xarray
import zarr
from common import Measured, Report, alternate, arguments, number, table
from torch.utils.data import DataLoader, Sampler, default_collate, default_convert

from forebay.learners.ring import Ring
from forebay.pipeline.buffer import Policy, make_buffer
from forebay.pipeline.dataset import DatasetCoordinator, DatasetReader, DatasetWriter
from forebay.pipeline.records import Block, ChunkPlan, Field, Outcome, Schema, SolveRecord

BATCH, BLOCK = 32, 64
SEED = 20_231


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    stored_bytes: int
    """Of the ring, of its yardstick, and of each file."""
    seconds: float
    repeats: int


FULL = Sizes(stored_bytes=256 << 20, seconds=1.0, repeats=7)
QUICK = Sizes(stored_bytes=64 << 20, seconds=0.1, repeats=2)


def rate(work: Callable[[], int], seconds: float) -> float:
    """Samples a second of repeated `work`, which returns how many it moved."""
    work()
    moved, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        moved += work()
    return moved / elapsed


# -- the ring ----------------------------------------------------------------------------------------------------------


class Store:
    """Rings of one frame size, full and warm, and their yardsticks."""

    def __init__(self, side: int, sizes: Sizes) -> None:
        self.side, self.seconds = side, sizes.seconds
        self.capacity = sizes.stored_bytes // (4 * side * side)
        self.block = {"u": np.random.default_rng(SEED).random((BLOCK, side, side), np.float32)}
        self.plain = torch.ones((self.capacity, side, side))
        self.outputs = [torch.empty((BATCH, side, side)) for _ in range(2)]
        self.at = 0
        self.reservoir = self.ring("reservoir", fill=self.capacity)
        self.firo = self.ring("firo", fill=self.capacity)

    def ring(self, policy: Policy, fill: int = 0) -> Ring:
        buffer = make_buffer(policy, capacity=self.capacity, seed=SEED)
        ring = Ring({"u": ((self.side, self.side), torch.float32)}, buffer)
        self.keys = 0
        while ring.statistics(with_uses=False).put < fill:
            self.put(ring)
        return ring

    def put(self, ring: Ring, timeout: float | None = 0.0) -> int:
        keys = np.arange(self.keys, self.keys + BLOCK)
        self.keys += BLOCK
        return ring.put(keys, self.block, timeout=timeout)

    def copy_batch(self) -> float:
        def work() -> int:
            self.at = (self.at + BATCH) % (self.capacity - BATCH)
            self.outputs[self.at // BATCH % 2].copy_(self.plain[self.at : self.at + BATCH])
            return BATCH

        return rate(work, self.seconds)

    def copy_block(self) -> float:
        source = torch.from_numpy(self.block["u"])

        def work() -> int:
            self.at = (self.at + BLOCK) % (self.capacity - BLOCK)
            self.plain[self.at : self.at + BLOCK].copy_(source)
            return BLOCK

        return rate(work, self.seconds)

    def draw(self) -> float:
        def work() -> int:
            batch = self.reservoir.draw(BATCH)
            assert batch is not None
            return len(batch.keys)

        return rate(work, self.seconds)

    def ingest(self) -> float:
        """FIRO frees slots in random order, so the rows that are written lie scattered; draws are not timed."""
        put, spent, ring = 0, 0.0, self.firo
        self.keys = ring.statistics(with_uses=False).put
        while spent < self.seconds:
            while ring.statistics(with_uses=False).unseen > self.capacity // 2:
                ring.draw(BATCH)
            start = time.perf_counter()
            for _ in range(self.capacity // 2 // BLOCK):
                put += self.put(ring)
            spent += time.perf_counter() - start
        return put / spent


def both_at_once(store: Store, policy: Policy) -> tuple[float, float]:
    """Samples a second in and out while one thread puts and one draws, both as fast as they can."""
    ring = store.ring(policy, fill=store.capacity // 2)
    stop = threading.Event()

    def produce() -> None:
        while not stop.is_set():
            store.put(ring, timeout=None)

    thread = threading.Thread(target=produce)
    before = ring.statistics(with_uses=False)
    start = time.perf_counter()
    thread.start()
    while time.perf_counter() - start < 2 * store.seconds:
        ring.draw(BATCH, timeout=1.0)
    elapsed = time.perf_counter() - start
    after = ring.statistics(with_uses=False)
    stop.set()
    ring.interrupt()
    thread.join()
    return (after.put - before.put) / elapsed, (after.drawn - before.drawn) / elapsed


# -- the files ---------------------------------------------------------------------------------------------------------


def write_files(folder: Path, side: int, samples: int) -> None:
    """The same samples as the run's data set, as Zarr with a sample a chunk, and as HDF5 in two layouts."""
    schema = Schema((), (), (Field("u", ("y", "x"), (side, side)),))
    plan = ChunkPlan("train", samples, BLOCK)
    rng = np.random.default_rng(SEED)
    single = zarr.create_array(
        folder / "single.zarr", shape=(samples, side, side), chunks=(1, side, side), dtype="f4", compressors=None
    )
    with (
        DatasetCoordinator.create(folder / "run.zarr", schema, plan, {}) as coordinator,
        h5py.File(folder / "samples.h5", "w") as file,
    ):
        writer = DatasetWriter(folder / "run.zarr", schema, plan)
        contiguous = file.create_dataset("contiguous", (samples, side, side), "f4")
        chunked = file.create_dataset("chunked", (samples, side, side), "f4", chunks=(1, side, side))
        for chunk in range(plan.chunks):
            ids = plan.sample_ids(chunk)
            u = rng.random((len(ids), side, side), np.float32)
            records = [SolveRecord(int(i), 7, Outcome.CONVERGED, "none", 0, 0.0, 0.0) for i in ids]
            writer.store(Block("train", chunk, ids, {"parameters": np.empty((len(ids), 0)), "u": u}, records))
            coordinator.commit(chunk, records, np.empty((len(ids), 0)))
            for target in (single, contiguous, chunked):
                target[ids[0] : ids[-1] + 1] = u
        coordinator.publish()


@dataclass
class Samples:
    """A map-style data set; the file is opened by the process that first reads it."""

    opener: Callable[[], Any]
    read: Callable[[Any, Any], np.ndarray]
    samples: int

    @cached_property
    def source(self) -> Any:
        return self.opener()

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> np.ndarray:
        return self.read(self.source, index)


class Batches(Samples):
    """The same, asked for whole batches; rows come back in the order of the file, which no training minds."""

    def __getitems__(self, indices: list[int]) -> np.ndarray:
        return self.read(self.source, np.sort(indices))


def loaders(folder: Path, samples: int) -> dict[str, Callable[[], Any]]:
    """Contenders by name; each makes its data set anew, so nothing open is shared between processes."""

    def run_zarr() -> Any:
        return zarr.open_array(folder / "run.zarr" / "u", mode="r")

    def single_zarr() -> Any:
        return zarr.open_array(folder / "single.zarr", mode="r")

    def xarray_zarr() -> Any:
        return xarray.open_zarr(folder / "run.zarr", chunks=None)["u"]

    def hdf5(name: str) -> Callable[[], Any]:
        return lambda: h5py.File(folder / "samples.h5", "r")[name]

    def item(source: Any, index: Any) -> np.ndarray:
        return source[index]

    def rows(source: Any, index: Any) -> np.ndarray:
        return source.oindex[index]

    def values(source: Any, index: Any) -> np.ndarray:
        return source[index].values

    return {
        "zarr-python": lambda: Samples(run_zarr, item, samples),
        "zarr-python, batches": lambda: Batches(run_zarr, rows, samples),
        "zarr-python, sample a chunk": lambda: Samples(single_zarr, item, samples),
        "zarr-python, sample a chunk, batches": lambda: Batches(single_zarr, rows, samples),
        "xarray": lambda: Samples(xarray_zarr, values, samples),
        "xarray, batches": lambda: Batches(xarray_zarr, values, samples),
        "HDF5 contiguous": lambda: Samples(hdf5("contiguous"), item, samples),
        "HDF5 contiguous, batches": lambda: Batches(hdf5("contiguous"), item, samples),
        "HDF5 sample a chunk": lambda: Samples(hdf5("chunked"), item, samples),
        OURS: lambda: DatasetReader(folder / "run.zarr"),
    }


OURS = "our memmap reader, batches"


@dataclass
class Endless(Sampler[int]):
    """One random order of all samples after the other: a new epoch would cost a DataLoader some milliseconds more."""

    samples: int

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng(SEED)
        while True:
            yield from rng.permutation(self.samples).tolist()


def load_rate(make: Callable[[], Any], workers: int, seconds: float) -> float:
    """Samples a second of a DataLoader after its first batch, so that starting workers is free for it."""
    dataset = make()
    loader = DataLoader(dataset, BATCH, sampler=Endless(len(dataset)), num_workers=workers, collate_fn=collate(dataset))
    batches = iter(loader)
    next(batches)
    return rate(lambda: moved(next(batches)), seconds)


def cold_rate(make: Callable[[], Any], folder: Path, workers: int) -> float:
    """Samples a second of one shuffled epoch over files that the page cache does not hold."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    dataset = make()
    generator = torch.Generator().manual_seed(SEED)
    loader = DataLoader(
        dataset, BATCH, shuffle=True, num_workers=workers, collate_fn=collate(dataset), generator=generator
    )
    batches = iter(loader)
    next(batches)
    start = time.perf_counter()
    return sum(map(moved, batches)) / (time.perf_counter() - start)


def collate(dataset: Any) -> Callable[[Any], Any]:
    return default_convert if hasattr(dataset, "__getitems__") else default_collate


def moved(batch: Any) -> int:
    return len(batch["u"] if isinstance(batch, dict) else batch)


def gather_rate(folder: Path, side: int, samples: int, seconds: float) -> float:
    """Our memmap reader without a DataLoader, into a reused output."""
    reader, rng = DatasetReader(folder / "run.zarr"), np.random.default_rng(SEED)
    out = np.empty((BATCH, side, side), np.float32)

    def work() -> int:
        reader.read("u", rng.integers(0, samples, BATCH), out)
        return BATCH

    return rate(work, seconds)


# -- the comparison ----------------------------------------------------------------------------------------------------


def contenders(store: Store, folder: Path, sizes: Sizes) -> dict[str, Callable[[], float]]:
    found: dict[str, Callable[[], float]] = {
        "copy_ of a batch": store.copy_batch,
        "ring, draw": store.draw,
        "copy_ of a block": store.copy_block,
        "ring, put": store.ingest,
        "our memmap reader, called directly": lambda: gather_rate(folder, store.side, store.capacity, sizes.seconds),
    }
    made = loaders(folder, store.capacity)
    for workers in (0, 2):
        for name, make in made.items():
            found[f"{name} | {workers} workers"] = partial(load_rate, make, workers, sizes.seconds)
        for name in ("HDF5 contiguous, batches", OURS):
            found[f"{name}, cold | {workers} workers"] = partial(cold_rate, made[name], folder, workers)
    return found


@dataclass(frozen=True)
class Ratios:
    """How much faster the ring draws; for the last line."""

    copy: float
    loaders: dict[str, float]


def measure(report: Report, side: int, sizes: Sizes) -> Ratios:
    """Print one size's tables."""
    store = Store(side, sizes)
    with tempfile.TemporaryDirectory(prefix="forebay-ring-") as name:
        write_files(Path(name), side, store.capacity)
        measured = alternate(contenders(store, Path(name), sizes), sizes.repeats)
    best: dict[str, Measured] = {}
    for label, result in measured.items():
        contender, _, workers = label.partition(" | ")
        title = f"DataLoader: {contender}" if workers else contender
        if title not in best or result.median > best[title].median:
            best[title] = result
    draw, copy = best["ring, draw"].median, best["copy_ of a batch"].median
    report.say(f"\n## {side} x {side}, {store.capacity} samples, {sizes.stored_bytes >> 20} MiB\n")
    report.say(
        table(
            ["contender", "samples/s", "spread", "GB/s", "draw / it", "copy_ / it"],
            [
                (
                    title,
                    number(m.median),
                    f"±{50 * m.spread:.0f} %",
                    f"{m.median * 4e-9 * side**2:.2f}",
                    f"{draw / m.median:.2f}",
                    f"{copy / m.median:.2f}",
                )
                for title, m in best.items()
            ],
        )
    )
    both = {policy: both_at_once(store, policy) for policy in get_args(Policy)}
    report.say("")
    report.say(
        table(
            ["both at once", "put samples/s", "draw samples/s", "draws a frame"],
            [[policy, number(i), number(o), f"{o / i:.2f}"] for policy, (i, o) in both.items()],
        )
    )
    rivals = {
        library: max(m.median for title, m in best.items() if title.startswith(f"DataLoader: {library}"))
        for library in ("xarray", "zarr-python", "HDF5")
    }
    return Ratios(draw / copy, {library: draw / rival for library, rival in rivals.items()})


def main() -> int:
    options = arguments(__doc__ or "")
    sizes = QUICK if options.quick else FULL
    torch.set_num_threads(1)
    report = Report("ring", options, ("torch", "numpy", "zarr", "xarray", "h5py"))
    ratios = [measure(report, side, sizes) for side in (64, 128)]
    copy = min(ratio.copy for ratio in ratios)
    worst = {library: min(ratio.loaders[library] for ratio in ratios) for library in ratios[0].loaders}
    times = ", ".join(f"{value:.1f}x {library}" for library, value in worst.items())
    return report.finish(
        f"draws at {100 * copy:.0f} % of copy_; DataLoaders: {times}; the worse size each",
        ">= 60 % and >= 10x",
        ok=copy >= 0.6 and min(worst.values()) >= 10,
    )


if __name__ == "__main__":
    sys.exit(main())

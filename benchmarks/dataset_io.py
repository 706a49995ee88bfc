"""Claim: our layout is written at the speed of the disk, and gives random batches at the speed of memory.

Two float32 fields, 64 x 64 and 128 x 128, in files of 4 MiB; one core.

- Writing: the blocks of a run one after the other until all is on the disk, creation, records and metadata included,
  against plain files of the same bytes with an fsync each.  zarr-python, tensorstore, xarray and HDF5 write the same
  blocks; they make nothing durable until one `sync` at the end, which is less than ours does.  The slow ones write a
  part of the bytes.
- Reading: random batches of 32 samples, both fields, from the page cache, the best case for readers that go through
  files (read calls into their buffers); ours maps them.  Every reader is used in the fastest way that we know: batches
  of sorted rows, and sample by sample into a reused array where it can do that.  Processor time counts, which on one
  core is all there is and which other work on the machine changes little.  "copy" is the same batch copied from one
  array in memory into another: no reader can be faster.  "one pass, cold" reads each sample once from the disk.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import dataset_io_others as others
import numpy as np
import torch
import xarray
from common import Measured, Report, alternate, number, parser, table
from dataset_io_cases import BATCH, FIELDS, SEED, Arrays, Blocks, Case, Read, Write

from forebay.learners.stream import StreamDataset
from forebay.pipeline.dataset import DatasetCoordinator, DatasetReader, DatasetWriter
from forebay.pipeline.records import Block, Field, Outcome, Schema, SolveRecord

WRITE_TARGET, READ_TARGET = 0.8, 5.0
RAW, OURS, COPY = "plain files, fsync each", "ours", "copy"


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    written_bytes: int
    stored_bytes: int
    """That are read."""
    seconds: float
    """Of reading, each time."""
    repeats: int


FULL = Sizes(written_bytes=1 << 30, stored_bytes=256 << 20, seconds=0.5, repeats=7)
QUICK = Sizes(written_bytes=64 << 20, stored_bytes=32 << 20, seconds=0.05, repeats=1)


# -- writing -----------------------------------------------------------------------------------------------------------


def write_plain(folder: Path, case: Case, blocks: Blocks) -> None:
    folder.mkdir()
    for rows, arrays in blocks:
        for name, values in arrays.items():
            with open(folder / f"{name}-{rows.start}", "wb") as file:
                file.write(values.data)
                file.flush()
                os.fsync(file.fileno())


def write_ours(folder: Path, case: Case, blocks: Blocks) -> None:
    dims = (("y", "x"), (case.side, case.side))
    schema, plan = Schema((), (Field("a", *dims),), (Field("u", *dims),)), case.plan
    with DatasetCoordinator.create(folder, schema, plan, {}) as coordinator:
        writer = DatasetWriter(folder, schema, plan)
        for chunk, (rows, arrays) in enumerate(blocks):
            ids = np.arange(rows.start, rows.stop)
            records = [SolveRecord(i, i, Outcome.CONVERGED, "none", 0, 0.0, 0.0) for i in ids.tolist()]
            none = np.empty((len(ids), 0))
            writer.store(Block("train", chunk, ids, {"parameters": none, **arrays}, records))
            coordinator.commit(chunk, records, none)


WRITERS: dict[str, Write] = {RAW: write_plain, OURS: write_ours, **others.WRITERS}
DURABLE = (RAW, OURS)
"""Writers that need no `sync` at the end."""


def write_rate(name: str, folder: Path, side: int, written_bytes: int) -> float:
    """Megabytes a second until everything is on the disk."""
    case = Case(side, written_bytes // others.PARTS.get(name, 1))
    blocks = list(case.blocks())
    target = folder / "written"
    shutil.rmtree(target, ignore_errors=True)
    os.sync()
    start = time.perf_counter()
    WRITERS[name](target, case, blocks)
    if name not in DURABLE:
        os.sync()
    return 1e-6 * case.stored_bytes / (time.perf_counter() - start)


# -- reading -----------------------------------------------------------------------------------------------------------


def readers(folder: Path, case: Case) -> dict[str, Read]:
    """Everything open and ready; files of each writer lie in folders of its name."""
    made = DatasetReader(folder / OURS)
    out = {name: np.empty((BATCH, *case.shape[1:]), np.float32) for name in FIELDS}
    return {
        COPY: _copy(case),
        OURS: lambda rows: made.read_frames(rows, out),
        "ours, StreamDataset": _stream(folder / OURS),
        **others.readers(folder, out),
    }


def _copy(case: Case) -> Read:
    store = {name: np.ones(case.shape, np.float32) for name in FIELDS}
    out = {name: np.empty((BATCH, *case.shape[1:]), np.float32) for name in FIELDS}

    def read(rows: np.ndarray) -> Arrays:
        for name in FIELDS:
            np.take(store[name], rows, 0, out=out[name], mode="clip")
        return out

    return read


def _stream(path: Path) -> Read:
    batches = iter(StreamDataset(path, batch_size=BATCH, batches=2**40))

    def read(rows: np.ndarray) -> Any:
        return next(batches)  # chooses the rows itself

    return read


def read_rate(read: Read, case: Case, seconds: float) -> float:
    """Megabytes a second of processor time, threads included, of random batches, one after the other."""
    rng = np.random.default_rng(SEED)
    read(rng.choice(case.plan.samples, BATCH, replace=False))
    moved, start = 0, time.process_time()
    while (elapsed := time.process_time() - start) < seconds:
        read(rng.choice(case.plan.samples, BATCH, replace=False))
        moved += 4 * len(FIELDS) * BATCH * case.side**2
    return 1e-6 * moved / elapsed


COLD = ("ours", "HDF5 contiguous, one by one", "tensorstore, sample a chunk")


def cold_rate(folder: Path, case: Case, name: str) -> float:
    """Megabytes a second of one shuffled pass over files that the page cache does not hold."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    read = readers(folder, case)[name]
    order = np.random.default_rng(SEED).permutation(case.plan.samples)
    order = order[: len(order) // BATCH * BATCH].reshape(-1, BATCH)
    start = time.perf_counter()
    for rows in order:
        read(rows)
    return 1e-6 * 4 * len(FIELDS) * order.size * case.side**2 / (time.perf_counter() - start)


# -- the comparison ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ratios:
    """Of one size."""

    side: int
    write: float
    """Ours over plain files."""
    read: float
    """Ours over the best other reader."""
    possible: float
    """A copy in memory over the best other reader."""
    best: str


def measure(report: Report, case: Case, sizes: Sizes, home: Path | None = None) -> Ratios:
    """Print one size's tables."""
    with tempfile.TemporaryDirectory(prefix="forebay-io-", dir=home) as name:
        folder = Path(name)
        written = alternate(
            {n: partial(write_rate, n, folder, case.side, sizes.written_bytes) for n in WRITERS}, sizes.repeats
        )
        shutil.rmtree(folder / "written")
        for writer, write in WRITERS.items():
            write(folder / writer, case, list(case.blocks()))
        os.sync()
        check(readers(folder, case), case)
        open_ = readers(folder, case)
        read = alternate({n: partial(read_rate, r, case, sizes.seconds) for n, r in open_.items()}, sizes.repeats)
        cold = alternate({n: partial(cold_rate, folder, case, n) for n in COLD}, max(1, sizes.repeats // 2))
    sizes_said = f"{sizes.written_bytes >> 20} MiB written, {case.stored_bytes >> 20} MiB read"
    report.say(f"\n## {case.side} x {case.side}, {sizes_said}\n")
    raw = written[RAW].median
    report.say(_table("writing", written, ["it / plain files"], lambda m: [f"{m.median / raw:.2f}"]))
    copy, ours = read[COPY].median, read[OURS].median
    report.say("")
    columns = ["ours / it", "copy / it"]
    report.say(_table("random batches", read, columns, lambda m: [f"{ours / m.median:.2f}", f"{copy / m.median:.2f}"]))
    report.say("")
    first = cold[OURS].median
    report.say(_table("one pass, cold", cold, ["ours / it"], lambda m: [f"{first / m.median:.2f}"]))
    others = {n: m.median for n, m in read.items() if n != COPY and not n.startswith(OURS)}
    best = max(others, key=lambda n: others[n])
    return Ratios(case.side, written[OURS].median / raw, ours / others[best], copy / others[best], best)


def check(found: dict[str, Read], case: Case) -> None:
    """Every reader must give the values that were written."""
    rows = np.arange(0, BATCH)
    wanted = case.values(0)
    for name, read in found.items():
        if name in (COPY, "ours, StreamDataset"):
            continue
        batch = read(rows)
        values = [batch[n] for n in FIELDS] if isinstance(batch, dict | xarray.Dataset) else batch
        for field, got in zip(FIELDS, values, strict=True):
            if not np.array_equal(np.asarray(got), wanted[field][:BATCH]):
                raise AssertionError(f"{name} gives other values of {field!r} than were written")


def _table(title: str, measured: dict[str, Measured], columns: list[str], more: Callable[[Measured], list[str]]) -> str:
    rows = [[n, number(m.median), f"±{50 * m.spread:.0f} %", *more(m)] for n, m in measured.items()]
    return table([title, "MB/s", "spread", *columns], rows)


def main() -> int:
    options_parser = parser(__doc__ or "")
    options_parser.add_argument("--folder", type=Path, help="where the files lie; the temporary folder by default")
    options = options_parser.parse_args()
    sizes = QUICK if options.quick else FULL
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    report = Report("dataset_io", options, ("numpy", "zarr", "tensorstore", "xarray", "h5py", "torch"))
    ratios = [measure(report, Case(side, sizes.stored_bytes), sizes, options.folder) for side in (64, 128)]
    write = min(ratio.write for ratio in ratios)
    reads = ", ".join(
        f"{r.read:.1f}x {r.best} at {r.side} x {r.side} (a copy in memory: {r.possible:.1f}x)" for r in ratios
    )
    return report.finish(
        f"writes at {100 * write:.0f} % of plain files; random batches {reads}",
        f">= {100 * WRITE_TARGET:.0f} % and >= {READ_TARGET:g}x",
        ok=write >= WRITE_TARGET and min(ratio.read for ratio in ratios) >= READ_TARGET,
    )


if __name__ == "__main__":
    sys.exit(main())

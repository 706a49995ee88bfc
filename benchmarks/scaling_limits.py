"""What one of each can do: driver, journal, writer, learner, object store; constants of the model in `scaling.py`.

Each figure is taken alone, in this process or with a Ray of its own, and is seconds of one operation.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from forebay.cluster.faults import decide
from forebay.learners.frames import frames_of, ring_specs
from forebay.learners.ring import Ring
from forebay.pipeline.buffer import make_buffer
from forebay.pipeline.controller import Controller
from forebay.pipeline.dataset import DatasetCoordinator, DatasetWriter
from forebay.pipeline.journal import Journal
from forebay.pipeline.keeper import Keeper
from forebay.pipeline.losses import Losses
from forebay.pipeline.messages import BlockIngested, BlockSolved, BlockStored, Feed, Solve, Store
from forebay.pipeline.records import Block, ChunkPlan, Field, Outcome, Parameter, Schema, SolveRecord
from forebay.pipeline.study import FaultsTable

SAMPLES = 32
"""Of a block."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds, each the median of several; blocks are of `block_bytes`."""

    block_bytes: int
    journal_s: float
    """A `block_stored` line with fsync."""
    store_s: float
    """A block on the disk, with fsync."""
    ingest_s: float
    """A block into the ring, by one thread."""
    put_s: float
    """A block into the object store, by one process."""
    decide_s: dict[int, float]
    """A block's events through controller and keeper without fsync, by the number of solvers."""
    wait_s: dict[int, float]
    """One `ray.wait`, by the number of references that are waited for."""


def measure_limits(block_bytes: int, solvers: Iterable[int], repeats: int) -> Limits:
    """Measure everything."""
    side = int((block_bytes / SAMPLES / 4) ** 0.5)
    schema = Schema((Parameter("height", 0.0, 1.0),), (), (Field("u", ("y", "x"), (side, side)),))
    plan = ChunkPlan("train", SAMPLES * repeats, SAMPLES)
    with tempfile.TemporaryDirectory(prefix="forebay-scaling-") as temporary:
        folder = Path(temporary)
        blocks = [_block(plan, schema, chunk) for chunk in range(repeats)]
        journal_s, store_s = _disk(folder, schema, plan, blocks)
    put_s, wait_s = _ray(blocks, solvers)
    return Limits(
        sum(array.nbytes for array in blocks[0].arrays.values()),
        journal_s,
        store_s,
        _ingest(schema, blocks),
        put_s,
        {count: _decide(count) for count in solvers},
        wait_s,
    )


def _block(plan: ChunkPlan, schema: Schema, chunk: int) -> Block:
    ids, rng = plan.sample_ids(chunk), np.random.default_rng([7, chunk])
    records = [SolveRecord(int(i), 11, Outcome.CONVERGED, "cg+gamg", 13, 1e-9, 0.03) for i in ids]
    fields = {f.name: rng.random((len(ids), *f.shape), np.float32) for f in schema.outputs}
    return Block(plan.split, chunk, ids, {"parameters": rng.random((len(ids), 1)), **fields}, records)


def _solved(block: Block) -> BlockSolved:
    return BlockSolved((block.split, block.chunk), "solver-0", block.records, block.arrays["parameters"], 1.0)


def _median_s(work: Iterable[Callable[[], Any]]) -> float:
    seconds = []
    for item in work:
        begun = time.perf_counter()
        item()
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds)


def _disk(folder: Path, schema: Schema, plan: ChunkPlan, blocks: list[Block]) -> tuple[float, float]:
    """Seconds to journal a stored block, and to store it."""
    dataset = DatasetCoordinator.create(folder / "dataset.zarr", schema, plan, {})
    writer = DatasetWriter(folder / "dataset.zarr", schema, plan)
    keeper = Keeper(Journal(folder / "journal.jsonl"), {"train": dataset})
    store_s = _median_s(partial(writer.store, block) for block in blocks)
    for block in blocks:
        keeper.keep(_solved(block))
    journal_s = _median_s(partial(keeper.keep, BlockStored((block.split, block.chunk))) for block in blocks)
    keeper.close(None)
    return journal_s, store_s


def _ingest(schema: Schema, blocks: list[Block]) -> float:
    """Seconds to take one block into a ring whose memory has been touched before."""
    import torch

    torch.set_num_threads(1)
    frames = sum(len(block.sample_ids) for block in blocks)
    ring = Ring(ring_specs(schema), make_buffer("fifo", capacity=frames, seed=7))

    def take_in(keys: np.ndarray, arrays: dict[str, Any]) -> None:
        assert ring.put(keys, arrays) == len(keys)

    for turn in range(2):
        work = [frames_of(block, schema) for block in blocks]
        seconds = _median_s(partial(take_in, keys + turn * frames, arrays) for keys, arrays in work)
        for _ in blocks:
            ring.draw(SAMPLES)
    return seconds


def _ray(blocks: list[Block], counts: Iterable[int]) -> tuple[float, dict[int, float]]:
    from forebay.cluster.security import private_folder, secure_ray

    secure_ray()
    import ray

    size = max(512 * 2**20, 3 * len(blocks) * blocks[0].arrays["u"].nbytes)
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "warning"}
    ray.init(address="local", num_cpus=1, object_store_memory=size, _temp_dir=str(private_folder()), **quiet)

    class Sleeper:
        def sleep(self, seconds: float) -> None:
            time.sleep(seconds)

    try:
        kept: list[Any] = []
        put_s = _median_s(partial(_put, ray, block, kept) for block in blocks * 2)
        kept.clear()
        sleeper = ray.remote(num_cpus=0)(Sleeper).remote()
        ray.get(sleeper.sleep.remote(0.0))
        wait_s, references = {}, []
        for count in counts:
            references += [sleeper.sleep.remote(3600.0) for _ in range(count - len(references))]
            look = partial(ray.wait, references, num_returns=1, timeout=0)
            wait_s[count] = _median_s(look for _ in range(9))
    finally:
        ray.shutdown()
    return put_s, wait_s


def _put(ray: Any, block: Block, kept: list[Any]) -> None:
    kept.append(ray.put(block))


class _NoJournal(Journal):
    def __init__(self) -> None:
        """No file: what the disk takes is measured apart."""

    def append(self, event: str, **fields: Any) -> None:
        pass


def _decide(solvers: int) -> float:
    """Processor seconds of a block in the driver: requested, solved, stored, ingested; Ray and the disk left out."""
    names, blocks = [f"solver-{i}" for i in range(solvers)], max(500, 3 * solvers)  # they come and go in waves
    plans = {
        "validation": ChunkPlan("validation", SAMPLES, SAMPLES),
        "train": ChunkPlan("train", SAMPLES * (8 * solvers + blocks), SAMPLES),
    }
    controller = Controller(plans, names, credits=4, losses=Losses(partial(decide, FaultsTable())))
    keeper = Keeper(_NoJournal(), {})
    records = [SolveRecord(i, 11, Outcome.CONVERGED, "cg+gamg", 13, 1e-9, 0.03) for i in range(SAMPLES)]
    todo: deque[Any] = deque(controller.start())

    def step() -> bool:
        command = todo.popleft()
        keeper.note(command)
        match command:
            case Solve(key=key, solver=solver):
                event: Any = BlockSolved(key, solver, records, np.zeros((SAMPLES, 1)), 1.0)
            case Store(key=key):
                event = BlockStored(key)
            case Feed(key=key):
                event = BlockIngested(key, SAMPLES)
            case _:
                return False
        todo.extend(controller.handle(event))
        return isinstance(event, BlockIngested)

    for _ in range(8 * solvers):  # until the first blocks of all solvers are under way
        step()
    done, begun = 0, time.process_time()
    while done < blocks:
        done += step()
    return (time.process_time() - begun) / blocks

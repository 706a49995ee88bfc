"""Small data sets with values that follow from the sample id alone, for every test that needs one."""

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from forebay.pipeline.dataset import DatasetCoordinator, DatasetWriter
from forebay.pipeline.records import Block, ChunkPlan, Coordinate, Field, Outcome, Parameter, Schema, SolveRecord

METHODS = ("direct:petsc-cholesky", "cg+gamg")
ATTRIBUTES = {
    "study": {"name": "trial", "solver": {"rtol": 1e-8}},
    "problem_summary": "-div(a grad u) = 1 on the unit square.",
    "versions": {"forebay": "0.1.0"},
    "hardware": {"processor": "one of many", "cores": 2},
}


def stationary_schema() -> Schema:
    grid = np.linspace(0, 1, 3)
    return Schema(
        parameters=(Parameter("mean", 1.0, 2.0, "m2"), Parameter("scale", 0.1, 10.0, distribution="log_uniform")),
        inputs=(Field("a", ("y", "x"), (4, 3), "m2", "diffusion coefficient"),),
        outputs=(Field("u", ("y", "x"), (4, 3), "K"), Field("flux", (), (), "W")),
        coordinates=(Coordinate("x", ("x",), grid, "m"), Coordinate("y", ("y",), np.linspace(0, 1, 4), "m")),
        boundary_conditions="u = 0 on all sides",
    )


def transient_schema() -> Schema:
    return Schema(
        parameters=(Parameter("left", 100.0, 500.0, "K"),),
        inputs=(Field("source", ("node",), (5,)),),
        outputs=(Field("temperature", ("node",), (5,), "K"),),
        coordinates=(
            Coordinate("node_x", ("node",), np.linspace(0, 2, 5), "m"),
            Coordinate("triangles", ("triangle", "corner"), np.array([[0, 1, 2], [2, 3, 4]], dtype=np.int32)),
        ),
        times=(0.5, 1.0, 2.0),
    )


def sample_arrays(schema: Schema, sample_id: int, failed: bool = False) -> dict[str, np.ndarray]:
    """Fields and parameters of one sample; NaN fields when its solve failed."""
    rng = np.random.Generator(np.random.Philox(key=7919 + sample_id))
    arrays = {"parameters": rng.random(len(schema.parameters))}
    for item in (*schema.inputs, *schema.outputs):
        values = rng.standard_normal(schema.sample_shape(item.name)).astype(np.float32)
        arrays[item.name] = np.full_like(values, np.nan) if failed else values
    return arrays


def sample_record(sample_id: int, failed: bool = False) -> SolveRecord:
    return SolveRecord(
        sample_id=sample_id,
        seed=2**63 + 11 * sample_id,
        outcome=Outcome.DIVERGED if failed else Outcome.CONVERGED,
        method=METHODS[sample_id % 2],
        iterations=3 * (sample_id % 2),
        residual=0.5 if failed else 1e-9 + 1e-12 * sample_id,
        seconds=0.002,
    )


def make_block(schema: Schema, plan: ChunkPlan, chunk: int, failing: Iterable[int] = ()) -> Block:
    ids = plan.sample_ids(chunk)
    failing = set(failing)
    samples = [sample_arrays(schema, int(i), int(i) in failing) for i in ids]
    arrays = {name: np.stack([sample[name] for sample in samples]) for name in samples[0]}
    records = [sample_record(int(i), int(i) in failing) for i in ids]
    return Block(plan.split, chunk, ids, arrays, records)


def store_and_commit(
    writer: DatasetWriter,
    coordinator: DatasetCoordinator,
    schema: Schema,
    chunks: Iterable[int],
    failing: Iterable[int] = (),
) -> None:
    for chunk in chunks:
        block = make_block(schema, coordinator.layout.plan, chunk, failing)
        writer.store(block)
        coordinator.commit(chunk, block.records, block.arrays["parameters"])


def make_dataset(
    path: Path,
    schema: Schema,
    plan: ChunkPlan,
    chunks: Iterable[int] | None = None,
    failing: Iterable[int] = (),
    attributes: dict = ATTRIBUTES,
) -> Path:
    """A data set with the given blocks (all of them by default), published and closed."""
    with DatasetCoordinator.create(path, schema, plan, attributes) as coordinator:
        wanted = range(plan.chunks) if chunks is None else chunks
        store_and_commit(DatasetWriter(path, schema, plan), coordinator, schema, wanted, failing)
    return path


@contextlib.contextmanager
def without_fsync() -> Iterator[None]:
    """For tests that write often and never pull the plug."""
    real, os.fsync = os.fsync, lambda descriptor: None
    try:
        yield
    finally:
        os.fsync = real

"""Any sequence of operations on a data set, against a plain model."""

import os

import pytest
from dataset_samples import (
    ATTRIBUTES,
    make_block,
    sample_arrays,
    stationary_schema,
    transient_schema,
    without_fsync,
)
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from forebay.pipeline.dataset import DatasetCoordinator, DatasetReader, DatasetWriter
from forebay.pipeline.errors import DatasetError
from forebay.pipeline.records import ChunkPlan

STATIONARY = stationary_schema()
TRANSIENT = transient_schema()
PLAN = ChunkPlan("train", 11, 4)


@pytest.fixture(autouse=True)
def _no_fsync():
    with without_fsync():
        yield


class AnyOrder(RuleBasedStateMachine):
    """Stores, commits, publishes and reopens in any order; the model is two sets of block numbers and a count."""

    folder = None

    @initialize()
    def create(self):
        AnyOrder.runs = getattr(AnyOrder, "runs", 0) + 1
        self.path = AnyOrder.folder / f"{AnyOrder.runs}.zarr"
        self.coordinator = DatasetCoordinator.create(self.path, TRANSIENT, PLAN, ATTRIBUTES)
        self.writer = DatasetWriter(self.path, TRANSIENT, PLAN)
        self.stored, self.committed, self.durable, self.visible = set(), set(), set(), 0

    @rule(chunk=st.integers(0, 2))
    def store(self, chunk):
        self.writer.store(make_block(TRANSIENT, PLAN, chunk, failing=(5,)))
        self.stored.add(chunk)

    @rule(chunk=st.integers(0, 2))
    def commit(self, chunk):
        block = make_block(TRANSIENT, PLAN, chunk, failing=(5,))
        if chunk in self.stored:
            news = self.coordinator.commit(chunk, block.records, block.arrays["parameters"])
            assert news == (chunk not in self.committed)
            self.committed.add(chunk)
        else:
            with pytest.raises(DatasetError, match="store the block first"):
                self.coordinator.commit(chunk, block.records, block.arrays["parameters"])

    @rule()
    def publish(self):
        self.durable = set(self.committed)
        prefix = next((c for c in range(3) if c not in self.committed), 3)
        self.visible = min(4 * prefix, 11)
        assert self.coordinator.publish() == self.visible

    @rule(gracefully=st.booleans())
    def reopen(self, gracefully):
        if gracefully:
            self.publish()
            self.coordinator.close()
        else:
            os.close(self.coordinator._lock)  # what the kernel does when the process dies
            self.committed = set(self.durable)
        self.coordinator = DatasetCoordinator.open(self.path, TRANSIENT, PLAN)
        assert set(self.coordinator.committed.tolist()) == self.committed

    @precondition(lambda self: hasattr(self, "path"))
    @invariant()
    def readers_see_exactly_the_published_prefix(self):
        reader = DatasetReader(self.path)
        assert reader.samples == self.visible
        assert reader.column("sample_id").tolist() == list(range(self.visible))
        stored = reader.column("temperature")
        for i in range(self.visible):
            made = sample_arrays(TRANSIENT, i, failed=i == 5)["temperature"]
            assert stored[i].tobytes() == made.tobytes()
        for chunk in self.durable:
            assert reader.read_block(chunk).records == make_block(TRANSIENT, PLAN, chunk, failing=(5,)).records

    def teardown(self):
        if hasattr(self, "coordinator") and self.coordinator._lock is not None:
            self.coordinator.close()


def test_any_order_of_storing_committing_publishing_and_crashing_agrees_with_the_model(tmp_path):
    AnyOrder.folder = tmp_path
    AnyOrder.TestCase.settings = settings(
        max_examples=20, stateful_step_count=10, deadline=None, suppress_health_check=list(HealthCheck)
    )
    result = AnyOrder.TestCase("runTest")
    result.runTest()

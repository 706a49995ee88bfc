"""Learner actor: unpack, call one plain object, pack.

Three concurrency groups (`GROUPS` says with how many threads): `ingest` blocks while the ring is full (that is the
back-pressure), `train` runs until training ends, `control` answers at any time.
"""

from __future__ import annotations

import ray

from forebay.cluster.specs import RunSpec, load_block, make_learner
from forebay.pipeline.messages import BlockKey
from forebay.pipeline.records import Block

GROUPS = {"ingest": 1, "train": 1, "control": 2}


class LearnerActor:
    """One torch stack; owns the ring."""

    def __init__(self, spec: RunSpec, clock_zero: float, resume: bool) -> None:
        self._spec = spec
        self._learner = make_learner(spec, clock_zero=clock_zero, resume=resume)

    @ray.method(concurrency_group="control")
    def ready(self) -> tuple[int, frozenset[int]]:
        """Batches trained and training chunks accounted for, once the model is built (and restored)."""
        return self._learner.batches, self._learner.chunks

    @ray.method(concurrency_group="ingest")
    def ingest(self, block: Block) -> int:
        """Frames accepted; waits for room."""
        if block.split == "validation":
            self._learner.add_validation(block)
            return 0
        return self._learner.ingest(block)

    @ray.method(concurrency_group="ingest")
    def ingest_stored(self, key: BlockKey) -> int:
        """Frames accepted from a block that is read back from the data set."""
        block = load_block(self._spec, key)
        if block.split == "validation":
            self._learner.add_validation(block)
            return 0
        return self._learner.ingest(block)

    @ray.method(concurrency_group="train")
    def train(self) -> int:
        """Train until the budget is spent or the data is exhausted; number of batches."""
        return self._learner.train()

    @ray.method(concurrency_group="control")
    def end_production(self) -> None:
        """No more data will come."""
        self._learner.end_production()

    @ray.method(concurrency_group="control")
    def checkpoint(self) -> tuple[int, str]:
        """Save between two batches; batch number and folder."""
        batch, path = self._learner.checkpoint()
        return batch, str(path)

    @ray.method(concurrency_group="control")
    def interrupt(self) -> None:
        """Let waiting threads return."""
        self._learner.interrupt()

"""Learner actor: unpack, call one plain object, pack.

Three concurrency groups (`GROUPS` says with how many threads): `ingest` blocks while the ring is full (that is the
back-pressure), `train` runs until training ends, `control` answers at any time.
"""

from __future__ import annotations

import socket

import ray

from forebay.cluster.specs import RunSpec, load_block, make_learner, make_team
from forebay.pipeline.messages import BlockKey
from forebay.pipeline.records import Block

GROUPS = {"ingest": 1, "train": 1, "control": 2}

Shard = tuple[frozenset[int], str]
"""Training chunks that a learner accounts for, and the id of the node that it is on."""


class LearnerActor:
    """One torch stack; owns a ring.  Several of them train as one team."""

    def __init__(self, spec: RunSpec, clock_zero: float, resume: bool, rank: int = 0) -> None:
        self._spec = spec
        self._clock_zero, self._resume, self._rank = clock_zero, resume, rank

    @ray.method(concurrency_group="control")
    def meeting_point(self) -> str:
        """Address at which this learner, the first of several, can be met: "host:port"."""
        host = ray.util.get_node_ip_address()
        with socket.socket() as probe:
            probe.bind((host, 0))
            return f"{host}:{probe.getsockname()[1]}"

    @ray.method(concurrency_group="control")
    def open(self, address: str | None) -> tuple[int, list[Shard] | None]:
        """Build the model (and restore it), when all others have; batches trained, and on the first every shard."""
        team = make_team(self._spec, self._rank, address)
        self._learner = make_learner(self._spec, clock_zero=self._clock_zero, resume=self._resume, team=team)
        shard: Shard = (self._learner.chunks, ray.get_runtime_context().get_node_id())
        return self._learner.batches, team.gather(shard)

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

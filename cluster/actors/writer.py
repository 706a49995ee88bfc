"""Writer actor: unpack, call one plain object, pack."""

from __future__ import annotations

import time

from forebay.cluster.specs import RunSpec, make_sinks
from forebay.pipeline.records import Block


class WriterActor:
    """Makes blocks durable; needs no core of its own since it mostly waits for the disk."""

    def __init__(self, spec: RunSpec) -> None:
        self._sinks = make_sinks(spec)

    def store(self, block: Block) -> float:
        """Seconds that it took until the block was durable."""
        start = time.perf_counter()
        self._sinks[block.split].store(block)
        return time.perf_counter() - start

"""Counts what flows between the stages, and writes a line to metrics.jsonl every few seconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from forebay.pipeline.journal import Journal
from forebay.pipeline.messages import BlockIngested, BlockSolved, BlockStored, Event, Tick, TrainingEnded


@dataclass(slots=True)
class FlowMeter:
    """Observes a run's events; all counts are of this attempt's training split, seconds are wall time of the stage."""

    metrics: Journal
    clock: Callable[[], float]
    writer_busy_s: Callable[[], float] = lambda: 0.0
    spilled_bytes: Callable[[], int] = lambda: 0
    blocks_near: Callable[[], int] = lambda: 0
    """Blocks that were fed to a learner on the node where they were made."""
    every_s: float = 2.0
    solved: int = field(default=0, init=False)
    stored: int = field(default=0, init=False)
    ingested: int = field(default=0, init=False)
    solver_busy_s: float = field(default=0.0, init=False)
    _sizes: dict[int, int] = field(default_factory=dict, init=False)
    _written_s: float = field(default=float("-inf"), init=False)

    def observe(self, event: Event) -> None:
        """Count one event."""
        match event:
            case BlockSolved(key=("train", chunk)):
                self._sizes[chunk] = len(event.records)
                self.solved += len(event.records)
                self.solver_busy_s += event.seconds
            case BlockStored(key=("train", chunk)):
                self.stored += self._sizes.pop(chunk, 0)
            case BlockIngested(key=("train", _), frames=frames):
                self.ingested += frames
            case TrainingEnded():
                self.write()
            case Tick(wall_s=wall_s) if wall_s - self._written_s >= self.every_s:
                self.write()

    def write(self) -> None:
        """Append the counters."""
        self._written_s = self.clock()
        self.metrics.append(
            "flow",
            wall_s=self._written_s,
            solved=self.solved,
            stored=self.stored,
            ingested=self.ingested,
            solver_busy_s=self.solver_busy_s,
            writer_busy_s=self.writer_busy_s(),
            spilled_bytes=self.spilled_bytes(),
            blocks_near=self.blocks_near(),
        )

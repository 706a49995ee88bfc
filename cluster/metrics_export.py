"""A run's figures for Prometheus, through the exporter that every node of a Ray has anyway.

    driver ── ray.util.metrics ──► agent of this node ──► http://NODE:PORT/metrics ◄── Prometheus
       └── prometheus.json in the run folder: where those ports are

Ray puts `ray_` before every name and `_total` behind those of counters, so `forebay_samples` is scraped as
`ray_forebay_samples_total`.  What is exported lags behind by Ray's reporting interval, ten seconds by default.
Nothing here is done per sample but counting outcomes; a record costs some 15 µs, and there are a few a block.
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter as Tally
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import ray
from ray.util.metrics import Counter, Gauge, Histogram

from forebay.cluster.tail import Tail
from forebay.pipeline.controller import Controller
from forebay.pipeline.messages import (
    BlockIngested,
    BlockLost,
    BlockSolved,
    BlockStored,
    Event,
    LearnerLost,
    SolverLost,
    SolverReady,
    Tick,
    WriterLost,
)
from forebay.pipeline.text_file import replace_text

log = logging.getLogger(__name__)

TARGETS = "prometheus.json"
EVERY_S = 1.0
"""Between two looks at what is not told by events."""
TARGETS_EVERY_S = 30.0
"""Between two looks at which nodes there are."""
BLOCK_SECONDS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)

COUNTERS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "samples": ("Samples solved in this attempt", ("split", "outcome")),
    "blocks_stored": ("Blocks made durable", ("split",)),
    "solver_seconds": ("Wall time that solvers have worked, all of them together", ("split",)),
    "writer_seconds": ("Wall time that the writer has worked", ()),
    "frames_ingested": ("Training frames that reached the learner", ()),
    "spilled_bytes": ("Bytes that Ray's object stores have moved to disk", ()),
    "lost": ("Processes that died and were replaced, and blocks that are made again", ("kind",)),
}
GAUGES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "blocks_in_flight": ("Blocks that are requested and not both stored and ingested", ()),
    "solvers_ready": ("Solvers that can work", ()),
    "batches": ("Batches trained; goes back where a learner goes back to its checkpoint", ()),
    "loss": ("Training loss, mean of the latest few batches", ()),
    "validation_error": ("Mean relative L2 error over the validation set", ()),
    "ring_frames": ("Frames in the learner's ring", ("state",)),
    "learner_seconds": ("Wall time that the learner has spent on a part of its loop", ("part",)),
}


class Executor(Protocol):
    """What is asked of the run's executor."""

    @property
    def writer_busy_s(self) -> float:
        """Seconds that the writer has worked in this attempt."""
        ...

    @property
    def spilled_bytes(self) -> int:
        """Bytes that Ray has moved to disk."""
        ...


class MetricsExport:
    """An observer of the run's events, in the driver.  Every series has the run folder's name as its tag `run`."""

    def __init__(self, folder: Path, ready: Sequence[str], controller: Controller, executor: Executor) -> None:
        run = {"run": folder.name}
        self._counters = {name: _made(Counter, name, *text, run) for name, text in COUNTERS.items()}
        self._gauges = {name: _made(Gauge, name, *text, run) for name, text in GAUGES.items()}
        # Ray rebuilds a histogram's sum from the middles of its buckets; hence the counter of seconds beside it.
        self._block_seconds = Histogram(
            "forebay_block_seconds", "Wall time that a solver spent on a block", BLOCK_SECONDS, ("run", "split")
        ).set_default_tags(run)
        self._ready = set(ready)
        self._controller, self._executor = controller, executor
        self._metrics = Tail(folder / "metrics.jsonl")
        self._counted = {"writer_seconds": 0.0, "spilled_bytes": 0.0}
        self._targets = Targets(folder / TARGETS, folder.name)
        self._looked_s = float("-inf")
        self._look()

    def observe(self, event: Event) -> None:
        """Record one event."""
        match event:
            case BlockSolved(key=(split, _)):
                for outcome, count in Tally(record.outcome.name for record in event.records).items():
                    self._count("samples", count, split=split, outcome=outcome)
                self._count("solver_seconds", event.seconds, split=split)
                self._block_seconds.observe(event.seconds, {"split": split})
            case BlockStored(key=(split, _)):
                self._count("blocks_stored", 1, split=split)
            case BlockIngested(frames=frames):
                self._count("frames_ingested", frames)
            case SolverReady(solver=solver):
                self._ready.add(solver)
            case SolverLost(solver=solver):
                self._ready.discard(solver)
                self._count("lost", 1, kind="solver")
            case LearnerLost():
                self._count("lost", 1, kind="learner")
            case WriterLost():
                self._count("lost", 1, kind="writer")
            case BlockLost():
                self._count("lost", 1, kind="block")
            case Tick() if time.monotonic() - self._looked_s >= EVERY_S:
                self._look()

    def close(self) -> None:
        """Take back what tells where to look: nobody answers there any more."""
        self._targets.remove()

    def _look(self) -> None:
        self._looked_s = time.monotonic()
        self._gauges["solvers_ready"].set(len(self._ready))
        self._gauges["blocks_in_flight"].set(self._controller.in_flight)
        self._grow("writer_seconds", self._executor.writer_busy_s)
        self._grow("spilled_bytes", self._executor.spilled_bytes)
        latest = {line["event"]: line for line in self._metrics.lines()}
        if (train := latest.get("train")) is not None:
            self._show_training(train)
        if (validation := latest.get("validation")) is not None:
            self._gauges["validation_error"].set(float(validation["mean"]))
        self._targets.refresh()

    def _show_training(self, line: Mapping[str, Any]) -> None:
        self._gauges["batches"].set(line["batch"])
        self._gauges["loss"].set(float(line["loss"]))
        for state in ("unseen", "seen"):
            self._gauges["ring_frames"].set(line[state], {"state": state})
        for part in ("wait", "draw", "step"):
            self._gauges["learner_seconds"].set(line[f"{part}_s"], {"part": part})

    def _count(self, name: str, value: float, **tags: str) -> None:
        if value > 0:  # Ray's counters refuse zero
            self._counters[name].inc(value, tags)

    def _grow(self, name: str, total: float) -> None:
        self._count(name, total - self._counted[name])
        self._counted[name] = max(total, self._counted[name])


@dataclass(slots=True)
class Targets:
    """`prometheus.json`: the exporters of all nodes, as Prometheus' `file_sd_configs` reads them.

    A Ray with a dashboard writes such a file itself, for all that runs there; the private Ray of a run has none.
    """

    path: Path
    run: str
    _written: list[str] = field(default_factory=list, init=False)
    _looked_s: float = field(default=float("-inf"), init=False)

    def refresh(self) -> None:
        """Write the file anew if nodes have come or gone."""
        if time.monotonic() - self._looked_s < TARGETS_EVERY_S:
            return
        self._looked_s = time.monotonic()
        targets = sorted(
            f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}" for node in ray.nodes() if node["Alive"]
        )
        if targets == self._written:
            return
        content = [{"labels": {"job": "forebay", "forebay_run": self.run}, "targets": targets}]
        try:
            replace_text(self.path, json.dumps(content, indent=2) + "\n")
        except OSError as error:  # the run does not depend on being watched
            log.warning("%s could not be written, so Prometheus will not find this run: %s", self.path, error)
            return
        self._written = targets

    def remove(self) -> None:
        """Remove the file; harmless when repeated."""
        self.path.unlink(missing_ok=True)


def _made[M: (Counter, Gauge)](kind: type[M], name: str, text: str, tags: tuple[str, ...], run: dict[str, str]) -> M:
    metric = kind(f"forebay_{name}", text, tag_keys=("run", *tags))
    metric.set_default_tags(run)
    return metric

"""What a run folder has recorded, read at any moment of the run: journal and metrics in the order of time.

    journal.jsonl   every decision, all attempts one after the other; `block_stored` is what counts as solved
    metrics.jsonl   "train" and "validation" lines with cumulative counters that a checkpoint restores,
                    "flow" lines whose counters begin at zero with every attempt, "reuse" lines of which the last counts

An attempt that was killed leaves lines about batches after its last checkpoint; the next attempt trains those again.
Only the later line of a batch is kept, so nothing is counted twice.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from forebay.pipeline.errors import RunError
from forebay.pipeline.journal import read_events, read_journal, records_from_columns
from forebay.pipeline.records import SolveRecord, Split

Line = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class StoredBlock:
    """One block that the journal vouches for."""

    split: Split
    chunk: int
    records: Sequence[SolveRecord]
    seconds: float
    """Wall time that its solver spent on it."""
    t: float
    solver: str = ""
    choices: Sequence[Line] = ()
    """What `method = "auto"` of that solver had learned by then, an entry per arm."""
    path: Sequence[float] = (0.0, 0.0)
    """As in `records.Block`."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One start of the run's processes: `run_started` up to the next one."""

    start_t: float
    end_t: float
    """Last sign of life, seconds since the epoch."""
    streaming_s: float
    """From the first training block that was asked for, or read back, to the end of training and of solving."""
    production_s: float
    """From the same moment to the last training block that was stored; 0 if this attempt stored none."""
    flow: Line
    """The attempt's last flow line; empty if it has none."""


@dataclass(frozen=True, slots=True)
class RunLog:
    """Everything recorded about a run, nothing counted twice."""

    study: Mapping[str, Any]
    """The contents of study.json; empty if the run has none."""
    events: Sequence[Line]
    blocks: Sequence[StoredBlock]
    ingested: Mapping[int, int]
    """Frames by training chunk."""
    attempts: Sequence[Attempt]
    train: Sequence[Line]
    validation: Sequence[Line]
    histogram: Sequence[int]
    """Frames by number of uses: 0, 1, 2, ...; empty before the first evaluation."""

    def last(self, name: str) -> Line | None:
        """The latest event of that name."""
        return next((event for event in reversed(self.events) if event["event"] == name), None)

    def option(self, *path: str) -> Any:
        """A value of the resolved study, for example `option("learner", "batches")`; None if the study lacks it."""
        node: Any = self.study.get("study", {})
        for part in path:
            node = node.get(part) if isinstance(node, Mapping) else None
        return node


def read_run(run: Path) -> RunLog:
    """Read a run folder.

    Raises:
        RunError: the folder holds no run, or a file in it is damaged.
    """
    study_path, journal_path = run / "study.json", run / "journal.jsonl"
    if not (study_path.exists() or journal_path.exists()):
        raise RunError(f"{str(run)!r} holds neither study.json nor journal.jsonl, so it is no run folder; name one")
    events = list(read_events(journal_path))
    metrics = list(read_journal(run / "metrics.jsonl"))
    kept = _without_lost_work(metrics)
    reuse = [line["histogram"] for line in metrics if line["event"] == "reuse"]
    return RunLog(
        study=_read_study(study_path),
        events=events,
        blocks=_blocks(events),
        ingested=_ingested(events),
        attempts=_attempts(events, metrics),
        train=[line for line in kept if line["event"] == "train"],
        validation=[line for line in kept if line["event"] == "validation"],
        histogram=reuse[-1] if reuse else (),
    )


def number(line: Line, key: str) -> float:
    """A number of a line; NaN if the line lacks it or holds null."""
    value = line.get(key)
    return math.nan if value is None else float(value)


def _read_study(path: Path) -> Mapping[str, Any]:
    try:
        study = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(study, Mapping):
            raise ValueError("no object")
        return study
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise RunError(f"{str(path)!r} is not JSON ({error}); restore it from the attributes of dataset.zarr") from None


def _blocks(events: Iterable[Line]) -> list[StoredBlock]:
    blocks: dict[tuple[Split, int], StoredBlock] = {}
    for event in events:
        if event["event"] == "block_stored":
            split, chunk = event["split"], event["chunk"]
            records = records_from_columns(event["records"])
            blocks[split, chunk] = StoredBlock(
                split,
                chunk,
                records,
                number(event, "seconds"),
                event["t"],
                event.get("solver", ""),
                event.get("choices", ()),
                event.get("path", (0.0, 0.0)),
            )
    return list(blocks.values())


def _ingested(events: Iterable[Line]) -> dict[int, int]:
    frames: dict[int, int] = {}
    for event in events:
        if event["event"] == "block_ingested" and event["split"] == "train":
            # A block that is fed again after a resume brings in only the frames that the buffer has forgotten.
            frames[event["chunk"]] = max(event["frames"], frames.get(event["chunk"], 0))
    return frames


def _attempts(events: Sequence[Line], metrics: Sequence[Line]) -> list[Attempt]:
    starts = [place for place, event in enumerate(events) if event["event"] == "run_started"]
    attempts = []
    for place, after in pairwise([*starts, len(events)]):
        until = events[after]["t"] if after < len(events) else math.inf
        measured = [line for line in metrics if events[place]["t"] <= line["t"] < until]
        attempts.append(_attempt(events[place:after], measured))
    return attempts


def _attempt(events: Sequence[Line], metrics: Sequence[Line]) -> Attempt:
    start = events[0]["t"]
    last = max(line["t"] for line in (*events, *metrics))
    training = [event for event in events if event.get("split") == "train"]
    stored = [event["t"] for event in training if event["event"] == "block_stored"]
    ended = [event["t"] for event in events if event["event"] == "training_ended"]
    begin = min((event["t"] for event in training), default=last)
    end = max(*ended, *stored, begin) if ended and stored else ended[-1] if ended else last
    flow = [line for line in metrics if line["event"] == "flow"]
    return Attempt(
        start_t=start,
        end_t=last,
        streaming_s=max(0.0, end - begin),
        production_s=max(stored) - begin if stored else 0.0,
        flow=flow[-1] if flow else {},
    )


def _without_lost_work(metrics: Sequence[Line]) -> list[Line]:
    """Train and validation lines, less those that a later attempt took back by beginning at an earlier batch."""
    kept: list[Line] = []
    next_batch: dict[str, float] = {"train": math.inf, "validation": math.inf}
    for line in reversed(metrics):
        kind, batch = line["event"], line.get("batch", math.inf)
        if kind not in next_batch:
            continue
        # Batch b is logged, then evaluated: only an earlier batch of the other kind tells that this one was lost.
        if batch < next_batch[kind] and all(batch <= other for other in next_batch.values()):
            kept.append(line)
        next_batch[kind] = min(batch, next_batch[kind])
    return kept[::-1]

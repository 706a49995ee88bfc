"""A run in figures, at any moment of it: waiting, running, killed, resumed, finished."""

from __future__ import annotations

import bisect
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from forebay.pipeline.journal import is_being_written
from forebay.pipeline.records import Outcome, SolveRecord, Split
from forebay.pipeline.run_log import Line, RunLog, number, read_run
from forebay.pipeline.summary_stages import (
    find_bottleneck,
    frames_per_sample,
    overlap_efficiency,
    ratio,
    remaining_seconds,
    stage_table,
)
from forebay.pipeline.summary_text import status_text, what_reuse_means
from forebay.pipeline.summary_types import ArmRow, Dropped, MethodRow, SplitCounts, Status, Summary, ValidationPoint

__all__ = ["Summary", "status_text", "summarise", "summarise_log", "what_reuse_means"]


def summarise(run: Path) -> Summary:
    """Sum up a run folder from its journal and metrics.

    Raises:
        RunError: the folder holds no run, or a file in it is damaged.
    """
    return summarise_log(read_run(run), writing=is_being_written(run / "journal.jsonl"))


def summarise_log(log: RunLog, *, writing: bool) -> Summary:
    """Sum up what has been read; `writing`: does a process still append to the journal?"""
    started = log.last("run_started") or {}
    status, reason = _status(log, writing)
    points = [_point(line) for line in log.validation]
    stages = stage_table(log, points, int(started.get("solvers", 1)))
    streaming = sum(attempt.streaming_s for attempt in log.attempts)
    histogram = tuple(int(count) for count in log.histogram)
    newest = log.train[-1] if log.train else {}
    trained = int(newest.get("frames", 0))
    bottleneck, why = find_bottleneck(stages, streaming)
    finite = [point for point in points if math.isfinite(point.mean)]
    return Summary(
        name=str(log.option("name") or ""),
        status=status,
        reason=reason,
        executor=str(started.get("executor", "")),
        commands=tuple(str(event.get("command", "")) for event in log.events if event["event"] == "run_started"),
        cores=int(started.get("cores", 0)),
        solvers=int(started.get("solvers", 0)),
        learner_threads=int(started.get("learner_threads", 0)),
        elapsed_s=sum(attempt.end_t - attempt.start_t for attempt in log.attempts),
        streaming_s=streaming,
        remaining_s=remaining_seconds(log) if status == "running" else math.nan,
        train=_counts(log, "train", log.option("samples")),
        validation_samples=_counts(log, "validation", log.option("validation", "samples")),
        dropped=tuple(_dropped(log)),
        methods=tuple(_methods(log)),
        sorted_path=ratio(sum(block.path[1] for block in log.blocks), sum(block.path[0] for block in log.blocks)),
        arms=tuple(sorted(_arms(log), key=lambda row: (math.isnan(row.median_s), row.median_s))),
        local_bases=str((log.last("local_bases") or {}).get("decision", {}).get("reason", "")),
        stages=stages,
        bottleneck=bottleneck,
        bottleneck_reason=why,
        overlap_efficiency=overlap_efficiency(stages, streaming),
        batches=int(newest.get("batch", 0)),
        batches_planned=int(log.option("learner", "batches") or 0),
        loss=number(newest, "loss"),
        frames_per_sample=frames_per_sample(log),
        frames_ingested=sum(log.ingested.values()),
        frames_trained=trained,
        reuse_mean=_mean_uses(histogram, trained, sum(log.ingested.values())),
        reuse_histogram=histogram,
        validation=tuple(points),
        best=min(finite, key=lambda point: point.mean, default=None),
        spilled_bytes=sum(int(attempt.flow.get("spilled_bytes", 0)) for attempt in log.attempts),
        lost=_lost(log),
    )


def _status(log: RunLog, writing: bool) -> tuple[Status, str]:
    since_start: list[Line] = []
    for event in log.events:
        since_start = [event] if event["event"] == "run_started" else [*since_start, event] if since_start else []
    if not since_start:
        return "not started", ""
    finished = next((event for event in reversed(since_start) if event["event"] == "run_finished"), None)
    if finished is not None:
        return finished["status"], str(finished.get("reason", ""))
    if not writing:
        return "interrupted", "its process ended without a word: killed, or the machine went down"
    stops = [str(event.get("reason", "")) for event in since_start if event["event"] == "stop_requested"]
    return "running", f"asked to stop: {stops[-1]}" if stops else ""


def _point(line: Line) -> ValidationPoint:
    values = {key: number(line, key) for key in ("wall_s", "mean", "p99", "max", "seconds")}
    return ValidationPoint(batch=line["batch"], **values)


def _records(log: RunLog, *splits: Split) -> list[SolveRecord]:
    return [record for block in log.blocks if block.split in splits for record in block.records]


def _counts(log: RunLog, split: Split, requested: int | None) -> SplitCounts:
    records = _records(log, split)
    return SplitCounts(
        requested=len(records) if requested is None else requested,
        solved=len(records),
        valid=sum(record.valid for record in records),
    )


def _dropped(log: RunLog) -> Iterable[Dropped]:
    splits: tuple[Split, ...] = ("train", "validation")
    for split in splits:
        records = sorted(_records(log, split), key=lambda record: record.sample_id)
        for outcome in Outcome:
            members = [record for record in records if record.outcome is outcome]
            if members and outcome is not Outcome.CONVERGED:
                yield Dropped(
                    outcome=outcome.name,
                    split=split,
                    count=len(members),
                    advice=outcome.advice,
                    sample_ids=tuple(record.sample_id for record in members[:5]),
                    message=members[0].message,
                )


def _methods(log: RunLog) -> Iterable[MethodRow]:
    by_method: dict[str, list[SolveRecord]] = {}
    for record in _records(log, "train", "validation"):
        by_method.setdefault(record.method, []).append(record)
    for method, records in sorted(by_method.items(), key=lambda item: -len(item[1])):
        yield MethodRow(
            method=method,
            count=len(records),
            valid=sum(record.valid for record in records),
            iterations_mean=sum(record.iterations for record in records) / len(records),
            iterations_max=max(record.iterations for record in records),
            seconds_mean=sum(record.seconds for record in records) / len(records),
            seconds_total=sum(record.seconds for record in records),
            residual_max=max((record.residual for record in records if record.valid), default=math.nan),
        )


def _arms(log: RunLog) -> Iterable[ArmRow]:
    """From the last block of each solver in each attempt: a solver that starts anew learns anew."""
    latest: dict[tuple[int, str], Sequence[Mapping[str, Any]]] = {}
    starts = [attempt.start_t for attempt in log.attempts]
    for block in sorted(log.blocks, key=lambda block: block.t):
        latest[bisect.bisect_right(starts, block.t), block.solver] = block.choices
    by_method: dict[str, list[Mapping[str, Any]]] = {}
    for arms in latest.values():
        for arm in arms:
            by_method.setdefault(arm["method"], []).append(arm)
    for method, arms in by_method.items():
        medians = [arm["median_s"] for arm in arms if arm["median_s"] is not None]
        yield ArmRow(
            method=method,
            solved=sum(arm["solved"] for arm in arms),
            failures=sum(arm["failures"] for arm in arms),
            cut_offs=sum(arm["cut_offs"] for arm in arms),
            median_s=statistics.median(medians) if medians else math.nan,
        )


def _mean_uses(histogram: Sequence[int], trained: int, ingested: int) -> float:
    if sum(histogram):
        return sum(uses * frames for uses, frames in enumerate(histogram)) / sum(histogram)
    return ratio(trained, ingested)


def _lost(log: RunLog) -> dict[str, int]:
    counts = {
        kind: sum(event["event"] == f"{kind}_lost" for event in log.events)
        for kind in ("solver", "learner", "writer", "block")
    }
    return {kind: count for kind, count in counts.items() if count}

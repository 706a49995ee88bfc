"""What each stage of a run did with its time, and which one the others waited for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from forebay.pipeline.run_log import RunLog, number
from forebay.pipeline.summary_text import explain_bottleneck
from forebay.pipeline.summary_types import Stage, StageName, ValidationPoint

BUSY_ENOUGH = 0.5
"""A stage that works less than this share of the time is no bottleneck: the time goes somewhere else."""


def stage_table(log: RunLog, points: Sequence[ValidationPoint], solvers: int) -> tuple[Stage, ...]:
    """One row a stage, in the order of the flow: solvers, writer, learner, evaluation."""
    wall = sum(attempt.streaming_s for attempt in log.attempts)
    production = sum(attempt.production_s for attempt in log.attempts)
    newest = log.train[-1] if log.train else {}
    solving = sum(block.seconds for block in log.blocks if block.split == "train") / solvers
    writing = sum(float(attempt.flow.get("writer_busy_s", 0.0)) for attempt in log.attempts)
    training = number(newest, "draw_s") + number(newest, "step_s") if newest else 0.0
    solved = sum(len(block.records) for block in log.blocks if block.split == "train")
    stored = sum(len(block.records) for block in log.blocks)
    judged = sum(record.valid for block in log.blocks if block.split == "validation" for record in block.records)
    per_sample = frames_per_sample(log)
    evaluated = len(points) * round(judged * (per_sample if math.isfinite(per_sample) else 1.0))
    trained = int(newest.get("frames", 0))
    return (
        _stage("solvers", "samples", solved, solving, max(0.0, production - solving), wall, lanes=solvers),
        _stage("writer", "samples", stored, writing, math.nan, wall),
        _stage("learner", "frames", trained, training, number(newest, "wait_s"), wall),
        _stage("evaluation", "frames", evaluated, sum(point.seconds for point in points), math.nan, wall),
    )


def overlap_efficiency(stages: Sequence[Stage], streaming_s: float) -> float:
    """max(busy seconds of one solver, busy seconds of the learner) / wall seconds of the streaming phase.

    1 means that the slower of the two never waited; two stages that take turns reach max(a, b) / (a + b).
    """
    busy = _busy(stages)
    return ratio(max(busy["solvers"], busy["learner"]), streaming_s)


def find_bottleneck(stages: Sequence[Stage], streaming_s: float) -> tuple[StageName | Literal["none", "unknown"], str]:
    """The stage that the others waited for, and why in one sentence."""
    if streaming_s <= 0:
        return "unknown", "Nothing has streamed yet."
    share = {name: seconds / streaming_s for name, seconds in _busy(stages).items()}
    busiest = max(share, key=lambda name: share[name])
    found: StageName | Literal["none"] = busiest if share[busiest] >= BUSY_ENOUGH else "none"
    return found, explain_bottleneck(found, busiest, share, stages, streaming_s)


def frames_per_sample(log: RunLog) -> float:
    """Training frames that a valid sample brings into the buffer; NaN before the first block is in."""
    valid = {block.chunk: sum(r.valid for r in block.records) for block in log.blocks if block.split == "train"}
    samples = sum(valid.get(chunk, 0) for chunk in log.ingested)
    frames = sum(count for chunk, count in log.ingested.items() if chunk in valid)
    return ratio(frames, samples)


def remaining_seconds(log: RunLog) -> float:
    """Seconds to the end of training or of production, whichever is later, at the speed of the recent half."""
    estimates = []
    planned = log.option("learner", "batches")
    lines = [line for line in log.train if line["t"] >= log.attempts[-1].start_t]
    if planned and len(lines) >= 2:
        late = lines[max(0, len(lines) // 2 - 1) :]
        done, seconds = late[-1]["batch"] - late[0]["batch"], late[-1]["t"] - late[0]["t"]
        estimates.append((planned - late[-1]["batch"]) * ratio(seconds, done))
    solved = sum(len(block.records) for block in log.blocks if block.split == "train")
    production = sum(attempt.production_s for attempt in log.attempts)
    requested = log.option("samples")
    if requested and solved and production > 0:
        estimates.append((requested - solved) * production / solved)
    return max((estimate for estimate in estimates if math.isfinite(estimate)), default=math.nan)


def ratio(part: float, whole: float) -> float:
    """The quotient; NaN when there is nothing to divide by."""
    return part / whole if whole > 0 else math.nan


def _stage(
    name: StageName, unit: str, processed: int, busy_s: float, waiting_s: float, wall_s: float, *, lanes: int = 1
) -> Stage:
    return Stage(
        name=name,
        unit=unit,
        lanes=lanes,
        processed=processed,
        busy_s=busy_s,
        waiting_s=waiting_s,
        utilisation=ratio(busy_s, wall_s),
        rate_busy=ratio(processed, busy_s),
        rate_wall=ratio(processed, wall_s),
    )


def _busy(stages: Sequence[Stage]) -> dict[StageName, float]:
    """Busy seconds a lane; evaluation counts as the learner's, who does both in turn because both need the weights."""
    seconds = {stage.name: stage.busy_s for stage in stages}
    return {
        "solvers": seconds["solvers"],
        "writer": seconds["writer"],
        "learner": seconds["learner"] + seconds["evaluation"],
    }

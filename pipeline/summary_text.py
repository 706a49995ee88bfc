"""The figures of a run in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from forebay.pipeline.summary_types import SplitCounts, Stage, StageName, Summary

if TYPE_CHECKING:
    from rich.text import Text

NAMES: Mapping[str, str] = {
    "solvers": "solvers",
    "writer": "data-set writer",
    "learner": "learner",
    "evaluation": "evaluation",
    "none": "none",
    "unknown": "not known yet",
}
ONCE = 1.05
"""Mean uses up to which a frame counts as used once; the last batch may be cut from a few frames used before."""


def status_text(summary: Summary) -> Text:
    """What is going on in a run, or how it ended, for a terminal; `.plain` is the same as a string."""
    from rich.text import Text

    rows = [("run", f"{summary.name or 'unnamed'}: {summary.status}{_because(summary.reason)}")]
    rows.append(("samples", _split_line(summary.train)))
    rows.append(("validation set", _split_line(summary.validation_samples)))
    rows += [("dropped", f"{d.count} {d.split} × {d.outcome}: {d.advice}") for d in summary.dropped]
    rows += _training_rows(summary)
    if summary.streaming_s > 0:
        solvers, learner = summary.stage("solvers"), summary.stage("learner")
        rows.append(("solves", f"{_rates(solvers)} by {solvers.lanes} solver{plural(solvers.lanes)}"))
        rows.append(("learner", _rates(learner)))
        rows.append(("overlap", f"efficiency {percent(summary.overlap_efficiency)} of perfect"))
        rows.append(("bottleneck", summary.bottleneck_reason))
    if summary.spilled_bytes:
        rows.append(("warning", f"Ray spilled {summary.spilled_bytes / 2**20:.0f} MiB to disk: lower blocks_in_flight"))
    if summary.lost:
        lost = ", ".join(f"{count} {kind}{plural(count)}" for kind, count in summary.lost.items())
        rows.append(("faults", f"{lost} lost and started again"))
    rows.append(("time", _time_line(summary)))
    if summary.status in ("interrupted", "stopped", "failed"):
        rows.append(("next", "`forebay resume` with this run folder continues where it stopped"))
    width = max(len(label) for label, _ in rows)
    return Text("\n".join(f"{label:{width}}  {value}" for label, value in rows))


def what_reuse_means(summary: Summary) -> str:
    """Solver speed against learner speed, and what that says about how often each sample was used."""
    solvers, learner = summary.stage("solvers"), summary.stage("learner")
    made, eaten = solvers.rate_busy * summary.frames_per_sample, learner.rate_busy
    if not (math.isfinite(made) and math.isfinite(eaten) and math.isfinite(summary.reuse_mean)):
        return "What reuse costs can be said once the solvers and the learner have both worked."
    unit = "sample" if summary.frames_per_sample == 1 else "frame"
    lead = (
        f"While they work, the solvers make {quantity(made)} {unit}s a second and the learner consumes "
        f"{quantity(eaten)}. In this run each {unit} was used {summary.reuse_mean:.1f} times on average"
    )
    if made >= eaten:
        return f"{lead}{_solvers_are_faster(summary, made, eaten, unit)}"
    return f"{lead}{_learner_is_faster(summary, made, eaten, unit)}"


def explain_bottleneck(
    found: StageName | str, busiest: StageName, share: Mapping[StageName, float], stages: Sequence[Stage], wall_s: float
) -> str:
    """One sentence: who worked how much of the streaming time, and who waited for whom.

    `share`: busy share of the streaming time of the solvers, the writer and the learner (evaluation included).
    """
    by_name = {stage.name: stage for stage in stages}
    solver_idle, learner_wait = by_name["solvers"].waiting_s / wall_s, by_name["learner"].waiting_s / wall_s
    each = "each solver" if by_name["solvers"].lanes > 1 else "the solver"
    solver = f"{each} worked {percent(share['solvers'])}"
    solver += f" and waited {percent(solver_idle)} for requests" if solver_idle >= 0.01 else ""
    learner = f"the learner worked {percent(share['learner'])}"
    learner += f" and waited {percent(learner_wait)} for data" if learner_wait >= 0.01 else ""
    match found:
        case "learner":
            return f"The learner: it worked {percent(share['learner'])} of the streaming time, while {solver}."
        case "solvers":
            return f"The solvers: {each} worked {percent(share['solvers'])} of the streaming time, while {learner}."
        case "writer":
            return (
                f"The data-set writer: it worked {percent(share['writer'])} of the streaming time, while {solver}, "
                f"and {learner}; use a faster disk or larger blocks."
            )
    return (
        f"No stage: the busiest, the {NAMES[busiest]}, worked only {percent(share[busiest])} of the streaming time; "
        f"{solver}, and {learner}, so the rest is start-up, hand-over, or cores shared with something else."
    )


def percent(share: float) -> str:
    """A share of one as per cent, with the digits that a reader can use."""
    if not math.isfinite(share):
        return "unknown"
    return f"{100 * share:.2f} %" if 0 < share < 0.1 else f"{100 * share:.0f} %"


def quantity(value: float) -> str:
    """A number with three significant digits, or all digits of a large one."""
    if not math.isfinite(value):
        return "unknown"
    if value == 0 or 1e-3 <= abs(value) < 100:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2e}"


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if not math.isfinite(seconds):
        return "unknown"
    if seconds < 100:
        return f"{quantity(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 100:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def plural(count: int) -> str:
    """The s of a plural."""
    return "" if count == 1 else "s"


def _solvers_are_faster(summary: Summary, made: float, eaten: float, unit: str) -> str:
    if summary.reuse_mean <= ONCE:
        return (
            f": every {unit} was fresh, and the solvers could have made {made / eaten:.1f} times as many in the "
            f"learner's time."
        )
    fresh = math.ceil(summary.frames_trained / summary.frames_per_sample)
    return (
        f", although the solvers are {made / eaten:.1f} times as fast: with `samples = {fresh}` every draw would be of "
        f"a fresh {unit}, and the solvers would work {duration(summary.frames_trained / made)} while the learner works "
        f"{duration(summary.frames_trained / eaten)}."
    )


def _learner_is_faster(summary: Summary, made: float, eaten: float, unit: str) -> str:
    factor = eaten / made
    waits = (
        f", fewer than the {factor:.1f} times that keep the learner busy while data comes in, so it has to wait"
        if summary.reuse_mean < factor / ONCE
        else f"; {factor:.1f} times would be enough to keep the learner busy while data comes in"
    )
    return (
        f"{waits}. Every draw could be of a fresh {unit} if solving were {factor:.1f} times as fast: with "
        f"{factor:.1f} times as many solvers, or a cheaper path to the same tolerance."
    )


def _because(reason: str) -> str:
    return f" ({reason})" if reason else ""


def _split_line(counts: SplitCounts) -> str:
    dropped = f", {counts.dropped:,} dropped" if counts.dropped else ""
    return f"{counts.solved:,} of {counts.requested:,} solved{dropped}"


def _rates(stage: Stage) -> str:
    return (
        f"{quantity(stage.rate_busy)} {stage.unit}/s while working, "
        f"{quantity(stage.rate_wall)} {stage.unit}/s over the streaming time"
    )


def _training_rows(summary: Summary) -> Sequence[tuple[str, str]]:
    planned = f" of {summary.batches_planned:,}" if summary.batches_planned else ""
    rows = [("batches", f"{summary.batches:,}{planned}, loss {quantity(summary.loss)}")]
    if summary.best is not None and summary.latest is not None:
        errors = (
            f"mean {percent(summary.latest.mean)}, p99 {percent(summary.latest.p99)}, max {percent(summary.latest.max)}"
        )
        rows.append(("validation", f"relative L2 {errors} (best mean {percent(summary.best.mean)})"))
    if math.isfinite(summary.reuse_mean):
        rows.append(("reuse", f"each frame used {summary.reuse_mean:.1f} times on average"))
    return rows


def _time_line(summary: Summary) -> str:
    attempts = f" in {summary.attempts} attempts" if summary.attempts > 1 else ""
    left = f", about {duration(summary.remaining_s)} left" if math.isfinite(summary.remaining_s) else ""
    return f"{duration(summary.elapsed_s)}{attempts}, of which {duration(summary.streaming_s)} streaming{left}"

"""Claim: with more solver actors a run is faster in proportion, up to where the cores end: the pipeline takes its 5 %.

Runs of `forebay run` with the Ray executor, a learner with next to nothing to learn, and blocks of real size, against
what the same solver needs alone, in a process of its own, divided by the number of actors.  Streaming time is from the
first requested training block to the end of training and storing, so the last block's way to the disk and through the
learner counts.

- `sleep`: every sample takes a fixed time without a processor (`sleeping.py`), so eight actors do not compete for the
  cores of this machine: what is missing to 100 % is the pipeline's.
- `real`: Darcy 64 x 64.  The learner has a core, so solvers have the rest; rows beyond show what happens then.
- the same with shorter and shorter solves, until the pipeline is what is slow; and the same stream of blocks from more
  and more actors, each slower in proportion, with the processor time that a block costs.
- the model: what one driver, writer, journal and learner can do (`scaling_limits.py`), against 1,000 nodes.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from common import Report, cores, number, parser, table
from scaling_limits import measure_limits
from scaling_model import tell_model
from scaling_rows import DISTURBED, Case, Row, measure

from forebay.cluster.security import secure_ray

TARGET = 0.95
ACTOR_BYTES = 120 * 2**20
"""Memory that a solver actor of its own takes, what it shares with the others left out."""
SLEEP = Case(kind="sleep", options={"side": 128, "seconds": 0.032}, block=32, blocks=20)
LARGE = Case(kind="sleep", options={"side": 362, "seconds": 0.064}, block=32, blocks=10)
REAL = Case(kind="real", options={"size": 64}, block=64, blocks=60)


@dataclass(frozen=True, kw_only=True)
class Plan:
    sleep: Sequence[int]
    sleep_blocks: int
    """Of each actor."""
    large: Sequence[int]
    real: Sequence[int]
    overhead: Sequence[int]
    rates: Sequence[float]
    """Seconds of a block, by four actors."""
    repeats: int
    repeats_real: int
    most_real: int
    """Runs until so many were undisturbed: processor time varies from minute to minute where sleep does not."""
    blocks_per_s: int
    """Of all actors together, for `overhead`."""
    overhead_blocks: int
    limits: Sequence[int]
    """Numbers of solvers, or references, for which the driver's parts are measured."""
    repeats_limits: int


FULL = Plan(
    sleep=(1, 2, 4, 8),
    sleep_blocks=20,
    large=(4,),
    real=(1, 2, 4),
    overhead=(1, 8, 32, 64),
    rates=(0.5, 0.125, 0.03),
    repeats=3,
    repeats_real=5,
    most_real=12,
    blocks_per_s=4,
    overhead_blocks=96,
    limits=(64, 1024, 4096),
    repeats_limits=21,
)
QUICK = Plan(
    sleep=(4,),
    sleep_blocks=4,
    large=(),
    real=(),
    overhead=(),
    rates=(),
    repeats=1,
    repeats_real=0,
    most_real=0,
    blocks_per_s=4,
    overhead_blocks=0,
    limits=(64,),
    repeats_limits=3,
)


def tell_rows(report: Report, title: str, rows: Sequence[Row]) -> None:
    columns = (
        "actors", "samples", "s a block", "ideal s", "streaming s", "efficiency", "ms lost a sample", "solver idle",
        "tail s", "others", "runs", "disturbed", "efficiency of all",
    )  # fmt: skip
    cells = [
        (
            row.case.actors,
            row.case.samples,
            number(row.alone.median * row.case.block),
            row.ideal,
            row.streaming,
            f"{100 * row.efficiency:.1f} %",
            number(row.lost_ms),
            f"{100 * row.runs[0].solver_idle / row.streaming.median:.1f} %",
            number(statistics.median(run.tail for run in row.runs)),
            f"{100 * row.disturbance:.0f} %",
            len(row.taken),
            len(row.taken) - len(row.undisturbed),
            f"{100 * row.efficiency_of_all:.1f} %",
        )
        for row in rows
    ]
    report.say(f"\n## {title}\n\n{table(columns, cells)}")


def tell_overhead(report: Report, title: str, rows: Sequence[Row]) -> None:
    roles = ("driver", "Ray", "writer", "learner", "solver")
    cells = [
        (
            row.case.actors,
            number(row.case.samples / row.case.block),
            f"{100 * row.efficiency:.1f} %",
            *(number(row.processor_ms(role)) for role in roles),
            number(1e3 * (row.processor_ms("driver") + row.processor_ms("Ray")) / row.case.block),
        )
        for row in rows
    ]
    columns = ("actors", "blocks", "efficiency", *(f"{role} ms/block" for role in roles), "driver and Ray us/sample")
    report.say(f"\n## {title}\n\n{table(columns, cells)}")


def overhead_rows(plan: Plan, available: int) -> list[Row]:
    """The same blocks a second by more and more actors."""
    rows = []
    for actors in plan.overhead:
        if actors > available:
            continue
        seconds = actors / plan.blocks_per_s / SLEEP.block
        options = {**SLEEP.options, "seconds": seconds}
        case = replace(SLEEP, options=options, blocks=max(2, plan.overhead_blocks // actors))
        rows += measure(case, (actors,), 1)
    return rows


def rate_rows(plan: Plan) -> list[Row]:
    """Four actors that make blocks faster and faster."""
    rows = []
    for seconds in plan.rates:
        options = {**SLEEP.options, "seconds": seconds / SLEEP.block}
        rows += measure(replace(SLEEP, options=options, blocks=max(20, round(6 / seconds))), (4,), plan.repeats)
    return rows


def available_actors() -> int:
    """Solver actors that fit into this machine's free memory, of which half is left alone."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) * 1024
    return free // 2 // ACTOR_BYTES


def main() -> int:
    options_parser = parser(__doc__)
    options_parser.add_argument("--repeats", type=int, help="of every sleeping run; by default 3, with --quick 1")
    options = options_parser.parse_args()
    secure_ray()  # before anything imports Ray
    report = Report("scaling", options, ("ray", "torch", "zarr"))
    plan = QUICK if options.quick else FULL
    plan = replace(plan, repeats=options.repeats or plan.repeats)
    return judge(report, plan, options)


def judge(report: Report, plan: Plan, options: argparse.Namespace) -> int:
    """All tables, and the last line."""
    sleep = measure(replace(SLEEP, blocks=plan.sleep_blocks), plan.sleep, plan.repeats)
    tell_rows(report, "sleep: a solve of fixed duration, blocks of 2 MiB", sleep)
    judged = list(sleep)
    if plan.large:
        large = measure(LARGE, plan.large, plan.repeats)
        tell_rows(report, "sleep: blocks of 16 MiB", large)
        judged += large
    if plan.real:
        real = measure(REAL, plan.real, plan.repeats_real, plan.most_real)
        tell_rows(report, f"real: Darcy 64 x 64 on {cores()} cores, of which the learner has one", real)
        judged += [row for row in real if row.case.actors < cores()]
    fitting = available_actors()
    fast = rate_rows(plan)
    if fast:
        title = "sleep: four actors with shorter and shorter blocks of 2 MiB, until something gives way"
        tell_rows(report, title, fast)
    busiest = fast or sleep
    tell_overhead(report, "Processor time of a block, by four actors", busiest)
    rows = overhead_rows(plan, fitting)
    if rows:
        tell_overhead(report, f"Processor time of a block, {plan.blocks_per_s} blocks a second in all", rows)
        if left := [actors for actors in plan.overhead if actors > fitting]:
            report.say(f"\nLeft out: {left} actors, since half of the free memory holds {fitting}.")
    small = measure_limits(2 * 2**20, plan.limits, plan.repeats_limits)
    big = measure_limits(16 * 2**20, plan.limits, plan.repeats_limits)
    tell_model(report, small, big, busiest[-1].processor_ms("driver") / 1e3)
    disturbance = max(row.disturbance for row in (*judged, *busiest, *rows))
    load = f"load {os.getloadavg()[0]:.1f} at the end"
    if disturbance > DISTURBED:
        report.say(
            f"\nOthers used up to {100 * disturbance:.0f} % of the processors meanwhile ({load}); repeat this alone."
        )
    worst = min(judged, key=lambda row: row.efficiency)
    figure = f"{100 * worst.efficiency:.1f} % ({worst.case.kind}, {worst.case.actors} actor(s))"
    return report.finish(figure, f">= {100 * TARGET:.0f} %", ok=worst.efficiency >= TARGET)


if __name__ == "__main__":
    sys.exit(main())

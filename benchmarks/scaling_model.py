"""What a driver, writer, journal and learner can do, of which a run has one each, against a thousand nodes."""

from __future__ import annotations

from common import Report, number, table
from scaling_limits import Limits

NODES, ACTORS_PER_NODE, SOLVE_S = 1000, 64, 60.0
"""A cluster whose solvers need a minute for a block."""


def tell_model(report: Report, small: Limits, large: Limits, driver_s: float) -> None:
    """What each part that exists once can do, and how far that is from 1,000 nodes."""
    demand = NODES * ACTORS_PER_NODE / SOLVE_S
    rows, first = [], ("", float("inf"))
    for name, limits, seconds in (
        ("driver: processor time of a block", large, driver_s),
        ("journal: a line with fsync", large, large.journal_s),
        ("driver, which does both in turn", large, driver_s + large.journal_s),
        ("writer: blocks of 2 MiB", small, small.store_s),
        ("writer: blocks of 16 MiB", large, large.store_s),
        ("learner's ring: 2 MiB", small, small.ingest_s),
        ("learner's ring: 16 MiB", large, large.ingest_s),
    ):
        rate = 1 / seconds
        megabytes = rate * limits.block_bytes / 2**20
        nodes = rate * SOLVE_S / ACTORS_PER_NODE
        shown = number(megabytes) if "16" in name or "2 MiB" in name else ""
        rows.append((name, number(1e3 * seconds), number(rate), shown, f"{nodes:,.0f}"))
        if limits is large and rate < first[1]:
            first = (name, rate)
    columns = (
        "there is one",
        "ms a block",
        "blocks/s at most",
        "MiB/s",
        f"nodes of {ACTORS_PER_NODE} at {SOLVE_S:g} s",
    )
    report.say(f"\n## The model: what breaks first\n\n{table(columns, rows)}")
    counts = sorted(large.wait_s)
    slope = (large.wait_s[counts[-1]] - large.wait_s[counts[0]]) / max(1, counts[-1] - counts[0])
    waiting = 2 * NODES * ACTORS_PER_NODE
    deciding = ", ".join(f"{number(1e6 * large.decide_s[count])} us with {count:,}" for count in counts)
    asking = ", ".join(f"{number(1e3 * large.wait_s[count])} ms of {count:,}" for count in counts)
    report.say(
        f"\nA cluster of n nodes with {ACTORS_PER_NODE} actors that need S seconds a block asks for n x "
        f"{ACTORS_PER_NODE} / S blocks a second of everything that exists once: {demand:,.0f} at {NODES:,} nodes and "
        f"S = {SOLVE_S:g} s, {demand * large.block_bytes / 2**30:.1f} GiB/s in blocks of 16 MiB. First to break is "
        f"`{first[0]}`, at {number(first[1])} blocks a second: {first[1] * SOLVE_S / ACTORS_PER_NODE:,.0f} nodes at S "
        f"= {SOLVE_S:g} s, {NODES:,} nodes from S = {NODES * ACTORS_PER_NODE / first[1]:,.0f} s on."
        f"\n\nThe controller's share of the driver does not grow with the solvers ({deciding}). `ray.wait` looks at "
        f"every reference ({asking} references; {1e3 * slope * waiting:,.0f} ms of {waiting:,}, two blocks a solver at "
        f"{NODES:,} nodes, if that goes on in a straight line); it is asked for all that are ready at once, so this "
        f"delays a block and does not bound the rate. Putting a block into the object store takes a solver "
        f"{number(1e3 * small.put_s)} ms (2 MiB), {number(1e3 * large.put_s)} ms (16 MiB), on every node for itself."
        f"\n\nNot in the model, because one machine cannot measure it: the network into the nodes of writer and "
        f"learner, which must carry the same MiB/s; Ray's own head with {NODES * ACTORS_PER_NODE:,} actors; a parallel "
        f"file system's fsync."
    )

"""Sizes of a cluster, and of what a run takes of its shared memory."""

from __future__ import annotations

from dataclasses import dataclass

from forebay.pipeline.plan import Plan

LEAST_STORE = 256 * 2**20
SPARE = 4
"""Room for what is still held while the next blocks come."""


@dataclass(frozen=True, slots=True)
class Cores:
    """Of all nodes of a cluster."""

    total: int
    of_a_node: int
    """The smallest."""


def object_store_bytes(plan: Plan, blocks_in_flight: int) -> int:
    """Bytes of a node's object store: every block that may be in flight, `SPARE` times over."""
    return max(LEAST_STORE, SPARE * plan.solvers * blocks_in_flight * plan.block_bytes)

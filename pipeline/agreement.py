"""How learner ranks with a buffer each come to stop on the same batch.

A rank that stops alone leaves the others waiting in the all-reduce for ever.  So the ranks meet (one all-gather of two
integers each), every rank applies the same pure function to what all have said, and trains that many batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from forebay.pipeline.buffer import Buffer


@dataclass(frozen=True, slots=True)
class Readiness:
    """What one learner rank tells the others at a meeting."""

    batches: int
    """`Buffer.ready_batches(n)`."""
    over: bool
    """Closed, with nothing reserved."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """What all ranks do until the next meeting; the same on each, as a pure function of what all have heard."""

    batches: int
    stop: bool


def readiness(buffer: Buffer, n: int) -> Readiness:
    """The part of one rank in a meeting about batches of n."""
    return Readiness(buffer.ready_batches(n), buffer.over and buffer.reserved == 0)


def agree(ranks: Sequence[Readiness], *, limit: int = 64) -> Agreement:
    """How many batches all ranks train before they meet again, and whether they stop now.

    m = min over the ranks that are still fed; when none is, m = max over all; never more than `limit`.  A rank that has
    drained before the others goes on taking part in the all-reduce, with an empty batch of weight 0 (gradients are
    weighted by frames, g = Σᵣ bᵣ gᵣ / Σᵣ bᵣ): no rank waits for one that has left, no accepted frame stays unused.
    m = 0 without `stop`: some rank waits for data; meet again when there are more.  Whoever feeds the ranks must hand
    frames to those with room, never wait for a full one: fixed shares can leave one below its threshold for ever.

    Raises:
        ValueError: no ranks, or a limit below 1.
    """
    if not ranks or limit < 1:
        raise ValueError(f"{len(ranks)} ranks were to agree on at most {limit} batches; both must be at least 1")
    fed = [rank.batches for rank in ranks if not rank.over]
    if fed:
        return Agreement(min(min(fed), limit), stop=False)
    batches = min(max(rank.batches for rank in ranks), limit)
    return Agreement(batches, stop=batches == 0)

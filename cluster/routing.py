"""Which of several learners a block goes to: one on the node where it was made, as long as the shards stay even.

A block on its own node is read from shared memory; elsewhere it travels first.  But the learner whose shard runs out
first ends the training of all, so a shard may be ahead of the smallest by `SLACK` blocks and no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

SLACK = 2


@dataclass(slots=True)
class Router:
    """Counts what it has sent where."""

    nodes: Sequence[str]
    """Of every learner."""
    counts: list[int]
    """Blocks that each one has; at first those of its checkpoint."""
    local: int = field(default=0, init=False)
    """Blocks that went to a learner on their own node."""

    def choose(self, home: str | None) -> int:
        """Rank for a block that lies on node `home`; None: on no particular one."""
        least = min(self.counts)
        near = [r for r, node in enumerate(self.nodes) if node == home and self.counts[r] < least + SLACK]
        rank = min(near or range(len(self.nodes)), key=self.counts.__getitem__)
        self.counts[rank] += 1
        self.local += self.nodes[rank] == home
        return rank

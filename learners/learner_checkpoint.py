"""What a learner's checkpoint holds beside the weights: the shard of each member of its team, and its clock."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from forebay.learners.ring import Ring
from forebay.learners.step import TrainState
from forebay.learners.weights import Checkpoint, save_checkpoint


@dataclass(slots=True)
class Clock:
    """Cumulative seconds of the training loop's parts."""

    wait_s: float = 0.0
    draw_s: float = 0.0
    step_s: float = 0.0
    frames: int = 0

    def counters(self, learners: int) -> dict[str, float]:
        """For one line of metrics, with the frames of all learners, which draw equally many."""
        return asdict(self) | {"frames": self.frames * learners}


def shard_of(ring: Ring, ingested: Iterable[int], normalised: Iterable[int]) -> dict[str, Any]:
    """What is kept of one learner alone: the state of its ring, and chunks by number."""
    return {
        "buffer": ring.to_dict(),
        "ingested_chunks": sorted(ingested),
        "normalised_chunks": sorted(normalised),
    }


def save_learner(
    root: Path, state: TrainState, shards: Sequence[dict[str, Any]], *, together: bool, clock: Clock, keep: int
) -> Path:
    """Write a checkpoint; `shards` are those of a team that trains `together`, or the one of a single learner.

    A member that has no shard in it begins with an empty ring, and its chunks count as not ingested.
    """
    return save_checkpoint(
        root,
        state,
        extra={
            **shards[0],
            "ingested_chunks": sorted({chunk for shard in shards for chunk in shard["ingested_chunks"]}),
            "shards": list(shards) if together else [],
            "clock": asdict(clock),
        },
        keep=keep,
    )


def shard_in(checkpoint: Checkpoint, rank: int) -> dict[str, Any] | None:
    """What `save_learner` kept of a member, if it had anything by then."""
    shards = checkpoint.extra.get("shards") or [checkpoint.extra]
    return shards[rank] if rank < len(shards) else None

"""Several learners that train one surrogate together, each on a shard of the frames.

Data-parallel training: every rank draws its share of the batch from its own ring, gradients are averaged (torch's
DistributedDataParallel; gloo between processors, NCCL between GPUs), so all ranks hold the same weights at any time.
What must not differ is agreed on before each step: whether all have frames, whether one has run out, whether somebody
asked for a checkpoint.  So all stop at the same batch.

| collective    | when                              | bytes                       |
|---------------|-----------------------------------|-----------------------------|
| `agree`       | before every step                 | 20                          |
| `exchange`    | until the normaliser is frozen    | 24 per channel and rank     |
| gradients     | every step                        | 4 per weight                |
| `gather`      | checkpoints                       | the rings' states           |
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from forebay.learners.surrogate import FrameBatch, Surrogate

_SYNC_BUFFERS = next(
    name
    for name in ("forward_sync_buffers", "broadcast_buffers")  # the second is its older name
    if name in inspect.signature(DistributedDataParallel).parameters
)
TIMEOUT = timedelta(minutes=30)
"""Longest wait for the others; the first rank validates meanwhile."""


@dataclass(frozen=True, slots=True)
class Word:
    """What one learner brings to the agreement before a step, or what all of them have come to."""

    ready: bool
    """Can a batch be drawn?  Of the team: by all."""
    exhausted: bool = False
    """Will no batch ever be drawn again?  Of the team: by one of them."""
    save: bool = False
    """Is a checkpoint due?  Of the team: for one of them."""
    news: bool = False
    """Is there something for the normaliser?  Of the team: at one of them."""
    leave: bool = False
    """Is training to end here?  Of the team: for one of them."""


class Team(Protocol):
    """The learners that train together, seen from one of them."""

    @property
    def rank(self) -> int:
        """From 0."""
        ...

    @property
    def size(self) -> int:
        """Ranks."""
        ...

    def wrap(self, surrogate: Surrogate) -> Callable[[FrameBatch], dict[str, Tensor]] | None:
        """What training calls in the surrogate's place; None for the surrogate itself."""
        ...

    def agree(self, word: Word) -> Word:
        """What all have come to; every rank must call it."""
        ...

    def exchange(self, moments: Tensor, frames: int) -> list[tuple[Tensor, int]]:
        """Every rank's moments and frames, in the order of ranks."""
        ...

    def mean(self, value: float) -> float:
        """Mean over the ranks."""
        ...

    def gather(self, value: Any) -> list[Any] | None:
        """Every rank's value on the first rank, None on the others."""
        ...

    def close(self) -> None:
        """Leave the team."""
        ...


@dataclass(frozen=True, slots=True)
class Solo:
    """One learner alone: agrees with itself, at no cost."""

    rank: int = 0
    size: int = 1

    def wrap(self, surrogate: Surrogate) -> None:
        """Nothing is wrapped."""

    def agree(self, word: Word) -> Word:
        """As it said."""
        return word

    def exchange(self, moments: Tensor, frames: int) -> list[tuple[Tensor, int]]:
        """Its own."""
        return [(moments, frames)]

    def mean(self, value: float) -> float:
        """Its own."""
        return value

    def gather(self, value: Any) -> list[Any]:
        """Its own."""
        return [value]

    def close(self) -> None:
        """Nothing to leave."""


class TorchTeam:
    """One rank of a torch process group.

    Args:
        rank: from 0.
        size: ranks.
        address: "host:port" at which the first rank listens.
        device: of the weights; decides between gloo and NCCL.
    """

    def __init__(self, rank: int, size: int, address: str, device: torch.device) -> None:
        self.rank, self.size = rank, size
        self._control: dist.ProcessGroup | None = None
        self._device = device
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, init_method=f"tcp://{address}", rank=rank, world_size=size, timeout=TIMEOUT)
        # Agreement and objects go over the processors whatever the gradients use.
        if backend == "nccl":
            group = dist.new_group(backend="gloo", timeout=TIMEOUT)
            self._control = group if isinstance(group, dist.ProcessGroup) else None

    def wrap(self, surrogate: Surrogate) -> DistributedDataParallel:
        """The surrogate with averaged gradients; its buffers are kept equal by `exchange`, not broadcast."""
        ids = [self._device.index] if self._device.type == "cuda" else None
        options: dict[str, Any] = {_SYNC_BUFFERS: False}
        return DistributedDataParallel(surrogate, device_ids=ids, **options)

    def agree(self, word: Word) -> Word:
        """One reduction of five numbers: the largest of each, so "ready" travels as its opposite."""
        said = torch.tensor([not word.ready, word.exhausted, word.save, word.news, word.leave], dtype=torch.int32)
        dist.all_reduce(said, op=dist.ReduceOp.MAX, group=self._control)
        waiting, *others = (bool(value) for value in said.tolist())
        return Word(not waiting, *others)

    def exchange(self, moments: Tensor, frames: int) -> list[tuple[Tensor, int]]:
        """As `Team`; the number of frames travels as one more row."""
        row = torch.tensor([[float(frames), 0.0, 0.0]], dtype=torch.float64)
        mine = torch.cat([moments.cpu(), row])
        everybody = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(everybody, mine, group=self._control)
        return [(theirs[:-1].to(moments.device), int(theirs[-1, 0])) for theirs in everybody]

    def mean(self, value: float) -> float:
        """As `Team`."""
        total = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(total, group=self._control)
        return float(total) / self.size

    def gather(self, value: Any) -> list[Any] | None:
        """As `Team`; plain values only."""
        values: list[Any] | None = [None] * self.size if self.rank == 0 else None
        dist.gather_object(value, values, dst=0, group=self._control)
        return values

    def close(self) -> None:
        """Leave the process group; harmless when repeated."""
        if dist.is_initialized():
            dist.destroy_process_group()

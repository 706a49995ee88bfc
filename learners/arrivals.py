"""Blocks that the normaliser is still to see: they come on one thread and are taken in by another, between two steps.

A step's gradient needs the numbers that its forward pass had, while blocks arrive whenever they like.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

import torch

from forebay.learners.normalise import Normaliser, merge_moments
from forebay.learners.team import Team


@dataclass(slots=True)
class Arrivals:
    """Chunks in the order in which they came; each is taken in once."""

    told: Callable[[int], None]
    """Hears of every chunk before it is taken in."""
    taken: set[int] = field(default_factory=set)
    """Chunks that the normaliser has seen."""
    _waiting: SimpleQueue[tuple[int, Mapping[str, Any]]] = field(default_factory=SimpleQueue, init=False)

    @property
    def empty(self) -> bool:
        """Is nothing waiting?"""
        return self._waiting.empty()

    def put(self, chunk: int, frames: Mapping[str, Any]) -> None:
        """Let the frames of a chunk wait, unless they have been seen."""
        if chunk not in self.taken:
            self._waiting.put((chunk, frames))

    def into(self, normaliser: Normaliser) -> None:
        """Take in what waits."""
        for frames in self._new():
            normaliser.update(frames)

    def into_all(self, normaliser: Normaliser, team: Team) -> None:
        """Take in what waits at all members of a team, in the order of their ranks; every member has to call it."""
        moments, frames = torch.zeros_like(normaliser.moments), 0
        for arrays in self._new():
            block, count = normaliser.moments_of(arrays)
            moments, frames = merge_moments(moments, block), frames + count
        for theirs, count in team.exchange(moments, frames):
            if count:
                normaliser.take(theirs, count)

    def _new(self) -> Iterator[Mapping[str, Any]]:
        while True:
            try:
                chunk, frames = self._waiting.get_nowait()
            except Empty:
                return
            if chunk not in self.taken:
                self.taken.add(chunk)
                self.told(chunk)
                yield frames

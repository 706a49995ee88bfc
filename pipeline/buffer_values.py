"""What goes into and comes out of the training buffer, and what it refuses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from forebay.pipeline.slots import KEY_LIMIT

Policy = Literal["fifo", "firo", "reservoir"]


@dataclass(frozen=True, slots=True, eq=False)
class Placement:
    """Where offered frames go."""

    accepted: np.ndarray
    """Positions, in the keys that were offered, of the frames that got a slot; ascending."""
    slots: np.ndarray
    """Slot of each accepted frame."""
    evicted_keys: np.ndarray
    """Frames that had to leave for them."""
    done: int
    """How many leading keys are dealt with, accepted or recognised; the others did not fit: offer them again."""


@dataclass(frozen=True, slots=True, eq=False)
class Draw:
    """Frames of one batch in the order in which they were drawn."""

    keys: np.ndarray
    slots: np.ndarray


@dataclass(frozen=True, slots=True)
class BufferStatistics:
    """Counters of a buffer; frames throughout."""

    capacity: int
    unseen: int
    seen: int
    reserved: int
    put: int
    """Accepted ever; each has one of the fates unseen, seen, reserved, evicted, removed."""
    drawn: int
    """Drawn ever, repetitions counted."""
    duplicates: int
    """Offered again although accepted before; ignored."""
    evicted: int
    uses: tuple[int, ...]
    """`uses[u]`: how many frames were drawn u times so far, those that have left included; sums to put - reserved.
    Empty when it was not asked for."""

    @property
    def mean_uses(self) -> float:
        """Draws per published frame."""
        return self.drawn / (self.put - self.reserved) if self.put > self.reserved else 0.0


def check_sizes(policy: str, capacity: int, threshold: int) -> None:
    """Refuse what cannot be a buffer.

    Raises:
        ValueError: an unknown policy, a capacity below 1, a threshold outside 0 ... capacity - 1 or given to FIFO.
    """
    if policy not in get_args(Policy):
        raise ValueError(f"buffer policy {policy!r} is unknown; choose one of {', '.join(get_args(Policy))}")
    if capacity < 1:
        raise ValueError(f"buffer capacity {capacity} is below 1; give room for at least one batch of frames")
    if not 0 <= threshold < capacity:
        raise ValueError(
            f"buffer threshold {threshold} must be at least 0 and below the capacity of {capacity} frames, "
            f"else no get ever returns; use at most {capacity - 1}"
        )
    if policy == "fifo" and threshold:
        raise ValueError(f"buffer threshold {threshold} has no meaning for fifo; leave it at 0, or use firo")


def checked_keys(keys: np.ndarray) -> np.ndarray:
    """The keys as int64 (n,).

    Raises:
        ValueError: keys that are not a vector of integers of [0, 2³⁵).
    """
    keys = np.asarray(keys)
    if keys.ndim != 1 or (keys.size and not np.issubdtype(keys.dtype, np.integer)):
        raise ValueError(f"keys have shape {keys.shape} and type {keys.dtype}; give a vector of integers")
    keys = keys.astype(np.int64, copy=False)
    if keys.size and not (keys.min() >= 0 and keys.max() < KEY_LIMIT):
        raise ValueError(
            f"keys span {keys.min()} ... {keys.max()}; sample id · steps + step must lie in [0, {KEY_LIMIT})"
        )
    return keys

"""Bookkeeping of the training buffer in O(batch): slots in a bag, slots in a queue, keys in a bitmap."""

from __future__ import annotations

import numpy as np

KEY_LIMIT = 1 << 35
"""Keys lie below this, which bounds the bitmap of accepted keys to 4 GiB."""


class Bag:
    """A set of slots 0 ... capacity - 1 from which a uniformly random one is picked in O(1).

    `items[:size]` are the members, in an order that only changes of membership disturb; `where[slot]` is a member's
    position, else -1.
    """

    def __init__(self, capacity: int) -> None:
        self.items = np.zeros(capacity, np.int64)
        self.where = np.full(capacity, -1, np.int64)
        self.size = 0

    def members(self) -> np.ndarray:
        """The slots in their order, a copy."""
        return self.items[: self.size].copy()

    def append(self, slots: np.ndarray) -> None:
        """Add slots that are not members."""
        end = self.size + len(slots)
        self.items[self.size : end] = slots
        self.where[slots] = np.arange(self.size, end)
        self.size = end

    def pick(self, unit: np.ndarray) -> np.ndarray:
        """One member for each number of [0, 1); the members stay, so one may be picked twice."""
        return self.items[(unit * self.size).astype(np.int64)]

    def take(self, unit: np.ndarray) -> np.ndarray:
        """Remove one member for each number of [0, 1), one after the other (last member into the gap)."""
        size, left = self.size, self.size - len(unit)
        positions = (unit * (size - np.arange(len(unit)))).astype(np.int64).tolist()
        # The sequential swaps are followed on the few touched positions only; a loop of numpy scalar swaps costs 5x.
        origin: dict[int, int] = {}
        picked = []
        for step, position in enumerate(positions):
            last = size - 1 - step
            picked.append(origin.get(position, position))
            origin[position] = origin.get(last, last)
        slots = self.items[picked]
        self.where[slots] = -1
        gaps = [p for p in origin if p < left]
        movers = self.items[[origin[p] for p in gaps]]
        self.items[gaps] = movers
        self.where[movers] = gaps
        self.size = left
        return slots

    def discard(self, slots: np.ndarray) -> None:
        """Remove these members, filling the gaps from the end."""
        left = self.size - len(slots)
        gaps = self.where[slots]
        self.where[slots] = -1
        tail = self.items[left : self.size]
        movers = tail[self.where[tail] >= 0]
        gaps = gaps[gaps < left]
        self.items[gaps] = movers
        self.where[movers] = gaps
        self.size = left


class Queue:
    """Slots in the order of arrival."""

    def __init__(self, capacity: int) -> None:
        self.items = np.zeros(capacity, np.int64)
        self.head = 0
        self.size = 0

    def _at(self, start: int, count: int) -> np.ndarray:
        return (self.head + start + np.arange(count)) % len(self.items)

    def members(self) -> np.ndarray:
        """The slots, oldest first, a copy."""
        return self.items[self._at(0, self.size)]

    def append(self, slots: np.ndarray) -> None:
        """Add slots at the end."""
        self.items[self._at(self.size, len(slots))] = slots
        self.size += len(slots)

    def pop(self, count: int) -> np.ndarray:
        """Remove the oldest."""
        slots = self.items[self._at(0, count)]
        self.head = (self.head + count) % len(self.items)
        self.size -= count
        return slots


class KeySet:
    """Set of non-negative integers as a bitmap that grows with the largest one."""

    def __init__(self, bits: np.ndarray | None = None) -> None:
        self.bits = np.zeros(64, np.uint8) if bits is None else bits

    def contains(self, keys: np.ndarray) -> np.ndarray:
        """Which of the keys are members, bool (n,)."""
        word = keys >> 3
        inside = word < len(self.bits)
        found = self.bits[np.where(inside, word, 0)] >> (keys & 7).astype(np.uint8)
        return inside & ((found & 1) == 1)

    def add(self, keys: np.ndarray) -> None:
        """Make the keys members."""
        if len(keys) == 0:
            return
        needed = int(keys.max() >> 3) + 1
        if needed > len(self.bits):
            grown = np.zeros(max(needed, 2 * len(self.bits)), np.uint8)
            grown[: len(self.bits)] = self.bits
            self.bits = grown
        np.bitwise_or.at(self.bits, keys >> 3, _bit(keys))

    def remove(self, keys: np.ndarray) -> None:
        """Make the keys, which are members, non-members."""
        np.bitwise_and.at(self.bits, keys >> 3, ~_bit(keys))

    def __len__(self) -> int:
        return int(np.bitwise_count(self.bits).sum())

    def copy(self) -> KeySet:
        """An independent set of the same keys."""
        return KeySet(self.bits.copy())


def _bit(keys: np.ndarray) -> np.ndarray:
    return np.left_shift(np.uint8(1), (keys & 7).astype(np.uint8))

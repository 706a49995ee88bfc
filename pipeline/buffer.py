"""The training buffer as a state machine: FIFO, FIRO and Reservoir, without I/O, threads, clock or tensors.

A frame is accepted by `reserve`, becomes drawable by `publish` (its data have been copied into the slot) and is drawn
by `draw`; slots are rows of a store that somebody else owns.  State: U unseen, S seen (disjoint), R reserved frames,
capacity C, threshold W < C, `over` (no more frames will come).

| policy          | a put waits while | a get waits until   | a get                                                    |
|-----------------|-------------------|---------------------|----------------------------------------------------------|
| FIFO(C)         | U + R = C         | U > 0 or over       | removes the oldest                                       |
| FIRO(C, W)      | U + R = C         | U > W or over       | removes one, uniform over U                              |
| Reservoir(C, W) | U + R = C         | U + S > W or over   | is uniform over U and S; an unseen one becomes seen      |

Only a Reservoir evicts: when U + S + R = C, a put removes a frame that is drawn uniformly from S, never from U.
Once over, W = 0 and every get removes, so the buffer drains.  `draw(n)` is n such gets one after the other, draw for
draw: also a Reservoir gives the same frame twice in a batch when chance says so.

Source: Meyer, Schouler, Caulk, Ribés, Raffin, "High Throughput Training of Deep Surrogates from Large Ensemble Runs",
SC 2023, arXiv:2309.16743.  Differs from it: frames are recognised by their key and never accepted twice; the slot of a
put that is still being copied counts as unseen.

Whoever owns the rows must gather a draw before any later `reserve` may overwrite them (the ring holds its lock
meanwhile): a drawn frame is evictable, or gone, at once.  Explicit releases could be forgotten and save no time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from forebay.pipeline.buffer_state import generator_from_dict, generator_to_dict, pack, unpack
from forebay.pipeline.buffer_values import BufferStatistics, Draw, Placement, Policy, check_sizes, checked_keys
from forebay.pipeline.slots import Bag, KeySet, Queue

UNBOUNDED = 2**62
"""Batches that a Reservoir can give while production goes on: it draws with replacement."""

_FREE, _RESERVED, _UNSEEN, _SEEN = range(4)
_STATE_VERSION = 1


def make_buffer(policy: Policy, *, capacity: int, threshold: int = 0, seed: int) -> Buffer:
    """An empty buffer for `capacity` frames whose gets wait for more than `threshold` of them.

    Good values: capacity of at least a quarter of all frames for Reservoir; threshold of 4 to 16 batches, which
    keeps the first batches from seeing the same few frames.  `seed` is any non-negative integer.

    Raises:
        ValueError: an unknown policy, a capacity below 1, a threshold outside 0 ... capacity - 1 or given to FIFO.
    """
    return Buffer(policy, capacity=capacity, threshold=threshold, seed=seed)


class Buffer:
    """One of the three policies; see the module's table."""

    def __init__(self, policy: Policy, *, capacity: int, threshold: int = 0, seed: int = 0) -> None:
        check_sizes(policy, capacity, threshold)
        self.policy: Policy = policy
        self.capacity = capacity
        self.threshold = threshold
        self._rng = np.random.Generator(np.random.Philox(seed))
        self._over = False
        self._live: Bag | Queue = Queue(capacity) if policy == "fifo" else Bag(capacity)
        self._seen = Bag(capacity)
        # A stack whose top is the lowest slot, so a filling buffer writes its store front to back.
        self._free = np.arange(capacity, dtype=np.int64)[::-1].copy()
        self._free_count = capacity
        self._state = np.full(capacity, _FREE, np.int8)
        self._key = np.full(capacity, -1, np.int64)
        self._uses = np.zeros(capacity, np.int64)
        self._first = np.zeros(capacity, np.int64)
        self._accepted = KeySet()
        self._retired = np.zeros(8, np.int64)
        self._put = self._drawn = self._duplicates = self._evicted = 0

    # -- puts ------------------------------------------------------------------------------------------------------

    @property
    def reserved(self) -> int:
        """Frames that were accepted and whose data are still being copied."""
        return self.capacity - self._free_count - self._live.size

    @property
    def unseen(self) -> int:
        """Frames that were never drawn."""
        return self._live.size - self._seen.size

    def room(self) -> int:
        """How many new frames `reserve` would accept now: C - U - R, as seen frames give way."""
        return self._free_count + self._seen.size

    def reserve(self, keys: np.ndarray) -> Placement:
        """Accept the leading frames that fit; int64 (n,), `sample id · steps + step`.

        A key that was accepted before is recognised, counted and skipped, wherever its frame is now.  Copy the data
        into the slots, then `publish` them.

        Raises:
            RuntimeError: new frames after `close`.
            ValueError: keys that are not a vector of integers of [0, 2³⁵).
        """
        keys = checked_keys(keys)
        fresh = np.flatnonzero(self._is_new(keys))
        if self._over and len(fresh):
            raise RuntimeError(f"{len(fresh)} new frames were offered after `close`; close when the last one is in")
        room = self.room()
        accepted = fresh[:room]
        done = len(keys) if len(fresh) <= room else int(fresh[room])
        self._duplicates += done - len(accepted)
        evicted_keys = self._evict(len(accepted) - self._free_count)
        self._free_count -= len(accepted)
        slots = self._free[self._free_count : self._free_count + len(accepted)][::-1].copy()
        self._state[slots] = _RESERVED
        self._key[slots] = keys[accepted]
        self._uses[slots] = 0
        self._accepted.add(keys[accepted])
        self._put += len(accepted)
        return Placement(accepted, slots, evicted_keys, done)

    def publish(self, slots: np.ndarray) -> None:
        """Make reserved frames drawable.  FIFO order is the order of publication.

        Raises:
            ValueError: a slot that is not reserved.
        """
        self._check_reserved(slots)
        self._state[slots] = _UNSEEN
        self._live.append(slots)

    def cancel(self, slots: np.ndarray) -> None:
        """Withdraw reserved frames, as if they had never been offered (what was evicted for them stays evicted).

        Raises:
            ValueError: a slot that is not reserved.
        """
        self._check_reserved(slots)
        self._accepted.remove(self._key[slots])
        self._put -= len(slots)
        self._release(slots)

    def close(self) -> None:
        """No more frames will come: the threshold falls to 0 and draws remove."""
        self._over = True

    # -- gets ------------------------------------------------------------------------------------------------------

    @property
    def over(self) -> bool:
        """Has production ended?"""
        return self._over

    @property
    def exhausted(self) -> bool:
        """Will every draw be empty from now on?"""
        return self._over and self._live.size == 0 and self.reserved == 0

    @property
    def largest_draw(self) -> int:
        """The largest batch that can ever be drawn while production goes on."""
        return UNBOUNDED if self.policy == "reservoir" else self.capacity - self.threshold

    def ready_batches(self, n: int) -> int:
        """How many batches of n could be drawn now, one after the other, if nothing more were put."""
        if self._over and self.reserved == 0:
            return -(-self._live.size // n)
        spare = self._live.size - (0 if self._over else self.threshold)
        if self.policy == "reservoir" and not self._over:
            return UNBOUNDED if spare > 0 else 0
        return max(0, spare) // n

    def can_draw(self, n: int) -> bool:
        """Would n gets, one after the other, all return without waiting?  True too when drained or draining.

        Raises:
            ValueError: n < 1, or a batch larger than the policy can ever give.
        """
        self._check_batch(n)
        return self.exhausted or self.ready_batches(n) > 0

    def draw(self, n: int) -> Draw:
        """Make n gets, one after the other; fewer only after `close`, none when exhausted.

        Raises:
            RuntimeError: a get would have to wait; ask `can_draw` first.
            ValueError: as `can_draw`.
        """
        if not self.can_draw(n):
            raise RuntimeError(
                f"drawing {n} frames from {self._live.size} with threshold {self.threshold} would wait; "
                f"put more frames, or close the buffer, until can_draw({n})"
            )
        n = min(n, self._live.size) if self._over else n
        slots = self._pick(n)
        np.add.at(self._uses, slots, 1)
        self._drawn += n
        drawn = Draw(self._key[slots], slots)
        if self._over or self.policy != "reservoir":
            self._retire(slots)
        return drawn

    def _pick(self, n: int) -> np.ndarray:
        if isinstance(self._live, Queue):
            return self._live.pop(n)
        # floor(u·m) with u of 53 bits favours no member by more than m/2⁵³, and fills n values as n calls would.
        unit = self._rng.random(n)
        if self._over or self.policy == "firo":
            slots = self._live.take(unit)
            if self._seen.size:
                self._seen.discard(slots[self._state[slots] == _SEEN])
            return slots
        slots = self._live.pick(unit)
        fresh = slots[self._state[slots] == _UNSEEN]
        if len(fresh):
            # Repeats: of assignments to one place the last one holds, so going backwards leaves the first occurrence.
            order = np.arange(len(fresh))
            self._first[fresh[::-1]] = order[::-1]
            fresh = fresh[self._first[fresh] == order]
            self._state[fresh] = _SEEN
            self._seen.append(fresh)
        return slots

    # -- leaving ---------------------------------------------------------------------------------------------------

    def _evict(self, count: int) -> np.ndarray:
        if count <= 0:
            return np.empty(0, np.int64)
        # Unseen frames that arrive meanwhile are never victims, so one by one is the same as without replacement.
        slots = self._seen.take(self._rng.random(count))
        assert isinstance(self._live, Bag), "a queue has no seen frames"
        self._live.discard(slots)
        keys = self._key[slots]
        self._retire(slots)
        self._evicted += count
        return keys

    def _retire(self, slots: np.ndarray) -> None:
        if len(slots) == 0:
            return
        uses = self._uses[slots]
        top = int(uses.max())
        if top >= len(self._retired):
            self._retired = np.pad(self._retired, (0, max(top + 1 - len(self._retired), len(self._retired))))
        np.add.at(self._retired, uses, 1)
        self._release(slots)

    def _release(self, slots: np.ndarray) -> None:
        self._state[slots] = _FREE
        self._key[slots] = -1
        self._free[self._free_count : self._free_count + len(slots)] = slots
        self._free_count += len(slots)

    # -- checks ----------------------------------------------------------------------------------------------------

    def _is_new(self, keys: np.ndarray) -> np.ndarray:
        new = ~self._accepted.contains(keys)
        ascending = len(keys) < 2 or bool((keys[1:] > keys[:-1]).all())
        if not ascending:
            first = np.zeros(len(keys), bool)
            first[np.unique(keys, return_index=True)[1]] = True
            new &= first
        return new

    def _check_reserved(self, slots: np.ndarray) -> None:
        wrong = slots[self._state[slots] != _RESERVED]
        if len(wrong):
            raise ValueError(f"slot {wrong[0]} is not reserved; publish or cancel each slot of a placement once")

    def _check_batch(self, n: int) -> None:
        if n < 1:
            raise ValueError(f"a batch of {n} frames was asked for; ask for at least 1")
        if n > self.largest_draw:
            raise ValueError(
                f"a batch of {n} frames can never be drawn from {self.policy} with capacity {self.capacity} and "
                f"threshold {self.threshold}; use batches of at most {self.largest_draw}, or raise the capacity"
            )

    def live(self) -> tuple[np.ndarray, np.ndarray]:
        """Keys and slots of the drawable frames: what a store must hold again after `from_dict`."""
        slots = self._live.members()
        return self._key[slots], slots

    def statistics(self, *, with_uses: bool = True) -> BufferStatistics:
        """Counters; with the histogram of uses in O(capacity), without (then `uses` is empty) in O(1)."""
        return BufferStatistics(
            capacity=self.capacity,
            unseen=self.unseen,
            seen=self._seen.size,
            reserved=self.reserved,
            put=self._put,
            drawn=self._drawn,
            duplicates=self._duplicates,
            evicted=self._evicted,
            uses=self._use_counts() if with_uses else (),
        )

    def _use_counts(self) -> tuple[int, ...]:
        living = np.bincount(self._uses[self._live.members()], minlength=len(self._retired))
        living[: len(self._retired)] += self._retired
        return tuple(np.trim_zeros(living, "b").tolist())

    def validate(self) -> None:
        """Check every invariant; for tests and for states that come from a file.

        Raises:
            ValueError: names the invariant that does not hold.
        """
        live, seen = self._live.members(), self._seen.members()
        free = self._free[: self._free_count]
        reserved = np.flatnonzero(self._state == _RESERVED)
        parts = np.concatenate([live, free, reserved])
        statistics = self.statistics()
        invariants = {
            "every slot is live, free or reserved": np.array_equal(np.sort(parts), np.arange(self.capacity)),
            "seen frames are live, once each": len(np.unique(seen)) == len(seen) and np.isin(seen, live).all(),
            "states agree with the lists": (self._state[free] == _FREE).all()
            and (self._state[seen] == _SEEN).all()
            and (self._state[np.setdiff1d(live, seen)] == _UNSEEN).all(),
            "unseen frames were never drawn, seen ones were": (self._uses[np.setdiff1d(live, seen)] == 0).all()
            and (self._uses[seen] > 0).all(),
            "keys are distinct and accepted": len(np.unique(self._key[live])) == len(live)
            and self._accepted.contains(self._key[live]).all()
            and len(self._accepted) == self._put,
            "no frame left unused": self._retired[0] == 0,
            "use counts account for every frame and draw": sum(statistics.uses) == self._put - len(reserved)
            and sum(u * c for u, c in enumerate(statistics.uses)) == self._drawn,
            "only a Reservoir keeps seen frames or evicts": self.policy == "reservoir"
            or (len(seen) == 0 and self._evicted == 0),
        }
        broken = [name for name, holds in invariants.items() if not holds]
        if broken:
            raise ValueError(f"buffer state is inconsistent, this does not hold: {'; '.join(broken)}")

    # -- checkpoint ------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Everything that later draws depend on, the generator included, as JSON.

        Reserved frames are left out, as their data are in nobody's hands: they count as never offered, their slots as
        free, and whoever offers their block again sees them accepted.
        """
        reserved = np.flatnonzero(self._state == _RESERVED)
        accepted = self._accepted.copy()
        accepted.remove(self._key[reserved])
        keys, live = self.live()
        return {
            "version": _STATE_VERSION,
            "policy": self.policy,
            "capacity": self.capacity,
            "threshold": self.threshold,
            "over": self._over,
            "generator": generator_to_dict(self._rng),
            "live": pack(live),
            "keys": pack(keys),
            "uses": pack(self._uses[live]),
            "seen": pack(self._seen.members()),
            "free": pack(np.concatenate([self._free[: self._free_count], reserved[::-1]])),
            "accepted": pack(accepted.bits),
            "retired": self._retired.tolist(),
            "put": self._put - len(reserved),
            "drawn": self._drawn,
            "duplicates": self._duplicates,
            "evicted": self._evicted,
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Buffer:
        """The buffer that `to_dict` described; it draws what that one would have drawn.

        Raises:
            ValueError: a state of another version, or one that breaks an invariant.
        """
        if state.get("version") != _STATE_VERSION:
            raise ValueError(
                f"buffer state has version {state.get('version')!r}, this program reads {_STATE_VERSION}; "
                f"resume with the release that wrote it, or start a new run"
            )
        buffer = cls(state["policy"], capacity=state["capacity"], threshold=state["threshold"])
        buffer._restore(state)
        buffer.validate()
        return buffer

    def _restore(self, state: Mapping[str, Any]) -> None:
        generator_from_dict(self._rng, state["generator"])
        live, seen, free = (unpack(state[name], "<i8") for name in ("live", "seen", "free"))
        for name, slots in (("live", live), ("seen", seen), ("free", free)):
            if len(slots) > self.capacity or (slots < 0).any() or (slots >= self.capacity).any():
                raise ValueError(f"buffer state lists {name} slots outside its capacity of {self.capacity}")
        self._over = bool(state["over"])
        self._key[live] = unpack(state["keys"], "<i8")
        self._uses[live] = unpack(state["uses"], "<i8")
        self._state[live] = _UNSEEN
        self._state[seen] = _SEEN
        self._live.append(live)
        self._seen.append(seen)
        self._free[: len(free)] = free
        self._free_count = len(free)
        self._accepted = KeySet(unpack(state["accepted"], "|u1"))
        self._retired = np.array(state["retired"], np.int64)
        self._put, self._drawn = int(state["put"]), int(state["drawn"])
        self._duplicates, self._evicted = int(state["duplicates"]), int(state["evicted"])

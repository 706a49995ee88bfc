"""The learner's sample store: rows of preallocated tensors whose slots a `pipeline.buffer.Buffer` hands out.

    ingest thread   put / offer   reserve (lock) ─► copy rows in (no lock) ─► publish (lock)
    training thread draw          draw + gather (lock) ─► Batch

| waits in | for                                           | is unblocked by                            |
|----------|-----------------------------------------------|--------------------------------------------|
| `put`    | a free slot, or a seen frame that gives way   | `draw`, `interrupt`, its timeout           |
| `draw`   | `can_draw(n)`: more than `threshold` frames   | `put`, `close`, `interrupt`, its timeout   |

The gather happens under the lock, since a drawn frame may be evicted by the next reservation.  It lasts as long as the
batch takes to copy (some 0.1 ms), whereas copying a block in takes milliseconds and holds no lock.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from forebay.learners.frames import Spec, frames_of, ring_specs, tensor_of
from forebay.pipeline.buffer import Buffer, BufferStatistics, Placement, Policy
from forebay.pipeline.records import Batch

__all__ = ["Ring", "RingStatistics", "Spec", "frames_of", "memory_bytes", "ring_specs"]

_REFILL_ROWS = 4096


@dataclass(frozen=True, slots=True)
class RingStatistics(BufferStatistics):
    """Counters of the buffer, and where the ring's time went; seconds since the ring was made."""

    nbytes: int
    """Memory of the rows."""
    wait_data_s: float
    """`draw` waited for frames: production is the bottleneck."""
    wait_room_s: float
    """`put` waited for room: training is the bottleneck."""
    draw_s: float
    """Choosing and gathering batches."""
    ingest_s: float
    """Copying rows in."""


def memory_bytes(specs: Mapping[str, Spec], capacity: int) -> int:
    """Bytes of a ring's rows for `capacity` frames; its two output batches come on top."""
    return capacity * sum(math.prod(shape) * dtype.itemsize for shape, dtype in specs.values())


class Ring:
    """Thread-safe store of frames; any number of threads may put, one draws.

    `specs` gives shape and type of one frame's arrays by name, see `ring_specs`.  `device` is where the rows lie; with
    `pin` the batches of a ring in host memory are page-locked, so that `tensor.to("cuda", non_blocking=True)` overlaps.
    On a GPU, rows and batches are ordered by the device's default stream.

    Raises:
        MemoryError: the rows do not fit.
        ValueError: no arrays, or `pin` without a GPU or for rows that lie on one.
    """

    def __init__(
        self, specs: Mapping[str, Spec], buffer: Buffer, *, device: str | torch.device = "cpu", pin: bool = False
    ) -> None:
        self._specs = {name: (tuple(shape), dtype) for name, (shape, dtype) in specs.items()}
        self._device = torch.device(device)
        _check_pin(pin, self._device)
        self._pin = pin
        self._buffer = buffer
        self._rows = self._allocate()
        self._outputs: list[tuple[int, dict[str, torch.Tensor]]] = [(0, {}), (0, {})]
        self._turn = 0
        self._changed = threading.Condition()
        self._interrupted = False
        self._wait_data_s = self._wait_room_s = self._draw_s = self._ingest_s = 0.0

    @property
    def policy(self) -> Policy:
        """Of the buffer."""
        return self._buffer.policy

    @property
    def capacity(self) -> int:
        """Frames that the ring can hold."""
        return self._buffer.capacity

    @property
    def device(self) -> torch.device:
        """Where rows and batches lie."""
        return self._device

    @property
    def closed(self) -> bool:
        """Has `close` been called?"""
        return self._buffer.over

    @property
    def exhausted(self) -> bool:
        """Closed and drained: every draw returns None from now on."""
        with self._changed:
            return self._buffer.exhausted

    @property
    def interrupted(self) -> bool:
        """Has `interrupt` been called?"""
        return self._interrupted

    def can_draw(self, n: int) -> bool:
        """Would `draw(n)` return at once?

        Raises:
            ValueError: a batch that the buffer can never give.
        """
        with self._changed:
            return self._buffer.can_draw(n)

    # -- in --------------------------------------------------------------------------------------------------------

    def put(self, keys: np.ndarray, arrays: Mapping[str, Any], *, timeout: float | None = None) -> int:
        """Copy frames in, waiting for room as often as needed; number of frames that are new.

        `keys` int64 (n,), `arrays[name]` (n, *shape) of any real type, numpy arrays or tensors; one copy each, from
        where they lie to where the rows do.  Frames whose key was accepted before are skipped.  After `timeout` seconds
        of waiting, or `interrupt`, the frames that have not fitted are left out.

        Raises:
            RuntimeError: new frames after `close`.
            ValueError: missing, unknown or misshapen arrays; bad keys.
        """
        self._check(keys, arrays)
        deadline = None if timeout is None else time.perf_counter() + timeout
        done = accepted = 0
        while done < len(keys):
            placement = self._reserve(keys[done:], deadline)
            if placement is None:
                break
            self._store(placement, done, arrays)
            done += placement.done
            accepted += len(placement.accepted)
        return accepted

    def offer(self, keys: np.ndarray, arrays: Mapping[str, Any]) -> int:
        """Copy in the leading frames that fit now; how many leading frames need not be offered again.

        Arguments and errors as for `put`.
        """
        self._check(keys, arrays)
        with self._changed:
            placement = self._buffer.reserve(keys)
        self._store(placement, 0, arrays)
        return placement.done

    def wait_data(self, n: int, *, timeout: float | None = None) -> bool:
        """Wait until `draw(n)` would return at once; False after the timeout or `interrupt`."""
        with self._changed:
            start = time.perf_counter()
            ready = self._wait(lambda: self._buffer.can_draw(n), timeout)
            self._wait_data_s += time.perf_counter() - start
            return ready

    def wait_room(self, *, timeout: float | None = None) -> bool:
        """Wait until at least one new frame would fit; False after the timeout or `interrupt`."""
        with self._changed:
            return self._wait(lambda: self._buffer.room() > 0, timeout)

    def _reserve(self, keys: np.ndarray, deadline: float | None) -> Placement | None:
        with self._changed:
            if self._interrupted:
                return None
            placement = self._buffer.reserve(keys)
            if placement.done:
                return placement
            start = time.perf_counter()
            roomy = self._wait(
                lambda: self._buffer.room() > 0, None if deadline is None else max(0.0, deadline - start)
            )
            self._wait_room_s += time.perf_counter() - start
            return self._buffer.reserve(keys) if roomy else None

    def _store(self, placement: Placement, start: int, arrays: Mapping[str, Any]) -> None:
        begun = time.perf_counter()
        try:
            self._copy_in(placement.slots, {name: _rows(a, placement.accepted + start) for name, a in arrays.items()})
        except BaseException:
            with self._changed:
                self._buffer.cancel(placement.slots)
                self._changed.notify_all()
            raise
        with self._changed:
            self._buffer.publish(placement.slots)
            self._ingest_s += time.perf_counter() - begun
            self._changed.notify_all()

    def _copy_in(self, slots: np.ndarray, arrays: Mapping[str, Any]) -> None:
        if len(slots) == 0:
            return
        index = self._index(slots)
        run = bool((slots[1:] == slots[:-1] + 1).all())
        for name, rows in self._rows.items():
            source = tensor_of(arrays[name])
            if run:
                rows[int(slots[0]) : int(slots[0]) + len(slots)].copy_(source)
            else:
                rows.index_copy_(0, index, source.to(rows))

    # -- out -------------------------------------------------------------------------------------------------------

    def draw(self, n: int, *, timeout: float | None = None) -> Batch | None:
        """The next batch of n frames; None when exhausted, interrupted, or out of time.

        `arrays[name]` (b, *shape) with b = n, or less after `close`.  The tensors are reused: a batch is valid until
        the second draw after it.

        Raises:
            ValueError: a batch that the buffer can never give.
        """
        with self._changed:
            start = time.perf_counter()
            ready = self._wait(lambda: self._buffer.can_draw(n), timeout)
            begun = time.perf_counter()
            self._wait_data_s += begun - start
            if not ready or self._buffer.exhausted:
                return None
            drawn = self._buffer.draw(n)
            arrays = self._gather(drawn.slots)
            self._draw_s += time.perf_counter() - begun
            self._changed.notify_all()
        return Batch(drawn.keys, arrays)

    def _gather(self, slots: np.ndarray) -> dict[str, torch.Tensor]:
        self._turn = 1 - self._turn
        count = len(slots)
        size, held = self._outputs[self._turn]
        if size < count:
            size, held = self._outputs[self._turn] = count, self._batch_memory(count)
        batch = held if size == count else {name: tensor[:count] for name, tensor in held.items()}
        index = self._index(slots)
        for name, tensor in batch.items():
            torch.index_select(self._rows[name], 0, index, out=tensor)
        return dict(batch)

    def _batch_memory(self, count: int) -> dict[str, torch.Tensor]:
        return {
            name: torch.empty((count, *shape), dtype=dtype, device=self._device, pin_memory=self._pin)
            for name, (shape, dtype) in self._specs.items()
        }

    def _index(self, slots: np.ndarray) -> torch.Tensor:
        index = torch.from_numpy(slots)
        return index if self._device.type == "cpu" else index.to(self._device)

    def close(self) -> None:
        """No more frames will come; draws drain the ring."""
        with self._changed:
            self._buffer.close()
            self._changed.notify_all()

    def interrupt(self) -> None:
        """Let every waiting and every later `put`, `draw` and `wait_room` return at once."""
        with self._changed:
            self._interrupted = True
            self._changed.notify_all()

    def _wait(self, ready: Callable[[], bool], timeout: float | None) -> bool:
        """Wait for `ready`, the lock held; False after the timeout or `interrupt`."""
        return self._changed.wait_for(lambda: self._interrupted or ready(), timeout) and not self._interrupted

    # -- state -----------------------------------------------------------------------------------------------------

    def statistics(self, *, with_uses: bool = True) -> RingStatistics:
        """Counters; without `uses` in O(1)."""
        with self._changed:
            buffer = self._buffer.statistics(with_uses=with_uses)
            return RingStatistics(
                **{name: getattr(buffer, name) for name in BufferStatistics.__slots__},
                nbytes=memory_bytes(self._specs, self._buffer.capacity),
                wait_data_s=self._wait_data_s,
                wait_room_s=self._wait_room_s,
                draw_s=self._draw_s,
                ingest_s=self._ingest_s,
            )

    def to_dict(self) -> dict[str, Any]:
        """The buffer's state as JSON; the frames themselves are in the data set."""
        with self._changed:
            return self._buffer.to_dict()

    def refill(self, state: Mapping[str, Any], fetch: Callable[[np.ndarray], Mapping[str, np.ndarray]]) -> None:
        """Become the ring that `to_dict` described; `fetch(keys)` gives the arrays of frames, (n, *shape) each.

        Keys are asked for in ascending order, some thousand at a time.

        Raises:
            RuntimeError: this ring has frames already.
            ValueError: a state of another policy or capacity, or a broken one.
        """
        restored = Buffer.from_dict(state)
        if (restored.policy, restored.capacity) != (self._buffer.policy, self._buffer.capacity):
            raise ValueError(
                f"the checkpoint's buffer is {restored.policy} of {restored.capacity} frames, this run's is "
                f"{self._buffer.policy} of {self._buffer.capacity}; resume with the study that the run was started with"
            )
        if self._buffer.statistics(with_uses=False).put:
            raise RuntimeError("this ring holds frames already; refill a new one")
        keys, slots = restored.live()
        order = np.argsort(keys)
        for part in np.array_split(order, range(_REFILL_ROWS, len(order), _REFILL_ROWS)):
            if len(part):
                arrays = fetch(keys[part])
                self._check(keys[part], arrays)
                self._copy_in(slots[part], arrays)
        with self._changed:
            self._buffer = restored
            self._changed.notify_all()

    def _allocate(self) -> dict[str, torch.Tensor]:
        if not self._specs:
            raise ValueError("a ring needs at least one array; give the frame's shapes and types by name")
        capacity = self._buffer.capacity
        try:
            # Not zeroed: the pages come into being while the first blocks arrive, not while the run starts.
            return {
                name: torch.empty((capacity, *shape), dtype=dtype, device=self._device)
                for name, (shape, dtype) in self._specs.items()
            }
        except RuntimeError as error:
            need = memory_bytes(self._specs, capacity)
            raise MemoryError(
                f"a ring of {capacity} frames needs {need / 2**30:.3g} GiB on {self._device}, which cannot be had; "
                f"lower buffer.capacity"
            ) from error

    def _check(self, keys: np.ndarray, arrays: Mapping[str, Any]) -> None:
        if arrays.keys() != self._specs.keys():
            raise ValueError(f"frames carry arrays {sorted(arrays)}, the ring keeps {sorted(self._specs)}; give those")
        for name, (shape, _) in self._specs.items():
            wanted = (len(keys), *shape)
            if arrays[name].shape != wanted:
                raise ValueError(f"array {name!r} has shape {arrays[name].shape} instead of {wanted} (frame first)")


def _check_pin(pin: bool, device: torch.device) -> None:
    if pin and (device.type != "cpu" or not torch.cuda.is_available()):
        raise ValueError(
            f"pin=True with rows on {device} and {torch.cuda.device_count()} GPUs: page-locked batches serve rows in "
            f"host memory on a machine with a GPU; leave pin out"
        )


def _rows(array: Any, positions: np.ndarray) -> Any:
    """Those rows, ascending; a view when there are no gaps, which is the rule."""
    if len(positions) and positions[-1] - positions[0] == len(positions) - 1:
        return array[positions[0] : positions[-1] + 1]
    return array[positions]

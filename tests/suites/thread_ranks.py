"""Ranks as threads of one process: the lower-case collectives of mpi4py, for tests on any number of ranks."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

PATIENCE = 20.0
"""Seconds after which a rank that waits for another gives up; without it a deadlock would hang the test."""


class ThreadComm:
    """One rank's communicator; what it receives is a copy, as between processes."""

    def __init__(self, rank: int, slots: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self.size = rank, len(slots)
        self._slots, self._barrier = slots, barrier

    def allgather(self, value: Any) -> list[Any]:
        self._slots[self.rank] = pickle.dumps(value)
        self._barrier.wait(PATIENCE)
        values = [pickle.loads(slot) for slot in self._slots]
        self._barrier.wait(PATIENCE)
        return values

    def gather(self, value: Any, root: int = 0) -> list[Any] | None:
        values = self.allgather(value)
        return values if self.rank == root else None

    def bcast(self, value: Any, root: int = 0) -> Any:
        return self.allgather(value if self.rank == root else None)[root]

    def scatter(self, values: list[Any] | None, root: int = 0) -> Any:
        assert self.rank != root or len(values) == self.size
        return self.allgather(values if self.rank == root else None)[root][self.rank]


def alone() -> ThreadComm:
    """A communicator of one rank."""
    return ThreadComm(0, [None], threading.Barrier(1))


def on_ranks(size: int, function: Callable[[ThreadComm], Any]) -> list[Any]:
    """What every rank's `function(comm)` returns; an exception must come on all ranks alike, and is raised once."""
    slots, barrier = [None] * size, threading.Barrier(size)
    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(function, ThreadComm(rank, slots, barrier)) for rank in range(size)]
        errors = [future.exception() for future in futures]
    if any(errors):
        texts = {f"{type(error).__name__}: {error}" for error in errors}
        assert len(texts) == 1, f"the ranks raised unlike errors, or only some did: {texts}"
        raise errors[0]
    return [future.result() for future in futures]

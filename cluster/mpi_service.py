"""Ranks that stay: their start-up is paid once, then a task costs its own time and a fraction of a millisecond."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from forebay.cluster.mpi_arrays import load, pack
from forebay.cluster.mpi_errors import MpiCancelled, MpiError
from forebay.cluster.mpi_launch import Patience, shown
from forebay.cluster.mpi_ranks import Ranks, Reply, start_ranks

log = logging.getLogger(__name__)

START_LIMIT_S = 120.0
RENEWALS = 1000
"""Fresh communicators before the ranks are started anew; MPICH has numbers for 2048."""
CLOSE_LIMIT_S = 5.0
"""For MPI_Finalize and what the tasks have registered with atexit."""


@dataclass(frozen=True, slots=True)
class MpiResult:
    """What a task gave."""

    arrays: dict[str, np.ndarray]
    """From rank 0, C-contiguous."""
    value: Any
    """From rank 0, as JSON carries it: a tuple comes back as a list."""
    seconds: float
    """[s] in the function, on the slowest rank."""
    start_s: float
    """[s] that starting the ranks took; 0.0 where they were up."""


class MpiService:
    """R ranks that carry out one task after another; a context manager.

    Tasks of several threads queue.  Ranks that died, or were killed with a failed task, are started anew by the next
    `run`.  Between two tasks module-level state of the ranks lives on (a mesh, a factorisation); `comm` is the same
    communicator until all ranks raise, then the next task gets a fresh one, in which no message of the old is left.
    """

    def __init__(self, ranks: int, *, threads: int = 1) -> None:
        for name, number in (("ranks", ranks), ("threads", threads)):
            if number < 1:
                raise ValueError(f"{name} = {number} must be at least 1")
        self.size = ranks
        self.threads = threads
        self._turn = threading.Lock()
        self._ranks: Ranks | None = None
        self._release: weakref.finalize[..., Any] | None = None
        self._closed = False
        self._renew = False
        self._renewals = 0

    def __enter__(self) -> MpiService:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def alive(self) -> bool:
        """Are the ranks up, so that the next task starts at once?  Only meaningful between tasks."""
        ranks = self._ranks
        return ranks is not None and ranks.alive

    @property
    def pids(self) -> tuple[int, ...]:
        """Process id of every rank, in order; empty while they are down."""
        return tuple(rank.pid for rank in self._ranks or ())

    def start(self, *, timeout_s: float | None = None, cancel: threading.Event | None = None) -> None:
        """Start the ranks now rather than with the first task; nothing when they are up.

        Raises:
            MpiUnavailable, MpiError, MpiTimeout, MpiCancelled: the table in `forebay.cluster.mpi` says when.
        """
        limit_s = _positive(timeout_s)
        with self._turn:
            self._ensure_started(limit_s, cancel)

    def run(
        self,
        function: str,
        arrays: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        *,
        timeout_s: float | None = None,
        cancel: threading.Event | None = None,
    ) -> MpiResult:
        """Call `function(comm, arrays, options)` on every rank; the time limit includes a start of the ranks.

        Raises:
            ValueError: a function, array or option that cannot be sent; the ranks never hear of it.
            MpiError, MpiUnavailable, MpiTimeout, MpiCancelled: the table in `forebay.cluster.mpi` says when.
        """
        limit_s = _positive(timeout_s)
        task: dict[str, Any] = {"kind": "task", "function": _absolute(function), "options": _plain(options or {})}
        with self._turn:
            patience = Patience(f"{function} on {self.size} MPI ranks", limit_s, cancel)
            with pack(arrays or {}) as packed:
                task |= {"layout": packed.layout, "path": [entry or os.getcwd() for entry in sys.path]}
                start_s = self._ensure_started(limit_s, cancel)
                replies = self._exchange(task, packed.descriptor, patience)
            return self._result(replies, function, start_s)

    def close(self) -> None:
        """End the ranks; safe to call twice.  A task that another thread has under way ends with MpiCancelled."""
        self._closed = True
        while not self._turn.acquire(timeout=0.1):
            if (ranks := self._ranks) is not None:
                ranks.kill()
        try:
            if self._ranks is not None and self._ranks.alive:
                self._ranks.ask_to_leave()
                self._ranks.reap(CLOSE_LIMIT_S)
            self._stop()
        finally:
            self._turn.release()

    def _ensure_started(self, limit_s: float | None, cancel: threading.Event | None) -> float:
        """Seconds that the start took."""
        if self._closed:
            raise MpiCancelled("this MPI service is closed; make a new one")
        if self.alive:
            return 0.0
        self._stop()
        limit_s = START_LIMIT_S if limit_s is None else min(limit_s, START_LIMIT_S)
        patience = Patience(f"the start of {self.size} MPI ranks", limit_s, cancel)
        self._ranks = start_ranks(self.size, self.threads, patience)
        self._release = weakref.finalize(self, _end, self._ranks)  # for a service that is dropped or never closed
        self._renew, self._renewals = False, 0
        took = time.monotonic() - patience.began
        log.info("%d MPI ranks are up after %.2f s", self.size, took)
        return took

    def _exchange(self, task: Mapping[str, Any], descriptor: int | None, patience: Patience) -> Sequence[Reply]:
        assert self._ranks is not None
        try:
            return self._ranks.exchange({**task, "renew": self._renew}, descriptor, patience)
        except BaseException as error:
            self._stop()
            if self._closed and isinstance(error, MpiError):
                raise MpiCancelled(f"{patience.what} was cancelled: the service was closed") from None
            raise

    def _result(self, replies: Sequence[Reply], function: str, start_s: float) -> MpiResult:
        if any(reply.kind != "done" for reply in replies):
            raise self._failure(replies, function)
        first = min(replies, key=lambda reply: reply.rank)
        arrays = load(first.descriptor, first.message["layout"])
        seconds = max(reply.message["seconds"] for reply in replies)
        self._renew = False
        return MpiResult(arrays, first.message["value"], seconds, start_s)

    def _failure(self, replies: Sequence[Reply], function: str) -> MpiError:
        """The first rank's failure; the ranks live on where each of them is known to wait for the next task."""
        assert self._ranks is not None
        for reply in replies:
            reply.close()
        raised = sum(reply.kind == "raised" for reply in replies)
        output = self._ranks.tail.text()
        self._renew = raised > 0
        self._renewals += self._renew
        if len(replies) < self.size or 0 < raised < self.size or self._renewals > RENEWALS:
            self._ranks.kill()
            output = self._ranks.tail.text(complete_within_s=CLOSE_LIMIT_S)
            self._stop()
        first = min((reply for reply in replies if reply.kind != "done"), key=lambda reply: reply.message["at"])
        everyone = "all ranks raised; the first, " if raised == self.size > 1 else ""
        text = f"{function}: {everyone}rank {first.rank} of {self.size} {first.message['text']}{shown(output)}"
        return MpiError(text, rank=first.rank, traceback=first.message["traceback"], output=output)

    def _stop(self) -> None:
        if self._ranks is not None and self._release is not None:
            self._release()
            self._ranks = self._release = None


def _end(ranks: Ranks) -> None:
    ranks.kill()
    ranks.reap()


def _positive(timeout_s: float | None) -> float | None:
    if timeout_s is not None and not timeout_s > 0:
        raise ValueError(f"timeout_s = {timeout_s} must be more than 0 s; None waits for ever")
    return timeout_s


def _absolute(function: str) -> str:
    """The function's name, a file's path made absolute.

    Raises:
        ValueError: it is not of the form "module:function" or "path/file.py:function", or there is no such file.
    """
    home, _, name = function.rpartition(":")
    if not home or not name.isidentifier():
        raise ValueError(f'function = {function!r} is neither "module:function" nor "path/file.py:function"')
    if not home.endswith(".py"):
        return function
    path = Path(home).resolve()
    if not path.is_file():
        raise ValueError(f"function = {function!r}: there is no file {path}")
    return f"{path}:{name}"


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(options)))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"options cannot be written as JSON ({error}); use numbers, text, booleans, lists and dicts of them, and "
            f"pass arrays as arrays"
        ) from None
    return plain

"""What ranks need to agree: sums of the same bits, errors on all or on none, one rank that leads while others answer.

Only lower-case methods of an mpi4py communicator are used, and mpi4py is never imported here; COMM_SELF serves one
process.  The root decides and broadcasts: ranks on unlike processors may round the same computation differently, and a
branch that only some ranks take is a deadlock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

type Ask = Callable[..., list[Any]]
"""ask(method, *arguments): what that method of every rank's helper returned, in the order of ranks."""


class Alone:
    """The communicator of one process, without MPI."""

    rank, size = 0, 1

    def allgather(self, value: Any) -> list[Any]:
        """What it got."""
        return [value]

    def gather(self, value: Any) -> list[Any]:
        """What it got."""
        return [value]

    def bcast(self, value: Any) -> Any:
        """What it got."""
        return value

    def scatter(self, values: Sequence[Any]) -> Any:
        """The only one."""
        return values[0]


def refuse(comm: Any, complaint: str) -> None:
    """Raise on every rank if any rank complains; "" is no complaint.  Collective.

    Raises:
        ValueError: the complaint of the first rank that has one.
    """
    for rank, text in enumerate(comm.allgather(complaint)):
        if text:
            raise ValueError(f"{text} (on rank {rank})" if comm.size > 1 else text)


def total(comm: Any, values: np.ndarray) -> np.ndarray:
    """Sum of an array over the ranks, the same bits on all.  Collective."""
    parts = comm.gather(values)
    return cast(np.ndarray, comm.bcast(np.sum(parts, axis=0) if comm.rank == 0 else None))


def from_root(comm: Any, compute: Callable[[], tuple[Any, Sequence[Any]]]) -> tuple[Any, Any]:
    """The root computes (shared, one item for each rank); every rank gets shared and its own item.  Collective.

    Raises:
        Exception: whatever `compute` raised, on every rank.
    """
    outcome = comm.bcast(_attempt(compute) if comm.rank == 0 else None)
    shared, items = outcome.result()
    return shared, comm.scatter(items if comm.rank == 0 else None)


def lead[T](comm: Any, helper: object, work: Callable[[Ask], T]) -> T:
    """The root runs `work(ask)`, the other ranks answer with their helpers; all return its result.  Collective.

    Raises:
        Exception: whatever `work`, or a helper that it asked, raised, on every rank.
    """
    if comm.rank > 0:
        return cast(T, _serve(comm, helper))

    def ask(method: str, *arguments: Any) -> list[Any]:
        comm.bcast((method, arguments))
        return [answer.result() for answer in comm.gather(_attempt(getattr(helper, method), *arguments))]

    outcome = _attempt(work, ask)
    comm.bcast((None, outcome))
    return cast(T, outcome.result())


@dataclass(frozen=True, slots=True)
class _Outcome:
    """A result, or the exception that came instead, on its way to other ranks."""

    value: Any = None
    error: Exception | None = None

    def result(self) -> Any:
        if self.error is not None:
            raise self.error
        return self.value


def _attempt(function: Callable[..., Any], *arguments: Any) -> _Outcome:
    try:
        return _Outcome(function(*arguments))
    except Exception as error:  # not swallowed: every rank raises it, where one alone would leave the others waiting
        return _Outcome(error=error)


def _serve(comm: Any, helper: object) -> Any:
    while True:
        method, content = comm.bcast(None)
        if method is None:
            return content.result()
        comm.gather(_attempt(getattr(helper, method), *content))

"""Which of many references is ready next."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import ray


@dataclass(slots=True)
class ReadyQueue:
    """Ray looks at every reference that it is asked about, so it is asked for all that are ready at once.

    Of thousands of blocks in flight many finish while one event is handled; one question then serves them all.
    """

    _ready: deque[Any] = field(default_factory=deque, init=False)

    def next(self, waiting: Collection[Any], timeout_s: float) -> Any:
        """A reference of `waiting` that is ready, or None if none is for so long."""
        while self._ready:
            if (reference := self._ready.popleft()) in waiting:  # whoever owed it may have been given up since
                return reference
        if not waiting:
            time.sleep(timeout_s)
            return None
        references = list(waiting)
        ready, _ = ray.wait(references, num_returns=len(references), timeout=0)
        self._ready.extend(ready or ray.wait(references, num_returns=1, timeout=timeout_s)[0])
        return self._ready.popleft() if self._ready else None


def get_all(references: list[Any]) -> None:
    """Wait for all, and raise as soon as one has failed: the others may wait for it."""
    while references:
        done, references = ray.wait(references, num_returns=1)
        ray.get(done)

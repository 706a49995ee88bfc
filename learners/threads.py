"""How many threads training uses once the solvers' cores are idle: more, as long as more is faster.

Two threads that wait for each other at some hundred barriers a step gain about a quarter on idle cores and lose a
factor of four when something else needs one of them (tried by hand with the demo's network: 58, 44 and 256 ms a step).
Nobody can know that beforehand, so it is measured while training.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from statistics import median

import torch

WINDOW = 12
"""Steps whose median is compared."""
PAUSE = 200
"""Steps after which more threads are tried again; doubles with every attempt that failed."""
HOPELESS = 2.0
"""A trial ends at once when two steps in a row take that many times as long as with fewer threads."""


@dataclass(slots=True)
class ThreadChoice:
    """Chooses between `base` threads and `more`; tell it every step's seconds, it sets torch's number of threads.

    `widen` allows `more`.  Without it, or with `more` = `base`, nothing is ever changed.
    """

    base: int
    more: int
    _wide: bool = field(default=False, init=False)
    _allowed: bool = field(default=False, init=False)
    _steps: dict[bool, deque[float]] = field(init=False)
    _rest: int = field(default=0, init=False)
    _pause: int = field(default=PAUSE, init=False)

    def __post_init__(self) -> None:
        self._steps = {wide: deque(maxlen=WINDOW) for wide in (False, True)}

    @property
    def threads(self) -> int:
        """What is used now."""
        return self.more if self._wide else self.base

    def widen(self) -> None:
        """The other cores are idle from now on."""
        self._allowed = self.more > self.base

    def step(self, seconds: float) -> None:
        """Take note of a step, and change the number of threads of the calling thread if that pays."""
        self._steps[self._wide].append(seconds)
        if not self._allowed:
            return
        self._rest = max(0, self._rest - 1)
        if self._wide and self._is_worse():
            self._steps[False].clear()
            self._rest, self._pause = self._pause, 2 * self._pause
            self._switch(False)
        elif not self._wide and self._is_full(False) and not self._rest:
            self._switch(True)

    def _is_worse(self) -> bool:
        before = median(self._steps[False])
        recent = list(self._steps[True])
        if len(recent) >= 2 and min(recent[-2:]) > HOPELESS * before:
            return True
        return self._is_full(True) and median(recent) >= before

    def _is_full(self, wide: bool) -> bool:
        return len(self._steps[wide]) == WINDOW

    def _switch(self, wide: bool) -> None:
        self._wide = wide
        self._steps[True].clear()
        torch.set_num_threads(self.threads)

"""Several solvers on one stream of systems, in turns, their processor time added up."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from forebay.pipeline.records import Outcome
from forebay.pipeline.stages import Draw
from forebay.solvers.assemble import System
from forebay.solvers.linear import Solution

PROBE, SHORT_PROBE, SLOW = 20, 3, 4.0
"""A method that takes so many times the best one's time is stopped after so many samples: the smaller number when it
has used up its `patience_s`.  Not sooner, because recycling methods need some ten samples to get going."""


class Solver(Protocol):
    """What `LinearSolver` and `Portfolio` have in common."""

    def solve(self) -> Solution: ...

    def destroy(self) -> None: ...


@dataclass(slots=True)
class Contender:
    """One way to solve the stream of systems; making its solver object counts as part of its first solve."""

    name: str
    make: Callable[[], Solver]
    stride: int = 1
    """Solves every so manyeth system only."""
    may_stop: bool = True
    by_draw: Callable[[Solver, Draw], Solution] | None = None
    """For a solver that wants to see the draw."""
    seconds: list[float] = field(default_factory=list)
    """Processor time of this thread, one value a solve."""
    uncertified: int = 0
    """Solves that ended without a certificate."""
    stopped: bool = False
    _solver: Solver | None = None

    def solve(self, draw: Draw | None = None) -> None:
        """The system's present matrix and right-hand side, which were assembled from that draw."""
        started = time.thread_time()
        if self._solver is None:
            self._solver = self.make()
        outcome = (self.by_draw(self._solver, draw) if self.by_draw and draw else self._solver.solve()).outcome
        self.seconds.append(time.thread_time() - started)
        self.uncertified += outcome is not Outcome.CONVERGED

    @property
    def rate(self) -> float:
        """Seconds a sample, over the later half of what was measured: the first pays for set-up and for learning."""
        return statistics.fmean(self.seconds[len(self.seconds) // 2 :])

    def total(self, samples: int) -> float:
        """Seconds for so many; what was not measured is extrapolated at `rate`."""
        return math.fsum(self.seconds) + (samples - len(self.seconds)) * self.rate

    def mark(self, samples: int) -> str:
        """Put before a figure: "≥" where samples were given up (they would take longer), "~" where extrapolated."""
        return "≥" if self.uncertified else "~" if len(self.seconds) < samples else ""

    def stop(self) -> None:
        """Take no further part, and free the memory."""
        self.stopped = True
        self.destroy()

    def destroy(self) -> None:
        if self._solver is not None:
            self._solver.destroy()
            self._solver = None


def race(
    system: System, chunks: Iterable[Sequence[Draw]], contenders: Sequence[Contender], *, patience_s: float
) -> None:
    """Give every contender the same systems, chunk by chunk, every second chunk in reverse order of the contenders.

    Chunks are short, so that a slow spell of the machine hits all alike.  Assembling is not part of what is timed.
    """
    first = 0
    for turn, chunk in enumerate(chunks):
        for contender in contenders if turn % 2 == 0 else reversed(contenders):
            for position, draw in enumerate(chunk, start=first):
                if contender.stopped or position % contender.stride:
                    continue
                system.update(draw)
                contender.solve(draw)
                if math.fsum(contender.seconds) > patience_s:
                    _stop_if_slow(contender, SHORT_PROBE, contenders)
        for contender in contenders:
            _stop_if_slow(contender, PROBE, contenders)
        first += len(chunk)
    for contender in contenders:
        contender.destroy()


def _stop_if_slow(contender: Contender, probe: int, contenders: Sequence[Contender]) -> None:
    if contender.stopped or not contender.may_stop or len(contender.seconds) < probe:
        return
    rates = [c.rate for c in contenders if len(c.seconds) >= SHORT_PROBE and not c.uncertified]
    if rates and contender.rate > SLOW * min(rates):
        contender.stop()

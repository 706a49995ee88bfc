"""What solves tell about learned weights, against the classical cycle's solves of the same stream; it costs nothing.

A probe sees the first steps of an iteration.  On hard matrices, a hundred iterations and more, those say little about
the rest: of 24 streams with spoilt weights, probes alone let two white-noise streams run 1.36 and 1.55 times as long.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

LEAST = 3
"""Solves with each cycle before they are compared."""


@dataclass(slots=True)
class Watch:
    """Rates of convergence, ln(1 / relative residual) an iteration, of the solves that started from zero."""

    learned: list[float] = field(default_factory=list)
    classical: list[float] = field(default_factory=list)
    withdrawn: bool = False
    """The learned cycle was slower; it does not come back in this stream, whatever a probe says."""

    def solved(self, *, learned: bool, residual: float, iterations: int) -> None:
        """Count a solve from the zero guess, and judge."""
        if iterations == 0 or not 0 < residual < 1:
            return
        (self.learned if learned else self.classical).append(-math.log(residual) / iterations)
        if min(len(self.learned), len(self.classical)) >= LEAST and self.ratio > 1:
            self.withdrawn = True

    @property
    def ratio(self) -> float:
        """Iterations of the learned cycle over the classical one's, same reduction; NaN before both were seen."""
        if not self.learned or not self.classical:
            return math.nan
        # Means of the logarithms: samples of one stream differ by factors.
        means = [math.fsum(map(math.log, rates)) / len(rates) for rates in (self.classical, self.learned)]
        return math.exp(means[0] - means[1])

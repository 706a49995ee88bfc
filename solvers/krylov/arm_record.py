"""What is remembered of one arm: its latest costs, its failures, and when it was last tried."""

from __future__ import annotations

import math
import statistics
from dataclasses import asdict, dataclass, field
from typing import Any

Cell = tuple[int, ...]

WINDOW = 40
"""Latest costs that count; older ones say little about the present samples."""
OUTLIER = 5.0
"""A cost counts up to so many times the median: a stall of the machine is not the arm's."""
NOISE, NOISE_TRIES = 0.1, 4.0
"""Relative scatter that is expected before it has been seen, and its weight in observations."""


@dataclass(slots=True)
class ArmRecord:
    """Costs are seconds until the sample was certified, a rescue by another arm included."""

    tries: int = 0
    solved: int = 0
    failures: int = 0
    """Samples that this arm did not solve and another did."""
    cut_offs: int = 0
    """Experiments that were stopped at their cap."""
    costs: list[float] = field(default_factory=list)
    last_try: int = 0
    """Number of the sample."""
    patience: int = 0
    """Samples without a try after which it is due again."""
    faults: dict[Cell, int] = field(default_factory=dict)
    """Failures by cell of the context."""
    expected: float = math.inf
    """Mean of the costs, outliers cut; infinite before the first."""
    sigma: float = math.inf
    """Standard deviation of the logarithm of `expected`."""

    @property
    def due(self) -> int:
        """Number of the sample from which another try is due."""
        return self.last_try + self.patience

    @property
    def scatter(self) -> float:
        """Standard deviation of the logarithm of one cost."""
        return self.sigma * math.sqrt(len(self.costs)) if self.costs else math.inf

    @property
    def median(self) -> float | None:
        """Of the costs that count."""
        return statistics.median(self.costs) if self.costs else None

    def add(self, cost: float) -> None:
        """One more cost; the second replaces the first, which paid for setting up."""
        if self.tries == 2:
            self.costs.clear()
        self.costs.append(cost)
        if len(self.costs) > WINDOW:
            del self.costs[0]
        self._estimate()

    def restart(self) -> None:
        """Forget the costs."""
        self.costs.clear()

    def _estimate(self) -> None:
        limit = OUTLIER * statistics.median(self.costs)
        cut = [cost if cost < limit else limit for cost in self.costs]
        mean = sum(cut) / len(cut)
        squares = sum([(cost / mean - 1.0) ** 2 for cost in cut]) if mean > 0 else 0.0
        variance = (NOISE_TRIES * NOISE**2 + squares) / (NOISE_TRIES + len(cut) - 1)
        self.expected, self.sigma = mean, math.sqrt(variance / len(cut))

    def state(self) -> dict[str, Any]:
        """Plain JSON values."""
        found = asdict(self)
        found["faults"] = [[list(cell), count] for cell, count in self.faults.items()]
        found["expected"] = found["sigma"] = None
        return found

    @classmethod
    def restored(cls, state: dict[str, Any]) -> ArmRecord:
        """From `state()`."""
        faults = {tuple(cell): count for cell, count in state["faults"]}
        record = cls(**{**state, "faults": faults, "expected": math.inf, "sigma": math.inf})
        if record.costs:
            record._estimate()
        return record

"""A race of linear solvers over a sequence of systems, its figures, and what failures make of them."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from common import number
from sequences import SystemSequence

FAILURES = 4
"""A contender whose first systems all fail is not sent on: every further one would only cost the cap again."""


@dataclass(frozen=True, slots=True)
class Solved:
    """One system of one contender."""

    seconds: float
    """Processor time."""
    iterations: int
    products: int
    """With A, those of certification included; 0 for a direct method."""
    residual: float
    """True relative residual, recomputed from the returned solution for every contender alike."""
    certified: bool
    """`residual` is within rtol; if not, the run met its cap or broke down, and `seconds` says too little."""


class Contender(Protocol):
    """Solves the present system of a sequence; what it carries from one system to the next is its own."""

    name: str
    in_order: bool
    """Takes the systems along the path of near neighbours."""

    def solve(self) -> Solved:
        """Set up, solve, certify."""
        ...

    def destroy(self) -> None:
        """Free PETSc's side."""
        ...


@dataclass(frozen=True, slots=True)
class Runs:
    """All systems of one contender."""

    solved: tuple[Solved, ...]

    @property
    def failures(self) -> int:
        """Systems that met the cap or broke down."""
        return sum(not run.certified for run in self.solved)

    @property
    def mean(self) -> float:
        """Seconds a system: the total, the building up of a recycle space included, over their number."""
        return statistics.fmean(run.seconds for run in self.solved)

    @property
    def median(self) -> float:
        """Seconds of the middle system."""
        return statistics.median(run.seconds for run in self.solved)

    @property
    def iterations(self) -> float:
        """Median."""
        return statistics.median(run.iterations for run in self.solved)

    @property
    def mean_iterations(self) -> float:
        """Mean; failed systems enter with what they made."""
        return statistics.fmean(run.iterations for run in self.solved)

    @property
    def products(self) -> float:
        """Median."""
        return statistics.median(run.products for run in self.solved)

    @property
    def worst(self) -> float:
        """Largest true relative residual of the certified systems, else of all."""
        return max((r.residual for r in self.solved if r.certified), default=max(r.residual for r in self.solved))

    def milliseconds(self) -> str:
        """Mean, marked as a lower bound where a system failed."""
        return (">" if self.failures else "") + number(1e3 * self.mean)


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times longer the first took than the second, by means."""

    value: float
    bound: Literal["", ">", "<", "?"]
    """">": the first failed on systems, so it is at least this; "<": the second did, at most; "?": both did."""

    @classmethod
    def of(cls, first: Runs, second: Runs) -> Ratio:
        """Time of the first over time of the second."""
        bounds: dict[tuple[bool, bool], Literal["", ">", "<", "?"]]
        bounds = {(False, False): "", (True, False): ">", (False, True): "<", (True, True): "?"}
        return cls(first.mean / second.mean, bounds[first.failures > 0, second.failures > 0])

    def __str__(self) -> str:
        return "?" if self.bound == "?" else f"{self.bound}{number(self.value)}"


def race(sequence: SystemSequence, contenders: Sequence[Contender], systems: Mapping[str, int]) -> dict[str, Runs]:
    """The contenders over the sequence, system by system, in an order that rotates from one system to the next.

    `systems` says how many of the sequence each of them solves, spread evenly: whoever carries nothing from one system
    to the next needs fewer for the same mean.  The number is fixed beforehand, since to stop by the time spent would
    favour ends after slow systems; only who fails on all of the first `FAILURES` stops there.
    """
    runs: dict[str, list[Solved]] = {contender.name: [] for contender in contenders}
    hopeless: set[str] = set()
    for turn in range(len(sequence)):
        racing = [c for c in contenders if c.name not in hopeless and _is_due(turn, systems[c.name], len(sequence))]
        shift = turn % max(len(racing), 1)
        for contender in racing[shift:] + racing[:shift]:
            sequence.select(int(sequence.order[turn]) if contender.in_order else turn)
            solved = runs[contender.name]
            solved.append(contender.solve())
            if len(solved) == FAILURES and not any(run.certified for run in solved):
                hopeless.add(contender.name)
    return {name: Runs(tuple(solved)) for name, solved in runs.items()}


def _is_due(turn: int, wanted: int, count: int) -> bool:
    """Is this one of `wanted` turns spread over `count`, the first among them?"""
    return turn == 0 or (turn * wanted) // count > ((turn - 1) * wanted) // count


DETAILS = ("contender", "systems", "failed", "iterations", "products", "ms, mean", "ms, median", "worst residual")


def details(rows: Iterable[tuple[str, Runs]]) -> list[tuple[object, ...]]:
    """Rows under `DETAILS`."""
    return [
        (
            name,
            len(runs.solved),
            runs.failures,
            number(runs.iterations),
            number(runs.products),
            runs.milliseconds(),
            number(1e3 * runs.median),
            f"{runs.worst:.1e}",
        )
        for name, runs in rows
    ]

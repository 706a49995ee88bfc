"""Values that a choice between arms is made from: its rules, the outlook for one sample, and the sample in hand."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from forebay.solvers.krylov.arm_record import Cell

Reason = Literal["first try", "second try", "another try", "policy"]

CUT_OFF = 0.9
"""An attempt without result that took so much of its cap was stopped by it; solvers look at the clock now and then."""


@dataclass(frozen=True, slots=True)
class Rules:
    """Bounds on what learning may cost."""

    behind: float = 2.0
    """An arm beyond so many times the best cost is parked; tries of arms that are not the best are stopped there."""
    budget: float = 0.03
    """Share of all seconds that tries of slow arms may cost, the start included."""
    start: float = 20.0
    """What second tries may cost on top of the budget, in samples of the best arm."""
    patience: int = 200
    """Samples after which an arm that was not chosen is due again; doubles each time."""
    optimism: float = 0.75
    """Of the policy "optimistic": standard deviations, times √(log samples), by which costs may be better than seen."""

    def __post_init__(self) -> None:
        good = (self.behind > 1, 0 <= self.budget < 1, self.start >= 0, self.patience >= 1, self.optimism >= 0)
        if not all(good):
            raise ValueError(
                f"{self} cannot work: behind must exceed 1, budget lie in [0, 1), start and optimism be at least 0 and "
                f"patience at least 1; leave them out for the defaults"
            )


@dataclass(frozen=True, slots=True)
class Outlook:
    """What the arms are expected to cost on one sample."""

    context: tuple[float, ...]
    cell: Cell
    usable: tuple[int, ...]
    """Arms that did not fail twice on like samples; all, if there are none."""
    expected: tuple[float, ...]
    sigma: tuple[float, ...]
    """Standard deviation of log expected."""
    leader: int
    """Usable arm of least expected cost."""

    @property
    def best(self) -> float:
        """Cost expected of the leader; infinite before the first."""
        return self.expected[self.leader]


@dataclass(slots=True)
class Trial:
    """The sample in hand: which arm was chosen for it, and what was attempted since."""

    context: tuple[float, ...]
    cell: Cell
    arm: int
    reason: Reason
    best: float | None
    """Cost expected of the best known arm."""
    cap: float | None
    expected: float | None
    """Cost expected of the chosen arm; None before its first try."""
    attempts: list[tuple[int, float, bool]] = field(default_factory=list)
    """(arm, seconds, converged)."""

    @property
    def solved(self) -> bool:
        """Did the last attempt converge?"""
        return bool(self.attempts) and self.attempts[-1][2]

    @property
    def stopped(self) -> bool:
        """Was the first attempt stopped at its cap?"""
        if self.cap is None or not self.attempts:
            return False
        arm, seconds, converged = self.attempts[0]
        return arm == self.arm and not converged and seconds >= CUT_OFF * self.cap

    def state(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def restored(cls, state: dict[str, Any]) -> Trial:
        """From `state()`."""
        attempts = [(arm, seconds, converged) for arm, seconds, converged in state["attempts"]]
        context, cell = tuple(state["context"]), tuple(state["cell"])
        return cls(**{**state, "context": context, "cell": cell, "attempts": attempts})

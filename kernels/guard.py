"""Learned weights are never trusted: a short probe compares them with the classical cycle and drops the slower one.

Plain numbers in, a verdict out; no torch, so that every backend decides by the same rule.

The probe: conjugate gradients for `PROBE_STEPS` steps with either cycle, on b = A x with a random x that is known, so
that the error is, too.  The *contraction* is the geometric mean of the reduction of ‖error‖_A by one step, which leaves
out the first `PROBE_SKIP` steps: they remove what any smoother removes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

PROBE_STEPS = 6
"""Steps of a probe with each of the two cycles."""
PROBE_SKIP = 2
"""Steps at its beginning that are not counted."""
ROUNDING = 1e-16
"""Of the first energy: below, a probe measures rounding, and the system counts as solved."""
_SMALLEST = 1e-16
"""Of a contraction in a logarithm."""
_REDUCTION = 1e-8
"""Of the residual in a typical solve."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What the guard found."""

    learned: bool
    """Use the learned cycle; False: fall back to the classical one."""
    ratio: float
    """Expected time of the learned cycle over the classical one's for the same reduction; inf if it is unusable."""
    reason: str
    """One sentence for the record."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Of setting either cycle up, in iterations of a solve: on one device, for one kind of systems."""

    classical: float
    learned: float

    def ratio(self, classical: float, *, solves: float = 1) -> float:
        """Time with the learned set-up over that with the classical one at equal iterations, as `decide` takes it.

        Args:
            classical: contraction of the classical cycle, which says how many iterations a solve takes.
            solves: right-hand sides that one set-up serves; inf: it costs nothing.
        """
        if math.isinf(solves) or not 0 < classical < 1:
            return 1.0
        iterations = solves * max(1.0, math.log(_REDUCTION) / math.log(classical))
        return (self.learned + iterations) / (self.classical + iterations)


def contraction(energies: Sequence[float]) -> float:
    """Mean reduction by step of ‖error‖_A from ‖error‖²_A after 0, 1, 2, ... steps; 0 if solved, NaN if not finite.

    Raises:
        ValueError: too few steps.
    """
    if len(energies) < PROBE_SKIP + 2:
        raise ValueError(
            f"a probe of {len(energies) - 1} steps; it needs at least {PROBE_SKIP + 1}, since the first {PROBE_SKIP} "
            f"are not counted"
        )
    if not all(math.isfinite(energy) for energy in energies):
        return math.nan
    floor = ROUNDING * energies[0]
    first, last = max(energies[PROBE_SKIP], floor), max(energies[-1], floor)
    if last <= floor:
        return 0.0
    return (last / first) ** (0.5 / (len(energies) - 1 - PROBE_SKIP))


def decide(learned: float, classical: float, *, cost_ratio: float = 1.0) -> Decision:
    r"""Compare what both cycles cost for the same reduction: cost_ratio · ln ρ_classical / ln ρ_learned.

    Args:
        learned: ρ_learned, contraction of the learned cycle in [0, 1).
        classical: ρ_classical, that of the classical cycle.
        cost_ratio: time of an iteration with the learned cycle over one with the classical; what the learned set-up
            costs more, spread over the iterations it serves, belongs in it.

    Raises:
        ValueError: a cost ratio that is not positive.
    """
    if not (math.isfinite(cost_ratio) and cost_ratio > 0):
        raise ValueError(f"cost_ratio = {cost_ratio:g}; it is a ratio of times and must be positive, 1 for equal cost")
    if not 0 <= learned < 1:
        return Decision(False, math.inf, f"the learned cycle does not converge: contraction {learned:.3g}")
    if not 0 <= classical < 1:
        return Decision(True, 0.0, f"the classical cycle does not converge: contraction {classical:.3g}")
    rate_learned, rate_classical = (-math.log(max(value, _SMALLEST)) for value in (learned, classical))
    ratio = cost_ratio * rate_classical / rate_learned
    better = ratio <= 1
    verdict = "no slower than" if better else "slower than"
    return Decision(
        better,
        ratio,
        f"learned {verdict} classical: contraction {learned:.3g} against {classical:.3g}, time x {ratio:.2f}",
    )


UNPROBED = Decision(False, math.inf, "not probed yet")


@dataclass(slots=True)
class Probation:
    """When to probe in a stream of systems, and what holds in between; probes may cost a share `budget` of the solving.

    The classical cycle serves until the first probe is paid for, so the stream is never slower than with it alone by
    more than the budget, plus what the drift between two probes costs.  All costs are in iterations, a unit that both
    cycles share.
    """

    budget: float = 0.05
    """Largest share of the iterations that may be spent on probing, in (0, 1]."""
    spent: float = 0.0
    """Iterations of probes so far."""
    solved: float = 0.0
    """Iterations of solves so far."""
    decision: Decision = UNPROBED
    """What holds now."""

    def __post_init__(self) -> None:
        """Check the budget.

        Raises:
            ValueError: outside of (0, 1].
        """
        if not 0 < self.budget <= 1:
            raise ValueError(f"budget = {self.budget:g}; it is a share of the work and lies in (0, 1], 0.05 is good")

    def due(self, cost: float = 2 * PROBE_STEPS) -> bool:
        """Whether a probe of `cost` iterations may be run now."""
        return self.spent + cost <= self.budget * self.solved

    def probed(self, decision: Decision, cost: float = 2 * PROBE_STEPS) -> None:
        """A probe was run: its verdict holds from now on."""
        self.spent += cost
        self.decision = decision

    def advanced(self, iterations: float) -> None:
        """A system was solved."""
        self.solved += iterations

"""Tsallis-INF: a bandit that is good against random costs and against costs that change while it learns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

OUTLIER = 5.0
"""A loss counts up to so many times the mean loss so far."""


class TsallisInf:
    """Follow the regularised leader with the Tsallis entropy of order 1/2, for losses in [0, ∞) of any unit.

    In round t, arm i is drawn with probability wᵢ = 4 / (η (L̂ᵢ - x))², η = 4/√t, where x makes Σ wᵢ = 1 (Newton's
    iteration), and L̂ᵢ += 1[i drawn] (ℓᵢ - Bᵢ) / wᵢ + Bᵢ with Bᵢ = 1/2 where wᵢ >= η², else 0: the importance-weighted
    estimator of reduced variance.  The regret is O(√(arms t)) against anything and O(log t) against random losses,
    and t need not be known in advance.

    Source: Zimmert & Seldin, arXiv 1807.07623, algorithm 1 and section 4.1; used for solver parameters by Khodak et
    al., arXiv 2310.02246.  Differs from them: seconds have no known bound, so losses are divided by their running mean,
    all earlier ones by the same number (as the scripts of Khodak et al. do), and cut at `OUTLIER` means, since they
    are heavy-tailed; the guarantees hold for losses below one mean only.  To cut at three medians of the best arm, and
    so stay in [0, 1], took 1.59 times the iterations of the best fixed ω for SOR in `examples/learning_to_relax.py`,
    cutting at five means 1.09: where costs come in easy and hard phases, the hard ones were all cut.  Arms that are
    left out of a draw are charged the loss of the arm that was drawn, as sleeping experts are.  Newton starts from a
    bound instead of the previous x, so that the state is the sums alone.
    """

    def __init__(self, arms: int, *, seed: int) -> None:
        require_arms(arms)
        self.arms = arms
        self.rounds = 0
        """Losses seen, t - 1."""
        self._sums = [0.0] * arms
        self._total = 0.0
        self._drawn: int | None = None
        self._weights_drawn: dict[int, float] = {}
        self._generator = np.random.default_rng(seed)

    @property
    def scale(self) -> float:
        """The loss that counts as 1, in the unit of the losses: their mean; 1 before the first."""
        return (self._total / self.rounds if self.rounds else 0.0) or 1.0

    @property
    def probabilities(self) -> tuple[float, ...]:
        """Of each arm in the next draw from all of them."""
        return self._weights(range(self.arms))

    def choose(self, among: Sequence[int] | None = None) -> int:
        """Draw an arm, from all or from some of them."""
        arms = range(self.arms) if among is None else among
        weights = self._weights(arms)
        position = draw(self._generator, weights)
        self._drawn, self._weights_drawn = arms[position], dict(zip(arms, weights, strict=True))
        return self._drawn

    def observe(self, arm: int, loss: float) -> None:
        """The loss of the arm drawn last.

        Raises:
            ValueError: another arm, or a loss that is negative, NaN or infinite.
        """
        require_loss(loss)
        if self._drawn != arm:
            raise ValueError(f"arm {arm} was not drawn; observe each draw of `choose` once, before the next")
        threshold, weights = self._rate**2, self._weights_drawn
        if self._total > 0:
            loss = min(loss, OUTLIER * self.scale)
        half = 0.5 * self.scale
        self._total += loss
        self.rounds += 1
        for other in range(self.arms):
            weight = weights.get(other)
            baseline = half if weight is not None and weight >= threshold else 0.0
            if weight is None:
                self._sums[other] += loss
            else:
                self._sums[other] += baseline + (other == arm) * (loss - baseline) / weight
        self._drawn = None

    @property
    def _rate(self) -> float:
        return 4.0 / math.sqrt(self.rounds + 1)

    def _weights(self, arms: Sequence[int]) -> tuple[float, ...]:
        """Solve Σ 4 / (η (Lᵢ - x))² = 1 for x < min L; convex there, so that Newton approaches from one side."""
        scale, rate = self.scale, self._rate
        sums = [self._sums[arm] / scale for arm in arms]
        least = min(sums)
        # Right for one arm alone, so not left of the root: from here Newton cannot step over the pole at `least`.
        x = least - 2.0 / rate
        for _ in range(50):
            roots = [2.0 / (rate * (total - x)) for total in sums]
            surplus = math.fsum(root * root for root in roots) - 1.0
            if surplus < 1e-14:
                break
            x -= surplus / (rate * math.fsum(root**3 for root in roots))
        total = math.fsum(root * root for root in roots)
        return tuple(root * root / total for root in roots)

    def state(self) -> dict[str, Any]:
        """Everything, as plain JSON values; `restore` continues with the same draws."""
        return {
            "rounds": self.rounds,
            "sums": list(self._sums),
            "total": self._total,
            "drawn": self._drawn,
            "weights": list(self._weights_drawn.items()),
            "generator": self._generator.bit_generator.state,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state()` of an object with as many arms."""
        require_same_arms(len(state["sums"]), self.arms)
        self.rounds = state["rounds"]
        self._sums = list(state["sums"])
        self._total = state["total"]
        self._drawn = state["drawn"]
        self._weights_drawn = dict(state["weights"])
        self._generator.bit_generator.state = state["generator"]


def draw(generator: np.random.Generator, weights: Sequence[float]) -> int:
    """A position drawn with these probabilities, from one uniform number."""
    left = generator.random() * math.fsum(weights)
    for position, weight in enumerate(weights):
        left -= weight
        if left < 0:
            return position
    return max(range(len(weights)), key=weights.__getitem__)


def require_arms(arms: int) -> None:
    """Refuse a choice between nothing."""
    if arms < 1:
        raise ValueError(f"a choice between {arms} arms; give at least one")


def require_loss(loss: float) -> None:
    """Refuse what no clock shows."""
    if not 0.0 <= loss < math.inf:
        raise ValueError(f"a loss of {loss} is not a finite number >= 0; pass the seconds that were spent")


def require_same_arms(saved: int, arms: int) -> None:
    """Refuse a state that belongs to another list of arms."""
    if saved != arms:
        raise ValueError(f"the saved state has {saved} arms, this object {arms}; restore it with the same list of arms")

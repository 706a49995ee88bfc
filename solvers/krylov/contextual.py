"""A bandit that predicts every arm's cost from features of the system at hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from forebay.solvers.krylov.tsallis_inf import draw, require_arms, require_loss, require_same_arms

DEGREE = 3
"""Of the Chebyshev polynomials in each feature."""
NOISE = 0.1
"""Expected scatter of one arm's log seconds about the fit."""
NOISE_TRIES = 4.0
"""Weight of that expectation, in observations."""
PRIOR_SCALES = (3.0, 1.0, 0.4, 0.2)
"""Expected size of the coefficients of T₀ ... T₃ in log seconds; seldom is a factor of 7 linear in a feature."""
FORGETTING = 0.995
"""Weight of an observation after one more of the same arm: a memory of 200."""
GREED = 0.5
"""Growth of the weight of the gaps with each round."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """Of one arm in one context."""

    expected: float
    """exp of the mean log loss, in the unit of the losses; NaN before the arm's first observation."""
    sigma: float
    """Standard deviation of the mean log loss."""
    scatter: float
    """Standard deviation of one log loss about its mean."""


_UNKNOWN = Prediction(math.nan, math.inf, math.inf)


class Contextual:
    """Bayesian ridge regression of log losses on Chebyshev polynomials, and inverse-gap weighting of the arms.

    Context c in [-1, 1]^features; arm i costs exp(θᵢ·φ(c) + noise), φ = (1, T₁(c₁) ... T₃(c₁), T₁(c₂) ...).  With the
    predicted costs y and the best arm b, arm i is drawn with probability 1 / (arms + γ (yᵢ/y_b - 1)), arm b with the
    rest; γ grows linearly with the round.  Arms without an observation come first, in order.

    Source: ChebCB of Khodak et al., arXiv 2310.02246, section 4, which is SquareCB (Foster & Rakhlin, arXiv
    2002.04926) with Chebyshev regression.  Differs from it: several features (additive); logarithms, because seconds
    are positive and span decades, so that gaps are relative; ridge regression with a prior instead of least squares in
    a box; old observations fade, so that drift is followed.

    Good values: features that act on the cost monotonically (log of size, of contrast, wavenumber), at most five.
    """

    def __init__(self, arms: int, features: int, *, seed: int) -> None:
        require_arms(arms)
        if features < 0:
            raise ValueError(f"{features} features; give the number of entries of a context, 0 for none")
        self.arms, self.features = arms, features
        self.rounds = 0
        size = 1 + DEGREE * features
        scales = np.array([PRIOR_SCALES[0], *PRIOR_SCALES[1:] * features])
        self._prior = np.diag((NOISE / scales) ** 2)
        self._grams = np.zeros((arms, size, size))
        self._moments = np.zeros((arms, size))
        self._squares, self._counts = np.zeros(arms), np.zeros(arms)
        self._origin: float | None = None
        self._theta = np.zeros((arms, size))
        self._covariance = np.zeros((arms, size, size))
        self._noise = [NOISE**2] * arms
        self._generator = np.random.default_rng(seed)

    def probabilities(self, context: Sequence[float] = (), among: Sequence[int] | None = None) -> tuple[float, ...]:
        """Of each arm (of `among`, in its order) in the next draw in this context."""
        arms = range(self.arms) if among is None else among
        expected = [prediction.expected for prediction in self.predict(context)]
        unknown = [position for position, arm in enumerate(arms) if not self._counts[arm]]
        if unknown:
            return tuple(float(position == unknown[0]) for position in range(len(arms)))
        best = min(range(len(arms)), key=lambda position: expected[arms[position]])
        greed = GREED * self.rounds
        weights = [1.0 / (len(arms) + greed * (expected[arm] / expected[arms[best]] - 1.0)) for arm in arms]
        weights[best] = 0.0
        weights[best] = 1.0 - math.fsum(weights)
        return tuple(weights)

    def choose(self, context: Sequence[float] = (), among: Sequence[int] | None = None) -> int:
        """Draw an arm for a system with this context, from all or from some of them.

        Raises:
            ValueError: a context of another length, or with NaN or inf.
        """
        arms = range(self.arms) if among is None else among
        return arms[draw(self._generator, self.probabilities(context, arms))]

    def predict(self, context: Sequence[float] = ()) -> list[Prediction]:
        """Of every arm."""
        basis = self._basis(context)
        means = self._theta @ basis + (self._origin or 0.0)
        variances = (self._covariance @ basis) @ basis
        rows = zip(means.tolist(), variances.tolist(), self._noise, self._counts.tolist(), strict=True)
        return [
            Prediction(math.exp(mean), math.sqrt(variance), math.sqrt(noise)) if count else _UNKNOWN
            for mean, variance, noise, count in rows
        ]

    def observe(self, arm: int, loss: float, context: Sequence[float] = ()) -> None:
        """What an arm cost in a context; it need not have been drawn.

        Raises:
            ValueError: a loss that is negative, NaN or infinite; a context of another length, or with NaN or inf.
        """
        require_loss(loss)
        basis = self._basis(context)
        value = math.log(max(loss, 1e-12))
        if self._origin is None:
            self._origin = value
        value -= self._origin
        self._grams[arm] = FORGETTING * self._grams[arm] + np.outer(basis, basis)
        self._moments[arm] = FORGETTING * self._moments[arm] + value * basis
        self._squares[arm] = FORGETTING * self._squares[arm] + value**2
        self._counts[arm] = FORGETTING * self._counts[arm] + 1.0
        self._fit(arm)
        self.rounds += 1

    def forget(self, arm: int) -> None:
        """Drop what is known of an arm, because it has changed."""
        self._grams[arm], self._moments[arm], self._squares[arm], self._counts[arm] = 0.0, 0.0, 0.0, 0.0

    def _fit(self, arm: int) -> None:
        """Posterior mean and covariance; the noise is that of the residuals, with `NOISE` as its prior."""
        covariance = np.linalg.inv(self._prior + self._grams[arm])
        theta = covariance @ self._moments[arm]
        residual = max(0.0, float(self._squares[arm] - theta @ self._moments[arm]))
        noise = (NOISE_TRIES * NOISE**2 + residual) / (NOISE_TRIES + float(self._counts[arm]))
        self._theta[arm], self._covariance[arm], self._noise[arm] = theta, noise * covariance, noise

    def _basis(self, context: Sequence[float]) -> np.ndarray:
        """φ(c)."""
        require_context(context, self.features)
        values = [1.0]
        for feature in context:
            angle = math.acos(min(1.0, max(-1.0, feature)))
            values += [math.cos(k * angle) for k in range(1, DEGREE + 1)]
        return np.array(values)

    def state(self) -> dict[str, Any]:
        """Everything, as plain JSON values; `restore` continues with the same draws."""
        return {
            "rounds": self.rounds,
            "origin": self._origin,
            "grams": self._grams.tolist(),
            "moments": self._moments.tolist(),
            "squares": self._squares.tolist(),
            "counts": self._counts.tolist(),
            "generator": self._generator.bit_generator.state,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state()` of an object with as many arms and features."""
        require_same_arms(len(state["grams"]), self.arms)
        grams = np.array(state["grams"])
        if grams.shape != self._grams.shape:
            raise ValueError(
                f"the saved state has {(grams.shape[1] - 1) // DEGREE} features, this object {self.features}; restore "
                f"it with the same features"
            )
        self.rounds, self._origin, self._grams = state["rounds"], state["origin"], grams
        self._moments, self._squares = np.array(state["moments"]), np.array(state["squares"])
        self._counts = np.array(state["counts"])
        self._generator.bit_generator.state = state["generator"]
        for arm in range(self.arms):
            self._fit(arm)


def require_context(context: Sequence[float], features: int) -> None:
    """Refuse a context that does not belong to the choice.

    Raises:
        ValueError: another length, or NaN or inf.
    """
    if len(context) != features:
        raise ValueError(f"a context of {len(context)} entries where {features} features were announced; pass one each")
    if not all(map(math.isfinite, context)):
        raise ValueError(f"the context {tuple(context)} holds NaN or inf; leave such a sample to the safe arm")

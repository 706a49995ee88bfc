"""From indicators to errors: what indicators meant where the true errors were known.

Log-linear regression with a conformal shift: the estimate of a step is to be above its true error in `level` of the
cases, and not far above.  Differs from Casenave & Akkari, Math. Comput. Appl. 24(2):41 (2019), who calibrate one
indicator by the largest ratio: one bad pair would make all estimates useless.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

CAPACITY = 500
"""Latest pairs that are kept: after an enrichment of the basis the old ones say less every time."""
SLOPES = (0.5, 1.0)
"""Exponents that are believed.

Scatter in the indicators flattens a regression, and a flat law would not warn outside of the training range, which is
what it is for.  A steep one underestimates wherever the indicators are smaller than those of the calibration, and they
are when that was made by leaving runs out: with exponents to 1.5 half of the errors of p were above their estimates.
"""
ENOUGH = 12
"""Pairs from which the exponent is fitted; it is 1 before."""
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares of the other indicator in the combination that are tried."""
LEAST = 1e-2
"""Combinations below this times their upper quartile are rounding, or an elastic step: all count as this."""


@dataclass(frozen=True, slots=True)
class Indicators:
    """What one reduced step says about itself; both are relative, and inf where they could not be computed."""

    gappy: float
    """ρ = |P z - p| / |p| over the points of the package; 0 while the material is elastic."""
    equilibrium: float
    """|Δ| / |u|: the displacement that the test modes would still add."""


@dataclass(frozen=True, slots=True)
class ErrorLaw:
    """error = factor · cᵇ with c = `gappy` · ρ + `equilibrium` · δ, held at its least value below `least`.

    Beyond `most`, the largest c that was seen, it grows with the exponent max(b, 1).  Monotone in both indicators.
    """

    gappy: float
    equilibrium: float
    slope: float = 1.0
    factor: float = 1.0
    least: float = 0.0
    most: float = math.inf

    def __call__(self, gappy: float, equilibrium: float) -> float:
        """The error for two indicators."""
        combined = max(self.gappy * gappy + self.equilibrium * equilibrium, self.least)
        if combined <= self.most:
            return float(self.factor * combined**self.slope)
        return float(self.factor * self.most**self.slope * (combined / self.most) ** max(self.slope, 1.0))


@dataclass(frozen=True, slots=True)
class Quality:
    """How estimates compare with true errors; pairs without a true error do not count."""

    coverage: float
    """Share of the pairs whose estimate is at least the true error; NaN without pairs."""
    median_ratio: float
    """Median of estimate / true error: 1 ... 3 is sharp."""


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """Pairs of indicators and true errors, and the two error laws that follow from them.

    For each error, log e = log a + b log c is fitted with c a combination of both indicators, the one of least scatter
    among `SHARES`, and b within `SLOPES`.  The law is then shifted up to the ⌈(N + 1) level⌉-th smallest residual of N
    pairs: the conformal quantile, which covers `level` of new pairs where these are exchangeable with the old.  Steps
    of one simulation resemble each other, so give pairs of several histories, and of held-out ones if there are any:
    on its training histories a reduced model is better than elsewhere.  Without pairs an estimate is its indicator.

    Beyond the training the displacement's estimate is optimistic: a step's lack of equilibrium does not tell what
    earlier steps left in the internal variables.  Necked bar, 3,675 unknowns, 4 training histories: on 3 others in
    range 97 to 100 % covered, median ratio 1.6 to 2.0 (p: 100 %, 2.8 to 3.3); on 2 far outside, estimates were 0.3 to
    0.5 of displacement errors of up to 2 and 4 %, and 2 to 4 times errors of 18 and 17 % of p.  Hence judge by both.

    Raises:
        ValueError: pairs of another shape, negative or not finite, or a level or least outside of [0, 1].
    """

    pairs: np.ndarray = field(default_factory=lambda: np.empty((0, 4)))
    """(N, 4): gappy, equilibrium, true relative error of the displacement, and of p; the newest last."""
    level: float = 0.93
    least: float = LEAST
    """As `LEAST`, for displacements; in [0, 1].

    Within the range of the training the errors of displacement of different runs hardly differ, while their indicators
    do: 1/3 keeps small indicators from promising too much; a model that still learns would be held back by it.
    """
    displacement: ErrorLaw = field(init=False)
    p: ErrorLaw = field(init=False)

    def __post_init__(self) -> None:
        pairs = np.array(self.pairs, float)
        if pairs.ndim != 2 or pairs.shape[1] != 4:
            raise ValueError(
                f"pairs of shape {pairs.shape}; give (N, 4): gappy, equilibrium, displacement error, p error"
            )
        if not (np.isfinite(pairs).all() and (pairs >= 0).all()):
            raise ValueError("pairs hold negative values, NaN or inf; leave out steps without finite indicators")
        if not 0.0 < self.level < 1.0:
            raise ValueError(f"level {self.level} must lie in (0, 1); 0.90 ... 0.95 is good")
        if not 0.0 <= self.least <= 1.0:
            raise ValueError(f"least {self.least} must lie in [0, 1]; {LEAST} is usual, 1/3 careful")
        pairs = pairs[-CAPACITY:]
        pairs.setflags(write=False)
        object.__setattr__(self, "pairs", pairs)
        object.__setattr__(self, "displacement", _fit(pairs, pairs[:, 2], "equilibrium", self.level, self.least))
        object.__setattr__(self, "p", _fit(pairs, pairs[:, 3], "gappy", self.level, LEAST))

    def update(self, pairs: np.ndarray) -> Calibration:
        """With more pairs (N, 4); the oldest are dropped beyond `CAPACITY`."""
        return Calibration(np.vstack([self.pairs, pairs]), self.level, self.least)

    def estimate(self, indicators: Indicators) -> tuple[float, float]:
        """Relative errors of displacement and p; inf for an indicator that is inf or NaN."""
        gappy, equilibrium = indicators.gappy, indicators.equilibrium
        if not (math.isfinite(gappy) and math.isfinite(equilibrium)):
            return math.inf, math.inf
        return self.displacement(gappy, equilibrium), self.p(gappy, equilibrium)

    def quality(self, pairs: np.ndarray) -> tuple[Quality, Quality]:
        """Of the estimates of displacement and p on pairs (N, 4), best those that were held out."""
        return _quality(self.displacement, pairs, 2), _quality(self.p, pairs, 3)


def _quality(law: ErrorLaw, pairs: np.ndarray, column: int) -> Quality:
    pairs = pairs[pairs[:, column] > 0]
    if not len(pairs):
        return Quality(np.nan, np.nan)
    ratios = np.array([law(gappy, equilibrium) for gappy, equilibrium in pairs[:, :2]]) / pairs[:, column]
    return Quality(float(np.mean(ratios >= 1.0)), float(np.median(ratios)))


def _fit(pairs: np.ndarray, errors: np.ndarray, own: str, level: float, floor: float) -> ErrorLaw:
    """The law of least scatter; where nothing better is found, the error's `own` indicator."""
    gappy, equilibrium, errors = pairs[errors > 0, 0], pairs[errors > 0, 1], errors[errors > 0]
    shares = SHARES if len(errors) >= ENOUGH else SHARES[:1]
    fits = [_fit_one(mix, gappy, equilibrium, errors, level, floor) for mix in _mixes(gappy, equilibrium, own, shares)]
    found = [fit for fit in fits if fit is not None]
    if found:
        return min(found, key=lambda fit: fit[0])[1]
    return ErrorLaw(gappy=float(own == "gappy"), equilibrium=float(own == "equilibrium"))


def _mixes(gappy: np.ndarray, equilibrium: np.ndarray, own: str, shares: Iterable[float]) -> list[ErrorLaw]:
    scales = [_upper_quartile(values) or 1.0 for values in (gappy, equilibrium)]
    of_gappy = [1.0 - share if own == "gappy" else share for share in shares]
    return [ErrorLaw(gappy=share / scales[0], equilibrium=(1.0 - share) / scales[1]) for share in of_gappy]


def _fit_one(
    mix: ErrorLaw, gappy: np.ndarray, equilibrium: np.ndarray, errors: np.ndarray, level: float, floor: float
) -> tuple[float, ErrorLaw] | None:
    """Scatter and law of one combination; None where it is zero for all pairs."""
    combined = mix.gappy * gappy + mix.equilibrium * equilibrium
    least = floor * _upper_quartile(combined)
    if least == 0.0:
        return None
    x, y = np.log(np.maximum(combined, least)), np.log(errors)
    slope = _slope(x, y)
    residuals = np.sort(y - slope * x)
    rank = min(int(np.ceil((len(y) + 1) * level)), len(y))
    law = ErrorLaw(
        mix.gappy, mix.equilibrium, slope, float(np.exp(residuals[rank - 1])), least, float(np.exp(np.max(x)))
    )
    return float(np.std(residuals)), law


def _slope(x: np.ndarray, y: np.ndarray) -> float:
    spread = float(np.sum((x - x.mean()) ** 2))
    if len(x) < ENOUGH or spread == 0.0:
        return 1.0
    return float(np.clip(np.sum((x - x.mean()) * (y - y.mean())) / spread, *SLOPES))


def _upper_quartile(values: np.ndarray) -> float:
    positive = values[values > 0]
    return float(np.quantile(positive, 0.75)) if len(positive) else 0.0

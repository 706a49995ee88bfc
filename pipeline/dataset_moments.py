"""Mean, deviation, extremes and percentiles of float32 values that are seen once, in parts, and merged.

Percentiles come from a histogram over the upper 16 bits of each value: sign, exponent and 7 bits of the mantissa, in
an order that is that of the values.  Within a bucket they are interpolated, so a percentile is off by less than its
bucket is wide, 2⁻⁷ = 0.8 % of the value itself, whatever the scale; half a MiB holds the histogram.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

PERCENTILES = (1.0, 5.0, 25.0, 50.0, 75.0, 95.0, 99.0)
_BUCKETS = 2**16


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Of some values; `merged` with others it is as if all had been seen together."""

    count: int
    mean: float
    square: float
    """Sum of squared deviations from the mean."""
    minimum: float
    maximum: float
    histogram: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray) -> Moments:
        """Of finite float32 values of any shape; sums are made in float64."""
        flat = np.ascontiguousarray(values, np.float32).reshape(-1)
        if not flat.size:
            return cls(0, 0.0, 0.0, math.inf, -math.inf, np.zeros(_BUCKETS, np.int64))
        mean = float(flat.mean(dtype=np.float64))
        deviations = flat.astype(np.float64)
        deviations -= mean
        buckets = np.bincount(_bucket(flat), minlength=_BUCKETS)
        return cls(flat.size, mean, float(deviations @ deviations), float(flat.min()), float(flat.max()), buckets)

    def merged(self, other: Moments) -> Moments:
        """Chan, Golub and LeVeque's update, which does not lose digits where the mean is large."""
        count = self.count + other.count
        if not count:
            return self
        shift = other.mean - self.mean
        return Moments(
            count=count,
            mean=self.mean + shift * other.count / count,
            square=self.square + other.square + shift**2 * self.count * other.count / count,
            minimum=min(self.minimum, other.minimum),
            maximum=max(self.maximum, other.maximum),
            histogram=self.histogram + other.histogram,
        )

    @property
    def std(self) -> float:
        """√(mean of squared deviations); NaN without values."""
        return math.sqrt(self.square / self.count) if self.count else math.nan

    def percentiles(self, wanted: tuple[float, ...] = PERCENTILES) -> tuple[float, ...]:
        """Values that so many per cent of all are not above; NaN without values."""
        if not self.count:
            return tuple(math.nan for _ in wanted)
        return tuple(self._percentile(q) for q in wanted)

    def _percentile(self, q: float) -> float:
        rank = q / 100 * (self.count - 1)
        ends = np.cumsum(self.histogram)
        bucket = int(np.searchsorted(ends, rank, side="right"))
        # The k-th of n values of a bucket is taken to lie at (k + 1/2) / n of its width; a rank may lie between two.
        inside = min((rank - (ends[bucket] - self.histogram[bucket]) + 0.5) / self.histogram[bucket], 1.0)
        low, high = _edge(bucket), _edge(bucket, last=True)
        return min(max(low + inside * (high - low), self.minimum), self.maximum)


def _bucket(values: np.ndarray) -> np.ndarray:
    # Positive floats have the order of their bits, negative ones the reverse, below all positive ones.
    bits = values.view(np.uint32)
    ordered = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
    return (ordered >> 16).astype(np.int64)


def _edge(bucket: int, *, last: bool = False) -> float:
    """The smallest value of a bucket, or the largest."""
    ordered = np.uint32((bucket << 16) | (0xFFFF if last else 0))
    bits = ordered ^ np.uint32(1 << 31) if ordered >> 31 else ~ordered
    return float(np.asarray(bits, np.uint32).view(np.float32))

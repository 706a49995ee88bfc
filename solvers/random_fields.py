"""Gaussian random fields with a Matérn-type spectrum on the unit square and cube, and along the square's boundary."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Literal

import numpy as np
from scipy.fft import idctn, irfft


@dataclass(frozen=True)
class NeumannField:
    """g ~ N(0, σ² (-Δ + τ²)^(-α) / c) on n x n cell centres, Neumann Laplacian, mean zero; c makes the deviation σ.

        g(x, y) = σ Σ ξₖₗ √(λₖₗ / c) φₖ(x) φₗ(y),   λₖₗ = (π²(k² + l²) + τ²)^(-α),   c = Σ λₖₗ,   ξₖₗ ~ N(0, 1)

    over 0 <= k, l < n without (0, 0), φ₀ = 1, φₖ(x) = √2 cos(kπx): one inverse cosine transform a field.  With
    `dim` = 3 the same on n x n x n centres (z, y, x) of the unit cube, with three indices instead of two.  σ² is the
    variance averaged over the domain; near a wall it is larger, as Neumann fields are.  The draws of one generator on
    two grids are different fields.

    Source: Li et al., arXiv 2010.08895, appendix A.3.2 and its published generator.  Differs from it: scaled to
    deviation σ, which a two-valued coefficient does not notice and a log-normal one needs.
    Good values: α 1.5 ... 4, larger is smoother (α > d/2 + 1: differentiable, in d dimensions); add 1/2 for the same
    smoothness in three dimensions.  τ 2 ... 20, inverse correlation length.

    Raises:
        ValueError: α <= d/2, for which the variance grows without bound as the grid is refined; τ < 0; σ < 0.
    """

    n: int
    alpha: float
    tau: float
    sigma: float = 1.0
    dim: Literal[2, 3] = 2

    def __post_init__(self) -> None:
        if not self.alpha > self.dim / 2:
            raise ValueError(
                f"alpha = {self.alpha} makes no field of finite variance in {self.dim} dimensions; "
                f"it must exceed {self.dim / 2:g}"
            )
        if not (self.tau >= 0 and self.sigma >= 0):
            raise ValueError(f"tau = {self.tau} and sigma = {self.sigma} must not be negative; try tau = 3, sigma = 1")

    @cached_property
    def deviations(self) -> np.ndarray:
        """Standard deviation σ √(λₖₗ / c) of each coefficient, shape (n,) * dim."""
        squares = (np.pi * np.arange(self.n)) ** 2
        squared = reduce(np.add.outer, [squares] * self.dim) + self.tau**2
        squared[(0,) * self.dim] = np.inf  # no mean
        spectrum = squared**-self.alpha
        return self.sigma * np.sqrt(spectrum / spectrum.sum())

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """One field of shape (n,) * dim, float64."""
        coefficients = rng.standard_normal((self.n,) * self.dim)
        coefficients *= self._amplitudes
        return idctn(coefficients, norm="ortho", overwrite_x=True)

    @cached_property
    def _amplitudes(self) -> np.ndarray:
        # The orthonormal transform's vectors have length one, the sampled φₖ φₗ have length √(n^dim).
        return self.n ** (self.dim / 2) * self.deviations


@dataclass(frozen=True)
class PeriodicTrace:
    """A smooth random function at n equidistant points of a closed curve, mean zero, pointwise deviation σ.

        g(s) = σ Σₖ k⁻² (ξₖ cos 2πks + ηₖ sin 2πks) / √(Σₖ k⁻⁴),   k = 1 ... modes,   ξₖ, ηₖ ~ N(0, 1),   s in [0, 1)

    Good values: 4 ... 16 modes; at least four points a mode.

    Raises:
        ValueError: more modes than the points resolve.
    """

    n: int
    modes: int = 8
    sigma: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.modes < self.n / 2:
            raise ValueError(f"{self.modes} modes on {self.n} points; choose from 1 to {(self.n - 1) // 2}")

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """Values (n,), float64."""
        spectrum = np.zeros(self.n // 2 + 1, complex)
        cosine, sine = rng.standard_normal((2, self.modes))
        spectrum[1 : self.modes + 1] = self._amplitudes * (cosine - 1j * sine)
        return irfft(spectrum, self.n)

    @cached_property
    def _amplitudes(self) -> np.ndarray:
        power = np.arange(1, self.modes + 1) ** -4.0
        # The inverse real transform adds the conjugate half and divides by n.
        return self.sigma * np.sqrt(power / power.sum()) * self.n / 2

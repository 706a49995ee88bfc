"""Gaussian random fields with a Matérn-type spectrum on the unit square."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.fft import idctn, irfft


@dataclass(frozen=True)
class NeumannField:
    """g ~ N(0, σ² (-Δ + τ²)^(-α) / c) on n x n cell centres, Neumann Laplacian, mean zero; c makes the deviation σ.

        g(x, y) = σ Σ ξₖₗ √λₖₗ cos(kπx) cos(lπy) ‖cos‖⁻¹ / √c,   λₖₗ = (π²(k² + l²) + τ²)^(-α),   c = Σ λₖₗ,   ξ ~ N(0, 1)

    over 0 <= k, l < n without (0, 0): one inverse cosine transform a field.  α in (1, 4): larger is smoother; τ is an
    inverse correlation length.  Source: Li et al., arXiv 2010.08895, appendix A.3.2.  Differs from it: scaled to
    deviation σ, which a two-valued coefficient does not notice and a log-normal one needs.

    Raises:
        ValueError: α <= 1, for which the variance grows without bound as the grid is refined.
    """

    n: int
    alpha: float
    tau: float
    sigma: float = 1.0

    def __post_init__(self) -> None:
        if not self.alpha > 1:
            raise ValueError(f"alpha = {self.alpha} makes no field of finite variance in two dimensions; it must exceed 1")

    @cached_property
    def _amplitudes(self) -> np.ndarray:
        squares = (np.pi * np.arange(self.n)) ** 2
        spectrum = (squares[:, None] + squares[None, :] + self.tau**2) ** -self.alpha
        spectrum[0, 0] = 0.0
        # The orthonormal inverse transform has unit gain, so n restores pointwise amplitude.
        return self.sigma * self.n * np.sqrt(spectrum / spectrum.sum())

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """One field (n, n), float64."""
        noise = rng.standard_normal((self.n, self.n))
        noise *= self._amplitudes
        return idctn(noise, norm="ortho", overwrite_x=True)


@dataclass(frozen=True)
class PeriodicTrace:
    """A smooth random function on a closed curve of n points: the first `modes` Fourier modes, decaying as k^(-2)."""

    n: int
    modes: int = 8
    sigma: float = 1.0

    @cached_property
    def _amplitudes(self) -> np.ndarray:
        k = np.arange(1, self.modes + 1)
        power = k**-4.0
        return self.sigma * np.sqrt(power / (2 * power.sum())) * self.n

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """Values (n,), float64, pointwise deviation σ."""
        spectrum = np.zeros(self.n // 2 + 1, complex)
        real, imaginary = rng.standard_normal((2, self.modes))
        spectrum[1 : self.modes + 1] = self._amplitudes * (real + 1j * imaginary) / 2 * np.sqrt(2)
        return irfft(spectrum, self.n)

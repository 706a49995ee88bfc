"""Training vectors from one matrix: Lanczos' process, its Ritz vectors, and weighted sums of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

LOW_WEIGHT = 9.0
OVERLAP = 0.05
_BREAKDOWN = 2e-6
"""Of the largest diagonal entry: what rounding in float32 leaves of an image that lies in the basis."""


@dataclass(frozen=True, slots=True)
class RitzBasis:
    """Ritz pairs of a symmetric operator A: A (Q s_j) ≈ θ_j (Q s_j)."""

    values: Tensor
    """θ, ascending, (m,) float64."""
    lanczos: Tensor
    """Rows are Lanczos' orthonormal vectors q_j, (m, *shape) float32."""
    mixing: Tensor
    """S (m, m) float64: column j mixes the rows of `lanczos` into Ritz vector j."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one vector."""
        return tuple(self.lanczos.shape[1:])

    def combine(self, coefficients: Tensor) -> Tensor:
        """Sums of Ritz vectors: (b, m) → (b, *shape) float32.

        The Ritz vectors themselves are never stored: Q (S c) needs half the memory.
        """
        mixed = (coefficients.double() @ self.mixing.T).float()
        return (mixed @ self.lanczos.flatten(1)).unflatten(1, self.shape)


def lanczos(apply: Callable[[Tensor], Tensor], start: Tensor, count: int) -> RitzBasis:
    """`count` steps of Lanczos' process with full reorthogonalisation, and the Ritz pairs of what it found.

    Args:
        apply: u (1, *shape) → A u, A symmetric.
        start: (*shape); should have a share of every eigenvector, for example Gaussian noise.
        count: m.  The paper takes 10,000.  An eigenvalue of several eigenvectors shows once, so there are no more Ritz
            vectors than distinct eigenvalues; the process ends there with a basis of fewer vectors.

    Memory: 4 m bytes per unknown; work: 4 m² flops per unknown.

    Raises:
        ValueError: a zero or non-finite start, or m outside of 1 ... number of unknowns.
    """
    size = start.numel()
    if not 1 <= count <= size:
        raise ValueError(f"{count} Ritz vectors of a matrix of {size} rows; ask for 1 ... {size}")
    length = torch.linalg.vector_norm(start.double())
    if not (torch.isfinite(length) and length > 0):
        raise ValueError(f"the start vector of Lanczos' process has norm {float(length):g}; give finite noise")
    basis = torch.zeros(count, size)
    basis[0] = (start.double() / length).flatten().float()
    diagonal, off = torch.zeros(count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
    found = count
    for j in range(count):
        image = apply(basis[j].view(1, *start.shape)).flatten().float()
        diagonal[j] = torch.dot(image.double(), basis[j].double())
        image = _orthogonal(image, basis[: j + 1])
        off[j] = torch.linalg.vector_norm(image.double())
        if j + 1 == count:
            break
        if off[j] <= _BREAKDOWN * diagonal[: j + 1].abs().max():
            found = j + 1
            break
        basis[j + 1] = image / off[j].float()
    between = off[: found - 1]
    tridiagonal = torch.diag(diagonal[:found]) + torch.diag(between, 1) + torch.diag(between, -1)
    values, mixing = torch.linalg.eigh(tridiagonal)
    return RitzBasis(values, basis[:found].view(found, *start.shape), mixing)


def draw(basis: RitzBasis, count: int, generator: torch.Generator) -> Tensor:
    """Random unit vectors Σ c_j w_j / |…| over the Ritz vectors w_j, (count, *shape).

    c_j is normal with deviation 9 for the lower half of the spectrum (and 5 % beyond it) and 1 above: what conjugate
    directions leave for later are the low modes.

    Source: Kaneda et al., arXiv 2205.10763, for the factor 9; where the lower part ends is our reading.
    """
    modes = len(basis.values)
    coefficients = torch.randn(count, modes, generator=generator, dtype=torch.float64)
    coefficients[:, : round(modes * (0.5 + OVERLAP))] *= LOW_WEIGHT
    vectors = basis.combine(coefficients)
    norms = torch.linalg.vector_norm(vectors.flatten(1), dim=1)
    return vectors / norms.view(-1, *[1] * len(basis.shape))


def _orthogonal(vector: Tensor, basis: Tensor) -> Tensor:
    """Gram-Schmidt, twice: in float32 one pass leaves parts that grow from step to step."""
    for _ in range(2):
        vector = vector - (basis @ vector) @ basis
    return vector

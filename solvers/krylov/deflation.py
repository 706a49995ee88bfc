"""The subspace W that deflated CG keeps its directions conjugate to, and how the next one is chosen."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.linalg.lapack import dpotrf, dpotrs

from forebay.solvers.krylov.rows import Rows
from forebay.solvers.krylov.selection import smallest_singular_directions

DEPENDENT = {np.dtype(np.float32): 1e-5, np.dtype(np.float64): 1e-12}
"""Eigenvalue of the scaled W A Wᵀ below which a direction counts as dependent on the others."""

CLEANING_DROP, CLEANING_STEPS = 1e-3, 50
"""The residual's part in span(W) is removed whenever the residual fell by that factor; in float32 also after so many
steps, as only that shows whether the true residual still falls."""
PATIENCE = 6
"""So many cleanings in a row after which the true residual was above half of its best end a float32 cycle."""


class Deflation:
    """W (k, n) for one matrix: its image A W, E = W A Wᵀ and E⁻¹; storage is allocated once, `take` fills it.

    Rows are directions; n counts the entries that this process owns.
    """

    def __init__(self, rows: Rows, capacity: int, unknowns: int, dtype: np.dtype) -> None:
        self._rows = rows
        self._storage = np.empty((capacity, unknowns), dtype)
        self._cast, self._sum = np.empty(unknowns, dtype), np.empty(unknowns, dtype)
        self._set(np.empty((0, unknowns), dtype), self._storage[:0], np.empty((0, 0)), np.empty((0, 0)))

    def _set(self, vectors: np.ndarray, images: np.ndarray, energies: np.ndarray, inverse: np.ndarray) -> None:
        self.vectors, self.images, self.energies, self._inverse = vectors, images, energies, inverse

    @property
    def dtype(self) -> np.dtype:
        """Of W and A W."""
        return self._storage.dtype

    @property
    def single(self) -> bool:
        """Are projections only as good as float32?"""
        return len(self) > 0 and self.dtype == np.float32

    def __len__(self) -> int:
        return len(self.vectors)

    def take(self, vectors: np.ndarray, product: Callable[[np.ndarray], np.ndarray]) -> None:
        """W = `vectors` without its dependent directions; `product(w)` is A w, in float64."""
        vectors = vectors.astype(self.dtype, copy=False)
        images = self._storage[: len(vectors)]
        for image, direction in zip(images, vectors, strict=True):
            image[:] = product(direction)
        energies = self._gram(vectors, images)
        diagonal = np.diag(energies)
        usable = len(vectors) > 0 and np.isfinite(energies).all() and (diagonal > 0).all()
        if not usable:
            self._set(vectors[:0], images[:0], energies[:0, :0], energies[:0, :0])
            return
        scale = 1.0 / np.sqrt(diagonal)
        inverse = _inverse(energies * scale[:, None] * scale, DEPENDENT[self.dtype])
        if inverse is None:
            self._truncate(vectors, images, energies, scale)
        else:
            self._set(vectors, images, energies, inverse * scale[:, None] * scale)

    def _truncate(self, vectors: np.ndarray, images: np.ndarray, energies: np.ndarray, scale: np.ndarray) -> None:
        """Keep A-orthonormal combinations of the directions that are independent."""
        values, axes = np.linalg.eigh(energies * scale[:, None] * scale)
        keep = values > DEPENDENT[self.dtype]
        mix = (scale[:, None] * axes[:, keep] / np.sqrt(values[keep])).T.astype(self.dtype)
        kept = images[: len(mix)]
        kept[:] = mix @ images
        identity = np.eye(len(mix))
        self._set(mix @ vectors, kept, identity, identity)

    def _gram(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        gram = self._rows.gram(first, second)
        return 0.5 * (gram + gram.T)

    def preconditioned_gram(self, precondition: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """(A W) M⁻¹ (A W)ᵀ; `precondition(v)` is M⁻¹ v, in float64."""
        applied = np.empty_like(self.images)
        for row, image in zip(applied, self.images, strict=True):
            row[:] = precondition(image)
        return self._gram(self.images, applied)

    def combine(self, coefficients: np.ndarray, directions: np.ndarray) -> np.ndarray | None:
        """Combinations of [W; `directions`] of unit length, one a column of `coefficients`; None if one has none."""
        k = len(self)
        vectors = coefficients[k:].T.astype(self.dtype) @ directions.astype(self.dtype, copy=False)
        vectors += coefficients[:k].T.astype(self.dtype) @ self.vectors
        squares = self._rows.sum(np.einsum("kn,kn->k", vectors, vectors).astype(np.float64))
        if not (squares > 0).all() or not np.isfinite(squares).all():
            return None
        vectors /= np.sqrt(squares).astype(self.dtype)[:, None]
        return vectors

    # -- projections -----------------------------------------------------------------------------------------------

    def image_products(self, vector: np.ndarray) -> np.ndarray:
        """(A W) v, shape (k,), float64."""
        np.copyto(self._cast, vector, casting="same_kind")
        return self._rows.sum(np.dot(self.images, self._cast).astype(np.float64))

    def conjugate(self, direction: np.ndarray, image_products: np.ndarray) -> None:
        """Make p A-orthogonal to W in place: p -= Wᵀ E⁻¹ c, with c = (A W) z of what is new in it."""
        np.dot((self._inverse @ image_products).astype(self.dtype), self.vectors, out=self._sum)
        direction -= self._sum

    def correct(self, x: np.ndarray, residual: np.ndarray) -> None:
        """Solve in span(W) and add: x += Wᵀ E⁻¹ W r in place; b - A x is orthogonal to W then."""
        np.copyto(self._cast, residual, casting="same_kind")
        products = self._rows.sum(np.dot(self.vectors, self._cast).astype(np.float64))
        np.dot((self._inverse @ products).astype(self.dtype), self.vectors, out=self._sum)
        x += self._sum


def _inverse(scaled: np.ndarray, smallest: float) -> np.ndarray | None:
    """By Cholesky; None when a pivot says that directions depend on each other."""
    factor, failed = dpotrf(scaled, lower=1)
    if failed or np.diag(factor).min() ** 2 < smallest:
        return None
    inverse, _ = dpotrs(factor, np.eye(len(scaled)), lower=1)
    return inverse


class Cleaning:
    """When to remove the residual's part in span(W) during a solve, and whether going on in float32 is of use."""

    def __init__(self, single: bool, size: float) -> None:
        self._single = single
        self._last = self._best = size
        self._steps = self._idle = 0

    def is_due(self, size: float) -> bool:
        """After one more step, which left ‖r‖ = `size` by the recurrence."""
        self._steps += 1
        return size < CLEANING_DROP * self._last or (self._single and self._steps == CLEANING_STEPS)

    def is_useless(self, size: float) -> bool:
        """After a cleaning, which left a true residual of `size`."""
        self._idle = 0 if size < 0.5 * self._best else self._idle + 1
        self._best = min(size, self._best)
        self._last, self._steps = size, 0
        return self._single and self._idle == PATIENCE


class SearchedDirections:
    """P, the first directions of a solve, and the scalars of its recurrence, from which the next W is chosen."""

    def __init__(self, capacity: int, unknowns: int, dtype: np.dtype) -> None:
        self._directions = np.empty((capacity, unknowns), dtype)
        self._scalars: list[tuple[float, float, float]] = []
        self._products: list[np.ndarray | None] = []

    def clear(self) -> None:
        """Forget the last solve."""
        self._scalars.clear()
        self._products.clear()

    def append(
        self, direction: np.ndarray, energy: float, alpha: float, rho: float, products: np.ndarray | None
    ) -> None:
        """p, p·A p and the step's length, with r·z and (A W) z from before it; one step more than fits is counted."""
        step = len(self._scalars)
        if step <= len(self._directions):
            self._scalars.append((energy, alpha, rho))
            self._products.append(products)
        if step < len(self._directions):
            self._directions[step] = direction

    def best(
        self, deflation: Deflation, precondition: Callable[[np.ndarray], np.ndarray], count: int
    ) -> np.ndarray | None:
        """The `count` directions of span[W, P] with the smallest Ritz values of M⁻¹ A in the A inner product.

        G y = θ F y with F = S A Sᵀ and G = (S A) M⁻¹ (A Sᵀ), S = [W; P], as Saad et al. have it.  P A Pᵀ is diagonal,
        P A Wᵀ zero, and A pᵢ = (rᵢ - rᵢ₊₁) / αᵢ gives the rest, since every r is orthogonal to the other z: only
        M⁻¹ A W is computed, by k applications.  None when nothing was searched, or when rounding made G indefinite.
        """
        steps = len(self._scalars) - 1
        if steps < 1:
            return None
        scalars = np.array(self._scalars)
        energy, alpha, rho = scalars[:-1, 0], scalars[:-1, 1], scalars[:, 2]
        differences = (np.eye(steps, steps + 1) - np.eye(steps, steps + 1, 1)) / alpha[:, None]
        k = len(deflation)
        gram, image_gram = np.zeros((2, k + steps, k + steps))
        gram[k:, k:] = np.diag(energy)
        image_gram[k:, k:] = (differences * rho) @ differences.T
        if k:
            gram[:k, :k] = deflation.energies
            image_gram[:k, :k] = deflation.preconditioned_gram(precondition)
            image_gram[k:, :k] = differences @ np.array(self._products)
            image_gram[:k, k:] = image_gram[k:, :k].T
        chosen = smallest_singular_directions(image_gram, gram, count)
        return None if chosen is None else deflation.combine(chosen, self._directions[:steps])

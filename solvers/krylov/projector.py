"""Orthogonal projection onto images that are not orthonormal, through the inverse of their Gram matrix."""

from __future__ import annotations

import numpy as np
from scipy.linalg.lapack import dpotrf, dpotrs

from forebay.solvers.krylov.rows import Rows

DEPENDENT = {np.dtype(np.float32): 1e-6, np.dtype(np.float64): 1e-12}
"""Eigenvalue of the scaled Gram matrix below which an image counts as dependent on the others."""


def independent_directions(vectors: np.ndarray, images: np.ndarray, rows: Rows) -> tuple[np.ndarray, np.ndarray | None]:
    """U without the combinations whose images depend on the others, and (C Cᵀ)⁻¹ of what is left.

    `vectors` is U (k, n); the first k rows of `images` are C = A U, and are changed with U where something is left
    out.  An image that is zero or not finite costs the whole space: no directions and None.
    """
    used = images[: len(vectors)]
    gram = rows.gram(used, used)
    if not np.isfinite(gram).all() or not (np.diag(gram) > 0).all():
        return vectors[:0], None
    scale = 1.0 / np.sqrt(np.diag(gram))
    scaled = gram * scale[:, None] * scale
    factor, failed = dpotrf(scaled, lower=1)
    # The smallest pivot bounds the smallest eigenvalue from above: a cheap test for what is rarely the case.
    if failed or np.diag(factor).min() ** 2 < 10 * DEPENDENT[images.dtype]:
        values, axes = np.linalg.eigh(scaled)
        keep = values > DEPENDENT[images.dtype]
        mix = (scale[:, None] * axes[:, keep] / np.sqrt(values[keep])).T.astype(images.dtype)
        vectors = (mix @ vectors).astype(images.dtype, copy=False)
        images[: len(mix)] = mix @ used
        scaled, scale = rows.gram(images[: len(mix)], images[: len(mix)]), np.ones(len(mix))
        factor = np.linalg.cholesky(scaled)
    inverse, _ = dpotrs(factor, np.eye(len(scale)), lower=1)
    return vectors, inverse * scale[:, None] * scale

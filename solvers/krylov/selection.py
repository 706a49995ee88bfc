"""Which k directions of a searched space to keep for the next system."""

from __future__ import annotations

import numpy as np
from scipy.linalg import LinAlgError, eigh


def smallest_singular_directions(image_gram: np.ndarray, gram: np.ndarray, count: int) -> np.ndarray | None:
    """Columns t (q, count) with the smallest ‖A S t‖ / ‖S t‖ over a searched space S of dimension q.

    `image_gram` = (A S)ᵀ A S and `gram` = Sᵀ S, both (q, q): the symmetric-definite problem gram t = μ image_gram t,
    largest μ.  GCRO-DR (Parks et al., SISC 28 (2006), eq. 2.11) takes harmonic Ritz vectors from a nonsymmetric
    problem instead; the symmetric one needs the same iterations and cannot return complex pairs.  None when rounding
    has made `image_gram` indefinite, which means that S is nearly dependent.
    """
    size = len(image_gram)
    count = min(count, size)
    diagonal = np.diag(image_gram)
    if not (diagonal > 0).all():
        return None
    scale = 1.0 / np.sqrt(diagonal)
    try:
        _, vectors = eigh(
            _scaled(gram, scale),
            _scaled(image_gram, scale),
            subset_by_index=[size - count, size - 1],
            driver="gvx",
        )
    except (LinAlgError, ValueError):  # scipy says ValueError for NaN
        return None
    return scale[:, None] * vectors


def _scaled(matrix: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return 0.5 * (matrix + matrix.T) * scale[:, None] * scale

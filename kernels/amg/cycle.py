"""Kernels of the V-cycle; vectors (n,) or, for several right-hand sides, row-major panels (n, c).

The loop over the right-hand sides is the innermost one, so that every entry of a matrix is read once for all of them.
A single vector with one candidate goes by the rows of Pᵀ, ten times as long as those of P: short loops end in
mispredicted branches (one core, 85,000 unknowns: 2.4 ms instead of 3.8 for the residual and both transfers).

Blocks of the prolongator come as (blocks,) for one candidate and as (blocks, k) for k: numba compiles each apart, and
all branches on `ndim` fall away.  All kernels are in this one file: numba's cache on disk follows the file of a
function, not those of what it calls.
"""

from __future__ import annotations

import numpy as np
from numba import njit

compiled = njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})


@compiled
def smooth_first(smoother: np.ndarray, r: np.ndarray, z: np.ndarray) -> None:
    """First sweep, from zero: z = m r."""
    for i in range(len(smoother)):
        if r.ndim == 1:
            z[i] = smoother[i] * r[i]
        else:
            for c in range(r.shape[1]):
                z[i, c] = smoother[i] * r[i, c]


@compiled
def residual(
    indptr: np.ndarray, indices: np.ndarray, values: np.ndarray, r: np.ndarray, z: np.ndarray, left: np.ndarray
) -> None:
    """Write r - A z, vectors only."""
    for i in range(len(indptr) - 1):
        total = r[i]
        for t in range(indptr[i], indptr[i + 1]):
            total -= values[t] * z[indices[t]]
        left[i] = total


@compiled
def restrict_rows(
    indptr: np.ndarray, indices: np.ndarray, values: np.ndarray, left: np.ndarray, coarse: np.ndarray
) -> None:
    """Write Pᵀ left by the rows of Pᵀ, vectors only."""
    for j in range(len(indptr) - 1):
        total = coarse.dtype.type(0)
        for q in range(indptr[j], indptr[j + 1]):
            total += values[q] * left[indices[q]]
        coarse[j] = total


@compiled
def add_rows(indptr: np.ndarray, indices: np.ndarray, values: np.ndarray, coarse: np.ndarray, z: np.ndarray) -> None:
    """Correct by the rows of Pᵀ: z += P coarse, vectors only."""
    for j in range(len(indptr) - 1):
        correction = coarse[j]
        for q in range(indptr[j], indptr[j + 1]):
            z[indices[q]] += values[q] * correction


@compiled
def restrict_residual(
    indptr: np.ndarray,
    indices: np.ndarray,
    values: np.ndarray,
    r: np.ndarray,
    z: np.ndarray,
    prolong_indptr: np.ndarray,
    prolong_indices: np.ndarray,
    prolong: np.ndarray,
    work: np.ndarray,
    coarse: np.ndarray,
) -> None:
    """Write Pᵀ (r - A z), row by row, so that the residual is never stored; `work` has one number a column."""
    coarse[:] = 0.0
    for i in range(len(indptr) - 1):
        if r.ndim == 1:
            left = r[i]
            for t in range(indptr[i], indptr[i + 1]):
                left -= values[t] * z[indices[t]]
            for q in range(prolong_indptr[i], prolong_indptr[i + 1]):
                k = np.uintp(prolong.shape[1])
                for a in range(k):
                    coarse[prolong_indices[q] * k + a] += prolong[q, a] * left
        else:
            _residual_row(indptr, indices, values, r, z, i, work)
            for q in range(prolong_indptr[i], prolong_indptr[i + 1]):
                if prolong.ndim == 1:
                    for c in range(r.shape[1]):
                        coarse[prolong_indices[q], c] += prolong[q] * work[c]
                else:
                    k = np.uintp(prolong.shape[1])
                    for a in range(k):
                        for c in range(r.shape[1]):
                            coarse[prolong_indices[q] * k + a, c] += prolong[q, a] * work[c]


@compiled
def prolong_add(
    prolong_indptr: np.ndarray, prolong_indices: np.ndarray, prolong: np.ndarray, coarse: np.ndarray, z: np.ndarray
) -> None:
    """Correct: z += P coarse."""
    for i in range(len(prolong_indptr) - 1):
        if z.ndim == 1:
            total = z[i]
            for q in range(prolong_indptr[i], prolong_indptr[i + 1]):
                k = np.uintp(prolong.shape[1])
                for a in range(k):
                    total += prolong[q, a] * coarse[prolong_indices[q] * k + a]
            z[i] = total
        else:
            for q in range(prolong_indptr[i], prolong_indptr[i + 1]):
                if prolong.ndim == 1:
                    for c in range(z.shape[1]):
                        z[i, c] += prolong[q] * coarse[prolong_indices[q], c]
                else:
                    k = np.uintp(prolong.shape[1])
                    for a in range(k):
                        for c in range(z.shape[1]):
                            z[i, c] += prolong[q, a] * coarse[prolong_indices[q] * k + a, c]


@compiled
def smooth(
    indptr: np.ndarray,
    indices: np.ndarray,
    values: np.ndarray,
    smoother: np.ndarray,
    r: np.ndarray,
    z: np.ndarray,
    work: np.ndarray,
    out: np.ndarray,
) -> None:
    """One sweep: out = z + m (r - A z)."""
    for i in range(len(indptr) - 1):
        if r.ndim == 1:
            left = r[i]
            for t in range(indptr[i], indptr[i + 1]):
                left -= values[t] * z[indices[t]]
            out[i] = z[i] + smoother[i] * left
        else:
            _residual_row(indptr, indices, values, r, z, i, work)
            for c in range(r.shape[1]):
                out[i, c] = z[i, c] + smoother[i] * work[c]


@njit(inline="always")
def _residual_row(
    indptr: np.ndarray, indices: np.ndarray, values: np.ndarray, r: np.ndarray, z: np.ndarray, i: int, work: np.ndarray
) -> None:
    """Write row i of r - A z, four entries a pass over the columns: three quarters of the time of one, if inlined."""
    for c in range(r.shape[1]):
        work[c] = r[i, c]
    t, end = indptr[i], indptr[i + 1]
    while t + 3 < end:
        v0, v1, v2, v3 = values[t], values[t + 1], values[t + 2], values[t + 3]
        j0, j1, j2, j3 = indices[t], indices[t + 1], indices[t + 2], indices[t + 3]
        for c in range(r.shape[1]):
            work[c] -= v0 * z[j0, c] + v1 * z[j1, c] + v2 * z[j2, c] + v3 * z[j3, c]
        t += 4
    while t < end:
        value, j = values[t], indices[t]
        for c in range(r.shape[1]):
            work[c] -= value * z[j, c]
        t += 1

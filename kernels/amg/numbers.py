"""Numeric set-up of one level: features, weights, smoother, prolongator, Galerkin product; per sample, no allocation.

With l_i = Σ_j |a_ij|, q_ij = |a_ij| / l_i for j ≠ i, and A_F the filtered matrix, weak couplings on its diagonal:

    features   x = (2 a_ii / l_i - 1,  Σ_j a_ij / l_i,  4 Σ_j q_ij²,  Σ_{strong j} q_ij,  2 max_j q_ij,
                    0 on the finest level and 1 on the others,  2 Σ_{strong j of i's aggregate} q_ij,
                    2 / number of blocks of P_i,  4 Σ_{j ≠ i} a_ij² / (l_i l_j))
    network    h = W₁ x + b₁,   o = W₂ φ(h) + b₂,   φ(t) = t / (1 + |t|)
    weights    ω_i = 2 + 2 φ(o₁) in (0, 4),   s_i = 1 + φ(o₂) in (0, 2)
    smoother   m_i = s_i / l_i
    P_i = T_i - (ω_i / Σ_j |a^F_ij|) (A_F T)_i,   A_c = Pᵀ A P

Since diag(l) >= A, m_i is a convergent smoother for any s in (0, 2), and the V-cycle with it is symmetric positive
definite for any weights; ω shapes the coarse space only.  Classical: ω = s = 4/3, that is the damping 2/3 of Jacobi's
method where rows sum to zero and couplings are not positive, since l_i = 2 a_ii there.

All kernels are in this one file: numba's cache on disk follows the file of a function, not those of what it calls.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from forebay.kernels.amg.plans import LevelPlan

compiled = njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})

FEATURES = 9
LEVEL_FEATURE = 5


@compiled
def set_up_level(
    plan: LevelPlan,
    values: np.ndarray,
    hidden: np.ndarray,
    output: np.ndarray,
    smoother: np.ndarray,
    prolong: np.ndarray,
    coarse: np.ndarray,
    work: np.ndarray,
) -> None:
    """Write what a level needs for the values of its matrix.

    Args:
        plan: of the level.
        values: entries of the matrix (nnz,), read only.
        hidden: W₁ and, as the last column, b₁, shape (H, 10).
        output: W₂ and b₂, shape (2, H + 1).
        smoother: m, written, (n,).
        prolong: blocks of P, written, (blocks, k).
        coarse: entries of A_c, written.
        work: at least max(k plan.width) and n numbers.
    """
    smooth_and_prolong(plan, values, hidden, output, smoother, prolong, work)
    if plan.tentative.shape[1] == 1:
        _galerkin(plan, values, prolong.ravel(), coarse, work)
    else:
        _galerkin_blocks(plan, values, prolong, coarse, work)
        _fill_empty(plan.coarse_indptr, plan.coarse_indices, coarse)


@compiled
def smooth_and_prolong(
    plan: LevelPlan,
    values: np.ndarray,
    hidden: np.ndarray,
    output: np.ndarray,
    smoother: np.ndarray,
    prolong: np.ndarray,
    work: np.ndarray,
) -> None:
    """The part of `set_up_level` before the Galerkin product."""
    indptr, tentative, width = plan.indptr, plan.tentative, plan.tentative.shape[1]
    x = np.empty(FEATURES, values.dtype)
    prolong[:] = 0.0
    _row_sums(indptr, values, work)
    for i in range(len(indptr) - 1):
        start, end, l1 = indptr[i], indptr[i + 1], work[i]
        filtered = _features(plan, values, work, i, x)
        omega, damping = _weights(x, hidden, output)
        at = plan.prolong_indptr[i]
        # A row without couplings is solved by its smoother, whatever the weights say.
        smoother[i] = (damping if end - start > 1 and l1 > values[plan.diagonal[i]] else 1.0) / l1
        if plan.aggregate[i] < 0:
            continue
        factor = omega / filtered
        for t in range(start, end):
            for c in range(width):
                prolong[at + plan.place[t], c] -= factor * values[t] * tentative[plan.source[t], c]
        for c in range(width):
            prolong[at + plan.place[plan.diagonal[i]], c] += tentative[i, c]


@compiled
def _row_sums(indptr: np.ndarray, values: np.ndarray, sums: np.ndarray) -> None:
    """Write l of every row."""
    for i in range(len(indptr) - 1):
        total = values.dtype.type(0)
        for t in range(indptr[i], indptr[i + 1]):
            total += abs(values[t])
        sums[i] = total


@compiled
def _features(plan: LevelPlan, values: np.ndarray, sums: np.ndarray, i: int, x: np.ndarray) -> float:
    """Write the features of row i, with l of all rows in `sums`; returns Σ_j |a^F_ij|."""
    zero = values.dtype.type(0)
    total, squares, mutual, linked, within, largest, diagonal, filtered = zero, zero, zero, zero, zero, zero, zero, zero
    centre, l1 = plan.diagonal[i], sums[i]
    for t in range(plan.indptr[i], plan.indptr[i + 1]):
        a = values[t]
        size = abs(a)
        total += a
        if t == centre:
            diagonal += a
            continue
        squares += size * size
        mutual += size * size / sums[plan.indices[t]]
        largest = max(largest, size)
        kind = plan.strong[t]
        linked += size if kind == 1 else zero
        within += size if kind == 1 and plan.place[t] == plan.place[centre] else zero
        filtered += size if kind > 0 else zero
        diagonal += a if kind == 0 and plan.source[t] == i else zero
    x[0] = 2 * values[centre] / l1 - 1
    x[1] = total / l1
    x[2] = 4 * squares / (l1 * l1)
    x[3] = linked / l1
    x[4] = 2 * largest / l1
    x[LEVEL_FEATURE] = 1 if plan.depth > 0 else 0
    x[6] = 2 * within / l1
    blocks = plan.prolong_indptr[i + 1] - plan.prolong_indptr[i]
    x[7] = 2 / blocks if blocks > 0 else zero
    x[8] = 4 * mutual / l1
    return filtered + abs(diagonal)


@compiled
def _weights(x: np.ndarray, hidden: np.ndarray, output: np.ndarray) -> tuple[float, float]:
    """ω and s of a row."""
    units = hidden.shape[0]
    first, second = output[0, units], output[1, units]
    for h in range(units):
        value = hidden[h, FEATURES]
        for f in range(FEATURES):
            value += hidden[h, f] * x[f]
        value /= 1 + abs(value)
        first += output[0, h] * value
        second += output[1, h] * value
    return 2 + 2 * first / (1 + abs(first)), 1 + second / (1 + abs(second))


@compiled
def _galerkin(plan: LevelPlan, values: np.ndarray, prolong: np.ndarray, coarse: np.ndarray, work: np.ndarray) -> None:
    """A_c = Pᵀ A P for one candidate; places of the plan are those of the entries."""
    coarse[:] = 0.0
    u = w = np.uintp(0)
    for i in range(len(plan.indptr) - 1):
        first, last = plan.prolong_indptr[i], plan.prolong_indptr[i + 1]
        width = plan.width[i]
        work[:width] = 0.0
        for t in range(plan.indptr[i], plan.indptr[i + 1]):
            a, j = values[t], plan.indices[t]
            for q in range(plan.prolong_indptr[j], plan.prolong_indptr[j + 1]):
                work[plan.product[u]] += a * prolong[q]
                u += np.uintp(1)
        for q in range(first, last):
            p = prolong[q]
            for b in range(width):
                coarse[plan.galerkin[w]] += p * work[b]
                w += np.uintp(1)


@compiled
def _galerkin_blocks(
    plan: LevelPlan, values: np.ndarray, prolong: np.ndarray, coarse: np.ndarray, work: np.ndarray
) -> None:
    """The same for k candidates; places of the plan are those of k x k blocks."""
    k = prolong.shape[1]
    coarse[:] = 0.0
    u = w = np.uintp(0)
    for i in range(len(plan.indptr) - 1):
        width = plan.width[i]
        work[: width * k] = 0.0
        for t in range(plan.indptr[i], plan.indptr[i + 1]):
            a, j = values[t], plan.indices[t]
            for q in range(plan.prolong_indptr[j], plan.prolong_indptr[j + 1]):
                at = np.uintp(plan.product[u]) * np.uintp(k)
                for c in range(np.uintp(k)):
                    work[at + c] += a * prolong[q, c]
                u += np.uintp(1)
        for q in range(plan.prolong_indptr[i], plan.prolong_indptr[i + 1]):
            block = plan.prolong_indices[q]
            for b in range(width):
                for c in range(k):
                    p, at = prolong[q, c], np.uintp(plan.coarse_indptr[block * k + c] + plan.galerkin[w] * k)
                    for d in range(np.uintp(k)):
                        coarse[at + d] += p * work[b * np.uintp(k) + d]
                w += np.uintp(1)


@compiled
def _fill_empty(indptr: np.ndarray, indices: np.ndarray, values: np.ndarray) -> None:
    """A candidate that its aggregate is too small for has an empty row: make it that of the identity."""
    for i in range(len(indptr) - 1):
        for t in range(indptr[i], indptr[i + 1]):
            if indices[t] == i and values[t] == 0.0:
                values[t] = 1.0

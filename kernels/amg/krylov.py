"""Kernels of conjugate gradients in float64 for vectors (n,) or row-major panels (n, c), one step length a column.

No fast-math here: a residual certifies, and NaN must be seen.  Sums of products run in the order of the rows.
All kernels are in this one file: numba's cache on disk follows the file of a function, not those of what it calls.
"""

from __future__ import annotations

import numpy as np
from numba import njit

compiled = njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})


@compiled
def multiply_dot(
    indptr: np.ndarray, indices: np.ndarray, values: np.ndarray, p: np.ndarray, q: np.ndarray, products: np.ndarray
) -> None:
    """Write q = A p and products = Σ_i p_i q_i, column by column."""
    products[:] = 0.0
    for i in range(len(indptr) - 1):
        if p.ndim == 1:
            total = 0.0
            for t in range(indptr[i], indptr[i + 1]):
                total += values[t] * p[indices[t]]
            q[i] = total
            products[0] += p[i] * total
        else:
            for c in range(p.shape[1]):
                q[i, c] = 0.0
            for t in range(indptr[i], indptr[i + 1]):
                value, j = values[t], indices[t]
                for c in range(p.shape[1]):
                    q[i, c] += value * p[j, c]
            for c in range(p.shape[1]):
                products[c] += p[i, c] * q[i, c]


@compiled
def residual(
    indptr: np.ndarray,
    indices: np.ndarray,
    values: np.ndarray,
    rhs: np.ndarray,
    x: np.ndarray,
    r: np.ndarray,
    squares: np.ndarray,
) -> None:
    """Write r = b - A x and squares = Σ_i r_i², column by column."""
    squares[:] = 0.0
    for i in range(len(indptr) - 1):
        if x.ndim == 1:
            total = rhs[i]
            for t in range(indptr[i], indptr[i + 1]):
                total -= values[t] * x[indices[t]]
            r[i] = total
            squares[0] += total * total
        else:
            for c in range(x.shape[1]):
                r[i, c] = rhs[i, c]
            for t in range(indptr[i], indptr[i + 1]):
                value, j = values[t], indices[t]
                for c in range(x.shape[1]):
                    r[i, c] -= value * x[j, c]
            for c in range(x.shape[1]):
                squares[c] += r[i, c] * r[i, c]


@compiled
def advance(
    alpha: np.ndarray,
    p: np.ndarray,
    q: np.ndarray,
    x: np.ndarray,
    r: np.ndarray,
    squares: np.ndarray,
    scale: np.ndarray,
    low: np.ndarray,
) -> None:
    """Step: x += α p, r -= α q, squares = Σ_i r_i², and scale r in the precision of `low`."""
    squares[:] = 0.0
    for i in range(len(x)):
        if x.ndim == 1:
            x[i] += alpha[0] * p[i]
            r[i] -= alpha[0] * q[i]
            squares[0] += r[i] * r[i]
            low[i] = scale[0] * r[i]
        else:
            for c in range(x.shape[1]):
                x[i, c] += alpha[c] * p[i, c]
                r[i, c] -= alpha[c] * q[i, c]
                squares[c] += r[i, c] * r[i, c]
                low[i, c] = scale[c] * r[i, c]


@compiled
def scaled(r: np.ndarray, scale: np.ndarray, out: np.ndarray) -> None:
    """Write scale r, in the precision of `out`."""
    for i in range(len(r)):
        if r.ndim == 1:
            out[i] = scale[0] * r[i]
        else:
            for c in range(r.shape[1]):
                out[i, c] = scale[c] * r[i, c]


@compiled
def dot(r: np.ndarray, z: np.ndarray, products: np.ndarray) -> None:
    """Write products = Σ_i r_i z_i, column by column."""
    products[:] = 0.0
    for i in range(len(r)):
        if r.ndim == 1:
            products[0] += r[i] * z[i]
        else:
            for c in range(r.shape[1]):
                products[c] += r[i, c] * z[i, c]


@compiled
def redirect(beta: np.ndarray, z: np.ndarray, p: np.ndarray) -> None:
    """Next direction: p = z + β p."""
    for i in range(len(p)):
        if p.ndim == 1:
            p[i] = z[i] + beta[0] * p[i]
        else:
            for c in range(p.shape[1]):
                p[i, c] = z[i, c] + beta[c] * p[i, c]

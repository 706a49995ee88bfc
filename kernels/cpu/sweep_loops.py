"""Compiled residuals and smoothing steps of one level, on some planes of it."""

from __future__ import annotations

import numpy as np

from forebay.kernels.cpu.basic_loops import Real, U, compiled
from forebay.kernels.cpu.layout import ARRAYS, COUPLINGS, HALO, MIDDLE_STRIDE, OFF, SIZE, SLOW_STRIDE, SMOOTHER


@compiled
def _residual_star(store: np.ndarray, row: np.ndarray, out: int, z: int, r: int, base: int, n: int) -> None:
    """Out = r - A z on n cells of the finest level, A a star."""
    o, c, rhs, d, x, y, line, plane = star_places(row, out, z, r, base)
    one, s = U(1), U(row[SIZE])
    if row[COUPLINGS] == 2:
        for k in range(n):
            i = U(k)
            v = store[rhs + i] - store[d + i] * store[c + i]
            v -= store[x + i] * store[c + one + i] + store[x - one + i] * store[c - one + i]
            store[o + i] = v - store[y + i] * store[c + plane + i] - store[y - plane + i] * store[c - plane + i]
    else:
        m = x + s
        for k in range(n):
            i = U(k)
            v = store[rhs + i] - store[d + i] * store[c + i]
            v -= store[x + i] * store[c + one + i] + store[x - one + i] * store[c - one + i]
            v -= store[m + i] * store[c + line + i] + store[m - line + i] * store[c - line + i]
            store[o + i] = v - store[y + i] * store[c + plane + i] - store[y - plane + i] * store[c - plane + i]


@compiled
def _smooth_star(store: np.ndarray, row: np.ndarray, out: int, z: int, r: int, base: int, n: int, weight: Real) -> Real:
    """Out = z + weight m (r - A z) on n cells of the finest level; returns r · out."""
    o, c, rhs, d, x, y, line, plane = star_places(row, out, z, r, base)
    one, s = U(1), U(row[SIZE])
    by = d + U(SMOOTHER) * s
    dot = np.float32(0)
    if row[COUPLINGS] == 2:
        for k in range(n):
            i = U(k)
            v = store[rhs + i] - store[d + i] * store[c + i]
            v -= store[x + i] * store[c + one + i] + store[x - one + i] * store[c - one + i]
            v -= store[y + i] * store[c + plane + i] + store[y - plane + i] * store[c - plane + i]
            w = store[c + i] + weight * store[by + i] * v
            dot += w * store[rhs + i]
            store[o + i] = w
    else:
        m = x + s
        for k in range(n):
            i = U(k)
            v = store[rhs + i] - store[d + i] * store[c + i]
            v -= store[x + i] * store[c + one + i] + store[x - one + i] * store[c - one + i]
            v -= store[m + i] * store[c + line + i] + store[m - line + i] * store[c - line + i]
            v -= store[y + i] * store[c + plane + i] + store[y - plane + i] * store[c - plane + i]
            w = store[c + i] + weight * store[by + i] * v
            dot += w * store[rhs + i]
            store[o + i] = w
    return dot


@compiled
def star_places(row: np.ndarray, out: int, z: int, r: int, base: int) -> tuple[np.uintp, ...]:
    """Of result, z, r, diagonal, couplings along x and the slow axis; then distances along the middle and slow axis."""
    size = row[SIZE]
    x, y = base + OFF * size, base + (OFF - 1 + row[COUPLINGS]) * size
    return U(out), U(z), U(r), U(base), U(x), U(y), U(row[MIDDLE_STRIDE]), U(row[SLOW_STRIDE])


@compiled
def _residual_box(store: np.ndarray, row: np.ndarray, out: int, z: int, r: int, base: int, n: int) -> None:
    """The same for a box of neighbours, three at a time."""
    size, line, plane = row[SIZE], row[MIDDLE_STRIDE], row[SLOW_STRIDE]
    at = base + OFF * size
    o, c, rhs, d, x, one = U(out), U(z), U(r), U(base), U(at), U(1)
    for k in range(n):
        i = U(k)
        v = store[rhs + i] - store[d + i] * store[c + i]
        store[o + i] = v - store[x + i] * store[c + one + i] - store[x - one + i] * store[c - one + i]
    if row[COUPLINGS] == 4:
        _three(store, out, z, at + size, size, plane, n)
    else:
        _three(store, out, z, at + size, size, line, n)
        _three(store, out, z, at + 4 * size, size, plane - line, n)
        _three(store, out, z, at + 7 * size, size, plane, n)
        _three(store, out, z, at + 10 * size, size, plane + line, n)


@compiled
def _three(store: np.ndarray, out: int, z: int, at: int, size: int, step: int, n: int) -> None:
    """Subtract the couplings to the cells at step - 1, step, step + 1 ahead and behind."""
    o, c, h, one = U(out), U(z), U(step), U(1)
    a, b, e = U(at), U(at + size), U(at + 2 * size)
    p, q = h - one, h + one
    for k in range(n):
        i = U(k)
        v = store[a + i] * store[c + p + i] + store[a - p + i] * store[c - p + i]
        v += store[b + i] * store[c + h + i] + store[b - h + i] * store[c - h + i]
        v += store[e + i] * store[c + q + i] + store[e - q + i] * store[c - q + i]
        store[o + i] -= v


@compiled
def _finish(store: np.ndarray, out: int, z: int, r: int, m: int, n: int, weight: Real) -> Real:
    """Out = z + weight m out; returns r · out."""
    o, c, rhs, by = U(out), U(z), U(r), U(m)
    dot = np.float32(0)
    for k in range(n):
        i = U(k)
        w = store[c + i] + weight * store[by + i] * store[o + i]
        dot += w * store[rhs + i]
        store[o + i] = w
    return dot


@compiled
def sweep(store: np.ndarray, row: np.ndarray, out: int, z: int, r: int, plane: int, planes: int, weight: Real) -> Real:
    """Residual, or one smoothing step where the weight is not 0, on some planes; places are those of the first."""
    base = row[ARRAYS] + row[HALO] + plane * row[SLOW_STRIDE]
    n = planes * row[SLOW_STRIDE]
    if row[COUPLINGS] > 3:
        _residual_box(store, row, out, z, r, base, n)
        if weight != 0:
            return _finish(store, out, z, r, base + SMOOTHER * row[SIZE], n, weight)
    elif weight != 0:
        return _smooth_star(store, row, out, z, r, base, n, weight)
    else:
        _residual_star(store, row, out, z, r, base, n)
    return np.float32(0)

"""Compiled evaluation of the learned rule, the formula of `kernels/grid_weights.py`, cell by cell in chunks."""

from __future__ import annotations

import numpy as np

from forebay.kernels.cpu.basic_loops import Real, U, clear, compiled, step_of
from forebay.kernels.cpu.layout import (
    ARRAYS,
    COUPLINGS,
    DIAGONAL,
    FLAT,
    HALO,
    MIDDLE_STRIDE,
    OFF,
    SIZE,
    SLAB,
    SLOW_STRIDE,
    SMOOTHER,
)

_COMMON = 4
"""Rows of the work array: A_ii and the sums over all, over positive and over corner couplings, then arms by direction,
ratios by direction, transverse means by axis, u, v by axis."""


@compiled
def learn(
    store: np.ndarray,
    table: np.ndarray,
    level: int,
    hidden: np.ndarray,
    hidden_bias: np.ndarray,
    smoother: np.ndarray,
    smoother_bias: np.ndarray,
    gate: np.ndarray,
    steps: np.ndarray,
    limits: np.ndarray,
    gates: np.ndarray,
    work: np.ndarray,
) -> None:
    """Smoother of a level, which holds 1 / Σ|A_ij| before, and gates of its axes; `steps` are its couplings'."""
    row = table[level]
    base = row[ARRAYS] + row[HALO]
    for start in range(0, row[FLAT], SLAB):
        n = min(SLAB, row[FLAT] - start)
        clear(work, 0, work.size)
        _gather(store, row, base + start, n, steps, work)
        _evaluate(hidden, hidden_bias, smoother, gate, smoother_bias, n, steps.shape[1], work)
        _write(store, base + SMOOTHER * row[SIZE] + start, n, limits, gates, row[HALO] + start, row[SIZE], steps, work)


@compiled
def _gather(store: np.ndarray, row: np.ndarray, begin: int, n: int, steps: np.ndarray, work: np.ndarray) -> None:
    axes = steps.shape[1]
    size = row[SIZE]
    _accumulate(store, begin + DIAGONAL * size, n, work, 0, 1)
    for k in range(row[COUPLINGS]):
        place = begin + (OFF + k) * size
        corner = 0
        for axis in range(axes):
            corner += np.abs(steps[k, axis])
        for side in range(2):
            at = place - side * step_of(row, k)
            _classify(store, at, n, corner > 1, work)
            for axis in range(axes):
                step = steps[k, axis] * (1 - 2 * side)
                if step != 0:
                    _accumulate(store, at, n, work, _COMMON + 2 * axis + (step > 0), -1)
    for axis in range(axes):
        step = row[SLOW_STRIDE] if axis == 0 else 1 if axis == axes - 1 else row[MIDDLE_STRIDE]
        for side in range(2):
            _compare(store, begin, n, step * (2 * side - 1), work, _COMMON + 2 * axes + 2 * axis + side)


@compiled
def _accumulate(store: np.ndarray, begin: int, n: int, work: np.ndarray, to: int, sign: int) -> None:
    a, b = U(begin), U(to * SLAB)
    for i in range(n):
        work[b + U(i)] += sign * store[a + U(i)]


@compiled
def _classify(store: np.ndarray, begin: int, n: int, corner: bool, work: np.ndarray) -> None:
    a = U(begin)
    for k in range(n):
        i = U(k)
        value = store[a + i]
        work[U(SLAB) + i] += value
        work[U(2 * SLAB) + i] += max(value, value * 0)
        if corner:
            work[U(3 * SLAB) + i] += np.abs(value)


@compiled
def _compare(store: np.ndarray, begin: int, n: int, step: int, work: np.ndarray, to: int) -> None:
    """A_ii / (A_ii + A_jj); a ghost has no diagonal."""
    a, b, c = U(begin), U(begin + step), U(to * SLAB)
    half = work.dtype.type(0.5)
    for k in range(n):
        i = U(k)
        own, other = store[a + i], store[b + i]
        work[c + i] = own / (own + other) if own > 0 and other > 0 else half


@compiled
def _evaluate(
    hidden: np.ndarray,
    hidden_bias: np.ndarray,
    smoother: np.ndarray,
    gate: np.ndarray,
    smoother_bias: np.ndarray,
    n: int,
    axes: int,
    work: np.ndarray,
) -> None:
    """The hidden layer for all directions, from the sums that were gathered."""
    _features(n, axes, work)
    arms, across = _COMMON, _COMMON + 4 * axes
    u = across + axes
    for axis in range(axes):
        for side in range(2):
            for unit in range(len(hidden_bias)):
                _unit(
                    hidden[unit],
                    hidden_bias[unit],
                    smoother[unit] / (2 * axes),
                    gate[unit] * (2 * side - 1),
                    n,
                    arms + 2 * axis + side,
                    arms + 2 * axis + 1 - side,
                    arms + 2 * axes + 2 * axis + side,
                    arms + 2 * axes + 2 * axis + 1 - side,
                    across + axis,
                    u,
                    u + 1 + axis,
                    work,
                )
    a = U(u * SLAB)
    for i in range(n):
        work[a + U(i)] += smoother_bias[0]


@compiled
def _features(n: int, axes: int, work: np.ndarray) -> None:
    """Arms to their roots, transverse means, and the shares 5, 6 and 7 in place of the sums."""
    zero, one = work.dtype.type(0), work.dtype.type(1)
    for i in range(n):
        own, rest, positive, corners = work[i], work[SLAB + i], work[2 * SLAB + i], work[3 * SLAB + i]
        inverse = one / own if own > 0 else one
        mean = zero
        for direction in range(2 * axes):
            at = (_COMMON + direction) * SLAB + i
            work[at] = min(max(work[at] * inverse, zero), one)
            mean += work[at]
        for axis in range(axes):
            at = (_COMMON + 2 * axis) * SLAB + i
            across = (mean - work[at] - work[at + SLAB]) / (2 * (axes - 1))
            work[(_COMMON + 4 * axes + axis) * SLAB + i] = np.sqrt(max(across, zero))
        for direction in range(2 * axes):
            at = (_COMMON + direction) * SLAB + i
            work[at] = np.sqrt(work[at])
        absolute = np.abs(own) + 2 * positive - rest
        share = one / absolute if absolute > 0 else one
        work[SLAB + i] = min(max((own + rest) * inverse, zero), one)
        work[2 * SLAB + i] = positive * share
        work[3 * SLAB + i] = corners * share


@compiled
def _unit(
    weights: np.ndarray,
    bias: Real,
    smoother: Real,
    gate: Real,
    n: int,
    arm: int,
    back: int,
    ratio: int,
    behind: int,
    across: int,
    u: int,
    v: int,
    work: np.ndarray,
) -> None:
    """One unit of the hidden layer for one direction, added to u and to v of its axis."""
    p, q, r, s, t = U(arm * SLAB), U(back * SLAB), U(ratio * SLAB), U(behind * SLAB), U(across * SLAB)
    x, y = U(u * SLAB), U(v * SLAB)
    row, positive, corner = U(SLAB), U(2 * SLAB), U(3 * SLAB)
    w0, w1, w2, w3, w4, w5, w6, w7 = (
        weights[0],
        weights[1],
        weights[2],
        weights[3],
        weights[4],
        weights[5],
        weights[6],
        weights[7],
    )
    for k in range(n):
        i = U(k)
        h = bias + w0 * work[p + i] + w1 * work[q + i] + w2 * work[r + i] + w3 * work[s + i] + w4 * work[t + i]
        h += w5 * work[row + i] + w6 * work[corner + i] + w7 * work[positive + i]
        h = max(h, h * 0)
        work[x + i] += smoother * h
        work[y + i] += gate * h


@compiled
def _write(
    store: np.ndarray,
    to: int,
    n: int,
    limits: np.ndarray,
    gates: np.ndarray,
    at: int,
    size: int,
    steps: np.ndarray,
    work: np.ndarray,
) -> None:
    axes = steps.shape[1]
    u = (_COMMON + 5 * axes) * SLAB
    o, a = U(to), U(u)
    one = work.dtype.type(1)
    for k in range(n):
        i = U(k)
        value = work[a + i]
        store[o + i] *= one + limits[0] * value / (one + np.abs(value))
    for axis in range(axes):
        a, o = U(u + (1 + axis) * SLAB), U(at + axis * size)
        for k in range(n):
            i = U(k)
            value = work[a + i]
            gamma = limits[1] * value / (one + np.abs(value))
            gates[o + i] = (one + gamma) / (one - gamma)

"""Compiled V-cycle of one system, see `layout`; every level is worked through chunk by chunk.

A chunk is a number of planes (rows in 2D) that fits the cache.  Stages follow each other one plane behind: a smoothing
step may be done wherever the step before is finished one plane further on.  What only the next stage reads lives in a
window that moves along, so main memory sees each array of a level once on the way down and once on the way up.
"""

from __future__ import annotations

import numpy as np

from forebay.kernels.cpu.basic_loops import Real, U, add, compiled, dot_of
from forebay.kernels.cpu.layout import (
    ARRAYS,
    CORRECTION,
    COUPLINGS,
    FLAT,
    GROUP,
    HALO,
    MIDDLE,
    MIDDLE_STRIDE,
    PARITY,
    RESIDUAL,
    SIZE,
    SLOW,
    SLOW_STRIDE,
    SMOOTHER,
    WINDOW,
    X,
)
from forebay.kernels.cpu.sweep_loops import sweep


@compiled
def _down(
    store: np.ndarray, table: np.ndarray, level: int, pairs: np.ndarray, edges: np.ndarray, steps: np.ndarray
) -> None:
    """Presmoothing from zero, residual, restriction to the next level's right-hand side."""
    row, coarse = table[level], table[level + 1]
    n, stride, group = row[SLOW], row[SLOW_STRIDE], row[GROUP]
    own = row[ARRAYS] + row[HALO]
    r, z = own + RESIDUAL * row[SIZE], own + CORRECTION * row[SIZE]
    m = own + SMOOTHER * row[SIZE]
    moving = row[WINDOW] + edges[0]
    residual = row[WINDOW] + edges[1] + edges[0]
    twice = len(steps) == 2
    ready, smoothed = 0, 0
    for first in range(0, n, 2 * group):
        last = min(n, first + 2 * group)
        # The window's first plane is the one before the chunk.
        window = moving + (1 - first) * stride
        top = min(n, last + len(steps))
        _scaled(
            store, window + ready * stride, m + ready * stride, r + ready * stride, (top - ready) * stride, steps[0]
        )
        ready = top
        source = window
        if twice:
            top = min(n, last + 1)
            at = smoothed * stride
            sweep(store, row, z + at, window + at, r + at, smoothed, top - smoothed, steps[1])
            smoothed, source = top, z
        at = first * stride
        sweep(store, row, residual, source + at, r + at, first, last - first, np.float32(0))
        _split(store, row, coarse, residual, first, last, edges)
        _restrict(store, coarse, row[PARITY] + edges[3], edges[2], first // 2, (last + 1) // 2, pairs)
        _move(store, moving, 2 * group * stride, 4 * stride)


@compiled
def _scaled(store: np.ndarray, out: int, m: int, r: int, n: int, step: Real) -> None:
    o, by, rhs = U(out), U(m), U(r)
    for k in range(n):
        i = U(k)
        store[o + i] = step * store[by + i] * store[rhs + i]


@compiled
def _move(store: np.ndarray, to: int, by: int, n: int) -> None:
    """Shift n numbers behind the chunk to the window's start."""
    a, b = U(to), U(to + by)
    for i in range(n):
        store[a + U(i)] = store[b + U(i)]


@compiled
def _split(
    store: np.ndarray, row: np.ndarray, coarse: np.ndarray, residual: int, first: int, last: int, edges: np.ndarray
) -> None:
    """Cells of the chunk by parity onto coarse planes; its last plane is kept for the next chunk."""
    size, start = edges[2], row[PARITY] + edges[3]
    plane = coarse[SLOW_STRIDE]
    cube = row[COUPLINGS] in (3, 13)
    n = coarse[X]
    for parity in range(8 if cube else 4):
        at = start + parity * size
        # Only odd planes are looked back at; the last chunk's start is a slot further for fewer planes.
        _move(store, at, row[GROUP] * plane, plane)
    for slow in range(first, last):
        for middle in range(row[MIDDLE]):
            parity = 2 * (slow & 1)
            at = start + ((slow - first) // 2 + 1) * plane
            if cube:
                parity = 2 * parity + 2 * (middle & 1)
                at += (middle // 2) * coarse[MIDDLE_STRIDE]
            begin = residual + (slow - first) * row[SLOW_STRIDE] + middle * row[MIDDLE_STRIDE]
            _separate(store, at + parity * size, at + (parity + 1) * size, begin, n)


@compiled
def _separate(store: np.ndarray, even: int, odd: int, cells: int, n: int) -> None:
    e, o, a, one = U(even), U(odd), U(cells), U(1)
    for k in range(n):
        i = U(k)
        store[e + i] = store[a + i + i]
        store[o + i] = store[a + i + i + one]


@compiled
def _join(store: np.ndarray, even: int, odd: int, cells: int, n: int) -> None:
    e, o, a, one = U(even), U(odd), U(cells), U(1)
    for k in range(n):
        i = U(k)
        store[a + i + i] = store[e + i]
        store[a + i + i + one] = store[o + i]


@compiled
def _restrict(
    store: np.ndarray, coarse: np.ndarray, start: int, size: int, first: int, last: int, pairs: np.ndarray
) -> None:
    """r_c = Pᵀ v on coarse planes."""
    plane = coarse[SLOW_STRIDE]
    n = (last - first) * plane
    own = coarse[ARRAYS] + coarse[HALO] + first * plane
    out = own + RESIDUAL * coarse[SIZE]
    at = start + plane
    _move(store, out, at - out, n)
    for t in range(len(pairs)):
        p, q = pairs[t, 1] + first * plane, pairs[t, 2] + first * plane
        at = start + plane + pairs[t, 0] * size
        u, v = at - pairs[t, 3], at - pairs[t, 4]
        _two(store, out, p, u, q, v, n, True)


@compiled
def _two(store: np.ndarray, out: int, p: int, u: int, q: int, v: int, n: int, add: bool) -> None:
    """Out = p u + q v, or added to it."""
    o, a, b, c, d = U(out), U(p), U(u), U(q), U(v)
    if add:
        for k in range(n):
            i = U(k)
            store[o + i] += store[a + i] * store[b + i] + store[c + i] * store[d + i]
    else:
        for k in range(n):
            i = U(k)
            store[o + i] = store[a + i] * store[b + i] + store[c + i] * store[d + i]


@compiled
def _up(
    store: np.ndarray, table: np.ndarray, level: int, pairs: np.ndarray, edges: np.ndarray, steps: np.ndarray
) -> Real:
    """Correction from the next level, postsmoothing; returns r · z."""
    row, coarse = table[level], table[level + 1]
    n, stride, group = row[SLOW], row[SLOW_STRIDE], row[GROUP]
    own = row[ARRAYS] + row[HALO]
    r, z = own + RESIDUAL * row[SIZE], own + CORRECTION * row[SIZE]
    m = own + SMOOTHER * row[SIZE]
    moving = row[WINDOW] + edges[0]
    second = moving + edges[1]
    twice = len(steps) == 2
    once, finished = 0, 0
    dot = 0.0
    for first in range(0, n, 2 * group):
        last = min(n, first + 2 * group)
        # The window's first plane is the third before the chunk.
        window = moving + (3 - first) * stride
        _prolong(store, row, coarse, window, first, last, edges, pairs)
        at = first * stride
        if twice:
            add(store, window + at, store, z + at, (last - first) * stride)
        else:
            _add_scaled(store, window + at, m + at, r + at, (last - first) * stride, steps[0])
        top = n if last == n else last - 1
        at = once * stride
        if twice:
            other = second + (3 - first) * stride
            sweep(store, row, other + at, window + at, r + at, once, top - once, steps[1])
            top = n if last == n else last - 2
            at = finished * stride
            dot += sweep(store, row, z + at, other + at, r + at, finished, top - finished, steps[0])
            once, finished = n if last == n else last - 1, top
            _move(store, second, 2 * group * stride, 4 * stride)
        else:
            dot += sweep(store, row, z + at, window + at, r + at, once, top - once, steps[0])
            once = top
        _move(store, moving, 2 * group * stride, 4 * stride)
    return dot


@compiled
def _add_scaled(store: np.ndarray, out: int, m: int, r: int, n: int, step: Real) -> None:
    o, by, rhs = U(out), U(m), U(r)
    for k in range(n):
        i = U(k)
        store[o + i] += step * store[by + i] * store[rhs + i]


@compiled
def _prolong(
    store: np.ndarray,
    row: np.ndarray,
    coarse: np.ndarray,
    window: int,
    first: int,
    last: int,
    edges: np.ndarray,
    pairs: np.ndarray,
) -> None:
    """P z_c into the window."""
    plane, size = coarse[SLOW_STRIDE], edges[2]
    start = row[PARITY] + edges[3]
    begin, end = first // 2, (last + 1) // 2
    n = (end - begin) * plane
    own = coarse[ARRAYS] + coarse[HALO] + begin * plane
    z = own + CORRECTION * coarse[SIZE]
    for t in range(len(pairs)):
        p, q = pairs[t, 1] + begin * plane + pairs[t, 3], pairs[t, 2] + begin * plane + pairs[t, 4]
        u, v = z + pairs[t, 3], z + pairs[t, 4]
        at = start + pairs[t, 0] * size
        _two(store, at, p, u, q, v, n, pairs[t, 5] == 0)
    cube = row[COUPLINGS] in (3, 13)
    n = coarse[X]
    for slow in range(first, last):
        for middle in range(row[MIDDLE]):
            parity = 2 * (slow & 1)
            shift = ((slow - first) // 2) * plane
            if cube:
                parity = 2 * parity + 2 * (middle & 1)
                shift += (middle // 2) * coarse[MIDDLE_STRIDE]
            at = z + shift if parity == 0 else start + parity * size + shift
            odd = start + (parity + 1) * size + shift
            _join(store, at, odd, window + slow * row[SLOW_STRIDE] + middle * row[MIDDLE_STRIDE], n)


@compiled
def _coarsest(store: np.ndarray, row: np.ndarray, inverse: np.ndarray, dense: np.ndarray) -> None:
    """Dense solve, z = A⁻¹ r."""
    own = row[ARRAYS] + row[HALO]
    r, z = own + RESIDUAL * row[SIZE], own + CORRECTION * row[SIZE]
    cells = len(inverse)
    for k in range(cells):
        dense[0, k] = store[r + _place(row, k)]
        dense[1, k] = 0
    for k in range(cells):
        value = dense[0, k]
        for i in range(cells):
            dense[1, U(i)] += value * inverse[U(k), U(i)]
    for k in range(cells):
        store[z + _place(row, k)] = dense[1, k]


@compiled
def _place(row: np.ndarray, cell: int) -> int:
    x, rest = cell % row[X], cell // row[X]
    return rest // row[MIDDLE] * row[SLOW_STRIDE] + rest % row[MIDDLE] * row[MIDDLE_STRIDE] + x


@compiled
def cycle(
    store: np.ndarray,
    table: np.ndarray,
    pairs: np.ndarray,
    edges: np.ndarray,
    steps: np.ndarray,
    inverse: np.ndarray,
    dense: np.ndarray,
) -> Real:
    """Correction z of the finest level from its r: one V-cycle; returns r · z."""
    last = len(table) - 1
    for level in range(last):
        _down(store, table, level, pairs[level], edges[level], steps)
    _coarsest(store, table[last], inverse, dense)
    dot = 0.0
    for level in range(last - 1, -1, -1):
        dot = _up(store, table, level, pairs[level], edges[level], steps)
    if last == 0:
        row = table[0]
        own = row[ARRAYS] + row[HALO]
        return dot_of(store, own + RESIDUAL * row[SIZE], own + CORRECTION * row[SIZE], row[FLAT])
    return dot

"""Compiled set-up of one level after another; all terms are products of arrays, see `layout` and `terms`."""

from __future__ import annotations

import numpy as np

from forebay.kernels.cpu.basic_loops import Real, U, add, clear, compiled, copy, step_of
from forebay.kernels.cpu.layout import (
    ARRAYS,
    COUPLINGS,
    DIAGONAL,
    FLAT,
    HALO,
    MIDDLE,
    MIDDLE_STRIDE,
    OFF,
    PROLONG,
    SIZE,
    SLAB,
    SLOW,
    SLOW_STRIDE,
    SMOOTHER,
    X,
)


@compiled
def descend(
    store: np.ndarray,
    table: np.ndarray,
    level: int,
    classes: np.ndarray,
    collapse: np.ndarray,
    pass_on: np.ndarray,
    fine: np.ndarray,
    coarse: np.ndarray,
    ranges: np.ndarray,
    parts: np.ndarray,
    weights: np.ndarray,
    products: np.ndarray,
    gates: np.ndarray,
    offsets: np.ndarray,
) -> None:
    """Interpolation from a level and the operator of the next."""
    _split_operator(store, table, level, parts)
    gated = len(gates) > 0
    if gated:
        _split_gates(gates, table, level, parts)
    interpolate(store, table, level, parts, classes, collapse, pass_on, weights, gated, offsets)
    multiply(store, table, level, parts, fine, coarse, ranges, products)


@compiled
def smooth_by_sums(store: np.ndarray, table: np.ndarray, level: int, smoothing: Real) -> None:
    """Smoother m = s / Σ_j |A_ij|."""
    row = table[level]
    size, flat = row[SIZE], row[FLAT]
    base = row[ARRAYS] + row[HALO]
    out = base + SMOOTHER * size
    clear(store, out, flat)
    _add_absolute(store, out, base + DIAGONAL * size, flat)
    for k in range(row[COUPLINGS]):
        place = base + (OFF + k) * size
        _add_absolute(store, out, place, flat)
        _add_absolute(store, out, place - step_of(row, k), flat)
    a = U(out)
    for i in range(flat):
        total = store[a + U(i)]
        # A row of zeros has nothing to smooth.
        store[a + U(i)] = smoothing / total if total > 0 else total


@compiled
def _add_absolute(store: np.ndarray, to: int, begin: int, n: int) -> None:
    a, b = U(to), U(begin)
    for i in range(n):
        store[a + U(i)] += np.abs(store[b + U(i)])


@compiled
def _split_operator(store: np.ndarray, table: np.ndarray, level: int, parts: np.ndarray) -> None:
    """U: the level's operator by parities of its cells, on the coarse grid."""
    row, size = table[level], table[level + 1, SIZE]
    arrays = 1 + row[COUPLINGS]
    parities = 8 if row[COUPLINGS] in (3, 13) else 4
    # Ghosts of another level's layout lie among the cells of this one's.
    clear(parts, 0, parities * arrays * size)
    for array in range(arrays):
        source = row[ARRAYS] + (DIAGONAL if array == 0 else OFF - 1 + array) * row[SIZE] + row[HALO]
        _split(store, source, table, level, parts, array * size, arrays * size)


@compiled
def _split_gates(gates: np.ndarray, table: np.ndarray, level: int, parts: np.ndarray) -> None:
    """Gates of all axes, behind U."""
    row, size = table[level], table[level + 1, SIZE]
    axes = 3 if row[COUPLINGS] in (3, 13) else 2
    base = 2**axes * (1 + row[COUPLINGS]) * size
    clear(parts, base, 2**axes * axes * size)
    for axis in range(axes):
        _split(gates, axis * row[SIZE] + row[HALO], table, level, parts, base + axis * size, axes * size)


@compiled
def _split(
    source: np.ndarray, begin: int, table: np.ndarray, level: int, parts: np.ndarray, to: int, step: int
) -> None:
    """One array by parities, `step` apart."""
    row, coarse = table[level], table[level + 1]
    cube = row[COUPLINGS] in (3, 13)
    for slow in range(row[SLOW]):
        for middle in range(row[MIDDLE]):
            at = to + coarse[HALO] + (slow // 2) * coarse[SLOW_STRIDE]
            if cube:
                at += (4 * (slow & 1) + 2 * (middle & 1)) * step + (middle // 2) * coarse[MIDDLE_STRIDE]
            else:
                at += 2 * (slow & 1) * step
            line = begin + slow * row[SLOW_STRIDE] + middle * row[MIDDLE_STRIDE]
            _separate(parts, at, at + step, source, line, coarse[X])


@compiled
def _separate(parts: np.ndarray, even: int, odd: int, store: np.ndarray, begin: int, n: int) -> None:
    # Of an odd number of cells the last odd one is the ghost.
    e, o, a = U(even), U(odd), U(begin)
    for k in range(n):
        i = U(k)
        parts[e + i] = store[a + i + i]
        parts[o + i] = store[a + i + i + U(1)]


@compiled
def interpolate(
    store: np.ndarray,
    table: np.ndarray,
    level: int,
    parts: np.ndarray,
    classes: np.ndarray,
    collapse: np.ndarray,
    pass_on: np.ndarray,
    weights: np.ndarray,
    gated: bool,
    offsets: np.ndarray,
) -> None:
    """P of a level, class by class of cells."""
    coarse = table[level + 1]
    size, flat = coarse[SIZE], coarse[FLAT]
    columns = 9 if classes.shape[1] == 3 else 27
    clear(store, coarse[PROLONG], columns * size)
    centre = coarse[PROLONG] + (columns // 2) * size + coarse[HALO]
    for slow in range(coarse[SLOW]):
        for middle in range(coarse[MIDDLE]):
            begin = centre + slow * coarse[SLOW_STRIDE] + middle * coarse[MIDDLE_STRIDE]
            for x in range(coarse[X]):
                store[begin + x] = 1
    rounding = (8 if weights.itemsize == 4 else 4096) * np.finfo(weights.dtype).eps
    for c in range(classes.shape[1]):
        which = classes[level, c]
        for start in range(0, flat, SLAB):
            n = min(SLAB, flat - start)
            _collapse(parts, start, n, which, collapse, weights)
            _divide(parts, which[0] + start, n, which[5], weights, rounding)
            if gated:
                _gate(parts, which[6] + start, size, n, which, offsets[level, c], weights)
            for t in range(which[3], which[4]):
                _pass_on(store, pass_on[t, 0] + start, weights, pass_on[t, 1] * SLAB, pass_on[t, 2] + start, n)


@compiled
def _pass_on(store: np.ndarray, to: int, weights: np.ndarray, at: int, source: int, n: int) -> None:
    a, b, c = U(to), U(at), U(source)
    for k in range(n):
        i = U(k)
        store[a + i] += weights[b + i] * store[c + i]


@compiled
def _collapse(
    parts: np.ndarray, start: int, n: int, which: np.ndarray, collapse: np.ndarray, weights: np.ndarray
) -> None:
    """Sums of the cells' couplings onto the axes along which the class is odd."""
    previous = -1
    for t in range(which[1], which[2]):
        number = collapse[t, 0]
        if number == previous:
            add(weights, number * SLAB, parts, collapse[t, 1] + start, n)
        else:
            copy(weights, number * SLAB, parts, collapse[t, 1] + start, n)
        previous = number


@compiled
def _divide(parts: np.ndarray, diagonal: int, n: int, count: int, weights: np.ndarray, rounding: Real) -> None:
    """n_c = max(-sum, 0) over Σ n_c + max(row sum, 0), row sums below `rounding` times the diagonal being rounding."""
    d = U(diagonal)
    zero, one = weights.dtype.type(0), weights.dtype.type(1)
    for number in range(1, count):
        a = U(number * SLAB)
        for k in range(n):
            weights[U(k)] += weights[a + U(k)]
    for k in range(n):
        i = U(k)
        weights[i] = zero if weights[i] <= rounding * parts[d + i] else weights[i]
    for number in range(1, count):
        a = U(number * SLAB)
        for k in range(n):
            i = U(k)
            coupling = -weights[a + i]
            coupling = zero if coupling < zero else coupling
            weights[a + i] = coupling
            weights[i] += coupling
    for k in range(n):
        i = U(k)
        stand_in = parts[d + i] if parts[d + i] > zero else one
        weights[i] = one / (stand_in if weights[i] <= zero else weights[i])
    for number in range(1, count):
        a = U(number * SLAB)
        for k in range(n):
            weights[a + U(k)] *= weights[U(k)]


@compiled
def _gate(
    parts: np.ndarray, gates: int, size: int, n: int, which: np.ndarray, offsets: np.ndarray, weights: np.ndarray
) -> None:
    """Weights times Π e^c, rescaled to their old sum."""
    count, axes = which[5], 3 if len(offsets) > 9 else 2
    changed = count * SLAB
    one = weights.dtype.type(1)
    for i in range(n):
        old, new = weights[i] * 0, weights[i] * 0
        for number in range(1, count):
            weight = weights[number * SLAB + i]
            factor = one
            for axis in range(axes):
                gate = parts[gates + axis * size + i]
                step = offsets[number, axis]
                factor *= gate if step > 0 else one / gate if step < 0 else one
            old += weight
            new += factor * weight
            weights[changed + number * SLAB + i] = factor * weight
        if new > 0:
            for number in range(1, count):
                weights[number * SLAB + i] = weights[changed + number * SLAB + i] * (old / new)


@compiled
def multiply(
    store: np.ndarray,
    table: np.ndarray,
    level: int,
    parts: np.ndarray,
    fine: np.ndarray,
    coarse: np.ndarray,
    ranges: np.ndarray,
    products: np.ndarray,
) -> None:
    """Pᵀ A P: slab by slab of coarse planes, A P of the cells around a slab first."""
    row = table[level + 1]
    plane = row[SLOW_STRIDE]
    group = max(1, SLAB // plane)
    place = row[ARRAYS] + row[HALO]
    for first in range(0, row[SLOW], group):
        start = first * plane
        n = min(group, row[SLOW] - first) * plane
        for a in range(ranges[level, 0], ranges[level, 1]):
            _sum_of_products(products, fine[a, 0], n, parts, start, store, start, fine, a)
        for a in range(ranges[level, 2], ranges[level, 3]):
            out = place + coarse[a, 0] * row[SIZE] + start
            _sum_of_products(store, out, n, store, start, products, 0, coarse, a)
        for p in range(ranges[level, 4]):
            # The last plane of this slab comes before the first of the next.
            begin = p * ranges[level, 5] + ranges[level, 6]
            copy(products, begin, products, begin + n, plane)


@compiled
def _sum_of_products(
    out: np.ndarray,
    to: int,
    n: int,
    a: np.ndarray,
    shift_a: int,
    b: np.ndarray,
    shift_b: int,
    terms: np.ndarray,
    which: int,
) -> None:
    """Result = Σ a b over the terms of one row: place of out, number of terms, then places of a and b in turn."""
    clear(out, to, n)
    count = terms[which, 1]
    t = 0
    while t < count:
        p = 2 + 2 * t
        if count - t >= 4:
            _four(
                out,
                to,
                n,
                a,
                terms[which, p] + shift_a,
                terms[which, p + 2] + shift_a,
                terms[which, p + 4] + shift_a,
                terms[which, p + 6] + shift_a,
                b,
                terms[which, p + 1] + shift_b,
                terms[which, p + 3] + shift_b,
                terms[which, p + 5] + shift_b,
                terms[which, p + 7] + shift_b,
            )
            t += 4
        else:
            _one(out, to, n, a, terms[which, p] + shift_a, b, terms[which, p + 1] + shift_b)
            t += 1


@compiled
def _four(
    out: np.ndarray,
    to: int,
    n: int,
    a: np.ndarray,
    a0: int,
    a1: int,
    a2: int,
    a3: int,
    b: np.ndarray,
    b0: int,
    b1: int,
    b2: int,
    b3: int,
) -> None:
    o = U(to)
    p0, p1, p2, p3, q0, q1, q2, q3 = U(a0), U(a1), U(a2), U(a3), U(b0), U(b1), U(b2), U(b3)
    for k in range(n):
        i = U(k)
        out[o + i] += a[p0 + i] * b[q0 + i] + a[p1 + i] * b[q1 + i] + a[p2 + i] * b[q2 + i] + a[p3 + i] * b[q3 + i]


@compiled
def _one(out: np.ndarray, to: int, n: int, a: np.ndarray, a0: int, b: np.ndarray, b0: int) -> None:
    o, p, q = U(to), U(a0), U(b0)
    for k in range(n):
        i = U(k)
        out[o + i] += a[p + i] * b[q + i]

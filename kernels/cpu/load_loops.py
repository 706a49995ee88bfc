"""Compiled first and last step of a set-up: coefficients in, dense inverse of the coarsest operator out."""

from __future__ import annotations

import numpy as np

from forebay.kernels.cpu.basic_loops import Real, U, clear, compiled, step_of, sum_of
from forebay.kernels.cpu.layout import (
    ARRAYS,
    COUPLINGS,
    DIAGONAL,
    FLAT,
    HALO,
    MIDDLE,
    MIDDLE_STRIDE,
    OFF,
    SIZE,
    SLOW,
    SLOW_STRIDE,
    X,
)

NOT_FINITE, NEGATIVE = 1, 2
"""Bits of what `load` says of coefficients."""


@compiled
def load(
    faces_x: np.ndarray,
    faces_middle: np.ndarray,
    faces_slow: np.ndarray,
    reaction: np.ndarray,
    active: np.ndarray,
    table: np.ndarray,
    exact: np.ndarray,
) -> tuple[int, float, float, float]:
    """Coefficients in float64 into `exact`: reaction, then faces along x, middle, slow.

    Returns what they are, 1 / mean of the diagonal over active cells, the sum of the reaction over them, and the
    largest coupling over the smallest positive one.
    """
    row = table[0]
    size, halo = row[SIZE], row[HALO]
    count = row[COUPLINGS]
    clear(exact, 0, (1 + count) * size)
    bad = 0
    for slow in range(row[SLOW]):
        for middle in range(row[MIDDLE]):
            begin = halo + slow * row[SLOW_STRIDE] + middle * row[MIDDLE_STRIDE]
            bad |= _load_row(exact, begin, reaction, slow, middle)
            bad |= _load_row(exact, begin + size, faces_x, slow, middle)
            bad |= _load_row(exact, begin + count * size, faces_slow, slow, middle)
            if count == 3:
                bad |= _load_row(exact, begin + 2 * size, faces_middle, slow, middle)
    if bad:
        return bad, 1.0, 0.0, 1.0
    grounded, cells = _sums(table, active, exact)
    # Every face is in the rows of two cells; those of cells left out are 0.
    total = grounded
    for k in range(count):
        total += 2 * sum_of(exact, (1 + k) * size, size)
    smallest, largest = _extremes(exact, size, count * size)
    return bad, cells / total if total > 0 else 1.0, grounded, largest / smallest


@compiled
def start(table: np.ndarray, exact: np.ndarray, scale: Real, store: np.ndarray) -> None:
    """The finest operator, scaled, in the type of `store`, and the scaled reaction."""
    row = table[0]
    size, halo, flat, count = row[SIZE], row[HALO], row[FLAT], row[COUPLINGS]
    base = row[ARRAYS] + halo
    for k in range(count):
        _scaled(exact, halo + (1 + k) * size, store, base + (OFF + k) * size, flat, -scale)
    _scaled(exact, halo, store, base + (OFF + 1 + count) * size, flat, scale)
    s, d = U(halo), U(base + DIAGONAL * size)
    x, y, m = U(halo + size), U(halo + count * size), U(halo + 2 * size)
    one, line, plane = U(1), U(row[MIDDLE_STRIDE]), U(row[SLOW_STRIDE])
    if count == 2:
        for k in range(flat):
            i = U(k)
            total = exact[s + i] + exact[x + i] + exact[x - one + i] + exact[y + i] + exact[y - plane + i]
            store[d + i] = scale * total
    else:
        for k in range(flat):
            i = U(k)
            total = exact[s + i] + exact[x + i] + exact[x - one + i] + exact[y + i] + exact[y - plane + i]
            store[d + i] = scale * (total + exact[m + i] + exact[m - line + i])


@compiled
def _extremes(exact: np.ndarray, begin: int, n: int) -> tuple[Real, Real]:
    """Smallest positive and largest of numbers >= 0; 1 and 1 where all are 0."""
    # Such numbers are ordered as their bits are, and minima of integers run in vectors; 0 - 1 is the largest.
    bits = exact.view(np.uint64)
    ends = np.zeros(2, np.uint64)
    ends[0] -= U(1)
    smallest, largest = ends[0], ends[1]
    a = U(begin)
    for i in range(n):
        value = bits[a + U(i)]
        largest = max(largest, value)
        smallest = min(smallest, value - U(1))
    ends[0], ends[1] = smallest + U(1), largest
    found = ends.view(np.float64)
    return (found[0], found[1]) if found[1] > 0 else (1.0, 1.0)


@compiled
def _load_row(exact: np.ndarray, begin: int, values: np.ndarray, slow: int, middle: int) -> int:
    if slow >= values.shape[0] or middle >= values.shape[1]:
        return 0
    out, s, m = U(begin), U(slow), U(middle)
    negative, beyond = 0, 0
    for i in range(values.shape[2]):
        value = values[s, m, U(i)]
        exact[out + U(i)] = value
        negative += value < 0
        beyond += not np.abs(value) < np.inf
    return NOT_FINITE * (beyond > 0) + NEGATIVE * (negative > 0)


@compiled
def _scaled(exact: np.ndarray, begin: int, store: np.ndarray, to: int, n: int, scale: Real) -> None:
    a, b = U(begin), U(to)
    for i in range(n):
        store[b + U(i)] = scale * exact[a + U(i)]


@compiled
def _sums(table: np.ndarray, active: np.ndarray, exact: np.ndarray) -> tuple[Real, int]:
    """The reaction summed over active cells, and their number."""
    row = table[0]
    if active.size == 0:
        return sum_of(exact, 0, row[SIZE]), row[SLOW] * row[MIDDLE] * row[X]
    total, cells = 0.0, 0
    for slow in range(row[SLOW]):
        for middle in range(row[MIDDLE]):
            place = row[HALO] + slow * row[SLOW_STRIDE] + middle * row[MIDDLE_STRIDE]
            for x in range(row[X]):
                if active[slow, middle, x]:
                    total += exact[place + x]
                    cells += 1
    return total, cells


@compiled
def invert(
    store: np.ndarray, table: np.ndarray, active: np.ndarray, singular: bool, work: np.ndarray, inverse: np.ndarray
) -> None:
    """Dense inverse of the coarsest operator, float64 inside; on the complement of constants where `singular`."""
    row = table[len(table) - 1]
    n = len(inverse)
    _fill(store, row, work, n)
    cells = max(1.0, active.sum())
    mean = 0.0
    for i in range(n):
        mean += work[i * n + i] / n
    if singular:
        # Without a null space the inverse exists; what was added is projected out of it again.
        for i in range(n):
            for j in range(n):
                work[i * n + j] += mean * active[i] * active[j] / cells
    for k in range(n):
        inverse[0, k] = work[k * n + k]
    for k in range(n):
        # Pivots fall from the diagonal to the reciprocal of the inverse's.
        _eliminate(work, n, k, 1e-12 * inverse[0, k])
    if singular:
        _project(work, n, active, cells)
    for i in range(n):
        for j in range(n):
            inverse[i, j] = -0.5 * (work[i * n + j] + work[j * n + i])


@compiled
def _project(work: np.ndarray, n: int, active: np.ndarray, cells: Real) -> None:
    """Take the mean over active cells off all columns, then off all rows."""
    for across, along in ((1, n), (n, 1)):
        for j in range(n):
            mean = 0.0
            for i in range(n):
                mean += active[i] * work[j * across + i * along] / cells
            for i in range(n):
                work[j * across + i * along] -= mean * active[i]


@compiled
def _eliminate(work: np.ndarray, n: int, k: int, least: Real) -> None:
    """One step of the symmetric sweep, after all of which -A⁻¹ stands in place of A."""
    own = k * n
    pivot = work[own + k]
    if pivot <= least:
        # Nothing of this cell is left: it is a combination of those before.
        for i in range(n):
            work[own + i] = 0
            work[i * n + k] = 0
        return
    for i in range(n):
        factor = work[i * n + k] / pivot
        if i != k:
            _subtract(work, i * n, own, n, factor)
            work[i * n + k] = factor
    for j in range(n):
        work[own + j] /= pivot
    work[own + k] = -1.0 / pivot


@compiled
def _subtract(work: np.ndarray, to: int, begin: int, n: int, factor: Real) -> None:
    a, b = U(to), U(begin)
    for j in range(n):
        work[a + U(j)] -= factor * work[b + U(j)]


@compiled
def _fill(store: np.ndarray, row: np.ndarray, work: np.ndarray, n: int) -> None:
    clear(work, 0, n * n)
    line, plane = row[X], row[X] * row[MIDDLE]
    for k in range(-1, row[COUPLINGS]):
        step = 0 if k < 0 else step_of(row, k)
        base = row[ARRAYS] + (DIAGONAL if k < 0 else OFF + k) * row[SIZE] + row[HALO]
        number = 0
        for slow in range(row[SLOW]):
            for middle in range(row[MIDDLE]):
                for x in range(row[X]):
                    at = slow * row[SLOW_STRIDE] + middle * row[MIDDLE_STRIDE] + x
                    value = store[base + at]
                    there = at + step
                    s, rest = there // row[SLOW_STRIDE], there % row[SLOW_STRIDE]
                    other = s * plane + (rest // row[MIDDLE_STRIDE]) * line + rest % row[MIDDLE_STRIDE]
                    if value != 0:
                        work[number * n + other] = value
                        work[other * n + number] = value
                    number += 1

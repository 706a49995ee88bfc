"""Compiled conjugate gradients of one system: float64 iterate and residual, float32 directions and preconditioner."""

from __future__ import annotations

import numpy as np

from forebay.kernels.cpu.basic_loops import Real, U, clear, compiled, dot_of, step_of
from forebay.kernels.cpu.cycle_loops import cycle
from forebay.kernels.cpu.layout import (
    ARRAYS,
    CORRECTION,
    COUPLINGS,
    FLAT,
    GROUP,
    HALO,
    MIDDLE,
    MIDDLE_STRIDE,
    OFF,
    RESIDUAL,
    SIZE,
    SLOW,
    SLOW_STRIDE,
    X,
)

NONE, JACOBI, MULTIGRID = range(3)
"""Preconditioners."""
PATIENCE = 4
"""Iterations without a gain of two in the residual after which, and again after as many, rounding is suspected."""
ROUNDING = 4.0
"""Residuals below so many times what rounding of u makes are as small as they get: iterating on multiplies noise, and
within some tens of iterations the residual grows without bound."""
CONVERGED, MAX_ITERATIONS, DIVERGED, NONFINITE_INPUT, NONFINITE_SOLUTION, RESIDUAL_ABOVE_TOLERANCE = range(6)
"""Codes of `records.Outcome`."""


@compiled
def _precondition(
    kind: int,
    store: np.ndarray,
    table: np.ndarray,
    pairs: np.ndarray,
    edges: np.ndarray,
    steps: np.ndarray,
    inverse: np.ndarray,
    dense: np.ndarray,
) -> Real:
    if kind == MULTIGRID:
        return cycle(store, table, pairs, edges, steps, inverse, dense)
    row = table[0]
    own = row[ARRAYS] + row[HALO]
    flat = row[FLAT]
    r, z = own + RESIDUAL * row[SIZE], own + CORRECTION * row[SIZE]
    for i in range(flat):
        d = store[own + i]
        store[z + i] = store[r + i] / d if kind == JACOBI and d > 0 else store[r + i]
    return dot_of(store, r, z, flat)


@compiled
def _direct(store: np.ndarray, table: np.ndarray, beta: Real) -> Real:
    """Direction p = z + beta p; returns p · A p as Σ s pᵢ² + Σ T (pᵢ - pⱼ)², which float32 knows to all its digits."""
    row = table[0]
    n, stride = row[SLOW], row[SLOW_STRIDE]
    own = row[ARRAYS] + row[HALO]
    z, p = own + CORRECTION * row[SIZE], own + (OFF + row[COUPLINGS]) * row[SIZE]
    step = 2 * row[GROUP]
    ready, finished = 0, 0
    total = 0.0
    while finished < n:
        top = min(n, ready + step)
        _combine(store, p + ready * stride, z + ready * stride, (top - ready) * stride, beta)
        ready = top
        top = n if ready == n else ready - 1
        total += _energy(store, row, finished * stride, (top - finished) * stride)
        finished = top
    return total


@compiled
def _combine(store: np.ndarray, p: int, z: int, n: int, beta: Real) -> None:
    a, b = U(p), U(z)
    for k in range(n):
        i = U(k)
        store[a + i] = store[b + i] + beta * store[a + i]


@compiled
def _energy(store: np.ndarray, row: np.ndarray, begin: int, n: int) -> Real:
    size = row[SIZE]
    own = row[ARRAYS] + row[HALO] + begin
    p, x, m = U(own + (OFF + row[COUPLINGS]) * size), U(own + OFF * size), U(own + (OFF + 1) * size)
    y, s = U(own + (OFF - 1 + row[COUPLINGS]) * size), U(own + (OFF + 1 + row[COUPLINGS]) * size)
    one, line, plane = U(1), U(row[MIDDLE_STRIDE]), U(row[SLOW_STRIDE])
    total = np.float32(0)
    for k in range(n):
        i = U(k)
        h = store[p + i]
        right, above = h - store[p + one + i], h - store[p + plane + i]
        total += store[s + i] * h * h - store[x + i] * right * right - store[y + i] * above * above
    if row[COUPLINGS] == 3:
        for k in range(n):
            i = U(k)
            front = store[p + i] - store[p + line + i]
            total -= store[m + i] * front * front
    return total


@compiled
def _advance(exact: np.ndarray, store: np.ndarray, table: np.ndarray, alpha: Real, factor: Real) -> Real:
    """Iterate u += alpha p and r = factor (b - A u), in float64; returns the square norm of b - A u."""
    row = table[0]
    size, halo, n, stride, count = row[SIZE], row[HALO], row[SLOW], row[SLOW_STRIDE], row[COUPLINGS]
    p, u = row[ARRAYS] + halo + (OFF + count) * size, halo + (2 + count) * size
    step = 2 * row[GROUP]
    ready, finished = 0, 0
    total = 0.0
    while finished < n:
        top = min(n, ready + step)
        if alpha != 0:
            _correct(exact, u + ready * stride, store, p + ready * stride, (top - ready) * stride, alpha)
        ready = top
        top = n if ready == n else ready - 1
        total += _true_residual(exact, store, row, finished * stride, (top - finished) * stride, factor)
        finished = top
    return total


@compiled
def _correct(exact: np.ndarray, u: int, store: np.ndarray, p: int, n: int, alpha: Real) -> None:
    a, b = U(u), U(p)
    for k in range(n):
        exact[a + U(k)] += alpha * np.float64(store[b + U(k)])


@compiled
def _true_residual(exact: np.ndarray, store: np.ndarray, row: np.ndarray, begin: int, n: int, factor: Real) -> Real:
    size, halo, count = row[SIZE], row[HALO], row[COUPLINGS]
    at = begin + halo
    s, x, y, m = U(at), U(at + size), U(at + count * size), U(at + 2 * size)
    b, u, o = U(at + (1 + count) * size), U(at + (2 + count) * size), U(row[ARRAYS] + at + RESIDUAL * size)
    one, line, plane = U(1), U(row[MIDDLE_STRIDE]), U(row[SLOW_STRIDE])
    square = 0.0
    if count == 2:
        for k in range(n):
            i = U(k)
            h = exact[u + i]
            v = exact[b + i] - exact[s + i] * h
            v -= exact[x + i] * (h - exact[u + one + i]) + exact[x - one + i] * (h - exact[u - one + i])
            v -= exact[y + i] * (h - exact[u + plane + i]) + exact[y - plane + i] * (h - exact[u - plane + i])
            square += v * v
            store[o + i] = factor * v
    else:
        for k in range(n):
            i = U(k)
            h = exact[u + i]
            v = exact[b + i] - exact[s + i] * h
            v -= exact[x + i] * (h - exact[u + one + i]) + exact[x - one + i] * (h - exact[u - one + i])
            v -= exact[m + i] * (h - exact[u + line + i]) + exact[m - line + i] * (h - exact[u - line + i])
            v -= exact[y + i] * (h - exact[u + plane + i]) + exact[y - plane + i] * (h - exact[u - plane + i])
            square += v * v
            store[o + i] = factor * v
    return square


@compiled
def iterate(
    kind: int,
    exact: np.ndarray,
    store: np.ndarray,
    table: np.ndarray,
    pairs: np.ndarray,
    edges: np.ndarray,
    steps: np.ndarray,
    inverse: np.ndarray,
    dense: np.ndarray,
    scale: Real,
    norm: Real,
    rtol: Real,
    limit: int,
) -> tuple[int, int, float]:
    """Preconditioned conjugate gradients from u = guess; returns outcome, iterations, ‖b - A u‖ / norm."""
    _forget(store, table)
    # Residuals of size 1 in float32, whatever the units.
    unit = norm / np.sqrt(table[0, SLOW] * table[0, MIDDLE] * table[0, X])
    square = _advance(exact, store, table, 0.0, 1 / unit)
    before, least, since = 1.0, np.inf, 0
    iteration = 0
    while True:
        residual = np.sqrt(square) / norm
        if residual <= rtol:
            return CONVERGED, iteration, residual
        since = 0 if square < 0.25 * least else since + 1
        least = square if since == 0 else least
        stuck = since > 0 and since % PATIENCE == 0
        if stuck and np.sqrt(least) <= ROUNDING * _attainable(exact, table):
            return RESIDUAL_ABOVE_TOLERANCE, iteration, residual
        if iteration == limit:
            return MAX_ITERATIONS, iteration, residual
        rz = _precondition(kind, store, table, pairs, edges, steps, inverse, dense)
        energy = _direct(store, table, np.float32(rz / before if iteration else 0.0))
        if not (energy > 0 and rz > 0):
            return (DIVERGED if np.isfinite(energy + rz) else NONFINITE_SOLUTION), iteration, residual
        square = _advance(exact, store, table, rz / energy * unit * scale, 1 / unit)
        before = rz
        iteration += 1


@compiled
def _forget(store: np.ndarray, table: np.ndarray) -> None:
    """Search direction 0: 0 times what another solve left would not be 0 if that were not finite."""
    row = table[0]
    clear(store, row[ARRAYS] + (OFF + row[COUPLINGS]) * row[SIZE], row[SIZE])


@compiled
def _attainable(exact: np.ndarray, table: np.ndarray) -> Real:
    """A bound of what rounding of u makes of the residual: ε ‖ |A| |u| ‖."""
    row = table[0]
    size, halo, flat, count = row[SIZE], row[HALO], row[FLAT], row[COUPLINGS]
    u = halo + (2 + count) * size
    square = 0.0
    for i in range(flat):
        total = exact[halo + i]
        for k in range(count):
            place = halo + (1 + k) * size + i
            total += 2 * (exact[place] + exact[place - step_of(row, k)])
        square += (total * exact[u + i]) ** 2
    return np.finfo(np.float64).eps * np.sqrt(square)


@compiled
def probe(
    exact: np.ndarray,
    store: np.ndarray,
    table: np.ndarray,
    pairs: np.ndarray,
    edges: np.ndarray,
    steps: np.ndarray,
    inverse: np.ndarray,
    dense: np.ndarray,
    scale: Real,
    energies: np.ndarray,
) -> None:
    """Conjugate gradients for A u = 0 from the u that stands in `exact`: ‖u‖²_A after 0, 1, 2, ... steps."""
    row = table[0]
    _forget(store, table)
    square = _advance(exact, store, table, 0.0, 1.0)
    if not square > 0:
        energies[:] = square
        return
    unit = np.sqrt(square / (row[SLOW] * row[MIDDLE] * row[X]))
    _advance(exact, store, table, 0.0, 1 / unit)
    before = 1.0
    for k in range(len(energies)):
        energies[k] = _exact_energy(exact, row)
        rz = cycle(store, table, pairs, edges, steps, inverse, dense)
        energy = _direct(store, table, np.float32(rz / before if k else 0.0))
        _advance(exact, store, table, rz / energy * unit * scale, 1 / unit)
        before = rz


@compiled
def _exact_energy(exact: np.ndarray, row: np.ndarray) -> Real:
    """‖u‖²_A"""
    size, halo, flat, count = row[SIZE], row[HALO], row[FLAT], row[COUPLINGS]
    u, s = U(halo + (2 + count) * size), U(halo)
    total = 0.0
    for k in range(flat):
        total += exact[s + U(k)] * exact[u + U(k)] ** 2
    for c in range(count):
        t, step = U(halo + (1 + c) * size), U(step_of(row, c))
        for k in range(flat):
            i = U(k)
            difference = exact[u + i] - exact[u + step + i]
            total += exact[t + i] * difference * difference
    return total

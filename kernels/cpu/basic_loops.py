"""What every compiled loop here shares.

Loops index one flat array by unsigned integers: numba would look at each signed one whether it counts from the end, and
then no loop runs in vectors.  Sums may be reordered for the same reason; NaN and inf stay what they are.

numba's cache on disk follows the file of a function, not those of what it calls: whoever edits one of the `*_loops`
files must remove `__pycache__/*.nbi` beside them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from forebay.kernels.cpu.layout import COUPLINGS, MIDDLE_STRIDE, SLOW_STRIDE

U = np.uintp
Real = Any
"""A number of Python, or of numpy in the precision of the arrays."""
compiled = njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"}, error_model="numpy")


@compiled
def clear(array: np.ndarray, begin: int, n: int) -> None:
    """N numbers become 0."""
    a = U(begin)
    for i in range(n):
        array[a + U(i)] = 0


@compiled
def sum_of(array: np.ndarray, begin: int, n: int) -> Real:
    """Sum of n numbers."""
    a = U(begin)
    total = 0.0
    for i in range(n):
        total += array[a + U(i)]
    return total


@compiled
def add(out: np.ndarray, to: int, array: np.ndarray, begin: int, n: int) -> None:
    """Out += array, n numbers from two places on."""
    a, b = U(to), U(begin)
    for i in range(n):
        out[a + U(i)] += array[b + U(i)]


@compiled
def copy(out: np.ndarray, to: int, array: np.ndarray, begin: int, n: int) -> None:
    """Out = array, n numbers; in ascending order, so they may overlap downwards."""
    a, b = U(to), U(begin)
    for i in range(n):
        out[a + U(i)] = array[b + U(i)]


@compiled
def step_of(row: np.ndarray, k: int) -> int:
    """Distance to the neighbour of coupling k."""
    line, plane, count = row[MIDDLE_STRIDE], row[SLOW_STRIDE], row[COUPLINGS]
    if k == 0:
        return 1
    if count <= 3:
        return plane if k == count - 1 else line
    if count == 4:
        return plane + k - 2
    if k < 4:
        return line + k - 2
    return plane + ((k - 4) // 3 - 1) * line + (k - 4) % 3 - 1


@compiled
def dot_of(store: np.ndarray, a: int, b: int, n: int) -> Real:
    """A · b for two places of n numbers; partial sums in float32, their total in float64."""
    u, v = U(a), U(b)
    total = 0.0
    for start in range(0, n, 4096):
        part: Real = np.float32(0)
        for i in range(start, min(n, start + 4096)):
            part += store[u + U(i)] * store[v + U(i)]
        total += part
    return total

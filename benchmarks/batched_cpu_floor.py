"""Bytes that an iteration of the CPU multigrid has to move, and how fast this core moves bytes."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence

import numpy as np


def bytes_per_iteration(shapes: Sequence[tuple[int, ...]]) -> float:
    """Every array of a level once for each pass that needs it; what stays in a cache between stages is not counted.

    Passes of the finest level, D dimensions: direction and energy; iterate and true residual, in float64; down; up.
    Of the others: down and up.  A number that is read and written counts twice.
    """
    dim = len(shapes[0])
    transfers = (3**dim - 1) / 2**dim
    total = 0.0
    for level, shape in enumerate(shapes[:-1]):
        couplings = dim if level == 0 else (3**dim - 1) // 2
        # Right-hand side, smoother, diagonal, couplings, transfers, corrected and coarse values.
        down = 4 * (3 + couplings + transfers + 1 + 0.5**dim)
        up = 4 * (3 + couplings + transfers + 2 + 0.5**dim)
        krylov = 4 * (1 + 2 + dim + 1) + 8 * (2 + 1 + 1 + dim) + 4 * (1 + 1) if level == 0 else 0
        total += math.prod(shape) * (down + up + krylov)
    return total


def copy_bandwidth(size: int) -> float:
    """Bytes a second, read and written, of copies within `size` bytes: the same caches serve them."""
    source = np.zeros(max(size // 8, 1024), np.float32)
    target = np.zeros_like(source)
    rates = []
    for _ in range(9):
        started, moved = time.thread_time(), 0
        while time.thread_time() - started < 0.01:
            np.copyto(target, source)
            moved += 2 * source.nbytes
        rates.append(moved / (time.thread_time() - started))
    return statistics.median(rates)

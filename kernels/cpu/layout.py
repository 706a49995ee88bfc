"""Where everything of one solve lies: two flat arrays, and a table of integers that the compiled loops read.

Cells are stored row after row with ONE ghost cell behind each row (and, in 3D, one ghost row behind each plane), so
that a stencil over a whole grid is one long loop over contiguous memory: a neighbour is a constant distance away, and
what a wall cell reads across the wall is a ghost, whose couplings are 0.  The right ghost of a row is the left ghost of
the next.  Before the first and behind the last cell lie `HALO` further zeros.

Axes are called slow, middle, x: (z, y, x) in 3D; 2D is (y, 1, x).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

COARSEST = 64
"""Cells at or below which a grid is inverted densely."""
CHUNK = 4096
"""Cells that the stages of a sweep work on at a time, so that what they hand on stays in the first-level cache."""
SLAB = 1024
"""Coarse cells that the Galerkin product works on at a time."""

# Columns of the table, one row a level.
SLOW, MIDDLE, X, SLOW_STRIDE, MIDDLE_STRIDE, FLAT, HALO, SIZE, COUPLINGS, GROUP, ARRAYS, PROLONG, WINDOW, PARITY = (
    range(14)
)
COLUMNS = 14
# Arrays of a level, in this order from ARRAYS on, SIZE numbers each; then the couplings, and on the finest level the
# search direction and the reaction.
DIAGONAL, SMOOTHER, RESIDUAL, CORRECTION, OFF = range(5)
WINDOWS = 2


@dataclass(frozen=True, slots=True)
class Layout:
    """Levels of one grid shape."""

    shape: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]
    """Of all levels, finest first."""
    table: np.ndarray
    """int64 [level, COLUMNS]."""
    levels: int
    """Length of the levels' arrays."""
    floats: int
    """The same with the windows of the cycle behind them."""

    @property
    def dimension(self) -> int:
        """2 or 3."""
        return len(self.shape)

    def interior(self, flat: np.ndarray, level: int) -> np.ndarray:
        """The cells of a level's array of SIZE numbers, as a view of that level's shape."""
        row = self.table[level]
        start = flat[row[HALO] :]
        step = flat.itemsize
        strides = (row[SLOW_STRIDE] * step, row[MIDDLE_STRIDE] * step, step)
        view = np.lib.stride_tricks.as_strided(start, (row[SLOW], row[MIDDLE], row[X]), strides)
        return view[:, 0] if self.dimension == 2 else view


def layout_of(shape: tuple[int, ...]) -> Layout:
    """Plan the levels of a grid of 2 or 3 axes; coarse cell I stands at fine cell 2I along every axis.

    Raises:
        ValueError: another number of axes, or an axis without cells.
    """
    if len(shape) not in (2, 3) or min(shape) < 1:
        raise ValueError(
            f"grid shape {tuple(shape)} must have 2 or 3 axes of at least one cell each, (y, x) or (z, y, x)"
        )
    shapes = [tuple(int(n) for n in shape)]
    while math.prod(shapes[-1]) > COARSEST:
        shapes.append(tuple((n + 1) // 2 for n in shapes[-1]))
    table = np.zeros((len(shapes), COLUMNS), np.int64)
    dimension, place = len(shape), 0
    for level, cells in enumerate(shapes):
        place = _plan(table[level], cells, level, place)
    levels = place
    for level in range(len(shapes) - 1):
        place = _plan_windows(table[level], table[level + 1], 2**dimension, place)
    return Layout(shapes[0], tuple(shapes), table, levels, place)


def _plan(row: np.ndarray, cells: tuple[int, ...], level: int, place: int) -> int:
    dimension = len(cells)
    slow, middle, x = cells if dimension == 3 else (cells[0], 1, cells[1])
    line = x + 1
    slow_stride = line * (middle + 1) if dimension == 3 else line
    halo = _round(slow_stride + line + 1)
    row[[SLOW, MIDDLE, X]] = slow, middle, x
    row[SLOW_STRIDE], row[MIDDLE_STRIDE] = slow_stride, line
    row[FLAT], row[HALO] = slow * slow_stride, halo
    row[SIZE] = 2 * halo + _round(slow * slow_stride)
    row[COUPLINGS] = dimension if level == 0 else (3**dimension - 1) // 2
    row[GROUP] = max(1, min((slow + 1) // 2, CHUNK // (2 * slow_stride)))
    row[ARRAYS] = place
    row[PROLONG] = place + (OFF + row[COUPLINGS] + (2 if level == 0 else 0)) * row[SIZE]
    return int(row[PROLONG] + (3**dimension * row[SIZE] if level else 0))


def _plan_windows(row: np.ndarray, coarse: np.ndarray, parities: int, place: int) -> int:
    row[WINDOW] = place
    place += WINDOWS * window_size(row)
    row[PARITY] = place
    return int(place + parities * parity_size(row, coarse))


def window_size(row: np.ndarray) -> int:
    """Numbers of a window over the planes of one chunk and two planes more on either side."""
    return int(_round((2 * row[GROUP] + 4) * row[SLOW_STRIDE]) + 2 * margin(row))


def parity_size(row: np.ndarray, coarse: np.ndarray) -> int:
    """Numbers of the coarse planes of one chunk and the one before."""
    return int(_round((row[GROUP] + 1) * coarse[SLOW_STRIDE]) + 2 * margin(coarse))


def margin(row: np.ndarray) -> int:
    """Zeros before and behind a window: it holds whole planes, so a neighbour is at most a line and a cell outside."""
    return int(_round(row[MIDDLE_STRIDE] + 1))


def offsets(dimension: int, couplings: int) -> list[tuple[int, int, int]]:
    """Lexicographically positive neighbours (slow, middle, x), in the order in which couplings are stored."""
    around = [o for o in itertools.product((-1, 0, 1), repeat=dimension) if o > (0,) * dimension]
    kept = [o for o in around if couplings > dimension or sum(map(abs, o)) == 1]
    return [embed(o) for o in kept]


def embed(offset: tuple[int, ...]) -> tuple[int, int, int]:
    """An offset (y, x) or (z, y, x) as (slow, middle, x)."""
    return (offset[0], offset[1], offset[2]) if len(offset) == 3 else (offset[0], 0, offset[1])


def _round(count: int) -> int:
    return -(-int(count) // 16) * 16

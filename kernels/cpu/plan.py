"""The lists of `terms` with every array and shift replaced by its place in memory, once for a grid shape."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from forebay.kernels.cpu.layout import (
    COUPLINGS,
    DIAGONAL,
    HALO,
    MIDDLE_STRIDE,
    OFF,
    PROLONG,
    SIZE,
    SLAB,
    SLOW_STRIDE,
    Layout,
    embed,
    layout_of,
    margin,
    parity_size,
    window_size,
)
from forebay.kernels.cpu.terms import Terms, terms_of
from forebay.kernels.hierarchy import box_offsets

_WIDTH = 2 + 2 * 27


@dataclass(frozen=True, slots=True)
class Plan:
    """What the compiled set-up reads, all int64; read-only, shared by all solvers of a shape."""

    layout: Layout
    classes: np.ndarray
    """[level, class, 7]: place of the class's diagonal in U, first and last of `collapse`, of `pass_on`, number of
    weights, place of the class's gates behind U."""
    offsets: np.ndarray
    """[level, class, 3^D, D]: c of every weight."""
    collapse: np.ndarray
    """[., 2]: number of the sum, place in U."""
    pass_on: np.ndarray
    """[., 3]: place of the P that is added to, number of the weight, place of the P that is read."""
    fine: np.ndarray
    """[., 56]: place of A P, number of terms, then places in U and P by turns."""
    coarse: np.ndarray
    """[., 56]: array of the coarse operator, number of terms, then places in P and A P by turns."""
    ranges: np.ndarray
    """[level, 7]: first and last of `fine`, of `coarse`, number of products A P, size of one, its margin."""
    pairs: np.ndarray
    """[level, pair, 6]: how a parity of fine cells hangs on two coarse ones: parity, places of two columns of P, shifts
    from the fine cell to the two, and whether it is the parity's first pair."""
    edges: np.ndarray
    """[level, 4]: margin of a window, its length; length of a parity's planes, their margin."""
    parts: int
    """Length of U."""
    products: int
    """Length of A P."""


@lru_cache(maxsize=64)
def plan_of(shape: tuple[int, ...]) -> Plan:
    """Places for all levels of a grid.

    Raises:
        ValueError: see `layout_of`.
    """
    layout = layout_of(shape)
    dimension, levels = layout.dimension, len(layout.shapes) - 1
    rows: dict[str, list[np.ndarray]] = {"collapse": [], "pass_on": [], "fine": [], "coarse": []}
    classes = np.zeros((levels, 2**dimension - 1, 7), np.int64)
    offsets = np.zeros((levels, 2**dimension - 1, 3**dimension, dimension), np.int64)
    ranges = np.zeros((levels, 7), np.int64)
    pairs = np.zeros((levels, (3**dimension - 1) // 2, 6), np.int64)
    edges = np.zeros((levels, 4), np.int64)
    parts = products = 0
    for level in range(levels):
        terms = terms_of(dimension, finest=level == 0)
        below = layout.table[level + 1]
        arrays = 1 + int(layout.table[level, COUPLINGS])
        classes[level] = _classes(terms, below, arrays, dimension, rows)
        offsets[level] = terms.gates
        ranges[level] = _products(terms, below, rows)
        pairs[level] = _pairs(dimension, below)
        row = layout.table[level]
        edges[level] = margin(row), window_size(row), parity_size(row, below), margin(below)
        parts = max(parts, 2**dimension * (arrays + dimension) * int(below[SIZE]))
        products = max(products, int(ranges[level, 4] * ranges[level, 5]))
    joined = {name: np.concatenate(found) if found else np.zeros((0, _WIDTH), np.int64) for name, found in rows.items()}
    return Plan(
        layout, classes, offsets, ranges=ranges, pairs=pairs, edges=edges, parts=parts, products=products, **joined
    )


def _pairs(dimension: int, below: np.ndarray) -> np.ndarray:
    columns = {offset: index for index, offset in enumerate(box_offsets(dimension))}
    rows: list[tuple[int, ...]] = []
    for number, parity in enumerate(itertools.product((0, 1), repeat=dimension)):
        if not any(parity):
            continue
        axis = parity.index(1)
        # The two ends along the first odd axis make a pair.
        ends = [o for o in columns if tuple(map(abs, o)) == parity and o[axis] == 1]
        for end in ends:
            other = tuple(-step if d == axis else step for d, step in enumerate(end))
            both = [int(below[PROLONG] + below[HALO] + columns[o] * below[SIZE]) for o in (end, other)]
            shifts = [int(_flat(np.array(embed(tuple(int(s < 0) for s in o))), below)) for o in (end, other)]
            rows.append((number, *both, *shifts, int(end is ends[0])))
    return np.array(rows, np.int64)


def _classes(
    terms: Terms, below: np.ndarray, arrays: int, dimension: int, rows: dict[str, list[np.ndarray]]
) -> np.ndarray:
    size, halo = below[SIZE], below[HALO]
    found = np.concatenate([terms.classes, terms.classes[:, :1]], 1)
    found[:, 0] = found[:, 0] * arrays * size + halo
    found[:, 6] = (2**dimension * arrays + found[:, 6] * dimension) * size + halo
    found[:, 1:3] += _length(rows["collapse"])
    found[:, 3:5] += _length(rows["pass_on"])
    source = terms.collapse[:, 1] * size + halo + _flat(terms.collapse[:, 2:5], below)
    rows["collapse"].append(np.stack([terms.collapse[:, 0], source], 1))
    shift = below[PROLONG] + halo + _flat(terms.pass_on[:, 3:6], below)
    to, weight, start = terms.pass_on[:, :3].T
    rows["pass_on"].append(np.stack([shift + to * size, weight, shift + start * size], 1))
    return found


def _products(terms: Terms, below: np.ndarray, rows: dict[str, list[np.ndarray]]) -> tuple[int, ...]:
    plane, edge = int(below[SLOW_STRIDE]), margin(below)
    length = (1 + max(1, SLAB // plane)) * plane + 2 * edge
    prolong = below[PROLONG] + below[HALO]
    t = terms.fine
    u = t[:, 1] * below[SIZE] + below[HALO] + _flat(t[:, 2:5], below)
    p = prolong + t[:, 5] * below[SIZE] + _flat(t[:, 6:9], below)
    fine = _grouped(t[:, 0] * length + edge + plane, u, p)
    t = terms.coarse
    array = np.where(t[:, 0] == 0, DIAGONAL, OFF - 1 + t[:, 0])
    product = t[:, 2] * length + edge + plane + _flat(t[:, 3:6], below)
    coarse = _grouped(array, prolong + t[:, 1] * below[SIZE], product)
    starts = _length(rows["fine"]), _length(rows["coarse"])
    rows["fine"].append(fine)
    rows["coarse"].append(coarse)
    return starts[0], starts[0] + len(fine), starts[1], starts[1] + len(coarse), terms.products, length, edge


def _grouped(out: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """One row for each value of `out`, with all its pairs."""
    values = np.unique(out)
    rows = np.zeros((len(values), _WIDTH), np.int64)
    for row, value in zip(rows, values, strict=True):
        pairs = np.stack([a, b], 1)[out == value]
        row[0], row[1] = value, len(pairs)
        row[2 : 2 + pairs.size] = pairs.ravel()
    return rows


def _flat(shift: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Distance in memory of (slow, middle, x)."""
    return shift @ np.array([row[SLOW_STRIDE], row[MIDDLE_STRIDE], 1])


def _length(found: list[np.ndarray]) -> int:
    return sum(map(len, found))

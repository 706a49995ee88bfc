"""Sparsity of a level's prolongator and coarse matrix, and where each product of their numbers goes, once per mesh.

With k candidates, aggregate J has the coarse unknowns k J ... k J + k - 1.  A row of P has one 1 x k block for every
aggregate that its strong neighbours belong to, and A_c = Pᵀ A P is made row by row of A:

    (A P)_i = Σ_j a_ij P_j    into a buffer of 1 x k blocks,      A_c += P_iᵀ (A P)_i

so A P is never stored.  A plan lists the place of every summand, in the order of the loops of `numbers`.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
from numba import njit
from scipy.sparse import csr_array

compiled = njit(cache=True, nogil=True)


class LevelPlan(NamedTuple):
    """One step from fine to coarse; index arrays are uint32, places uint16 where they fit.

    Unsigned, because numba otherwise asks of every index whether it counts from the end: 1.7 times the time of A x.
    """

    indptr: np.ndarray
    """Fine matrix, CSR with sorted columns."""
    indices: np.ndarray
    diagonal: np.ndarray
    """Place of the diagonal entry of every row."""
    aggregate: np.ndarray
    """Aggregate of every row, int32, -1 for none."""
    tentative: np.ndarray
    """T, (n, k) float64."""
    strong: np.ndarray
    """uint8 (nnz,): 1 for an entry of the filtered matrix off the diagonal, 0 for what is lumped, 2 for entries
    between unknowns of one node, the diagonal included."""
    source: np.ndarray
    """Row of T that an entry multiplies: its column, or where it is lumped to."""
    place: np.ndarray
    """Block of the prolongator's row that it goes to."""
    prolong_indptr: np.ndarray
    """Blocks of every row of P."""
    prolong_indices: np.ndarray
    """Aggregate of every block, sorted in a row."""
    restrict_indptr: np.ndarray
    """Blocks of every row of Pᵀ."""
    restrict_indices: np.ndarray
    """Fine row of every block of Pᵀ, sorted in a row."""
    restrict_order: np.ndarray
    """Its block of P."""
    width: np.ndarray
    """Blocks of every row of A P."""
    product: np.ndarray
    """Block of the row of A P for every (entry of A, block of P in the row of its column)."""
    galerkin: np.ndarray
    """Block of the block row of A_c for every (block of P, block of A P in the same row)."""
    coarse_indptr: np.ndarray
    coarse_indices: np.ndarray
    depth: int
    """Of the fine level, 0 for the finest."""

    @property
    def unknowns(self) -> int:
        """n, of the fine matrix."""
        return len(self.indptr) - 1

    @property
    def candidates(self) -> int:
        """Number of candidates, k."""
        return self.tentative.shape[1]

    @property
    def work_size(self) -> int:
        """Numbers that the longest row of A P has, or one of every unknown."""
        return max(int(self.width.max()) * self.candidates, self.unknowns)

    @property
    def coarse_unknowns(self) -> int:
        """Number of aggregates times k."""
        return len(self.coarse_indptr) - 1


def make_plan(
    matrix: csr_array,
    strong: np.ndarray,
    aggregates: np.ndarray,
    count: int,
    tentative: np.ndarray,
    block: int,
    depth: int,
) -> LevelPlan:
    """Plan of a level.

    Args:
        matrix: CSR with sorted columns and a full diagonal; only its pattern counts.
        strong: which of its entries couple nodes strongly, (nnz,).
        aggregates: aggregate of every node.
        count: number of aggregates.
        tentative: T, (n, k).
        block: unknowns a node.
        depth: of the level, 0 for the finest.
    """
    indptr, indices = matrix.indptr, matrix.indices
    n, width = tentative.shape
    rows = np.repeat(np.arange(n, dtype=np.int32), np.diff(indptr))
    own = rows // block == indices // block
    source = np.where(strong | own, indices, rows // block * block + indices % block).astype(np.int32)
    aggregate = np.repeat(aggregates, block).astype(np.int32)
    used = aggregate[source] >= 0
    prolong = _pattern(rows[used], aggregate[source[used]], (n, count))
    product, coarse = _galerkin_patterns(_ones(indptr, indices, (n, n)), prolong)
    entries = np.diff(prolong.indptr)[indices].sum()
    pairs = (np.diff(prolong.indptr).astype(np.int64) * np.diff(product.indptr)).sum()
    place = _places(rows, aggregate[source], prolong.indptr, prolong.indices, len(indices))
    first = _product_places(indptr, indices, prolong.indptr, prolong.indices, product.indptr, product.indices, entries)
    second = _coarse_places(
        prolong.indptr, prolong.indices, product.indptr, product.indices, coarse.indptr, coarse.indices, pairs
    )
    order = np.argsort(prolong.indices, kind="stable")
    coarse_indptr, coarse_indices = _expand(coarse.indptr, coarse.indices, width)
    if width == 1:
        second += np.repeat(coarse.indptr[prolong.indices], np.diff(product.indptr)[_rows(prolong.indptr)])
    return LevelPlan(
        indptr=_index(indptr),
        indices=_index(indices),
        diagonal=_index(np.flatnonzero(rows == indices)),
        aggregate=aggregate,
        tentative=tentative,
        strong=np.where(own, 2, strong).astype(np.uint8),
        source=_index(source),
        place=_narrow(place),
        prolong_indptr=_index(prolong.indptr),
        prolong_indices=_index(prolong.indices),
        restrict_indptr=_index(np.searchsorted(prolong.indices[order], np.arange(count + 1))),
        restrict_indices=_index(_rows(prolong.indptr)[order]),
        restrict_order=_index(order),
        width=_index(np.diff(product.indptr)),
        product=_narrow(first),
        galerkin=_index(second) if width == 1 else _narrow(second),
        coarse_indptr=_index(coarse_indptr),
        coarse_indices=_index(coarse_indices),
        depth=depth,
    )


def _galerkin_patterns(matrix: csr_array, prolong: csr_array) -> tuple[csr_array, csr_array]:
    """A P and Pᵀ A P with sorted columns."""
    product = (matrix @ prolong).tocsr()
    product.sort_indices()
    coarse = (prolong.T.tocsr() @ product).tocsr()
    coarse.sort_indices()
    return product, coarse


def _rows(indptr: np.ndarray) -> np.ndarray:
    return np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))


def _ones(indptr: np.ndarray, indices: np.ndarray, shape: tuple[int, int]) -> csr_array:
    # Float32 counts paths up to 2²⁴ exactly, and no sum of ones cancels to an entry that would be dropped.
    return csr_array((np.ones(len(indices), dtype=np.float32), indices, indptr), shape=shape)


def _pattern(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> csr_array:
    """CSR of ones without repetitions, columns sorted."""
    found = csr_array((np.ones(len(rows), dtype=np.float32), (rows, columns)), shape=shape)
    found.sum_duplicates()
    found.data[:] = 1
    return found


def _index(numbers: np.ndarray) -> np.ndarray:
    return numbers.astype(np.uint32)


def _narrow(places: np.ndarray) -> np.ndarray:
    """uint16 where it holds them: plans are read once a set-up, and their bytes are what it waits for."""
    small = not len(places) or int(places.max()) <= np.iinfo(np.uint16).max
    return places.astype(np.uint16 if small else np.uint32)


def _expand(indptr: np.ndarray, indices: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """CSR pattern of numbers from one of width x width blocks."""
    if width == 1:
        return indptr, indices
    lengths = np.repeat(np.diff(indptr), width) * width
    columns = indices[:, None] * width + np.arange(width)
    rows = [np.tile(columns[first:last].ravel(), width) for first, last in itertools.pairwise(indptr)]
    return np.concatenate([[0], np.cumsum(lengths)]), np.concatenate(rows)


@compiled
def _places(rows: np.ndarray, targets: np.ndarray, indptr: np.ndarray, indices: np.ndarray, count: int) -> np.ndarray:
    """Where a target stands in the row of a sorted pattern, relative to the row's start; 0 for no target."""
    places = np.zeros(count, np.int32)
    for t in range(count):
        if targets[t] >= 0:
            low, high = indptr[rows[t]], indptr[rows[t] + 1]
            places[t] = np.searchsorted(indices[low:high], targets[t])
    return places


@compiled
def _product_places(
    ap: np.ndarray, aj: np.ndarray, pp: np.ndarray, pj: np.ndarray, cp: np.ndarray, cj: np.ndarray, count: int
) -> np.ndarray:
    places = np.empty(count, np.int32)
    marker = np.empty(cj.max() + 1 if len(cj) else 0, np.int32)
    u = 0
    for i in range(len(ap) - 1):
        for q in range(cp[i], cp[i + 1]):
            marker[cj[q]] = q - cp[i]
        for t in range(ap[i], ap[i + 1]):
            for q in range(pp[aj[t]], pp[aj[t] + 1]):
                places[u] = marker[pj[q]]
                u += 1
    return places


@compiled
def _coarse_places(
    pp: np.ndarray, pj: np.ndarray, bp: np.ndarray, bj: np.ndarray, cp: np.ndarray, cj: np.ndarray, count: int
) -> np.ndarray:
    places = np.empty(count, np.int32)
    u = 0
    for i in range(len(pp) - 1):
        for q in range(pp[i], pp[i + 1]):
            at, start = cp[pj[q]], cp[pj[q]]
            for b in range(bp[i], bp[i + 1]):  # both are sorted, and row i of A P is part of the coarse row
                while cj[at] != bj[b]:
                    at += 1
                places[u] = at - start
                u += 1
    return places

"""Strong connections, aggregates and tentative prolongator of smoothed aggregation, once per mesh.

Sources: Vaněk, Mandel and Brezina, "Algebraic multigrid by smoothed aggregation for second and fourth order elliptic
problems", Computing 56 (1996) 179-196, doi 10.1007/BF02238511.  Differs from it: an aggregate's candidates are scaled
by √(nodes) after the QR factorisation, so that constants stay ones on every level and a coarse row sums to what its
fine rows sum to; candidates that an aggregate is too small for become zero columns.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from scipy.sparse import coo_array, csr_array

compiled = njit(cache=True, nogil=True)

ISOLATED = -1
"""Aggregate of a node without strong connections: it has no coarse unknown, smoothing alone solves for it."""
_NEGLIGIBLE = 1e-8
"""A candidate of which so little is left after orthogonalisation depends on the others."""


def node_graph(matrix: csr_array, block: int) -> csr_array:
    """Frobenius norm of every block x block coupling between nodes, CSR (n / block, n / block) with sorted columns."""
    if block == 1:
        return csr_array((np.abs(matrix.data), matrix.indices, matrix.indptr), shape=matrix.shape)
    entries = matrix.tocoo()
    nodes = matrix.shape[0] // block
    squares = coo_array((entries.data**2, (entries.row // block, entries.col // block)), shape=(nodes, nodes)).tocsr()
    squares.sort_indices()
    squares.data = np.sqrt(squares.data)
    return squares


def strong_connections(graph: csr_array, threshold: float) -> np.ndarray:
    """Which entries of a node graph are strong: |a_ij| > threshold √(|a_ii| |a_jj|), i ≠ j; bool (nnz,)."""
    rows = np.repeat(np.arange(graph.shape[0]), np.diff(graph.indptr))
    size = np.sqrt(graph.diagonal())
    return (graph.data > threshold * size[rows] * size[graph.indices]) & (rows != graph.indices)


def aggregate(graph: csr_array, strong: np.ndarray) -> tuple[np.ndarray, int]:
    """Disjoint aggregates of strongly connected nodes.

    Returns:
        Aggregate of every node, int32, `ISOLATED` where nothing is strong; and how many aggregates there are.  They
        are numbered in the order of their first node, so an ordering with small bandwidth hands it on to all levels.
    """
    return _aggregate(graph.indptr, graph.indices, strong, np.full(graph.shape[0], ISOLATED, dtype=np.int32))


def tentative(aggregates: np.ndarray, count: int, candidates: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """T and the coarse candidates B_c with T B_c = B on every aggregate and orthogonal columns of T.

    Args:
        aggregates: aggregate of every node.
        count: number of aggregates.
        candidates: B (n, k), n = nodes x block.
        block: unknowns a node.

    Returns:
        T as (n, k), row i holding columns k J ... k J + k - 1 where J is the aggregate of i; B_c (count k, k).
    """
    width = candidates.shape[1]
    order = np.argsort(aggregates, kind="stable").astype(np.int64)
    sizes = np.bincount(aggregates[aggregates >= 0], minlength=count)
    starts = np.concatenate([[0], np.cumsum(sizes)]) + np.count_nonzero(aggregates == ISOLATED)
    values, coarse = np.zeros_like(candidates), np.zeros((count * width, width))
    _orthonormalise(order, starts, candidates, block, values, coarse)
    return values, coarse


@compiled
def _aggregate(
    indptr: np.ndarray, indices: np.ndarray, strong: np.ndarray, aggregates: np.ndarray
) -> tuple[np.ndarray, int]:
    count = 0
    # 1. A node none of whose strong neighbours is taken makes an aggregate with all of them.
    for i in range(len(aggregates)):
        free, connected = aggregates[i] < 0, False
        for t in range(indptr[i], indptr[i + 1]):
            if strong[t]:
                connected = True
                free &= aggregates[indices[t]] < 0
        if free and connected:
            aggregates[i] = count
            for t in range(indptr[i], indptr[i + 1]):
                if strong[t]:
                    aggregates[indices[t]] = count
            count += 1
    # 2. What is left joins the aggregate of a strong neighbour; those of this pass do not count yet.
    joined = aggregates.copy()
    for i in range(len(aggregates)):
        if aggregates[i] < 0:
            for t in range(indptr[i], indptr[i + 1]):
                if strong[t] and aggregates[indices[t]] >= 0:
                    joined[i] = aggregates[indices[t]]
                    break
    # 3. Remnants with each other.
    for i in range(len(aggregates)):
        if joined[i] < 0:
            alone = True
            for t in range(indptr[i], indptr[i + 1]):
                if strong[t]:
                    alone = False
                    if joined[indices[t]] < 0:
                        joined[indices[t]] = count
            if not alone:
                joined[i] = count
                count += 1
    return joined, count


@compiled
def _orthonormalise(
    order: np.ndarray, starts: np.ndarray, candidates: np.ndarray, block: int, values: np.ndarray, coarse: np.ndarray
) -> None:
    """Modified Gram-Schmidt, twice for orthogonality to rounding, on the rows of every aggregate."""
    width = candidates.shape[1]
    for aggregate in range(len(starts) - 1):
        nodes = order[starts[aggregate] : starts[aggregate + 1]]
        scale = np.sqrt(len(nodes))
        for c in range(width):
            whole = 0.0
            for node in nodes:
                for i in range(node * block, (node + 1) * block):
                    values[i, c] = candidates[i, c]
                    whole += candidates[i, c] ** 2
            for _ in range(2):
                for b in range(c):
                    product = 0.0
                    for node in nodes:
                        for i in range(node * block, (node + 1) * block):
                            product += values[i, b] * values[i, c]
                    product /= scale**2
                    coarse[aggregate * width + b, c] += product
                    for node in nodes:
                        for i in range(node * block, (node + 1) * block):
                            values[i, c] -= product * values[i, b]
            left = 0.0
            for node in nodes:
                for i in range(node * block, (node + 1) * block):
                    left += values[i, c] ** 2
            depends = left <= _NEGLIGIBLE**2 * whole
            factor = 0.0 if depends else scale / np.sqrt(left)
            coarse[aggregate * width + c, c] = 0.0 if depends else np.sqrt(left) / scale
            for node in nodes:
                for i in range(node * block, (node + 1) * block):
                    values[i, c] *= factor

"""Symbolic set-up: all that follows from a mesh and one reference matrix on it, shared by all samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from forebay.kernels.amg.aggregation import aggregate, node_graph, strong_connections, tentative
from forebay.kernels.amg.numbers import set_up_level
from forebay.kernels.amg.plans import LevelPlan, make_plan
from forebay.kernels.amg.weights import CLASSICAL

COARSEST = 100
"""Unknowns at or below which a level is inverted: 10,000 entries, less than a coarse level's cycle costs."""
MOST_LEVELS = 12
LEAST_COARSENING = 0.9
"""A level that keeps more than this share of the unknowns ends the hierarchy."""
THRESHOLD = 0.08
"""Of strong couplings on the finest level, half of it on the next, and so on (Vaněk et al.).  Iterations on P1 meshes
of 19,000 nodes in 2D and 22,000 in 3D: 18 and 27 with 0.08, 22 and 29 with 0.02, 27 and 30 with 0, 108 and 46 with
0.25."""


@dataclass(frozen=True, slots=True, eq=False)
class Symbolic:
    """Plans of all levels and the pattern of the coarsest matrix."""

    levels: tuple[LevelPlan, ...]
    coarsest_indptr: np.ndarray
    coarsest_indices: np.ndarray
    indptr: np.ndarray
    """Of the finest matrix, as given."""
    indices: np.ndarray

    @property
    def unknowns(self) -> int:
        """Of the finest level, n."""
        return len(self.indptr) - 1

    @property
    def sizes(self) -> tuple[int, ...]:
        """Unknowns of every level, finest first."""
        return (*(plan.unknowns for plan in self.levels), len(self.coarsest_indptr) - 1)

    @property
    def operator_complexity(self) -> float:
        """Entries of the matrices of all levels over those of the finest."""
        entries = [len(plan.indices) for plan in self.levels] + [len(self.coarsest_indices)]
        return sum(entries) / len(self.indices)


def make_symbolic(
    indptr: np.ndarray,
    indices: np.ndarray,
    reference: np.ndarray,
    *,
    candidates: np.ndarray | None = None,
    block_size: int = 1,
    threshold: float = THRESHOLD,
) -> Symbolic:
    """Aggregate, level by level, on the matrix with entries `reference` and its classical Galerkin products.

    Args:
        indptr: CSR row pointers; columns sorted, the diagonal present in every row.
        indices: CSR column numbers.
        reference: entries (nnz,) of a typical symmetric positive definite matrix, such as that of coefficient 1.
        candidates: near-null space (n, k), rigid motions for elasticity; constants, one a component, by default.
        block_size: unknowns a node, numbered node by node.
        threshold: strength of couplings that count, in [0, 1).  With candidates for elasticity, 0.

    Raises:
        ValueError: arrays that make no such matrix, candidates of another shape, or a threshold out of range.
    """
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold = {threshold:g} must lie in [0, 1); 0.08 is good for diffusion, 0 for elasticity")
    matrix = _checked(indptr, indices, reference, block_size)
    near_null = _checked_candidates(candidates, matrix.shape[0], block_size)
    plans: list[LevelPlan] = []
    block = block_size
    while matrix.shape[0] > COARSEST and len(plans) < MOST_LEVELS - 1:
        graph = node_graph(matrix, block)
        strong = strong_connections(graph, threshold * 0.5 ** len(plans))
        aggregates, count = aggregate(graph, strong)
        width = near_null.shape[1]
        if count == 0 or count * width > LEAST_COARSENING * matrix.shape[0]:
            break
        values, near_null = tentative(aggregates, count, near_null, block)
        entries = _strong_entries(matrix, graph, strong, block)
        plan = make_plan(matrix, entries, aggregates, count, values, block, len(plans))
        plans.append(plan)
        matrix, block = _coarse_matrix(plan, matrix.data), width
    return Symbolic(tuple(plans), matrix.indptr, matrix.indices, indptr, indices)


def _checked(indptr: np.ndarray, indices: np.ndarray, values: np.ndarray, block: int) -> csr_array:
    n = len(indptr) - 1
    if len(values) != len(indices) or n < 1 or indptr[-1] != len(indices):
        raise ValueError(
            f"row pointers for {n} rows and {int(indptr[-1])} entries, {len(indices)} columns and {len(values)} "
            f"reference values make no CSR matrix; all three must be of one matrix"
        )
    if block < 1 or n % block:
        raise ValueError(f"block_size = {block} does not divide {n} unknowns; it is the number of unknowns a node")
    if len(values) and not np.isfinite(values).all():
        raise ValueError("the reference matrix holds NaN or inf; take one of coefficient 1")
    matrix = csr_array((np.asarray(values, dtype=np.float64), indices, indptr), shape=(n, n))
    if not matrix.has_sorted_indices:
        raise ValueError("the columns of some row are not in ascending order; call `sort_indices` on the matrix first")
    diagonal = matrix.diagonal()
    if diagonal.min() <= 0:
        row = int(diagonal.argmin())
        raise ValueError(f"diagonal entry {row} of the reference matrix is {diagonal[row]:g}; all must be positive")
    unlike = abs(matrix - matrix.T).max()
    if unlike > 1e-8 * diagonal.max():
        raise ValueError(f"the reference matrix differs from its transpose by {unlike:.3g}; it must be symmetric")
    return matrix


def _checked_candidates(candidates: np.ndarray | None, n: int, block: int) -> np.ndarray:
    if candidates is None:
        return np.tile(np.eye(block), (n // block, 1))
    if candidates.ndim != 2 or len(candidates) != n or not candidates.shape[1]:
        raise ValueError(f"candidates of shape {candidates.shape}; they must be (n, k) = ({n}, k) with k at least 1")
    if not np.isfinite(candidates).all():
        raise ValueError("the candidates hold NaN or inf")
    return np.ascontiguousarray(candidates, dtype=np.float64)


def _strong_entries(matrix: csr_array, graph: csr_array, strong: np.ndarray, block: int) -> np.ndarray:
    """Strength of the nodes' couplings for every entry of the matrix, bool (nnz,)."""
    if block == 1:
        return strong
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr)) // block
    nodes = graph.shape[0]
    of_graph = np.repeat(np.arange(nodes, dtype=np.int64), np.diff(graph.indptr)) * nodes + graph.indices
    return strong[np.searchsorted(of_graph, rows.astype(np.int64) * nodes + matrix.indices // block)]


def _coarse_matrix(plan: LevelPlan, values: np.ndarray) -> csr_array:
    smoother, prolong = np.empty(plan.unknowns), np.empty((len(plan.prolong_indices), plan.candidates))
    coarse, work = np.empty(len(plan.coarse_indices)), np.empty(plan.work_size)
    set_up_level(plan, values, CLASSICAL.hidden, CLASSICAL.output, smoother, prolong, coarse, work)
    size = plan.coarse_unknowns
    pattern = plan.coarse_indices.astype(np.int32), plan.coarse_indptr.astype(np.int32)
    return csr_array((coarse, *pattern), shape=(size, size))

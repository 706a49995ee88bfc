"""Matrices for the tests of smoothed aggregation, and its parts as sparse and dense matrices."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array

from forebay.kernels.amg.hierarchy import Hierarchy
from forebay.kernels.amg.numbers import FEATURES
from forebay.kernels.amg.symbolic import Symbolic, make_symbolic
from forebay.kernels.amg.weights import HIDDEN, AmgWeights
from forebay.learners.amg_meshes import DiffusionMesh, grid_mesh, p1_mesh


def meshes() -> dict[str, DiffusionMesh]:
    """Small ones of each kind, two levels and the coarsest."""
    rng = np.random.default_rng(7)
    return {
        "triangles": p1_mesh(500, 2, rng),
        "tetrahedra": p1_mesh(800, 3, rng),
        "5-point": grid_mesh(23, 2),
        "7-point": grid_mesh(10, 3),
    }


def random_weights(seed: int, size: float = 2.0) -> AmgWeights:
    """Weights that nobody has trained."""
    rng = np.random.default_rng(seed)
    arrays = (size * rng.standard_normal(shape) for shape in ((HIDDEN, FEATURES + 1), (2, HIDDEN + 1)))
    return AmgWeights(*(array.astype(np.float32) for array in arrays))


def symbolic_of(matrix: csr_array, **options) -> Symbolic:
    return make_symbolic(matrix.indptr, matrix.indices, matrix.data, **options)


def stiffness(nodes: int, seed: int = 11) -> tuple[csr_array, np.ndarray]:
    """A plane truss on random points, held at three nodes, two unknowns a node; and its rigid motions (n, 3)."""
    rng = np.random.default_rng(seed)
    points = rng.random((nodes, 2))
    near = np.argsort(((points[:, None] - points[None]) ** 2).sum(-1), axis=1)[:, 1:7]
    bars = np.unique(np.sort(np.column_stack([np.repeat(np.arange(nodes), 6), near.ravel()]), axis=1), axis=0)
    along = points[bars[:, 1]] - points[bars[:, 0]]
    along /= np.linalg.norm(along, axis=1)[:, None]
    rows = np.repeat(np.arange(len(bars)), 4)
    columns = (2 * bars[:, [0, 0, 1, 1]] + [0, 1, 0, 1]).ravel()
    stretch = csr_array((np.hstack([-along, along]).ravel(), (rows, columns)), shape=(len(bars), 2 * nodes))
    held = np.zeros(2 * nodes)
    held[:6] = 1.0
    matrix = (stretch.T @ stretch + csr_array(np.diag(held)) + 1e-3 * csr_array(np.eye(2 * nodes))).tocsr()
    matrix.sort_indices()
    motions = np.zeros((2 * nodes, 3))
    motions[0::2, 0] = motions[1::2, 1] = 1.0
    motions[0::2, 2], motions[1::2, 2] = -(points[:, 1] - 0.5), points[:, 0] - 0.5
    return matrix, motions


def prolongators(hierarchy: Hierarchy) -> list[csr_array]:
    """P of every level."""
    found = []
    for level in hierarchy._levels:
        plan, blocks, k = level.plan, level.prolong_exact, level.plan.candidates
        columns = (plan.prolong_indices.astype(np.int64)[:, None] * k + np.arange(k)).ravel()
        indptr = plan.prolong_indptr.astype(np.int64) * k
        found.append(csr_array((blocks.ravel(), columns, indptr), shape=(plan.unknowns, plan.coarse_unknowns)))
    return found


def coarse_matrices(hierarchy: Hierarchy) -> list[csr_array]:
    """A_c of every level."""
    found = []
    for level in hierarchy._levels:
        pattern = (level.plan.coarse_indices.astype(np.int32), level.plan.coarse_indptr.astype(np.int32))
        found.append(csr_array((level.coarse, *pattern), shape=(level.plan.coarse_unknowns,) * 2))
    return found


def strong_entries(matrix: csr_array, threshold: float) -> np.ndarray:
    """|a_ij| > threshold √(a_ii a_jj) off the diagonal, dense."""
    dense, size = np.abs(matrix.toarray()), np.sqrt(matrix.diagonal())
    return (dense > threshold * np.outer(size, size)) & ~np.eye(len(size), dtype=bool)


def cycle_matrix(solver) -> np.ndarray:
    """B, dense."""
    n = solver.symbolic.unknowns
    found = np.empty((n, n))
    solver.cycle(np.eye(n), found)
    return found

import amg_cases
import numpy as np
import pytest
from scipy.sparse import csr_array

from forebay.kernels.amg.aggregation import ISOLATED, aggregate, node_graph, strong_connections, tentative
from forebay.kernels.amg.plans import _narrow
from forebay.learners.amg_meshes import grid_mesh, p1_mesh


@pytest.fixture(scope="module")
def matrix():
    return p1_mesh(1500, 2, np.random.default_rng(7)).reference


def graph_with_strength(matrix, threshold=0.08, block=1):
    graph = node_graph(matrix, block)
    return graph, strong_connections(graph, threshold)


def test_every_coupled_node_is_in_one_connected_aggregate(matrix):
    graph, strong = graph_with_strength(matrix)
    aggregates, count = aggregate(graph, strong)
    assert set(aggregates) == set(range(count))
    links = csr_array((strong.astype(float), graph.indices, graph.indptr), shape=graph.shape)
    for number in range(count):
        inside = np.flatnonzero(aggregates == number)
        part = links[inside][:, inside].toarray() + np.eye(len(inside))
        assert (np.linalg.matrix_power(part, len(inside)) > 0).all()
    assert 4 < len(aggregates) / count < 12


def test_only_a_node_without_strong_couplings_is_isolated():
    dense = np.diag([2.0] * 6) + np.diag([-1.0] * 5, 1) + np.diag([-1.0] * 5, -1)
    dense[2, :2] = dense[:2, 2] = dense[2, 3:] = dense[3:, 2] = 0.0
    aggregates, count = aggregate(*graph_with_strength(csr_array(dense)))
    assert aggregates[2] == ISOLATED
    assert count == 2
    assert np.flatnonzero(aggregates == ISOLATED).tolist() == [2]


def test_strength_is_relative_to_both_diagonals():
    dense = np.array([[1.0, -0.5, -0.05], [-0.5, 100.0, -0.5], [-0.05, -0.5, 1.0]])
    strong = graph_with_strength(csr_array(dense), 0.051)[1].reshape(3, 3)
    assert not strong.any()
    assert graph_with_strength(csr_array(dense), 0.0499)[1].sum() == 6


def test_the_graph_of_nodes_has_the_norms_of_the_blocks():
    matrix, _ = amg_cases.stiffness(40)
    graph = node_graph(matrix, 2)
    dense = matrix.toarray()
    i, j = 3, int(graph.indices[graph.indptr[3]])
    assert graph[i, j] == pytest.approx(np.linalg.norm(dense[2 * i : 2 * i + 2, 2 * j : 2 * j + 2]))


def test_the_tentative_prolongator_reproduces_the_candidates_and_is_orthogonal():
    matrix, motions = amg_cases.stiffness(120)
    aggregates, count = aggregate(*graph_with_strength(matrix, 0.0, 2))
    values, coarse = tentative(aggregates, count, motions, 2)
    dense = np.zeros((240, 3 * count))
    for i in range(240):
        dense[i, 3 * aggregates[i // 2] : 3 * aggregates[i // 2] + 3] = values[i]
    np.testing.assert_allclose(dense @ coarse, motions, atol=1e-13)
    sizes = np.repeat(np.bincount(aggregates), 3)
    np.testing.assert_allclose(dense.T @ dense, np.diag(sizes), atol=1e-12 * sizes.max())


def test_a_candidate_that_an_aggregate_is_too_small_for_becomes_a_zero_column():
    rigid = np.array([[1.0, 0.0, -0.3], [0.0, 1.0, 0.2]])
    values, coarse = tentative(np.zeros(1, dtype=np.int32), 1, rigid, 2)
    np.testing.assert_array_equal(values[:, 2], 0.0)
    np.testing.assert_allclose(values @ coarse, rigid, atol=1e-15)


def test_constants_stay_ones_on_every_level(matrix):
    symbolic = amg_cases.symbolic_of(matrix)
    assert len(symbolic.levels) >= 2
    for plan in symbolic.levels:
        np.testing.assert_allclose(plan.tentative, 1.0, rtol=1e-14)


def test_levels_shrink_to_the_coarsest_and_stay_cheap(matrix):
    symbolic = amg_cases.symbolic_of(matrix)
    assert symbolic.sizes[0] == matrix.shape[0]
    assert symbolic.sizes[-1] <= 100 < symbolic.sizes[-2]
    assert 1 < symbolic.operator_complexity < 1.6


def test_plans_that_need_more_than_16_bits_are_kept_in_32():
    assert _narrow(np.array([0, 65535])).dtype == np.uint16
    assert _narrow(np.array([0, 65536])).dtype == np.uint32
    assert _narrow(np.array([0, 65536])).tolist() == [0, 65536]


def test_a_matrix_that_is_small_has_no_levels():
    symbolic = amg_cases.symbolic_of(grid_mesh(10, 2).reference)
    assert symbolic.levels == ()
    assert symbolic.sizes == (64,)


def refused(match, **changes):
    matrix = grid_mesh(6, 2).reference
    arrays = {"indptr": matrix.indptr, "indices": matrix.indices, "reference": matrix.data.copy(), **changes}
    with pytest.raises(ValueError, match=match):
        amg_cases.make_symbolic(arrays.pop("indptr"), arrays.pop("indices"), arrays.pop("reference"), **arrays)


def test_a_broken_matrix_is_refused_with_what_is_broken():
    matrix = grid_mesh(6, 2).reference
    refused("16 rows and 64 entries, 64 columns and 3 reference values make no CSR", reference=np.ones(3))
    refused("the reference matrix holds NaN or inf", reference=np.full(64, np.nan))
    flipped = matrix.data * np.where(matrix.indices == np.repeat(np.arange(16), np.diff(matrix.indptr)), -1, 1)
    refused("diagonal entry 0 of the reference matrix is -1; all must be positive", reference=flipped)
    lopsided = matrix.data.copy()
    lopsided[1] *= 2
    refused("differs from its transpose by 0.25; it must be symmetric", reference=lopsided)
    unsorted = matrix.indices.copy()
    unsorted[:2] = unsorted[:2][::-1]
    refused("columns of some row are not in ascending order; call `sort_indices`", indices=unsorted)


def test_broken_options_are_refused_with_what_to_do():
    refused(r"threshold = 1 must lie in \[0, 1\); 0.08 is good", threshold=1.0)
    refused("block_size = 3 does not divide 16 unknowns", block_size=3)
    refused(r"candidates of shape \(4, 1\); they must be \(n, k\) = \(16, k\)", candidates=np.ones((4, 1)))
    refused("the candidates hold NaN or inf", candidates=np.full((16, 1), np.inf))

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_array

from forebay.solvers.grid import FivePoint, Grid, transmissibilities, walls


def dense(stencil, values):
    return csr_array((values, stencil.indices, stencil.indptr)).toarray()


def by_loops(south, north, west, east):
    """Row by row, from the definition."""
    n = south.shape[0]
    matrix = np.zeros((n * n, n * n))
    for i in range(n):
        for j in range(n):
            row = i * n + j
            for coupling, ii, jj in ((south, i - 1, j), (north, i + 1, j), (west, i, j - 1), (east, i, j + 1)):
                matrix[row, row] += coupling[i, j]
                if 0 <= ii < n and 0 <= jj < n:
                    matrix[row, ii * n + jj] = -coupling[i, j]
    return matrix


def test_the_pattern_is_sorted_int32_with_a_full_diagonal():
    stencil = FivePoint(7)
    indptr, indices = stencil.pattern
    assert indptr.dtype == indices.dtype == np.int32
    assert indptr.shape == (50,)
    assert indptr[-1] == len(indices) == 5 * 49 - 4 * 7
    for row in range(49):
        columns = indices[indptr[row] : indptr[row + 1]]
        assert (np.diff(columns) > 0).all()
        assert indices[stencil.diagonal[row]] == row


def test_couplings_reach_their_places():
    stencil = FivePoint(6)
    south, north, west, east = np.random.default_rng(2713).uniform(1, 2, (4, 6, 6))
    values = np.full(len(stencil.indices), np.nan)
    stencil.fill(values, south=south, north=north, west=west, east=east)
    np.testing.assert_allclose(dense(stencil, values), by_loops(south, north, west, east), rtol=1e-15)


def test_refilling_leaves_nothing_of_the_sample_before():
    stencil = FivePoint(5)
    first, again = np.empty(len(stencil.indices)), np.empty(len(stencil.indices))
    a, b = np.random.default_rng(2713).uniform(1, 2, (2, 5, 5))
    stencil.fill_diffusion(first, a)
    stencil.fill_diffusion(again, b)
    stencil.fill_diffusion(again, a)
    np.testing.assert_array_equal(first, again)


def test_transmissibilities_are_harmonic_means_and_twice_the_coefficient_at_walls():
    a = np.random.default_rng(2713).uniform(1, 20, (4, 4))
    across_y, across_x = transmissibilities(a)
    assert across_y.shape == (5, 4)
    assert across_x.shape == (4, 5)
    np.testing.assert_allclose(across_y[2, 1], 2 / (1 / a[1, 1] + 1 / a[2, 1]), rtol=1e-15)
    np.testing.assert_allclose(across_x[2, 1], 2 / (1 / a[2, 0] + 1 / a[2, 1]), rtol=1e-15)
    np.testing.assert_allclose([across_y[0, 3], across_y[4, 3]], [2 * a[0, 3], 2 * a[3, 3]], rtol=1e-15)
    np.testing.assert_allclose([across_x[3, 0], across_x[3, 4]], [2 * a[3, 0], 2 * a[3, 3]], rtol=1e-15)


def test_a_layered_medium_is_solved_exactly():
    # Flow across layers: u is linear in each layer, and harmonic averages keep the flux exact.
    n = 8
    a = np.where(np.arange(n) < 4, 1.0, 12.0)[:, None] * np.ones((n, n))
    across_y, _ = transmissibilities(a)
    flux = 1 / (0.5 / 1.0 + 0.5 / 12.0)  # u from 1 at y = 0 to 0 at y = 1
    drops = flux / across_y[:, 0] / n
    np.testing.assert_allclose(drops.sum(), 1.0, rtol=1e-14)


def test_diffusion_is_symmetric_positive_definite():
    stencil = FivePoint(8)
    values = np.empty(len(stencil.indices))
    stencil.fill_diffusion(values, np.exp(np.random.default_rng(2713).normal(size=(8, 8))))
    matrix = dense(stencil, values)
    np.testing.assert_array_equal(matrix, matrix.T)
    assert np.linalg.eigvalsh(matrix).min() > 0


def test_the_laplacian_has_the_eigenvalues_of_the_discrete_sine_transform():
    n = 9
    stencil = FivePoint(n)
    k = np.arange(1, n + 1)
    one = 4 * np.sin(np.pi * k / (2 * n)) ** 2
    np.testing.assert_allclose(
        np.linalg.eigvalsh(dense(stencil, stencil.laplacian)), np.sort((one[:, None] + one).ravel()), rtol=1e-12
    )
    with pytest.raises(ValueError, match="read-only"):
        stencil.laplacian[0] = 1


def test_transport_without_flow_is_the_laplacian():
    stencil = FivePoint(6)
    values = np.empty(len(stencil.indices))
    stencil.fill_transport(values, np.zeros((7, 6)), np.zeros((6, 7)))
    np.testing.assert_array_equal(values, stencil.laplacian)


def test_transport_takes_the_upstream_cell():
    # A uniform flow to the right: every cell couples to its left neighbour with 1 + F, to the right one with 1.
    stencil = FivePoint(5)
    values = np.empty(len(stencil.indices))
    stencil.fill_transport(values, np.zeros((6, 5)), np.full((5, 6), 3.0))
    matrix = dense(stencil, values)
    assert matrix[12, 11] == -4
    assert matrix[12, 13] == -1
    assert matrix[12, 7] == matrix[12, 17] == -1
    assert matrix[12, 12] == 7


def test_walls_are_views_in_the_order_bottom_top_left_right():
    field = np.arange(9.0).reshape(3, 3)
    for k, wall in enumerate(walls(field)):
        assert wall.base is not None
        wall += 100 * 10**k
    np.testing.assert_array_equal(field // 100, [[101, 1, 1001], [100, 0, 1000], [110, 10, 1010]])


def test_coordinates_are_cell_centres():
    y, x = Grid(4).coordinates
    assert (y.name, x.name, y.units) == ("y", "x", "m")
    np.testing.assert_allclose(x.values, [0.125, 0.375, 0.625, 0.875])


def test_a_grid_without_inner_faces_is_refused():
    with pytest.raises(ValueError, match="a grid of 1 cells a side has no inner face; it needs at least 2"):
        Grid(1)

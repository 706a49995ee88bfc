from __future__ import annotations

import copy
import itertools
import pickle
import sys

import numpy as np
import pytest
from grid_systems import centres
from scipy.sparse import csr_array

from forebay.solvers.grid3 import Grid3, SevenPoint


def matrix(stencil, values):
    return csr_array((values, stencil.indices, stencil.indptr))


def filled(stencil, a):
    values = np.full(len(stencil.indices), np.nan)
    stencil.fill_diffusion(values, a)
    return values


def coefficient(n):
    return np.random.default_rng(2713).uniform(1, 20, (n, n, n))


def by_loops(a):
    """Row by row, from the definition."""
    n = a.shape[0]
    h = 1 / n
    dense = np.zeros((n**3, n**3))
    numbers = np.arange(n**3).reshape(n, n, n)
    for cell in itertools.product(range(n), repeat=3):
        row = numbers[cell]
        for axis, step in itertools.product(range(3), (-1, 1)):
            beyond = tuple(cell[d] + step * (d == axis) for d in range(3))
            if 0 <= beyond[axis] < n:
                conductivity = 2 * a[cell] * a[beyond] / (a[cell] + a[beyond])
                dense[row, numbers[beyond]] = -conductivity * h
            else:
                conductivity = 2 * a[cell]
            dense[row, row] += conductivity * h
    return dense


def test_the_pattern_is_sorted_int32_with_a_full_diagonal():
    n = 5
    stencil = SevenPoint(n)
    indptr, indices = stencil.pattern
    assert indptr.dtype == indices.dtype == np.int32
    assert indptr.shape == (n**3 + 1,)
    assert indptr[0] == 0
    assert indptr[-1] == len(indices) == 7 * n**3 - 6 * n**2
    for row in range(n**3):
        columns = indices[indptr[row] : indptr[row + 1]]
        assert (np.diff(columns) > 0).all()
        assert indices[stencil.diagonal[row]] == row


@pytest.mark.parametrize("n", [2, 3, 5])
def test_harmonic_means_reach_their_places_and_walls_are_half_a_cell_away(n):
    a = coefficient(n)
    stencil = SevenPoint(n)
    np.testing.assert_allclose(matrix(stencil, filled(stencil, a)).toarray(), by_loops(a), rtol=1e-14)


def test_refilling_leaves_nothing_of_the_sample_before():
    stencil = SevenPoint(4)
    a = coefficient(4)
    first = filled(stencil, a)
    again = filled(stencil, a[::-1] + 3)
    assert not np.array_equal(first, again)
    stencil.fill_diffusion(again, a)
    np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda stencil: pickle.loads(pickle.dumps(stencil))])
def test_a_copy_fills_as_the_original_does_and_apart_from_it(copied):
    stencil = SevenPoint(4)
    a = coefficient(4)
    expected = filled(stencil, a)
    other = copied(stencil)
    filled(stencil, a + 1)
    np.testing.assert_array_equal(filled(other, a), expected)


def test_filling_writes_to_the_array_that_it_is_given_and_leaves_the_coefficient_alone():
    stencil = SevenPoint(4)
    a = coefficient(4)
    kept = a.copy()
    around = np.full(len(stencil.indices) + 2, 7.0)
    stencil.fill_diffusion(around[1:-1], a)
    assert around[0] == around[-1] == 7.0
    np.testing.assert_array_equal(around[1:-1], filled(stencil, a))
    np.testing.assert_array_equal(a, kept)


def test_rows_sum_to_the_coupling_with_the_walls():
    n = 6
    a = coefficient(n)
    stencil = SevenPoint(n)
    walls = sum(np.equal(at, at[edge, edge, edge]) for at in centres(n, 3) for edge in (0, -1))
    assert walls.max() == 3
    sums = matrix(stencil, filled(stencil, a)) @ np.ones(n**3)
    np.testing.assert_allclose(sums, (walls * 2 * a / n).ravel(), atol=1e-12)


def test_diffusion_is_symmetric_positive_definite():
    stencil = SevenPoint(5)
    a = np.exp(np.random.default_rng(2713).normal(size=(5, 5, 5)))
    dense = matrix(stencil, filled(stencil, a)).toarray()
    np.testing.assert_array_equal(dense, dense.T)
    assert np.linalg.eigvalsh(dense).min() > 0


def test_the_laplacian_has_the_eigenvalues_of_the_discrete_sine_transform():
    n = 6
    stencil = SevenPoint(n)
    one = 4 * np.sin(np.pi * np.arange(1, n + 1) / (2 * n)) ** 2 / n
    expected = np.sort(np.add.outer(np.add.outer(one, one), one).ravel())
    np.testing.assert_allclose(np.linalg.eigvalsh(matrix(stencil, stencil.laplacian).toarray()), expected, rtol=1e-12)
    with pytest.raises(ValueError, match="read-only"):
        stencil.laplacian[0] = 1


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_layered_medium_is_solved_exactly(axis):
    # u rises linearly in each layer, with u = 0 at the lower wall of the axis: the flux is the same through every face.
    n, flux = 6, 1.3
    layers = np.where(np.arange(n) < 3, 1.0, 12.0)
    drops = flux / (n * layers)
    profile = np.cumsum(drops) - drops / 2
    shape = [n if d == axis else 1 for d in range(3)]
    a, u = (np.broadcast_to(v.reshape(shape), (n, n, n)) for v in (layers, profile))
    stencil = SevenPoint(n)
    out = (matrix(stencil, filled(stencil, a)) @ u.ravel()).reshape(n, n, n)
    inner = [slice(1, -1)] * 3
    inner[axis] = slice(0, -1)  # the lower wall is at u = 0, the upper one is not at the profile's value
    np.testing.assert_allclose(out[tuple(inner)], 0, atol=1e-13)


def test_filling_takes_as_many_python_steps_on_a_large_grid_as_on_a_small_one():
    def steps(n):
        stencil, a, count = SevenPoint(n), coefficient(n), 0

        def trace(frame, event, argument):
            nonlocal count
            count += 1
            return trace

        values = np.empty(len(stencil.indices))
        previous = sys.gettrace()
        sys.settrace(trace)
        try:
            stencil.fill_diffusion(values, a)
        finally:
            sys.settrace(previous)
        return count

    assert 0 < steps(4) == steps(16)


def test_coordinates_are_cell_centres():
    z, y, x = Grid3(4).coordinates
    assert [(c.name, c.dims, c.units) for c in (z, y, x)] == [(name, (name,), "m") for name in "zyx"]
    np.testing.assert_allclose(x.values, [0.125, 0.375, 0.625, 0.875])
    assert Grid3(4).shape == (4, 4, 4)


def test_a_grid_without_inner_faces_is_refused():
    with pytest.raises(ValueError, match="a grid of 1 cells a side has no inner face; it needs at least 2"):
        Grid3(1)

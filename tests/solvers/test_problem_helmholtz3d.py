from __future__ import annotations

import numpy as np
import pytest
from grid_systems import centres, drawn, matrix_of, observed_order, relative_l2, solve
from scipy.sparse.linalg import splu

from forebay.pipeline.errors import StudyError
from forebay.solvers.problems.helmholtz3d import Helmholtz3D


def manufactured_error(n):
    """u = sin πx sin πy sin 2πz in the medium c = 1 + 0.1 cos πx cos 2πy cos πz at k = 12.3."""
    z, y, x = centres(n, 3)
    k, c = 12.3, 1 + 0.1 * np.cos(np.pi * x) * np.cos(2 * np.pi * y) * np.cos(np.pi * z)
    u = np.sin(np.pi * x) * np.sin(np.pi * y) * np.sin(2 * np.pi * z)
    draw = {"c": c, "parameters": np.array([k])}
    return relative_l2(solve(Helmholtz3D(size=n), draw, forcing=(6 * np.pi**2 - k**2 * c) * u), u)


def test_helmholtz_converges_at_second_order_in_a_varying_medium():
    slope, errors = observed_order(manufactured_error, (10, 13, 16))
    assert abs(slope - 2) < 0.2, f"observed order {slope:.2f} from errors {errors}"
    assert errors[-1] < 2e-2


def matrix_at(problem, k, sample_id=3):
    return matrix_of(problem, drawn(problem, sample_id) | {"parameters": np.array([k])})[0]


def negative_pivots(matrix):
    """Of LU without pivoting, hence of LDLᵀ: by Sylvester's law the number of negative eigenvalues."""
    lu = splu(matrix.tocsc(), permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
    np.testing.assert_array_equal(lu.perm_r, lu.perm_c)
    return int((lu.U.diagonal() < 0).sum())


@pytest.mark.parametrize("k", [5.0, 9.0, 12.3, 15.0])
def test_negative_pivots_count_negative_eigenvalues(k):
    matrix = matrix_at(Helmholtz3D(size=8), k)
    dense = matrix.toarray()
    np.testing.assert_array_equal(dense, dense.T)
    assert negative_pivots(matrix) == (np.linalg.eigvalsh(dense) < 0).sum()


@pytest.mark.parametrize("end", ["wavenumber_low", "wavenumber_high"])
def test_the_operator_has_17_negative_eigenvalues_over_the_default_range(end):
    problem = Helmholtz3D(size=16)
    found = [negative_pivots(matrix_at(problem, getattr(problem, end), sample_id)) for sample_id in range(3)]
    assert found == [17, 17, 17]


def test_in_a_uniform_medium_the_spectrum_is_that_of_the_laplacian_shifted_by_k_squared():
    n, k = 8, 12.3
    problem = Helmholtz3D(size=n, variation=0.0)
    matrix = matrix_at(problem, k)
    one = 4 * n**2 * np.sin(np.pi * np.arange(1, n + 1) / (2 * n)) ** 2
    expected = np.sort(np.add.outer(np.add.outer(one, one), one).ravel()) - k**2
    np.testing.assert_allclose(np.linalg.eigvalsh(matrix.toarray()) * n**3, expected, rtol=1e-9)


def test_the_default_range_lies_in_a_gap_between_resonances():
    i = np.arange(1, 10) ** 2
    resonances = np.pi * np.sqrt(np.unique(np.add.outer(np.add.outer(i, i), i)))
    low, high = Helmholtz3D().wavenumber_low, Helmholtz3D().wavenumber_high
    below, above = resonances[resonances < low], resonances[resonances > high]
    assert len(below) + len(above) == len(resonances)
    np.testing.assert_allclose([below[-1], above[0]], np.pi * np.sqrt([14, 17]))
    assert min(low - below[-1], above[0] - high) > 0.4


def test_the_default_range_avoids_resonances_and_a_wider_one_meets_them():
    def spread(problem):
        norms = [np.linalg.norm(solve(problem, drawn(problem, i))) for i in range(8)]
        return max(norms) / min(norms)

    assert spread(Helmholtz3D(size=12, variation=0.05)) < 4
    assert spread(Helmholtz3D(size=12, variation=0.05, wavenumber_low=10.0, wavenumber_high=15.0)) > 10


@pytest.mark.parametrize("size", [8, 32])
def test_the_source_has_integral_one_and_its_centre_where_the_documentation_says(size):
    problem = Helmholtz3D(size=size)
    source = matrix_of(problem, drawn(problem))[1].reshape(problem.grid_shape)
    np.testing.assert_allclose(source.sum(), 1.0, rtol=1e-3)
    z, y, x = centres(size, 3)
    found = [(at * source).sum() for at in (x, y, z)]
    np.testing.assert_allclose(found, [0.3, 0.4, 0.45], atol=1e-3)


def test_the_medium_varies_around_one():
    problem = Helmholtz3D(size=12, variation=0.1)
    media = np.array([drawn(problem, i)["c"] for i in range(60)])
    np.testing.assert_allclose(media.mean(axis=(1, 2, 3)), 1.0, rtol=1e-12)
    assert abs(media.std() / 0.1 - 1) < 0.08
    assert media.min() > 0.2


def test_a_draw_follows_from_the_sample_alone():
    first, again, other = (drawn(Helmholtz3D(size=8), i) for i in (4, 4, 5))
    np.testing.assert_array_equal(first["c"], again["c"])
    np.testing.assert_array_equal(first["parameters"], again["parameters"])
    assert np.abs(first["c"] - other["c"]).max() > 0.01


def test_an_empty_range_of_wavenumbers_is_refused():
    with pytest.raises(StudyError, match=r"problem.wavenumber_low = 12.8 must be below problem.wavenumber_high = 12.5"):
        Helmholtz3D(wavenumber_low=12.8)

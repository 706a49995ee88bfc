from __future__ import annotations

import numpy as np
import pytest
from grid_systems import centres, drawn, matrix_of, observed_order, relative_l2, solve

from forebay.pipeline.errors import StudyError
from forebay.solvers.problems.helmholtz import Helmholtz


def manufactured_error(n):
    """u = sin 2πx sin 3πy in the medium c = 1 + 0.1 cos πx cos 2πy at k = 15."""
    y, x = centres(n)
    k, c = 15.0, 1 + 0.1 * np.cos(np.pi * x) * np.cos(2 * np.pi * y)
    u = np.sin(2 * np.pi * x) * np.sin(3 * np.pi * y)
    draw = {"c": c, "parameters": np.array([k])}
    return relative_l2(solve(Helmholtz(size=n), draw, forcing=(13 * np.pi**2 - k**2 * c) * u), u)


def test_helmholtz_converges_at_second_order_in_a_varying_medium():
    slope, errors = observed_order(manufactured_error, (24, 48, 96))
    assert abs(slope - 2) < 0.2, f"observed order {slope:.2f} from errors {errors}"
    assert errors[-1] < 2e-3


def test_the_operator_is_truly_indefinite_over_the_default_range():
    problem = Helmholtz(size=24)
    for k in (problem.wavenumber_low, problem.wavenumber_high):
        matrix, _ = matrix_of(problem, drawn(problem) | {"parameters": np.array([k])})
        eigenvalues = np.linalg.eigvalsh(matrix.toarray())
        assert eigenvalues[0] < -0.1
        assert eigenvalues[-1] > 1
        assert (eigenvalues < 0).sum() == 13


def test_in_a_uniform_medium_the_spectrum_is_that_of_the_laplacian_shifted_by_k_squared():
    n, k = 14, 15.0
    problem = Helmholtz(size=n, variation=0.0)
    matrix, _ = matrix_of(problem, drawn(problem) | {"parameters": np.array([k])})
    one = 4 * n**2 * np.sin(np.pi * np.arange(1, n + 1) / (2 * n)) ** 2
    expected = np.sort((one[:, None] + one).ravel()) - k**2
    np.testing.assert_allclose(np.linalg.eigvalsh(matrix.toarray()) * n**2, expected, rtol=1e-10)


def test_the_default_range_avoids_resonances_and_a_wider_one_meets_them():
    def spread(problem):
        norms = [np.linalg.norm(solve(problem, drawn(problem, i))) for i in range(32)]
        return max(norms) / min(norms)

    assert spread(Helmholtz(size=24)) < 4
    assert spread(Helmholtz(size=24, wavenumber_low=12.0, wavenumber_high=20.0)) > 20


def test_the_source_has_integral_one():
    problem = Helmholtz(size=64)
    np.testing.assert_allclose(matrix_of(problem, drawn(problem))[1].sum(), 1.0, rtol=1e-6)


def test_the_medium_varies_around_one():
    problem = Helmholtz(size=32, variation=0.2)
    media = np.array([drawn(problem, i)["c"] for i in range(60)])
    np.testing.assert_allclose(media.mean(axis=(1, 2)), 1.0, rtol=1e-12)
    assert abs(media.std() / 0.2 - 1) < 0.08
    assert media.min() > 0


def test_an_empty_range_of_wavenumbers_is_refused():
    with pytest.raises(StudyError, match=r"problem.wavenumber_low = 15.5 must be below problem.wavenumber_high = 15.2"):
        Helmholtz(wavenumber_low=15.5)

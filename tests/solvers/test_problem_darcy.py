from __future__ import annotations

import numpy as np
import pytest
from grid_systems import centres, drawn, matrix_of, observed_order, relative_l2, solve

from forebay.solvers.problems.darcy import Darcy


def manufactured_error(n):
    """u = sin πx sin πy under a = exp(x) (2 + cos 3y)."""
    y, x = centres(n)
    a = np.exp(x) * (2 + np.cos(3 * y))
    a_x, a_y = a, -3 * np.exp(x) * np.sin(3 * y)
    u = np.sin(np.pi * x) * np.sin(np.pi * y)
    u_x, u_y = np.pi * np.cos(np.pi * x) * np.sin(np.pi * y), np.pi * np.sin(np.pi * x) * np.cos(np.pi * y)
    f = 2 * np.pi**2 * a * u - a_x * u_x - a_y * u_y
    return relative_l2(solve(Darcy(size=n), {"a": a}, forcing=f), u)


def test_darcy_converges_at_second_order_to_a_manufactured_solution():
    slope, errors = observed_order(manufactured_error, (12, 24, 48))
    assert abs(slope - 2) < 0.2, f"observed order {slope:.2f} from errors {errors}"
    assert errors[-1] < 1e-3


def test_the_flux_out_of_the_square_equals_what_is_put_in():
    problem = Darcy(size=32, forcing=1.7)
    draw = drawn(problem)
    u, a = solve(problem, draw), draw["a"]
    outflow = sum((2 * a[at] * u[at]).sum() for at in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]))
    np.testing.assert_allclose(outflow, 1.7, rtol=1e-10)


def test_constant_permeability_reproduces_the_known_peak():
    # -Δu = 1: u(1/2, 1/2) = 0.0736713...; divided by a = 3.
    u = solve(Darcy(size=64), {"a": np.full((64, 64), 3.0)})
    np.testing.assert_allclose(u[31:33, 31:33].mean(), 0.0736713 / 3, rtol=1e-3)


def test_a_two_valued_permeability_is_12_on_about_half_the_square_and_3_elsewhere():
    problem = Darcy(size=32)
    samples = np.array([drawn(problem, i)["a"] for i in range(40)])
    np.testing.assert_array_equal(np.unique(samples), [3.0, 12.0])
    assert abs((samples == 12).mean() - 0.5) < 0.05


def test_a_log_normal_permeability_has_the_asked_deviation_of_its_logarithm():
    problem = Darcy(size=32, coefficient="log_normal", sigma=0.6)
    samples = np.log([drawn(problem, i)["a"] for i in range(200)])
    assert abs(samples.std() / 0.6 - 1) < 0.08
    np.testing.assert_allclose(samples.mean(axis=(1, 2)), 0, atol=1e-12)


@pytest.mark.parametrize("coefficient", ["two_valued", "log_normal"])
def test_the_system_is_symmetric_positive_definite(coefficient):
    problem = Darcy(size=12, coefficient=coefficient)
    matrix, rhs = matrix_of(problem, drawn(problem))
    dense = matrix.toarray()
    np.testing.assert_array_equal(dense, dense.T)
    assert np.linalg.eigvalsh(dense).min() > 0
    np.testing.assert_allclose(rhs, 1 / 144, rtol=1e-14)


def test_doubling_the_permeability_halves_the_pressure():
    problem = Darcy(size=16)
    a = drawn(problem)["a"]
    np.testing.assert_allclose(solve(problem, {"a": 2 * a}), solve(problem, {"a": a}) / 2, rtol=1e-12)

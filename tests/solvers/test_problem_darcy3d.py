from __future__ import annotations

import numpy as np
import pytest
from grid_systems import centres, drawn, matrix_of, observed_order, relative_l2, solve

from forebay.pipeline.errors import StudyError
from forebay.solvers.problems import load_problem
from forebay.solvers.problems.darcy3d import Darcy3D


def manufactured_error(n):
    """u = sin πx sin πy sin 2πz under a = exp(x) (2 + cos 3y) (1 + z): different along each axis."""
    z, y, x = centres(n, 3)
    a = np.exp(x) * (2 + np.cos(3 * y)) * (1 + z)
    gradient_a = a / (1 + z), -3 * np.exp(x) * np.sin(3 * y) * (1 + z), a
    sines = np.sin(2 * np.pi * z), np.sin(np.pi * y), np.sin(np.pi * x)
    u = sines[0] * sines[1] * sines[2]
    gradient_u = (
        2 * np.pi * np.cos(2 * np.pi * z) * sines[1] * sines[2],
        np.pi * np.cos(np.pi * y) * sines[0] * sines[2],
        np.pi * np.cos(np.pi * x) * sines[0] * sines[1],
    )
    f = 6 * np.pi**2 * a * u - sum(p * q for p, q in zip(gradient_a, gradient_u, strict=True))
    return relative_l2(solve(Darcy3D(size=n), {"a": a}, forcing=f), u)


def test_darcy_converges_at_second_order_to_a_manufactured_solution():
    slope, errors = observed_order(manufactured_error, (8, 12, 16))
    assert abs(slope - 2) < 0.2, f"observed order {slope:.2f} from errors {errors}"
    assert errors[-1] < 1.2e-2


def test_the_flux_out_of_the_cube_equals_what_is_put_in():
    problem = Darcy3D(size=10, forcing=1.7)
    draw = drawn(problem)
    u, a = solve(problem, draw), draw["a"]
    faces = [np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1], np.s_[:, :, 0], np.s_[:, :, -1]]
    np.testing.assert_allclose(sum((2 * a[at] * u[at]).sum() for at in faces) / 10, 1.7, rtol=1e-10)


def test_constant_permeability_reproduces_the_known_peak():
    # -Δu = 1 in the cube: u at the centre is 0.0562128..., the triple sine series summed; divided by a = 3.
    odd = np.arange(1, 100, 2)
    i, j, k = np.meshgrid(odd, odd, odd, indexing="ij")
    signs = (-1.0) ** ((i + j + k - 3) // 2)
    peak = (64 / np.pi**5 * signs / (i * j * k * (i**2 + j**2 + k**2))).sum()
    u = solve(Darcy3D(size=15), {"a": np.full((15, 15, 15), 3.0)})
    np.testing.assert_allclose(u[7, 7, 7], peak / 3, rtol=5e-3)


def test_a_log_normal_permeability_has_the_asked_deviation_of_its_logarithm():
    problem = Darcy3D(size=12, sigma=0.6)
    samples = np.log([drawn(problem, i)["a"] for i in range(200)])
    assert abs(samples.std() / 0.6 - 1) < 0.08
    np.testing.assert_allclose(samples.mean(axis=(1, 2, 3)), 0, atol=1e-12)


def test_a_two_valued_permeability_is_12_on_about_half_the_cube_and_3_elsewhere():
    problem = Darcy3D(size=12, coefficient="two_valued")
    samples = np.array([drawn(problem, i)["a"] for i in range(60)])
    np.testing.assert_array_equal(np.unique(samples), [3.0, 12.0])
    assert abs((samples == 12).mean() - 0.5) < 0.05


@pytest.mark.parametrize("coefficient", ["two_valued", "log_normal"])
def test_the_system_is_symmetric_positive_definite(coefficient):
    problem = Darcy3D(size=8, coefficient=coefficient, forcing=2.0)
    matrix, rhs = matrix_of(problem, drawn(problem))
    dense = matrix.toarray()
    np.testing.assert_array_equal(dense, dense.T)
    assert np.linalg.eigvalsh(dense).min() > 0
    np.testing.assert_allclose(rhs, 2 / 512, rtol=1e-14)


def test_doubling_the_permeability_halves_the_pressure():
    problem = Darcy3D(size=8)
    a = drawn(problem)["a"]
    np.testing.assert_allclose(solve(problem, {"a": 2 * a}), solve(problem, {"a": a}) / 2, rtol=1e-12)


def test_a_draw_follows_from_the_sample_alone():
    first, again = drawn(Darcy3D(size=8), 4), drawn(Darcy3D(size=8), 4)
    np.testing.assert_array_equal(first["a"], again["a"])
    assert first["a"].shape == (8, 8, 8)
    assert np.abs(first["a"] - drawn(Darcy3D(size=8), 5)["a"]).max() > 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 7}, "problem.size = 7 is not allowed: it should be greater than or equal to 8; the default is 32"),
        ({"size": 129}, "problem.size = 129 is not allowed: it should be less than or equal to 128"),
        ({"alpha": 1.5}, "problem.alpha = 1.5 is not allowed: it should be greater than 1.5; the default is 2.5"),
    ],
)
def test_options_without_a_field_or_a_grid_are_refused(options, message, tmp_path):
    with pytest.raises(StudyError, match=message):
        load_problem("darcy3d", options, folder=tmp_path)

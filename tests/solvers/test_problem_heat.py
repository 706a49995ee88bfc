from __future__ import annotations

import numpy as np
import pytest
from grid_systems import centres, drawn, march, matrix_of, observed_order

from forebay.pipeline.errors import StudyError
from forebay.solvers.problems.heat import Heat

END = 0.4
"""Time at which orders are measured, [s]."""


def series(problem, growth, terms=60):
    """u for 400 K at the start and 300 K on all sides, each mode sin kπx sin lπy multiplied by growth(k² + l²)."""
    y, x = centres(problem.size)
    u = np.full_like(x, 300.0)
    for k in range(1, terms, 2):
        for m in range(1, terms, 2):
            weight = 100 * (4 / np.pi) ** 2 / (k * m) * growth(k**2 + m**2)
            if abs(weight) > 1e-13:
                u += weight * np.sin(k * np.pi * x) * np.sin(m * np.pi * y)
    return u


DRAW = {"parameters": np.array([400.0, 300.0, 300.0, 300.0, 300.0])}


def test_every_step_damps_a_mode_by_the_implicit_euler_factor():
    # sin 2πx sin 3πy is an eigenvector of the discrete operator, so the whole march is known to round-off.
    problem = Heat(size=20, steps=7, dt=0.02)
    y, x = centres(20)
    mode = np.sin(2 * np.pi * x) * np.sin(3 * np.pi * y)
    eigenvalue = sum(4 * 20**2 * np.sin(k * np.pi / 40) ** 2 for k in (2, 3))
    factor = 1 / (1 + 0.02 * 0.1 * eigenvalue)
    frames = march(problem, {"parameters": np.zeros(5)}, state=mode.ravel())
    np.testing.assert_allclose(frames, [mode * factor**m for m in range(1, 8)], atol=1e-13)


def test_heat_converges_at_first_order_in_time():
    # Against the semi-discrete exact solution would hide nothing; the spatial error at 48 cells is 100 times smaller.
    def error(steps):
        problem = Heat(size=48, steps=steps, dt=END / steps)
        exact = series(problem, lambda s: np.exp(-0.1 * np.pi**2 * s * END))
        return np.abs(march(problem, DRAW)[-1] - exact).max()

    slope, errors = observed_order(error, (10, 20, 40))
    assert abs(slope - 1) < 0.2, f"observed order {slope:.2f} from errors {errors}"
    assert errors[-1] < 0.7


def test_heat_converges_at_second_order_in_space():
    # Against the exact solution in space of the same implicit Euler steps, so that time adds no error.
    def error(size):
        problem = Heat(size=size, steps=20, dt=END / 20)
        exact = series(problem, lambda s: (1 + problem.dt * 0.1 * np.pi**2 * s) ** -20.0)
        return np.abs(march(problem, DRAW)[-1] - exact).max()

    slope, errors = observed_order(error, (8, 16, 32))
    assert abs(slope - 2) < 0.2, f"observed order {slope:.2f} from errors {errors}"
    assert errors[-1] < 0.1


def test_the_steady_state_has_the_mean_of_the_walls_in_the_middle():
    problem = Heat(size=17, steps=3, dt=1e6)
    frames = march(problem, {"parameters": np.array([450.0, 100.0, 200.0, 300.0, 480.0])})
    np.testing.assert_allclose(frames[-1][8, 8], 270.0, rtol=1e-9)


def test_each_wall_is_where_the_schema_says():
    problem = Heat(size=32, steps=3, dt=1e6)
    last = march(problem, {"parameters": np.array([450.0, 100.0, 200.0, 300.0, 480.0])})[-1]
    near = last[0, 16], last[-1, 16], last[16, 0], last[16, -1]
    np.testing.assert_allclose(near, [100, 200, 300, 480], atol=15)
    assert "T_bottom at y = 0" in problem.schema.boundary_conditions
    assert [p.name for p in problem.schema.parameters] == ["T_initial", "T_bottom", "T_top", "T_left", "T_right"]


def test_temperatures_stay_between_the_coldest_and_the_hottest():
    problem = Heat(size=16, steps=30)
    draw = drawn(problem)
    frames = march(problem, draw)
    assert frames.min() >= draw["parameters"].min() - 1e-9
    assert frames.max() <= draw["parameters"].max() + 1e-9


def test_equal_temperatures_stay_as_they_are():
    frames = march(Heat(size=16, steps=5), {"parameters": np.full(5, 321.0)})
    np.testing.assert_allclose(frames, 321.0, rtol=1e-12)


def test_the_matrix_is_positive_definite_and_the_same_for_all_samples():
    problem = Heat(size=12)
    assert problem.fixed_matrix
    (first, _), (second, _) = (matrix_of(problem, drawn(problem, i)) for i in (3, 4))
    np.testing.assert_array_equal(first.data, second.data)
    dense = first.toarray()
    np.testing.assert_array_equal(dense, dense.T)
    assert np.linalg.eigvalsh(dense).min() >= 1


def test_the_transient_fills_the_default_run():
    problem = Heat(size=16)
    frames = march(problem, DRAW)
    remaining = (frames[:, 8, 8] - 300) / 100
    assert remaining[9] > 0.9
    assert 0.02 < remaining[-1] < 0.5
    np.testing.assert_allclose(problem.schema.times[:2], [0.01, 0.02])
    assert problem.schema.sample_shape("u") == (100, 16, 16)


def test_five_temperatures_are_uniform_between_their_bounds():
    problem = Heat(size=16)
    temperatures = np.array([drawn(problem, i)["parameters"] for i in range(400)])
    assert 100 <= temperatures.min() < 105
    assert 495 < temperatures.max() <= 500
    np.testing.assert_allclose(temperatures.mean(axis=0), 300, atol=25)


def test_an_empty_range_of_temperatures_is_refused():
    with pytest.raises(
        StudyError, match=r"problem.temperature_low = 500.0 must be below problem.temperature_high = 500.0"
    ):
        Heat(temperature_low=500.0)

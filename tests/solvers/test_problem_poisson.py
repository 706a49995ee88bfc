from __future__ import annotations

import numpy as np
from grid_systems import centres, drawn, matrix_of, observed_order, relative_l2, solve

from forebay.solvers.problems.poisson import Poisson


def wall_field(n, exact):
    """The exact trace in the cells next to the walls; a corner cell has the mean of its two faces."""
    at = (np.arange(n) + 0.5) / n
    total, faces = np.zeros((n, n)), np.zeros((n, n))
    for cells, trace in (
        (np.s_[0], exact(0.0, at)),
        (np.s_[-1], exact(1.0, at)),
        (np.s_[:, 0], exact(at, 0.0)),
        (np.s_[:, -1], exact(at, 1.0)),
    ):
        total[cells] += trace
        faces[cells] += 1
    return total / np.maximum(faces, 1)


def manufactured_error(n):
    """u = exp(x) cos 2y + x y, -Δu = 3 exp(x) cos 2y."""
    y, x = centres(n)

    def exact(y, x):
        return np.exp(x) * np.cos(2 * y) + x * y

    draw = {"f": 3 * np.exp(x) * np.cos(2 * y), "g": wall_field(n, exact)}
    return relative_l2(solve(Poisson(size=n), draw), exact(y, x))


def test_poisson_converges_at_second_order_with_forcing_and_boundary_data():
    slope, errors = observed_order(manufactured_error, (12, 24, 48))
    assert abs(slope - 2) < 0.2, f"observed order {slope:.2f} from errors {errors}"
    assert errors[-1] < 2e-4


def test_constant_boundary_values_without_forcing_are_the_solution():
    n = 16
    g = wall_field(n, lambda y, x: np.full(n, 2.5))
    np.testing.assert_allclose(solve(Poisson(size=n), {"f": np.zeros((n, n)), "g": g}), 2.5, rtol=1e-12)


def test_boundary_values_live_next_to_the_wall_and_run_smoothly_around_it():
    problem = Poisson(size=32)
    g = drawn(problem)["g"]
    assert not g[1:-1, 1:-1].any()
    once_around = np.concatenate([g[0, :-1], g[:-1, -1], g[-1, :0:-1], g[:0:-1, 0]])
    assert (once_around != 0).all()
    steps = np.abs(np.diff(once_around, append=once_around[0]))
    assert steps.max() < 0.25  # the roughest of 8 modes turns by 2π 8/124 a cell; a jump would be of the order of one


def test_forcing_and_boundary_values_have_the_asked_deviations():
    problem = Poisson(size=32, forcing=20.0, boundary=3.0)
    draws = [drawn(problem, i) for i in range(200)]
    assert abs(np.std([d["f"] for d in draws]) / 20 - 1) < 0.05
    assert abs(np.std([d["g"][0] for d in draws]) / 3 - 1) < 0.1


def test_forcing_and_boundary_values_contribute_alike_with_the_default_options():
    problem = Poisson(size=32)
    zero = np.zeros((32, 32))
    draws = [drawn(problem, i) for i in range(12)]
    from_f = np.mean([solve(problem, {"f": d["f"], "g": zero}).std() for d in draws])
    from_g = np.mean([solve(problem, {"f": zero, "g": d["g"]}).std() for d in draws])
    assert 0.4 < from_f / from_g < 2.5


def test_the_matrix_is_the_same_for_all_samples():
    problem = Poisson(size=12)
    (first, _), (second, _) = (matrix_of(problem, drawn(problem, i)) for i in (3, 4))
    np.testing.assert_array_equal(first.data, second.data)

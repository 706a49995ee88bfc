import dataclasses
import types

import numpy as np
import pytest
from suites.rom_cases import BAR as PROBLEM
from suites.rom_cases import (
    GENTLE,
    PULLS,
    TRAINING,
    bar_history,
    bar_runs,
    missed,
    pull_history,
    pulled_cube,
    simulated,
)
from suites.solid_cases import alone

from forebay.solvers.materials.chaboche import Chaboche
from forebay.solvers.rom.basis import Run, Settings, basis_of

SETTINGS = Settings()


@pytest.fixture(scope="module")
def bar():
    model = PROBLEM.model(alone())
    yield model
    model.destroy()


@pytest.fixture(scope="module")
def runs(bar):
    return bar_runs(bar)


@pytest.fixture(scope="module")
def basis(bar, runs):
    return basis_of(bar, runs, SETTINGS)


@pytest.fixture(scope="module")
def cube():
    model = pulled_cube(alone())
    yield model
    model.destroy()


@pytest.fixture(scope="module")
def pulls(cube):
    return [simulated(cube, pull_history(Chaboche(), *drive)) for drive in PULLS]


@pytest.fixture(scope="module")
def elastic(cube):
    return simulated(cube, pull_history(Chaboche(), *GENTLE))


def gram(pod):
    return pod.modes.T @ (pod.weights[:, None] * pod.modes)


def made_up(cube, p):
    """A run with given p (s, points), whose other fields are noise."""
    rng = np.random.default_rng(7)
    history = pull_history(Chaboche(), *GENTLE, steps=len(p))
    fields = types.SimpleNamespace(
        displacement=rng.standard_normal((len(p) + 1, cube.dofs)),
        stress=rng.standard_normal((len(p) + 1, cube.points, 6)),
        p=np.vstack([np.zeros(cube.points), p]),
    )
    return Run(history, fields)


# --- of simulations -------------------------------------------------------------------------------------------------


def test_the_fewest_modes_within_the_tolerance_are_kept_and_test_modes_after_them(bar, runs, basis):
    assert missed(bar, basis, runs, basis.modes) <= SETTINGS.displacement
    assert missed(bar, basis, runs, basis.modes - 1) > SETTINGS.displacement
    assert basis.displacement.modes.shape[1] == basis.modes + SETTINGS.test_modes
    assert missed(bar, basis, runs, basis.modes + SETTINGS.test_modes) < 0.5 * missed(bar, basis, runs, basis.modes)


def test_modes_are_orthonormal_over_the_volume(bar, basis):
    for pod in (basis.displacement, basis.stress, basis.p):
        np.testing.assert_allclose(gram(pod), np.eye(pod.modes.shape[1]), atol=1e-10)
    np.testing.assert_array_equal(basis.displacement.weights, bar.dof_weights)
    np.testing.assert_array_equal(basis.p.weights, bar.weights)


def test_stress_and_p_are_within_their_tolerances(bar, runs, basis):
    stress = np.hstack([run.trajectory.stress[1:].reshape(8, -1).T for run in runs])
    p = np.hstack([run.trajectory.p[1:].T for run in runs])
    for pod, fields, tolerance in ((basis.stress, stress, SETTINGS.stress), (basis.p, p, SETTINGS.p)):
        for modes, fits in ((pod.modes, True), (pod.modes[:, :-1], False)):
            rest = fields - modes @ (modes.T @ (pod.weights[:, None] * fields))
            error = np.sqrt(np.sum(pod.weights @ rest**2) / np.sum(pod.weights @ fields**2))
            assert bool(error <= tolerance) is fits


def test_the_number_of_modes_can_be_bounded(bar, runs, basis):
    few = basis_of(bar, runs, dataclasses.replace(SETTINGS, modes=3))
    assert (few.modes, few.displacement.modes.shape[1]) == (3, 3 + SETTINGS.test_modes)
    loose = basis_of(bar, runs, dataclasses.replace(SETTINGS, modes=1000))
    assert loose.modes == basis.modes
    assert few.extended(bar, runs[:1]).modes == 3


def test_scales_are_the_largest_norms_of_the_training(bar, runs, basis):
    moved = max(np.sqrt(row @ (bar.dof_weights * row)) for run in runs for row in run.trajectory.displacement)
    volume = bar.weights.sum()
    yielded = max(np.sqrt(row @ (bar.weights * row) / volume) for run in runs for row in run.trajectory.p)
    assert basis.displacement_scale == pytest.approx(moved, rel=1e-12)
    assert basis.p_scale == pytest.approx(yielded, rel=1e-12)


def test_what_is_prescribed_is_left_to_the_lifts(cube, pulls):
    basis = basis_of(cube, pulls, SETTINGS)
    assert cube.fixed.any()
    assert abs(basis.displacement.modes[cube.fixed]).max() < 1e-10 * abs(basis.displacement.modes).max()
    assert missed(cube, basis, pulls, basis.modes) <= SETTINGS.displacement
    largest = max(np.sqrt((run.trajectory.displacement**2 @ cube.dof_weights).max()) for run in pulls)
    assert basis.displacement_scale == pytest.approx(largest, rel=1e-12), "with its lift"


# --- of further simulations -----------------------------------------------------------------------------------------


def test_an_extended_basis_knows_the_new_run_as_well_as_the_old(bar, runs):
    first = basis_of(bar, runs[:2], SETTINGS)
    assert missed(bar, first, runs[2:], first.modes) > 10 * SETTINGS.displacement
    extended = first.extended(bar, runs[2:])
    assert missed(bar, extended, runs[2:], extended.modes) <= 1.5 * SETTINGS.displacement
    assert missed(bar, extended, runs[:2], extended.modes) <= 1.5 * SETTINGS.displacement
    assert missed(bar, extended, runs, extended.modes) <= SETTINGS.displacement


def test_an_extended_basis_is_nearly_that_of_all_runs(bar, runs, basis):
    extended = basis_of(bar, runs[:1], SETTINGS).extended(bar, runs[1:2]).extended(bar, runs[2:])
    assert extended.modes == basis.modes
    for name, count in (("displacement", basis.modes), ("stress", 12), ("p", 8)):
        one, other = getattr(basis, name), getattr(extended, name)
        overlap = one.modes[:, :count].T @ (one.weights[:, None] * other.modes)
        assert np.linalg.svd(overlap)[1][:count].min() > 0.999, name
        np.testing.assert_allclose(other.singular_values[:count], one.singular_values[:count], rtol=1e-2, err_msg=name)
    assert extended.displacement_scale == pytest.approx(basis.displacement_scale, rel=1e-14)
    assert extended.p_scale == pytest.approx(basis.p_scale, rel=1e-14)
    assert extended.settings == basis.settings
    np.testing.assert_allclose(gram(extended.displacement), np.eye(extended.modes + 4), atol=1e-10)


def test_scales_and_cubature_points_outlive_a_smaller_run(bar, runs, basis):
    started = dataclasses.replace(basis, points=np.array([7, 11, 13]))
    small = simulated(bar, bar_history((100, 300, 20, 1.0)))
    extended = started.extended(bar, [small])
    assert extended.displacement_scale == basis.displacement_scale
    assert extended.p_scale == basis.p_scale
    np.testing.assert_array_equal(extended.points, [7, 11, 13])


def test_without_yielding_there_are_no_modes_of_p_until_something_yields(cube, elastic, pulls):
    basis = basis_of(cube, [elastic], SETTINGS)
    assert basis.p is None
    assert basis.p_scale == 0.0
    assert basis.extended(cube, [elastic]).p is None
    yielded = basis.extended(cube, pulls)
    np.testing.assert_array_equal(yielded.p.modes, basis_of(cube, pulls, SETTINGS).p.modes)
    again = yielded.extended(cube, [elastic])
    np.testing.assert_allclose(again.p.singular_values, yielded.p.singular_values, rtol=1e-10)
    assert again.p.snapshots == 32


# --- where p is largest ---------------------------------------------------------------------------------------------


def test_peaks_are_where_p_is_largest_the_most_frequent_first(cube):
    p = np.zeros((6, cube.points))
    p[[0, 2, 4], 13] = 1.0
    p[3, 5] = 2.0
    p[5, [7, 9]] = [0.3, 0.4]
    basis = basis_of(cube, [made_up(cube, p)], SETTINGS)
    np.testing.assert_array_equal(basis.peaks, [13, 5, 9])


def test_new_peaks_come_first_each_once_and_no_more_than_wanted(cube):
    first, second = np.zeros((3, cube.points)), np.zeros((3, cube.points))
    first[range(3), [2, 4, 6]] = 1.0
    second[range(3), [11, 4, 11]] = 1.0
    settings = dataclasses.replace(SETTINGS, hot_points=3)
    basis = basis_of(cube, [made_up(cube, first)], settings)
    extended = basis.extended(cube, [made_up(cube, second)])
    np.testing.assert_array_equal(extended.peaks, [11, 4, 2])


def test_the_bar_has_its_peaks_where_its_simulations_have_them(runs, basis):
    largest = {int(row.argmax()) for run in runs for row in run.trajectory.p[1:] if row.any()}
    assert set(basis.peaks.tolist()) == largest
    assert len(TRAINING) <= len(largest) <= SETTINGS.hot_points


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["displacement", "stress", "p", "cubature"])
def test_tolerances_lie_between_0_and_1(name):
    for value in (0.0, 1.0, -0.1, np.nan):
        with pytest.raises(ValueError, match=rf"{name} = {value} must lie between 0 and 1"):
            Settings(**{name: value})


def test_numbers_of_modes_and_points_are_not_negative():
    for values in ({"test_modes": -1}, {"hot_points": -1}, {"modes": 0}):
        with pytest.raises(ValueError, match="the first two must not be negative, the last at least 1"):
            Settings(**values)
    assert Settings(test_modes=0, hot_points=0, modes=1).modes == 1


def test_a_basis_needs_simulations_that_move(bar, runs, basis):
    with pytest.raises(ValueError, match="a basis of no simulations; give at least one"):
        basis_of(bar, [], SETTINGS)
    with pytest.raises(ValueError, match="a basis of no simulations; give at least one"):
        basis.extended(bar, [])
    still = simulated(bar, bar_history((0.0, 20.0, 20.0, 1.0)))
    with pytest.raises(ValueError, match="all snapshots are zero"):
        basis_of(bar, [still], SETTINGS)
    broken = runs[0].trajectory.displacement.copy()
    broken[4, 7] = np.nan
    run = Run(runs[0].history, dataclasses.replace(runs[0].trajectory, displacement=broken))
    with pytest.raises(ValueError, match="snapshot 3 holds NaN"):
        basis.extended(bar, [run])

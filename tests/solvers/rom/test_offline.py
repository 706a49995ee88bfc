import dataclasses
import logging

import numpy as np
import pytest
from suites.rom_cases import (
    BAR,
    COARSE,
    GENTLE,
    OUTSIDE,
    PULLS,
    WEAK,
    bar_history,
    bar_runs,
    pull_history,
    pulled_cube,
    rows_of,
    simulated,
    sizes,
)
from suites.solid_cases import alone

from forebay.solvers.rom import offline
from forebay.solvers.rom.basis import Settings, basis_of
from forebay.solvers.rom.errors import calibration_pairs, displacement_field, judge, plastic_field, true_errors
from forebay.solvers.rom.nnomp import Outcome
from forebay.solvers.rom.offline import (
    CubatureError,
    Origin,
    build,
    enrich,
    held_out_pairs,
    make_package,
    own_pairs,
    solve_reduced,
)
from forebay.solvers.rom.online import ReducedModel, ReducedSolveError
from forebay.solvers.rom.package import LawStamp
from forebay.solvers.rom.quantities import monitored, p_max, reactions

LAW = BAR.law
ORIGIN = Origin("necked_bar", LAW, {"traction": (150.0, 200.0)}, version=7)
CUBE = Origin("cube", LAW)


@pytest.fixture(scope="module")
def model():
    model = BAR.model(alone())
    yield model
    model.destroy()


@pytest.fixture(scope="module")
def runs(model):
    return bar_runs(model)


@pytest.fixture(scope="module")
def reduced(model, runs):
    return build(model, runs, ORIGIN)


@pytest.fixture(scope="module")
def outside(model):
    return simulated(model, bar_history(OUTSIDE))


@pytest.fixture(scope="module")
def cube():
    model = pulled_cube(alone())
    yield model
    model.destroy()


@pytest.fixture(scope="module")
def pulls(cube):
    return [simulated(cube, pull_history(LAW, *drive)) for drive in PULLS]


def errors(model, reduced, run):
    """Largest error of the displacement beside the largest displacement, and of p at the end; computed anew."""
    found = ReducedModel(reduced.package, LAW).run(run.history)
    full = run.trajectory
    u = displacement_field(reduced.basis, model.lifts, found)
    missed = sizes(model.dof_weights, u - full.displacement).max()
    p = plastic_field(reduced.basis, found)[-1]
    return (
        missed / sizes(model.dof_weights, full.displacement).max(),
        sizes(model.weights, p - full.p[-1]) / max(sizes(model.weights, full.p[-1]), 1e-300),
    )


def work(package):
    """∫ σⱼ : ε(φₖ) by the package's points, for stress (m, 6, s)."""
    return lambda stress: np.einsum("m,mck,mcs->ks", package.weights, package.strains, stress, optimize=True)


# --- a package of runs reproduces them ------------------------------------------------------------------------------


def test_a_package_reproduces_its_runs_about_as_well_as_its_tolerances(model, runs, reduced):
    coarse = make_package(model, basis_of(model, runs, COARSE), ORIGIN)
    for run in runs:
        displacement, p = errors(model, reduced, run)
        assert displacement < 2 * reduced.basis.settings.cubature
        assert p < 5e-3
        assert 2e-3 < errors(model, coarse, run)[0] < 3 * COARSE.displacement
    assert coarse.package.points < 0.7 * reduced.package.points


def test_prescribed_displacements_are_reproduced(cube, pulls):
    reduced = build(cube, pulls, CUBE)
    assert reduced.package.displacement_names == ("pull",)
    for run in pulls:
        displacement, p = errors(cube, reduced, run)
        assert displacement < 1e-3
        assert p < 1e-2
        found = solve_reduced(cube.comm, reduced.package, LAW, run.history)
        lift = cube.lifts[:, 0]
        forces = [
            cube.internal_force(stress) @ lift - loads @ (cube.nodal_loads.T @ lift)
            for stress, loads in zip(run.trajectory.stress, run.history.loads, strict=True)
        ]
        np.testing.assert_allclose(reactions(reduced.package, found)[:, 0], forces, rtol=0, atol=2e-3 * np.ptp(forces))


def test_the_lift_alone_may_be_the_whole_answer(cube, pulls):
    """An elastic body under nothing but its prescribed displacement: u is the lift, modes are of rounding."""
    elastic = simulated(cube, pull_history(LAW, 0.005, 0.0, 0.0))
    reduced = make_package(cube, basis_of(cube, [elastic], Settings()), CUBE)
    assert errors(cube, reduced, elastic)[0] < 1e-10
    later = enrich(cube, reduced, pulls[:2], CUBE)
    assert errors(cube, later, pulls[0])[0] < 1e-3


# --- what is in a package -------------------------------------------------------------------------------------------


def test_arrays_are_those_of_the_model_at_the_points(model, reduced):
    package, basis = reduced.package, reduced.basis
    rows = rows_of(model, package.point_ids)
    np.testing.assert_array_equal(package.positions, model.positions[rows])
    np.testing.assert_array_equal(package.p_modes, basis.p.modes[rows])
    np.testing.assert_array_equal(package.strains, model.strains(basis.displacement.modes)[rows])
    assert package.modes == basis.modes
    assert package.extra == basis.settings.test_modes


def test_loads_and_products_are_those_of_modes_and_lifts(cube, pulls):
    reduced = make_package(cube, basis_of(cube, pulls, Settings()), CUBE)
    package, modes, lifts = reduced.package, reduced.basis.displacement.modes, cube.lifts
    np.testing.assert_allclose(package.loads, cube.unit_loads.T @ modes, rtol=1e-13)
    np.testing.assert_allclose(package.lift_loads, cube.unit_loads.T @ lifts, rtol=1e-13)
    rows = rows_of(cube, package.point_ids)
    np.testing.assert_array_equal(package.lift_strains, cube.strains(lifts)[rows])
    columns = np.hstack([modes, lifts])
    expected = columns.T @ np.diag(cube.dof_weights) @ columns
    np.testing.assert_allclose(package.gram, expected, rtol=0, atol=1e-12 * abs(expected).max())
    np.testing.assert_allclose(package.gram[:-1, :-1], np.eye(modes.shape[1]), atol=1e-10)
    assert abs(package.gram[-1, :-1]).max() > 0.1, "modes and lifts are not orthogonal"


def test_points_suffice_for_the_modes_of_p(model, reduced):
    package = reduced.package
    assert package.p_modes.shape[1] == reduced.basis.p.modes.shape[1] > 0
    assert package.points >= package.p_modes.shape[1]
    assert package.points > package.force_points, "some only reconstruct"
    assert np.linalg.cond(package.p_modes) < 100
    np.testing.assert_array_equal(package.point_ids[: package.force_points], model.point_ids[reduced.basis.points])


def test_the_cubature_integrates_the_work_of_stresses_on_modes_and_test_modes(model, runs, reduced):
    package, settings = reduced.package, reduced.basis.settings
    assert reduced.residual <= settings.cubature
    assert package.weights.sum() == pytest.approx(model.weights.sum(), rel=0.01)
    stress = np.moveaxis(np.concatenate([run.trajectory.stress[1:] for run in runs]), 0, 2)
    exact = np.einsum(
        "m,mck,mcs->ks", model.weights, model.strains(reduced.basis.displacement.modes), stress, optimize=True
    )
    rows = rows_of(model, package.point_ids)
    found = work(package)(stress[rows])
    assert np.linalg.norm(found - exact) < 2 * settings.cubature * np.linalg.norm(exact)
    others = package.weights.copy()
    others[: package.force_points] = model.weights.sum() / package.force_points
    wrong = work(dataclasses.replace(package, weights=others))(stress[rows])
    assert np.linalg.norm(wrong - exact) > 0.05 * np.linalg.norm(exact)


def test_a_package_says_where_it_comes_from(runs, reduced):
    package = reduced.package
    assert package.problem == "necked_bar"
    assert package.version == 7
    assert package.parameters == {"traction": (150.0, 200.0)}
    assert package.law == LawStamp.of(LAW)
    assert package.load_names == ("traction",)
    assert package.displacement_scale == reduced.basis.displacement_scale
    assert package.p_scale == reduced.basis.p_scale


def test_the_point_of_largest_p_is_among_points_or_hot_spots(model, runs):
    basis = basis_of(model, runs, COARSE)
    package = make_package(model, basis, ORIGIN).package
    assert len(package.hot_point_ids) > 0
    assert not set(package.hot_point_ids) & set(package.point_ids)
    for run in runs:
        top = model.point_ids[run.trajectory.p[-1].argmax()]
        assert top in {*package.point_ids, *package.hot_point_ids}
    rows = rows_of(model, package.hot_point_ids)
    np.testing.assert_array_equal(package.hot_p_modes, basis.p.modes[rows])
    np.testing.assert_array_equal(package.hot_positions, model.positions[rows])


def test_the_largest_p_of_a_simulation_is_found_without_the_mesh(model, runs, reduced):
    for run in runs:
        found = p_max(reduced.package, ReducedModel(reduced.package, LAW).run(run.history))
        assert found[-1] == pytest.approx(run.trajectory.p[-1].max(), rel=0.02)


def test_hot_spots_are_no_more_than_wanted(model, runs):
    basis = basis_of(model, runs, dataclasses.replace(COARSE, hot_points=1))
    everywhere = np.setdiff1d(np.arange(model.points), make_package(model, basis, ORIGIN).basis.points)[::-1]
    package = make_package(model, dataclasses.replace(basis, peaks=everywhere), ORIGIN).package
    assert len(package.hot_point_ids) == 1
    fewer = make_package(model, basis_of(model, runs, dataclasses.replace(COARSE, hot_points=0)), ORIGIN).package
    assert fewer.hot_p_modes.shape == (0, fewer.p_modes.shape[1])


def test_monitors_are_displacements_at_their_degrees_of_freedom(cube, pulls):
    reduced = make_package(cube, basis_of(cube, pulls, Settings()), CUBE)
    package = reduced.package
    found = ReducedModel(package, LAW).run(pulls[1].history)
    field = displacement_field(reduced.basis, cube.lifts, found)
    dofs = [int(label.split()[-1]) for label in package.monitor_labels]
    assert [label[:3] for label in package.monitor_labels] == ["u_x", "u_y", "u_z"]
    assert [dof % 3 for dof in dofs] == [0, 1, 2]
    columns = [int(np.flatnonzero(cube.dof_ids == dof)[0]) for dof in dofs]
    np.testing.assert_allclose(monitored(package, found), field[:, columns], rtol=0, atol=1e-14)
    true = pulls[1].trajectory.displacement[:, columns]
    assert abs(monitored(package, found) - true).max() < 1e-3 * abs(true).max()


def test_what_moved_most_is_watched(model, runs, reduced):
    moved = sum((run.trajectory.displacement[1:] ** 2).sum(axis=0) for run in runs)
    for component, label in enumerate(reduced.package.monitor_labels):
        best = moved[model.dof_ids % 3 == component].max()
        dof = int(label.split()[-1])
        assert moved[model.dof_ids == dof][0] > 0.999 * best


# --- calibration ----------------------------------------------------------------------------------------------------


def test_held_out_pairs_are_of_runs_that_were_not_trained_on(model, runs, reduced):
    """Three runs calibrate by leaving each out, and by themselves."""
    pairs = reduced.package.calibration.pairs
    assert pairs.shape == (48, 4)
    np.testing.assert_array_equal(pairs[24:], own_pairs(model, runs, reduced, LAW))
    for number in range(3):
        others = [run for k, run in enumerate(runs) if k != number]
        without = make_package(model, basis_of(model, others, Settings()), ORIGIN)
        found = ReducedModel(without.package, LAW).run(runs[number].history)
        expected = calibration_pairs(model, without.basis, runs[number], found)
        np.testing.assert_allclose(pairs[8 * number : 8 * number + 8], expected, rtol=1e-9)


def test_two_runs_calibrate_by_themselves(model, runs, reduced):
    two = build(model, runs[:2], ORIGIN)
    own = own_pairs(model, runs[:2], two, LAW)
    np.testing.assert_array_equal(two.package.calibration.pairs, own)
    assert own.shape == (16, 4)
    assert np.median(reduced.package.calibration.pairs[:24, 2]) > 3 * np.median(own[:, 2]), "own errors are too good"


def test_a_bound_on_modes_that_others_do_not_reach_is_no_obstacle(model, runs):
    assert held_out_pairs(model, runs[:2], ORIGIN, dataclasses.replace(COARSE, modes=13)).shape == (16, 4)


def test_a_run_that_cannot_be_followed_gives_no_pairs(model, runs, reduced, monkeypatch, caplog):
    run = ReducedModel.run

    def failing(self, history):
        if history is runs[1].history:
            raise ReducedSolveError(3, 0.5, "made up")
        return run(self, history)

    monkeypatch.setattr(ReducedModel, "run", failing)
    with caplog.at_level(logging.WARNING):
        pairs = own_pairs(model, runs, reduced, LAW)
    assert pairs.shape == (16, 4)
    assert "run 1 gives no pairs of indicator and error: step 3 of the reduced model failed" in caplog.text
    with pytest.raises(ReducedSolveError, match="made up"):
        solve_reduced(model.comm, reduced.package, LAW, runs[1].history)


# --- enrichment -----------------------------------------------------------------------------------------------------


def test_an_enrichment_learns_the_run_and_its_pairs(model, reduced, outside):
    before = errors(model, reduced, outside)
    better = enrich(model, reduced, [outside], ORIGIN)
    after = errors(model, better, outside)
    assert after[0] < 0.2 * before[0]
    assert after[1] < 0.1 * before[1]
    assert better.package.version == 8
    pairs = better.package.calibration.pairs
    assert len(pairs) == 56
    np.testing.assert_array_equal(pairs[:48], reduced.package.calibration.pairs)
    found = ReducedModel(reduced.package, LAW).run(outside.history)
    np.testing.assert_array_equal(pairs[48:, :2], found.indicators)
    np.testing.assert_allclose(pairs[48:, 2:], true_errors(model, reduced.basis, outside, found), rtol=1e-12)


@pytest.mark.parametrize("rough", [False, True])
def test_the_cubature_starts_from_the_points_that_there_are(model, reduced, outside, monkeypatch, rough):
    seen = {}
    select = offline.select_hierarchical

    def spy(*arguments, **options):
        seen.update(options)
        return select(*arguments, **options)

    monkeypatch.setattr(offline, "select_hierarchical", spy)
    better = enrich(model, reduced, [outside], ORIGIN, rough=rough)
    np.testing.assert_array_equal(seen["start"], reduced.basis.points)
    assert seen["rough"] is rough
    package = better.package
    np.testing.assert_array_equal(package.point_ids[: package.force_points], model.point_ids[better.basis.points])
    assert better.residual <= reduced.basis.settings.cubature
    if rough:
        assert len(np.intersect1d(better.basis.points, reduced.basis.points)) > 0.9 * len(reduced.basis.points)


def test_a_cubature_that_misses_its_tolerance_is_an_error(model, reduced, monkeypatch):
    select = offline.select_hierarchical

    def stalled(*arguments, **options):
        return dataclasses.replace(select(*arguments, **options), outcome=Outcome.STALLED)

    monkeypatch.setattr(offline, "select_hierarchical", stalled)
    with pytest.raises(CubatureError, match=r"stays at a residual of .*\(no further column .*\); loosen"):
        make_package(model, reduced.basis, ORIGIN)


# --- nothing has yielded yet ----------------------------------------------------------------------------------------


def test_elastic_runs_make_a_package_without_modes_of_p(model):
    weak = simulated(model, bar_history(WEAK))
    assert not weak.trajectory.p.any()
    reduced = build(model, [weak], ORIGIN)
    assert reduced.package.p_modes.shape == (reduced.package.points, 0)
    assert reduced.package.points == reduced.package.force_points
    assert reduced.package.hot_point_ids.shape == (0,)
    displacement, p = errors(model, reduced, weak)
    assert displacement < 1e-3
    assert p == 0.0
    found = ReducedModel(reduced.package, LAW).run(weak.history)
    assert not found.indicators[:, 0].any()
    assert judge(reduced.package, found).p == 0.0


def test_later_runs_that_yield_bring_modes_of_p_and_estimates_of_it(cube, pulls):
    elastic = build(cube, [simulated(cube, pull_history(LAW, *GENTLE))], CUBE)
    assert elastic.basis.p is None
    first = enrich(cube, elastic, pulls[:1], CUBE)
    assert first.package.p_modes.shape[1] > 2
    assert errors(cube, first, pulls[0])[0] < 1e-3
    assert errors(cube, first, pulls[0])[1] < 2e-2
    found = ReducedModel(first.package, LAW).run(pulls[0].history)
    assert judge(first.package, found).p < 0.1, "errors of p without any mode of it do not count"
    assert not first.package.calibration.pairs[:, 3].any()
    assert enrich(cube, first, pulls[1:], CUBE).package.calibration.pairs[16:, 3].max() > 1e-3

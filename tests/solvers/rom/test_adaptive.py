import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from suites.rom_cases import (
    BAR,
    INSIDE,
    OUTSIDE,
    PULLS,
    bar_history,
    bar_runs,
    pull_history,
    pulled_cube,
    rows_of,
    simulated,
    sizes,
)
from suites.solid_cases import alone

from forebay.solvers.materials.law import plastic_strain
from forebay.solvers.rom import full_steps
from forebay.solvers.rom.adaptive import Tolerance, run_adaptive
from forebay.solvers.rom.errors import displacement_field, plastic_field
from forebay.solvers.rom.library import Library
from forebay.solvers.rom.offline import Origin, build
from forebay.solvers.rom.online import ReducedModel, ReducedSolveError

LAW = BAR.law
ORIGIN = Origin("necked_bar", LAW)
CUBE = Origin("cube", LAW)
USUAL, NONE, ANY = Tolerance(0.03, 0.1), Tolerance(1e-12, 1e-12), Tolerance(np.inf, np.inf)


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
def adapted(model, reduced, outside):
    """The simulation beyond the training, and what was observed of it."""
    seen = []
    return run_adaptive(model, reduced, ORIGIN, outside.history, USUAL, observe=seen.append), seen


@pytest.fixture(scope="module")
def cube():
    model = pulled_cube(alone())
    yield model
    model.destroy()


def errors(model, run, displacement, p):
    """Largest error of the displacement beside the largest displacement, and of p at the end."""
    full = run.trajectory
    missed = sizes(model.dof_weights, displacement - full.displacement).max()
    return (
        missed / sizes(model.dof_weights, full.displacement).max(),
        sizes(model.weights, p[-1] - full.p[-1]) / sizes(model.weights, full.p[-1]),
    )


def plain(model, reduced, run):
    """Displacement and p of the reduced model alone."""
    found = ReducedModel(reduced.package, LAW).run(run.history)
    return displacement_field(reduced.basis, model.lifts, found), plastic_field(reduced.basis, found)


# --- the full model is asked where it is needed ---------------------------------------------------------------------


def test_within_the_training_every_step_stays_reduced(model, reduced, runs):
    for history in (runs[1].history, bar_history(INSIDE)):
        found = run_adaptive(model, reduced, ORIGIN, history, USUAL)
        assert found.full_steps == 0
        assert found.reduced is reduced
        assert all(decision.reduced and not decision.reason for decision in found.decisions)


def test_beyond_the_training_errors_are_smaller_than_without(model, reduced, outside, adapted):
    found, _ = adapted
    assert 1 <= found.full_steps <= 5
    alone_, helped = (
        errors(model, outside, *plain(model, reduced, outside)),
        errors(model, outside, found.displacement, found.p),
    )
    assert helped[0] < 0.6 * alone_[0]
    assert helped[1] < 0.6 * alone_[1]
    assert helped[0] < 0.02
    assert helped[1] < 0.1


def test_every_decision_is_told_with_its_reason(reduced, outside, adapted):
    found, seen = adapted
    assert tuple(seen) == found.decisions
    assert [decision.step for decision in found.decisions] == list(range(1, 9))
    np.testing.assert_array_equal([decision.time for decision in found.decisions], outside.history.times[1:])
    points, version = reduced.package.points, reduced.package.version
    for decision in found.decisions:
        accepted = decision.displacement_error <= USUAL.displacement and decision.p_error <= USUAL.p
        assert decision.reduced is bool(accepted)
        assert np.isfinite([decision.gappy, decision.equilibrium]).all()
        assert decision.seconds > 0
        if decision.reduced:
            assert decision.reason == ""
            assert decision.points == points
        else:
            stated = f"{100 * decision.displacement_error:.2g} % and {100 * decision.p_error:.2g} %"
            assert decision.reason == f"estimated errors {stated}, allowed are 3 % and 10 %"
            points, version = decision.points, version + 1
    assert found.reduced.package.version == version
    assert (found.decisions[-1].modes, found.decisions[-1].points) == (
        found.reduced.package.modes,
        found.reduced.package.points,
    )


def test_full_steps_without_any_other_are_the_full_model(model, reduced, outside):
    found = run_adaptive(model, reduced, ORIGIN, outside.history, NONE)
    assert found.full_steps == 8
    np.testing.assert_allclose(found.displacement, outside.trajectory.displacement, rtol=0, atol=1e-15)
    np.testing.assert_allclose(found.p, outside.trajectory.p, rtol=0, atol=1e-15)
    np.testing.assert_array_equal(found.times, outside.history.times)


def test_an_infinite_tolerance_is_the_reduced_model(model, reduced, outside):
    found = run_adaptive(model, reduced, ORIGIN, outside.history, ANY)
    assert found.full_steps == 0
    displacement, p = plain(model, reduced, outside)
    np.testing.assert_allclose(found.displacement, displacement, rtol=0, atol=1e-14)
    np.testing.assert_allclose(found.p, p, rtol=0, atol=1e-14)
    assert found.seconds > 0


def test_a_step_without_reduced_equilibrium_is_solved_in_full(model, reduced, outside, monkeypatch):
    step, failed = ReducedModel.step, []

    def failing(self, history, k, state):
        if k == 5 and not failed:
            failed.append(k)
            raise ReducedSolveError(k, 1.1, "made up")
        return step(self, history, k, state)

    monkeypatch.setattr(ReducedModel, "step", failing)
    found = run_adaptive(model, reduced, ORIGIN, outside.history, ANY)
    assert [decision.step for decision in found.decisions if not decision.reduced] == [5]
    decision = found.decisions[4]
    assert decision.reason == "no reduced equilibrium: made up"
    assert np.isnan([decision.gappy, decision.equilibrium, decision.displacement_error, decision.p_error]).all()
    assert len(found.reduced.package.calibration.pairs) == len(reduced.package.calibration.pairs), "no indicators"
    assert (
        errors(model, outside, found.displacement, found.p)[1]
        < errors(model, outside, *plain(model, reduced, outside))[1]
    )


# --- what a full step starts from, and leaves behind ----------------------------------------------------------------


def test_a_full_step_starts_from_the_law_along_the_reduced_steps(model, reduced, outside, monkeypatch):
    """The replay starts at the last full step, and its result is what a replay from the beginning gives."""
    starts, replays = [], []
    step, replay = type(model).step, type(model).replay

    def stepped(self, history, k, state):
        starts.append((k, state))
        return step(self, history, k, state)

    def replayed(self, history, displacements, *, first=0, start=None, observe=None):
        replays.append((first, len(displacements)))
        return replay(self, history, displacements, first=first, start=start, observe=observe)

    monkeypatch.setattr(type(model), "step", stepped)
    monkeypatch.setattr(type(model), "replay", replayed)
    found = run_adaptive(model, reduced, ORIGIN, outside.history, USUAL)
    full = [decision.step for decision in found.decisions if not decision.reduced]
    assert [k for k, _ in starts] == full
    assert replays == [(before, k - before) for before, k in zip([0, *full[:-1]], full, strict=True)]
    assert max(length for _, length in replays) > 2, "reduced steps in between"
    for k, state in starts:
        np.testing.assert_array_equal(state.displacement, found.displacement[k - 1])
        expected = replay(model, outside.history, found.displacement[:k])
        # Full steps leave what Newton's method found; the law along the same displacements differs by its tolerance.
        np.testing.assert_allclose(
            state.variables, expected.variables, rtol=0, atol=1e-9 * abs(expected.variables).max()
        )
        np.testing.assert_allclose(
            state.stress, expected.stress, rtol=0, atol=1e-6 * abs(expected.stress).max(initial=1.0)
        )


def test_the_reduced_model_goes_on_from_the_full_state(model, reduced, outside, monkeypatch):
    states, step = {}, ReducedModel.step

    def stepped(self, history, k, state):
        states[k] = self.package, state
        return step(self, history, k, state)

    monkeypatch.setattr(ReducedModel, "step", stepped)
    run_adaptive(model, reduced, ORIGIN, outside.history, NONE)
    full = outside.trajectory
    for k in range(2, 9):
        package, state = states[k]
        rows = rows_of(model, package.point_ids)
        np.testing.assert_array_equal(state.stress, full.stress[k - 1][rows])
        np.testing.assert_array_equal(plastic_strain(LAW, state.variables), full.p[k - 1][rows])
        assert state.peak == pytest.approx(sizes(model.dof_weights, full.displacement[:k]).max(), rel=1e-2)
        assert state.coefficients.shape == (package.modes,)
        assert state.rate is None


def test_a_model_that_has_learned_a_simulation_follows_it(model, outside, adapted):
    found, _ = adapted
    again = run_adaptive(model, found.reduced, ORIGIN, outside.history, USUAL)
    assert again.full_steps < found.full_steps
    assert errors(model, outside, again.displacement, again.p)[1] < 0.1


def test_refused_steps_become_pairs_of_the_calibration(model, reduced, adapted):
    found, _ = adapted
    pairs = found.reduced.package.calibration.pairs
    known = len(reduced.package.calibration.pairs)
    np.testing.assert_array_equal(pairs[:known], reduced.package.calibration.pairs)
    refused = [decision for decision in found.decisions if not decision.reduced]
    assert len(pairs) == known + len(refused)
    np.testing.assert_array_equal(pairs[known:, :2], [(d.gappy, d.equilibrium) for d in refused])
    assert found.reduced.residual <= reduced.basis.settings.cubature


def test_errors_of_refused_steps_refer_to_the_largest_displacement_so_far(cube, monkeypatch):
    """Prescribed displacements, taken back almost wholly: the last ones are small."""
    drives = [pull_history(LAW, pull, 5.0, 30.0, back=0.9) for pull in (0.03, 0.02, 0.04)]
    reduced = build(cube, [simulated(cube, history) for history in drives[:2]], CUBE)
    full = simulated(cube, drives[2]).trajectory
    moved = sizes(cube.dof_weights, full.displacement)
    assert moved[-1] < 0.4 * moved.max()
    tried, pairs_of = [], full_steps.calibration_pairs

    def spy(model, basis, run, found, **options):
        tried.append(displacement_field(basis, model.lifts, found)[1])
        return pairs_of(model, basis, run, found, **options)

    monkeypatch.setattr(full_steps, "calibration_pairs", spy)
    found = run_adaptive(cube, reduced, CUBE, drives[2], NONE)
    missed = sizes(cube.dof_weights, np.array(tried) - full.displacement[1:])
    pairs = found.reduced.package.calibration.pairs[-8:]
    np.testing.assert_allclose(pairs[:, 2], missed / np.maximum.accumulate(moved[1:]), rtol=1e-6)


def test_prescribed_displacements_are_kept_in_reduced_steps_too(cube):
    runs = [simulated(cube, pull_history(LAW, *drive)) for drive in PULLS]
    reduced = build(cube, runs[:2], CUBE)
    found = run_adaptive(cube, reduced, CUBE, runs[2].history, Tolerance(0.01, 0.03))
    assert 0 < found.full_steps < 8
    pulled = np.flatnonzero((abs(cube.lifts[:, 0] - 1.0) < 1e-12) & cube.fixed)
    assert len(pulled) > 4
    expected = np.tile(runs[2].history.displacements, len(pulled))
    np.testing.assert_allclose(found.displacement[:, pulled], expected, rtol=0, atol=1e-12)
    assert errors(cube, runs[2], found.displacement, found.p)[0] < 0.005


# --- tolerances -----------------------------------------------------------------------------------------------------


def test_a_tolerance_is_positive_and_accepts_no_nan():
    for values in ((0.0, 0.1), (0.1, -1.0), (np.nan, 0.1)):
        with pytest.raises(ValueError, match=r"tolerances .* must be positive; 0.01 and 0.03 are usual"):
            Tolerance(*values)
    tolerance = Tolerance(0.01, 0.03)
    assert tolerance.accepts(0.01, 0.03)
    assert not tolerance.accepts(0.011, 0.0)
    assert not tolerance.accepts(0.0, 0.031)
    assert not tolerance.accepts(np.nan, 0.0)
    assert not tolerance.accepts(0.0, np.nan)
    assert ANY.accepts(np.inf, np.inf)


def test_errors_of_small_fields_refer_to_a_share_of_the_largest():
    tolerance = Tolerance(0.01, 0.03, floor=0.2)
    assert tolerance.accepts(0.019, 0.0, shares=(0.1, 1.0))
    assert not tolerance.accepts(0.021, 0.0, shares=(0.1, 1.0))
    assert not tolerance.accepts(0.0, 0.031, shares=(0.1, 0.2))
    assert tolerance.accepts(0.0, 0.29, shares=(1.0, 0.02))
    assert tolerance.accepts(0.0, 5.0, shares=(1.0, 0.0))
    assert not tolerance.accepts(0.0, np.nan, shares=(1.0, 0.0))
    assert not Tolerance(0.01, 0.03, floor=0.0).accepts(0.0, 0.031, shares=(0.1, 0.0))
    for floor in (-0.1, 1.1, np.nan):
        with pytest.raises(ValueError, match=r"floor .* must lie in \[0, 1\], a share of the training's scale"):
            Tolerance(0.01, 0.03, floor)


def test_a_lower_floor_asks_the_full_model_sooner(model, reduced):
    history = bar_history(OUTSIDE)
    floors = (0.0, 1.0)
    strict, kind = (run_adaptive(model, reduced, ORIGIN, history, Tolerance(0.03, 0.1, floor)) for floor in floors)
    assert strict.full_steps > kind.full_steps


# --- several processes ----------------------------------------------------------------------------------------------


@pytest.mark.mpi
def test_two_processes_decide_and_find_what_one_does(model, reduced, adapted, tmp_path):
    Library(tmp_path).publish(model, reduced)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    command = [Path(sys.executable).with_name("mpiexec"), "-n", "2", sys.executable]
    script = Path(__file__).with_name("rom_parallel.py")
    subprocess.run([*command, script, "adapt", tmp_path], check=True, env=environment, timeout=240)
    two, (one, _) = dict(np.load(tmp_path / "found.npz")), adapted
    decisions = json.loads(str(two["decisions"]))
    assert [d["reduced"] for d in decisions] == [d.reduced for d in one.decisions]
    assert 0 < one.full_steps < 8
    for mine, other in zip(one.decisions, decisions, strict=True):
        for name in ("displacement_error", "p_error"):
            assert other[name] == pytest.approx(getattr(mine, name), rel=1e-4), mine.step
    dofs, points = np.argsort(model.dof_ids), np.argsort(model.point_ids)
    size = abs(one.displacement).max()
    np.testing.assert_allclose(two["displacement"].T, one.displacement[:, dofs], rtol=0, atol=1e-6 * size)
    np.testing.assert_allclose(two["p"].T, one.p[:, points], rtol=0, atol=1e-5 * one.p.max())

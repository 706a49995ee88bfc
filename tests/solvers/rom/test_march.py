"""The reduced half of an adaptive simulation, and what is said of the whole."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from suites.rom_cases import BAR, OUTSIDE, bar_history, bar_runs, simulated, sizes
from suites.solid_cases import alone

from forebay.solvers.rom.errors import judge, judge_steps
from forebay.solvers.rom.full_steps import FullSteps
from forebay.solvers.rom.march import Decision, Kept, March, Scales, Tolerance
from forebay.solvers.rom.offline import Origin, build
from forebay.solvers.rom.online import ReducedModel

LAW = BAR.law
ORIGIN = Origin("necked_bar", LAW)
NOTHING, USUAL, ANY = Tolerance(1e-12, 1e-12), Tolerance(0.03, 0.1), Tolerance(np.inf, np.inf)


@pytest.fixture(scope="module")
def model():
    model = BAR.model(alone())
    yield model
    model.destroy()


@pytest.fixture(scope="module")
def reduced(model):
    return build(model, bar_runs(model), ORIGIN)


def marched(model, reduced, tolerance, **options):
    """The bar beyond its training: both halves at the end."""
    history = bar_history(OUTSIDE)
    full = FullSteps(model, reduced, ORIGIN, history)
    march = March(reduced.package, LAW, history, tolerance, full, **options)
    for k in range(1, history.steps + 1):
        march.step(k)
    full.extend(march.kept)
    return march, full


def decision(step, *, reduced=True, gappy=0.0, equilibrium=0.0, errors=(0.0, 0.0)):
    return Decision(step, float(step), reduced, "" if reduced else "why", gappy, equilibrium, *errors, 8, 90, 0.1)


# --- where everything is new ----------------------------------------------------------------------------------------


def test_in_a_hurry_full_steps_double_before_a_reduced_one_is_tried_again(model, reduced):
    patient, _ = marched(model, reduced, NOTHING)
    hurried, full = marched(model, reduced, NOTHING, hurry=True)
    assert patient.full_steps == hurried.full_steps == 8
    tried = [d.step for d in hurried.decisions if np.isfinite(d.gappy)]
    assert tried == [1, 2, 4, 8]
    assert [d.step for d in hurried.decisions if d.reason == "the step before was not believed"] == [3, 5, 6, 7]
    assert len(full.runs) == 8
    assert full.reduced.package.version == 4, "one is learned at once, then two, four; the eighth waits"
    full.settle()
    assert full.reduced.package.version == 5
    assert len(full.reduced.package.calibration.pairs) == len(reduced.package.calibration.pairs) + len(tried)
    full.settle()
    assert full.reduced.package.version == 5, "there is nothing left to be learned"


def test_a_step_that_stays_reduced_ends_the_doubling(model, reduced, monkeypatch):
    refused = iter([True, True, False, True, True])

    def accepts(self, displacement, p, *, shares=(1.0, 1.0)):
        return not next(refused, False)

    monkeypatch.setattr(Tolerance, "accepts", accepts)
    march, _ = marched(model, reduced, USUAL, hurry=True)
    assert [d.reduced for d in march.decisions] == [False, False, False, True, False, False, False, True]


def test_hurried_fields_are_as_good_as_patient_ones(model, reduced):
    run = simulated(model, bar_history(OUTSIDE))
    for options in ({}, {"hurry": True}):
        march, full = marched(model, reduced, USUAL, **options)
        assert 0 < march.full_steps < 8
        missed = sizes(model.weights, np.array(full.p)[-1] - run.trajectory.p[-1])
        assert missed < 0.1 * sizes(model.weights, run.trajectory.p[-1])


# --- scales ---------------------------------------------------------------------------------------------------------


def test_scales_of_a_trajectory_are_its_own_largest_fields(reduced):
    found = ReducedModel(reduced.package, LAW).run(bar_history(OUTSIDE))
    scales = Scales.of_trajectory(found)
    assert scales.displacement == found.state.peak > 0
    assert scales.p == pytest.approx(np.sqrt((found.p**2).mean(axis=1)).max(), rel=1e-12)
    training = Scales.of_training(reduced.package)
    assert (training.displacement, training.p) == (reduced.package.displacement_scale, reduced.package.p_scale)


def test_larger_scales_leave_more_room(model, reduced):
    strict = dataclasses.replace(USUAL, floor=1.0)
    small, _ = marched(model, reduced, strict, scales=Scales(1e-9, 1e-9))
    large, _ = marched(model, reduced, strict, scales=Scales(1e9, 1e9))
    assert small.full_steps > large.full_steps == 0


# --- the two halves -------------------------------------------------------------------------------------------------


def test_fields_of_kept_steps_and_their_sizes(model, reduced):
    march, full = marched(model, reduced, ANY)
    assert march.full_steps == 0
    assert march.kept.coefficients.shape == (8, reduced.package.modes)
    assert march.kept.p_coefficients.shape == (8, reduced.package.p_modes.shape[1])
    assert len(full.displacement) == len(full.p) == 9
    expected = [sizes(model.dof_weights, np.array(full.displacement)), sizes(model.weights, np.array(full.p))]
    np.testing.assert_allclose(full.sizes(), np.column_stack(expected), rtol=1e-12)
    assert full.iterations == 0


def test_effort_of_full_steps_is_counted(model, reduced):
    _, full = marched(model, reduced, NOTHING)
    run = simulated(model, bar_history(OUTSIDE)).trajectory
    assert full.iterations == pytest.approx(sum(record.iterations for record in run.records), abs=2)
    assert 0 < full.residual < 1e-8


def test_no_kept_steps_are_empty_rows(reduced):
    history = bar_history(OUTSIDE)
    kept = March(reduced.package, LAW, history, USUAL, None).kept
    assert isinstance(kept, Kept)
    assert kept.coefficients.shape == (0, reduced.package.modes)


# --- the estimate of the whole --------------------------------------------------------------------------------------


def test_without_full_steps_the_estimate_is_that_of_a_reduced_run(model, reduced):
    """Up to the norm of p, over the mesh instead of the points of the package."""
    found = ReducedModel(reduced.package, LAW).run(bar_history(OUTSIDE))
    march, full = marched(model, reduced, ANY)
    whole, steps = judge(reduced.package, found), judge_steps(march.decisions, full.sizes())
    assert steps.displacement == pytest.approx(whole.displacement, rel=1e-2)
    assert steps.p == pytest.approx(whole.p, rel=0.3)
    assert steps.indicator == pytest.approx(whole.indicator, rel=0.3)


def test_a_step_counts_by_its_size_beside_the_largest():
    steps = [decision(1, errors=(0.4, 0.8), gappy=0.2), decision(2, errors=(0.1, 0.1), equilibrium=0.3)]
    found = judge_steps(steps, np.array([[0.0, 0.0], [1.0, 1.0], [10.0, 4.0]]))
    assert found.displacement == pytest.approx(0.1)
    assert found.p == pytest.approx(0.2)
    assert found.indicator == pytest.approx(0.3)


def test_a_displacement_counts_by_the_largest_so_far():
    steps = [decision(1), decision(2, errors=(0.2, 0.0))]
    assert judge_steps(steps, np.array([[0.0, 0.0], [10.0, 1.0], [1.0, 1.0]])).displacement == pytest.approx(0.2)


def test_full_steps_count_for_nothing_and_what_is_infinite_stays_so():
    steps = [decision(1, reduced=False, errors=(9.0, 9.0), gappy=9.0), decision(2, errors=(0.02, np.inf))]
    found = judge_steps(steps, np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0]]))
    assert found.displacement == pytest.approx(0.02)
    assert found.p == np.inf
    assert found.indicator == 0.0
    assert judge_steps(steps[:1], np.ones((2, 2))).estimate == 0.0

"""The benchmarks of reduced models still run, with sizes at which their figures mean nothing."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest

from forebay.solvers.rom.basis import Settings
from forebay.solvers.rom.offline import build
from forebay.solvers.rom.online import ReducedModel

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def load():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module


@pytest.fixture(scope="module")
def cases(load):
    return load("rom_cases")


@pytest.fixture(scope="module")
def bar(cases):
    return cases.Bar((6, 2, 2), steps=8)


@pytest.fixture(scope="module")
def training(cases, bar):
    return [bar.run(parameters) for parameters in cases.TRAINING]


@pytest.fixture(scope="module")
def reduced(bar, training):
    return build(bar.model, training, bar.origin, Settings())


def test_held_out_sets_lie_inside_of_the_training_and_the_others_outside(cases):
    low, high = np.min(cases.TRAINING, axis=0), np.max(cases.TRAINING, axis=0)
    for parameters in cases.HELD_OUT:
        assert ((low <= parameters) & (parameters <= high)).all()
        assert all(parameters[k] not in np.array(cases.TRAINING)[:, k] for k in range(3))
    for parameters in cases.OUTSIDE:
        assert np.sum((low > parameters) | (parameters > high)) >= 2


def test_errors_are_zero_for_the_run_itself_and_one_for_nothing(cases, bar, training):
    run = training[0]
    none = cases.errors(bar, run, run.trajectory.displacement, run.trajectory.p)
    assert (none.displacement, none.p) == (0.0, 0.0)
    all_ = cases.errors(bar, run, 0 * run.trajectory.displacement, 0 * run.trajectory.p)
    assert (all_.displacement, all_.p) == pytest.approx((1.0, 1.0))


def test_all_points_are_the_same_basis_with_the_mesh_quadrature(load, cases, bar, training, reduced):
    everywhere = load("rom_accuracy").all_points(bar, reduced)
    assert everywhere.points == bar.model.points > reduced.package.points
    assert everywhere.weights.sum() == pytest.approx(bar.model.weights.sum())
    found = ReducedModel(everywhere, bar.problem.law).run(training[0].history)
    assert cases.reduced_errors(bar, training[0], reduced, found).displacement < 0.02


def test_both_linear_solvers_give_the_same_bar(cases, bar):
    direct, multigrid = bar.run(cases.HELD_OUT[0]), cases.with_multigrid(bar.model)
    found = multigrid.run(direct.history)
    np.testing.assert_allclose(found.displacement, direct.trajectory.displacement, atol=1e-6)


def test_adaptation_is_measured_against_the_run_without(load, cases, bar, reduced):
    adapted = load("rom_adaptive").adapt(bar, reduced, bar.run(cases.OUTSIDE[0]))
    assert 0 < adapted.full_steps <= adapted.steps == 8
    assert adapted.adapted.displacement < adapted.plain.displacement


def test_a_stream_takes_the_reduced_model_where_it_may(load, monkeypatch, bar, reduced):
    module = load("rom_adaptive")
    monkeypatch.setattr(module, "STREAM_TOLERANCE", 0.5)
    monkeypatch.setattr(module, "CHECK_EVERY", 2)
    flow = module.stream(bar, reduced, 6)
    assert flow.samples == 6
    assert flow.full_samples < 6
    assert flow.checked == -(-(6 - flow.full_samples) // 2)
    monkeypatch.setattr(module, "STREAM_TOLERANCE", 0.0)
    assert module.stream(bar, reduced, 2).full_samples == 2


def test_both_ways_of_solving_refused_samples_are_counted(load):
    found = {adapt: load("rom_adaptive").start_of_study((6, 2, 2), 6, adapt) for adapt in ("sample", "step")}
    for start in found.values():
        assert sum(start.kinds.values()) == 6
        assert sum(start.late.values()) == 3
        assert start.seconds > 0
    assert found["sample"].full_steps == 40 * found["sample"].kinds["full"]
    assert found["step"].kinds["full"] == 4 < found["sample"].kinds["full"]
    assert 160 < found["step"].full_steps < found["sample"].full_steps


def test_estimates_and_errors_stand_side_by_side(load, cases, bar, reduced):
    module = load("indicator")
    steps = module.judged(bar, reduced, cases.HELD_OUT[0])
    assert steps.shape == (8, 4)
    (name, coverage, median, low, high), _ = module.rows_of(np.array([[2.0, 1, 1, 1], [3, 1, 1, 2], [0.5, 4, 1, 4]]))
    assert (name, coverage, median) == ("displacement", pytest.approx(2 / 3), 2.0)
    assert 0.5 <= low < high <= 3


def test_parts_are_slices_that_hold_every_point_once(load, bar):
    module = load("cubature_scaling")
    parts = module.cut(bar, 3)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(bar.model.points))
    x = bar.model.positions[:, 0]
    assert x[parts[0]].max() <= x[parts[1]].min() <= x[parts[1]].max() <= x[parts[2]].min()
    assert module.residual(np.eye(2), np.array([3.0, 4.0]), [0], np.array([3.0])) == pytest.approx(0.8)

"""Smoothed aggregation of a running study: what it learns from, what it publishes, where it begins."""

import math
from dataclasses import replace

import amg_cases
import numpy as np
import pytest

from forebay.kernels.amg import AmgSolver, AmgWeights
from forebay.kernels.weight_file import WeightsError
from forebay.learners import amg_trial, online_aggregation
from forebay.learners.amg_meshes import grid_mesh
from forebay.learners.amg_trial import AmgTrial
from forebay.learners.online_aggregation import LEAST_GAIN, OnlineAggregation, neighbourhood, parts_of
from forebay.pipeline.errors import RunError

MESH = grid_mesh(16, 2)


def batch(seed, mesh=MESH):
    rng = np.random.default_rng(seed)
    return np.stack([mesh.draw("white", 1e3, rng).data for _ in range(2)])


@pytest.fixture
def folder(tmp_path):
    """With a first version, which nobody has trained."""
    amg_cases.random_weights(7).save(tmp_path / "v0001.safetensors")
    return tmp_path


def begun(folder, mesh=MESH):
    """A trainer that holds its first matrices back already."""
    trainer = OnlineAggregation(folder, mesh.reference, seed=7)
    assert trainer.learn(batch(100, mesh)) == 0
    assert trainer.steps == 0
    return trainer


@pytest.fixture
def unjudged(monkeypatch):
    """Whatever has been trained is published."""
    monkeypatch.setattr(online_aggregation, "LEAST_GAIN", -math.inf)


def test_versions_are_published_after_so_many_steps_and_counted_on(folder, unjudged, monkeypatch):
    monkeypatch.setattr(online_aggregation, "STEPS_A_VERSION", 2)
    trainer = begun(folder)
    assert [trainer.learn(batch(k)) for k in range(4)] == [0, 2, 0, 3]
    assert trainer.steps == 4
    assert 0 < trainer.factor < 1
    assert sorted(path.name for path in folder.iterdir()) == [f"v000{k}.safetensors" for k in (1, 2, 3)]
    first, third = AmgWeights.load(folder / "v0001.safetensors"), AmgWeights.load(folder / "v0003.safetensors")
    assert third.version == 3
    assert first.digest != third.digest
    later = begun(folder)
    assert [later.learn(batch(k)) for k in range(2)] == [0, 4]


def test_every_version_takes_fewer_iterations_than_the_one_before_on_matrices_held_back(folder, monkeypatch):
    monkeypatch.setattr(online_aggregation, "STEPS_A_VERSION", 3)
    trainer = begun(folder)
    trial = AmgTrial(MESH.reference, batch(100), seed=7)
    best = trial.iterations(AmgWeights.load(folder / "v0001.safetensors"))
    assert (trainer.before, trainer.best) == (best, best)
    versions = 0
    for k in range(60):
        version = trainer.learn(batch(k))
        if version:
            versions += 1
            took = trial.iterations(AmgWeights.load(folder / f"v{version:04d}.safetensors"))
            assert took == trainer.best < (1 - LEAST_GAIN) * best
            best = took
    assert 1 < versions < 20
    assert trainer.facts == {
        "steps": 60,
        "factor": trainer.factor,
        "iterations": best,
        "iterations_before": trainer.before,
    }
    assert len(list(folder.iterdir())) == 1 + versions


def test_iterations_of_a_trial_are_those_of_whole_solves():
    values, rhs = batch(100), np.random.default_rng(7).standard_normal((2, MESH.unknowns))
    weights, found = AmgWeights.shipped(), []
    for row, b in zip(values, rhs, strict=True):
        solver = AmgSolver(
            MESH.reference.indptr, MESH.reference.indices, MESH.reference.data, weights=weights, guard=False
        )
        solver.setup(row)
        _, (record,) = solver.solve(b)
        found.append(record.iterations)
    trial = AmgTrial(MESH.reference, values, seed=7)
    values[:] = np.nan
    mean = np.sqrt(found[0] * found[1])
    assert mean - 1 < trial.iterations(weights) <= mean
    assert trial.iterations(weights) < trial.iterations(AmgWeights.constant())


def test_weights_that_do_not_solve_what_is_held_back_are_never_published(folder, monkeypatch):
    monkeypatch.setattr(online_aggregation, "STEPS_A_VERSION", 1)
    monkeypatch.setattr(amg_trial, "MOST", 1)
    trainer = begun(folder)
    assert trainer.before == math.inf
    assert [trainer.learn(batch(k)) for k in range(3)] == [0, 0, 0]
    assert [path.name for path in folder.iterdir()] == ["v0001.safetensors"]


def test_errors_fall_faster_after_training_from_weights_that_nobody_has_trained(folder):
    trainer = begun(folder)
    factors = []
    for k in range(40):
        trainer.learn(batch(k))
        factors.append(trainer.factor)
    assert np.mean(factors[-10:]) < np.mean(factors[:10]) - 0.01


def test_the_rate_of_learning_stays(tmp_path):
    trainer = begun(tmp_path)
    trainer._state = replace(trainer._state, steps=100_000)
    trainer.learn(batch(1))
    assert trainer._state.optimiser.param_groups[0]["lr"] == pytest.approx(1e-2)


def test_without_a_version_it_begins_with_the_weights_that_are_shipped(tmp_path):
    trainer = OnlineAggregation(tmp_path / "none", MESH.reference, seed=7)
    assert trainer._state.network.export().digest == AmgWeights.shipped().digest
    assert [trainer.learn(batch(k)) for k in range(2)] == [0, 0]
    assert not (tmp_path / "none").exists()


def test_a_damaged_version_is_refused(folder):
    (folder / "v0002.safetensors").write_bytes(b"damaged")
    with pytest.raises(WeightsError, match="is no safetensors file, or damaged"):
        OnlineAggregation(folder, MESH.reference, seed=7)


def test_batches_with_nan_leave_the_weights_alone_and_ten_of_them_end_the_training(tmp_path):
    trainer = begun(tmp_path)
    trainer.learn(batch(1))
    before, factor = trainer._state.network.export().digest, trainer.factor
    wrong = batch(2)
    wrong[1, 5] = np.nan
    for _ in range(9):
        assert trainer.learn(wrong) == 0
    assert trainer._state.network.export().digest == before
    assert trainer.factor == factor
    with pytest.raises(RunError, match="10 batches in a row up to batch 10"):
        trainer.learn(wrong)


def test_large_matrices_are_trained_on_in_parts_that_are_their_principal_submatrices(tmp_path, monkeypatch):
    monkeypatch.setattr(online_aggregation, "PART", 120)
    matrix = MESH.draw("white", 1e3, np.random.default_rng(11))
    parts = parts_of(MESH.reference, np.random.default_rng(7))
    assert len(parts) == online_aggregation.PARTS
    rng = np.random.default_rng(7)
    for part in parts:
        chosen = neighbourhood(MESH.reference, int(rng.integers(matrix.shape[0])), 120)
        symbolic = part.mesh.symbolic
        expected = matrix.toarray()[np.ix_(chosen, chosen)]
        found = type(matrix)((matrix.data[part.entries], symbolic.indices, symbolic.indptr)).toarray()
        np.testing.assert_array_equal(found, expected)
        assert symbolic.unknowns == 120
    trainer = begun(tmp_path)
    trainer.learn(batch(1))
    assert 0 < trainer.factor < 1


def test_a_neighbourhood_is_connected_and_filled_up_from_other_components():
    graph = MESH.reference
    near = neighbourhood(graph, 91, 5)
    assert near.tolist() == [77, 90, 91, 92, 105], "a cell of 14 x 14 and its neighbours"
    apart = type(graph)(np.diag(np.ones(6)) + np.diag([1.0, 0, 0, 0, 0], 1))
    assert neighbourhood(apart, 1, 4).tolist() == [0, 1, 2, 3]


def test_a_step_has_no_more_matrices_than_its_unknowns_allow_but_one(tmp_path, monkeypatch):
    seen = []
    step = online_aggregation.amg_step
    monkeypatch.setattr(
        online_aggregation, "amg_step", lambda state, batch: seen.append(len(batch)) or step(state, batch)
    )
    trainer = begun(tmp_path)
    for unknowns in (MESH.unknowns - 1, MESH.unknowns, 2 * MESH.unknowns, 9 * MESH.unknowns):
        monkeypatch.setattr(online_aggregation, "UNKNOWNS_A_STEP", unknowns)
        trainer.learn(batch(1))
    assert seen == [1, 1, 2, 2]

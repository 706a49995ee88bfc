"""Smoothed aggregation of a running study: what it learns from, what it publishes, where it begins."""

from dataclasses import replace

import amg_cases
import numpy as np
import pytest

from forebay.kernels.amg import AmgWeights
from forebay.kernels.weight_file import WeightsError
from forebay.learners import online_aggregation
from forebay.learners.amg_meshes import grid_mesh
from forebay.learners.online_aggregation import OnlineAggregation, neighbourhood, parts_of
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


def test_versions_are_published_after_so_many_steps_and_counted_on(folder, monkeypatch):
    monkeypatch.setattr(online_aggregation, "STEPS_A_VERSION", 2)
    trainer = OnlineAggregation(folder, MESH.reference, seed=7)
    assert [trainer.learn(batch(k)) for k in range(4)] == [0, 2, 0, 3]
    assert trainer.steps == 4
    assert 0 < trainer.factor < 1
    assert sorted(path.name for path in folder.iterdir()) == [f"v000{k}.safetensors" for k in (1, 2, 3)]
    first, third = AmgWeights.load(folder / "v0001.safetensors"), AmgWeights.load(folder / "v0003.safetensors")
    assert third.version == 3
    assert first.digest != third.digest
    later = OnlineAggregation(folder, MESH.reference, seed=7)
    assert [later.learn(batch(k)) for k in range(2)] == [0, 4]


def test_errors_fall_faster_after_training_from_weights_that_nobody_has_trained(folder):
    trainer = OnlineAggregation(folder, MESH.reference, seed=7)
    factors = []
    for k in range(40):
        trainer.learn(batch(k))
        factors.append(trainer.factor)
    assert np.mean(factors[-10:]) < np.mean(factors[:10]) - 0.01


def test_the_rate_of_learning_stays(tmp_path):
    trainer = OnlineAggregation(tmp_path, MESH.reference, seed=7)
    trainer._state = replace(trainer._state, steps=100_000)
    trainer.learn(batch(1))
    assert trainer._state.optimiser.param_groups[0]["lr"] == pytest.approx(2e-3)


def test_without_a_version_it_begins_with_the_weights_that_are_shipped(tmp_path):
    trainer = OnlineAggregation(tmp_path / "none", MESH.reference, seed=7)
    assert trainer._state.network.export().digest == AmgWeights.shipped().digest
    assert trainer.learn(batch(1)) == 0
    assert not (tmp_path / "none").exists()


def test_a_damaged_version_is_refused(folder):
    (folder / "v0002.safetensors").write_bytes(b"damaged")
    with pytest.raises(WeightsError, match="is no safetensors file, or damaged"):
        OnlineAggregation(folder, MESH.reference, seed=7)


def test_batches_with_nan_leave_the_weights_alone_and_ten_of_them_end_the_training(tmp_path):
    trainer = OnlineAggregation(tmp_path, MESH.reference, seed=7)
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
    trainer = OnlineAggregation(tmp_path, MESH.reference, seed=7)
    trainer.learn(batch(1))
    assert 0 < trainer.factor < 1


def test_a_neighbourhood_is_connected_and_filled_up_from_other_components():
    graph = MESH.reference
    near = neighbourhood(graph, 91, 5)
    assert near.tolist() == [77, 90, 91, 92, 105], "a cell of 14 x 14 and its neighbours"
    apart = type(graph)(np.diag(np.ones(6)) + np.diag([1.0, 0, 0, 0, 0], 1))
    assert neighbourhood(apart, 1, 4).tolist() == [0, 1, 2, 3]

"""The preconditioner of a running study: what it learns from, what it publishes, where it begins."""

import numpy as np
import pytest
import torch

from forebay.kernels.grid_network import GridNetwork
from forebay.kernels.grid_weights import GridWeights
from forebay.kernels.stencil import Stencil, apply
from forebay.learners import online_preconditioner
from forebay.learners.online_preconditioner import OnlinePreconditioner, cut


def operators(shape, count=2, seed=11):
    rng = np.random.default_rng(seed)
    faces = tuple(
        0.1 + rng.random((count, *(n - (k == axis) for k, n in enumerate(shape)))) for axis in range(len(shape))
    )
    return faces, rng.random((count, *shape))


def stencil(faces, reaction):
    return Stencil(tuple(torch.from_numpy(face) for face in faces), torch.from_numpy(reaction))


@pytest.fixture
def folder(tmp_path):
    """With a first version, which has not been trained."""
    network = GridNetwork(2, generator=torch.Generator().manual_seed(7))
    network.weights(1).save(tmp_path / "v0001.safetensors")
    return tmp_path


@pytest.mark.parametrize("shape", [(9, 7), (7, 9), (5, 9, 8)])
def test_a_part_is_the_whole_operator_on_fields_that_vanish_outside_of_it(shape):
    faces, reaction = operators(shape)
    place = np.random.default_rng(13)
    starts = [int(np.random.default_rng(13).integers(max(n - 6, 0) + 1)) for n in shape[:1]]
    parts, rest = cut(faces, reaction, 6, place)
    assert rest.shape[1:] == tuple(min(n, 6) for n in shape)
    again = np.random.default_rng(13)
    spans = [(start := int(again.integers(max(n - 6, 0) + 1)), min(start + 6, n)) for n in shape]
    assert spans[0][0] == starts[0]
    inside = (slice(None), *(slice(*span) for span in spans))
    field = np.zeros(reaction.shape)
    field[inside] = np.random.default_rng(17).standard_normal(rest.shape)
    expected = apply(stencil(faces, reaction), torch.from_numpy(field)).numpy()[inside]
    found = apply(stencil(parts, rest), torch.from_numpy(field[inside].copy())).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-13)


def test_a_part_as_large_as_the_whole_is_a_copy():
    faces, reaction = operators((5, 6))
    parts, rest = cut(faces, reaction, 64, np.random.default_rng(7))
    np.testing.assert_array_equal(rest, reaction)
    for part, face in zip(parts, faces, strict=True):
        np.testing.assert_array_equal(part, face)
        assert not np.shares_memory(part, face)
    assert not np.shares_memory(rest, reaction)


def test_versions_are_published_after_so_many_steps_and_counted_on(folder, monkeypatch):
    monkeypatch.setattr(online_preconditioner, "STEPS_A_VERSION", 2)
    trainer = OnlinePreconditioner(folder, 2, seed=7)
    assert [trainer.learn(*operators((12, 12), seed=k)) for k in range(4)] == [0, 2, 0, 3]
    assert trainer.steps == 4
    assert 0 < trainer.metrics.factor < 1
    assert sorted(path.name for path in folder.iterdir()) == [f"v000{k}.safetensors" for k in (1, 2, 3)]
    first, third = GridWeights.load(folder / "v0001.safetensors"), GridWeights.load(folder / "v0003.safetensors")
    assert third.version == 3
    assert first.digest != third.digest
    later = OnlinePreconditioner(folder, 2, seed=7)
    assert [later.learn(*operators((12, 12), seed=k)) for k in range(2)] == [0, 4]


def test_without_a_version_it_begins_with_the_weights_that_are_shipped(tmp_path, monkeypatch):
    asked = []

    def shipped(dimension):
        asked.append(dimension)
        return GridNetwork(dimension).weights()

    monkeypatch.setattr(GridWeights, "shipped", shipped)
    trainer = OnlinePreconditioner(tmp_path / "none", 3, seed=7)
    assert asked == [3]
    assert trainer.learn(*operators((6, 6, 6))) == 0
    assert not (tmp_path / "none").exists()

"""Whole runs by `method = "batched"`, weights that are trained meanwhile, and GPUs asked of Ray."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray
from running import events

from forebay.cluster import preconditioner
from forebay.cluster.launch import launch, prepare
from forebay.cluster.preconditioner import PreconditionerTrainer
from forebay.cluster.specs import gpu_share, make_solver, trains_preconditioner
from forebay.kernels.grid_network import GridNetwork
from forebay.kernels.grid_weights import GridWeights
from forebay.learners import learner, online_preconditioner
from forebay.pipeline.errors import RunError, StudyError
from forebay.pipeline.journal import read_journal

STUDY = """
name = "batched"
samples = 24
[problem]
name = "darcy"
size = 32
[solver]
method = "batched"
backend = "cpu"
{solver}
[validation]
samples = 6
every = 4
[buffer]
threshold = 4
[learner]
batch_size = 4
batches = 8
[learner.model]
name = "fno"
width = 8
modes = 4
layers = 2
[dataset]
block_samples = 8
[run]
cores = 2
"""


def study(folder, solver=""):
    path = folder / "study.toml"
    path.write_text(STUDY.format(solver=solver))
    return path


def spec_of(folder, *overrides):
    return prepare(study(folder), overrides, "local", folder / "run").spec


@pytest.fixture
def small_weights(monkeypatch):
    """Instead of those that are shipped."""
    generator = torch.Generator().manual_seed(7)
    weights = GridNetwork(2, generator=generator).weights()
    monkeypatch.setattr(GridWeights, "shipped", lambda dimension: weights)
    return weights


def test_the_learner_of_the_same_process_takes_fields_where_they_were_solved(tmp_path, monkeypatch):
    taken = []
    split = learner.frames_of

    def frames_of(block, schema, device):
        keys, arrays = split(block, schema, device)
        taken.append((block.split, isinstance(arrays["u"], torch.Tensor)))
        return keys, arrays

    monkeypatch.setattr(learner, "frames_of", frames_of)
    assert launch(study(tmp_path), ["solver.backend=torch"], "local", tmp_path / "run") == 0
    assert "train" in {split for split, _ in taken}
    assert all(on_device for _, on_device in taken)


def test_a_device_that_is_not_there_is_said_before_a_run_folder_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(StudyError, match=r"learner.device = 'cuda' needs an NVIDIA GPU"):
        launch(study(tmp_path), ["learner.device=cuda"], "local", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_is_certified_and_says_by_what(tmp_path, capsys):
    assert launch(study(tmp_path), [], "local", tmp_path / "run") == 0
    assert "complete" in capsys.readouterr().out
    data = xarray.open_zarr(tmp_path / "run" / "dataset.zarr").load()
    assert bool(data["valid"].all())
    assert float(data["residual"].max()) <= 1e-8
    assert data["method"].attrs["flag_meanings"] == "none batched:multigrid"
    assert "batched:multigrid" in (tmp_path / "run" / "report.html").read_text()
    assert not (tmp_path / "run" / "preconditioner").exists()


def test_weights_trained_in_the_run_are_used_in_the_run(tmp_path, small_weights, monkeypatch):
    monkeypatch.setattr(online_preconditioner, "STEPS_A_VERSION", 1)
    monkeypatch.setattr(preconditioner, "STEPS_A_BLOCK", 1)
    monkeypatch.setattr(preconditioner, "SHARE", 1e9)
    assert launch(study(tmp_path, 'learned = "online"'), [], "local", tmp_path / "run") == 0
    published = [event["version"] for event in events(tmp_path / "run", "preconditioner_published")]
    assert published == list(range(1, len(published) + 1))
    assert len(published) == 3, "one a block"
    meanings = xarray.open_zarr(tmp_path / "run" / "dataset.zarr")["method"].attrs["flag_meanings"].split()
    allowed = {f"batched:learned-v{version:04d}" for version in published} | {"batched:multigrid(guard)"}
    assert set(meanings) <= allowed | {"none", "batched:multigrid"}
    assert set(meanings) & allowed
    assert bool(xarray.open_zarr(tmp_path / "run" / "dataset.zarr")["valid"].all())


def test_the_trainer_sees_the_matrices_that_were_solved(tmp_path, small_weights, monkeypatch):
    spec = spec_of(tmp_path, 'solver.learned="online"')
    assert trains_preconditioner(spec)
    seen = []
    trainer = PreconditionerTrainer(spec)
    online = trainer._training._trainer
    monkeypatch.setattr(online, "learn", lambda faces, reaction: seen.append((faces, reaction)) or 0)
    solver = make_solver(spec)
    block, validation = solver.solve_block("train", 0), solver.solve_block("validation", 0)
    trainer.learn(validation)
    assert seen == []
    trainer.learn(replace(block, seconds=0.0))
    trainer.learn(replace(block, seconds=0.0))
    assert len(seen) == 1, "no time was spent on solving that training could have a share of"
    (faces, reaction), a = seen[0], block.arrays["a"].astype(float)
    assert reaction.shape == (4, 32, 32)
    np.testing.assert_allclose(faces[0], 2 / (1 / a[:4, 1:] + 1 / a[:4, :-1]), rtol=1e-12)
    np.testing.assert_allclose(faces[1], 2 / (1 / a[:4, :, 1:] + 1 / a[:4, :, :-1]), rtol=1e-12)
    assert (reaction[:, 1:-1, 1:-1] == 0).all()
    solver.destroy()


def test_a_training_that_diverges_ends_with_a_word_in_the_journal(tmp_path, small_weights, monkeypatch):
    spec = spec_of(tmp_path, 'solver.learned="online"')
    trainer = PreconditionerTrainer(spec)
    calls = []

    def failing(faces, reaction):
        calls.append(len(reaction))
        raise RunError("the training of the preconditioner has diverged")

    monkeypatch.setattr(trainer._training._trainer, "learn", failing)
    solver = make_solver(spec)
    block = solver.solve_block("train", 0)
    trainer.learn(block)
    trainer.learn(block)
    assert calls == [preconditioner.OPERATORS]
    (event,) = read_journal(spec.folder / "journal.jsonl")
    assert (event["event"], event["reason"]) == (
        "preconditioner_failed",
        "the training of the preconditioner has diverged",
    )
    solver.destroy()


def test_gpus_are_shared_by_the_solvers_that_want_them(tmp_path):
    def share(available, *overrides):
        return gpu_share(spec_of(tmp_path, "solver.actors=3", *overrides), available)

    assert share(1.0, "solver.backend=cuda") == 0.3333
    assert share(8.0, "solver.backend=auto") == 1.0
    assert share(0.0, "solver.backend=auto") == 0.0
    assert share(1.0, "solver.backend=torch") == share(1.0, "solver.backend=cpu") == 0.0
    assert share(1.0, "solver.method=direct", "solver.backend=auto") == 0.0
    with pytest.raises(RunError, match=r"solver.backend = 'cuda' needs a GPU, and Ray knows of none; use 'auto'"):
        share(0.0, "solver.backend=cuda")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["solver.sort=true"],
            "solver.sort = true has no use with solver.method = 'batched', which solves the samples",
        ),
        (["solver.guesses=4"], "solver.guesses = 4 has no use with solver.method = 'batched'"),
        (["solver.learned=none.safetensors"], r"none.safetensors' cannot be used: .* is no file of weights.*file$"),
        (["solver.learned=onlin"], r"onlin' cannot be used: .* is no file of weights.*; did you mean 'online'\?$"),
        (
            ["solver.backend=gpu"],
            "solver.backend = \"gpu\" is not allowed: it should be 'auto', 'cpu', 'cuda' or 'torch'",
        ),
        (["problem.name=helmholtz"], "'batched' needs a symmetric positive definite matrix on a structured grid"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_solved(tmp_path, overrides, message):
    with pytest.raises(StudyError, match=message):
        spec_of(tmp_path, *overrides)


def test_a_file_of_weights_is_found_beside_the_study(tmp_path):
    weights = GridNetwork(2, generator=torch.Generator().manual_seed(7)).weights()
    weights.save(tmp_path / "mine.safetensors")
    spec = spec_of(tmp_path, "solver.learned=mine.safetensors")
    solver = make_solver(spec)
    block = solver.solve_block("train", 0)
    names = {f"batched:learned-{weights.digest[:8]}", "batched:multigrid(guard)"}
    assert {record.method for record in block.records} <= names
    solver.destroy()
    GridNetwork(3).weights().save(tmp_path / "mine.safetensors")
    with pytest.raises(StudyError, match="were trained on 3-dimensional grids, this one has 2 axes"):
        spec_of(tmp_path, "solver.learned=mine.safetensors")
    (tmp_path / "mine.safetensors").write_bytes(b"damaged")
    with pytest.raises(StudyError, match="is no safetensors file, or damaged"):
        spec_of(tmp_path, "solver.learned=mine.safetensors")


@pytest.mark.ray
def test_ray_s_run_is_the_same_data_set(tmp_path):
    for executor in ("local", "ray"):
        assert launch(study(tmp_path), [], executor, tmp_path / executor) == 0
    local, ray = (xarray.open_zarr(tmp_path / name / "dataset.zarr").load() for name in ("local", "ray"))
    np.testing.assert_array_equal(local["u"].values, ray["u"].values)
    assert json.loads((tmp_path / "ray" / "summary.json").read_text())["status"] == "complete"

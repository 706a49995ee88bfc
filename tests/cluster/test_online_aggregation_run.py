"""Whole runs that train smoothed aggregation on their own matrices, on a grid and on a mesh."""

from __future__ import annotations

import math

import pytest
import xarray
from running import events

from forebay.cluster import preconditioner
from forebay.cluster.launch import launch
from forebay.kernels.amg import AmgWeights, solver
from forebay.learners import online_aggregation
from forebay.pipeline.errors import StudyError

STUDY = """
name = "aggregated"
samples = 24
[problem]
{problem}
[solver]
method = "cg"
preconditioner = "amg"
learned = "online"
[validation]
samples = 6
every = 4
[buffer]
threshold = 4
[learner]
batch_size = 4
batches = 8
[learner.model]
name = "mlp"
hidden = 8
[dataset]
block_samples = 8
[run]
cores = 1
"""
GRID, MESH = 'name = "darcy"\nsize = 32', 'name = "darcy_fem"\nelement_size = 0.06'


def study(folder, problem):
    path = folder / "study.toml"
    path.write_text(STUDY.format(problem=problem))
    return path


@pytest.mark.parametrize("problem", [GRID, MESH], ids=["grid", "mesh"])
def test_weights_trained_in_the_run_are_used_in_the_run(tmp_path, problem, monkeypatch):
    monkeypatch.setattr(online_aggregation, "STEPS_A_VERSION", 1)
    monkeypatch.setattr(online_aggregation, "LEAST_GAIN", -math.inf)
    monkeypatch.setattr(preconditioner, "STEPS_A_BLOCK", 1)
    monkeypatch.setattr(preconditioner, "SHARE", 1e9)
    monkeypatch.setattr(solver, "PROBE_COST", 0)
    assert launch(study(tmp_path, problem), [], "local", tmp_path / "run") == 0
    published = events(tmp_path / "run", "preconditioner_published")
    assert [event["version"] for event in published] == [1, 2], "one a block after the first, which is held back"
    assert all(0 < event["factor"] < 1 for event in published)
    assert AmgWeights.load(tmp_path / "run" / "preconditioner" / "v0002.safetensors").version == 2
    data = xarray.open_zarr(tmp_path / "run" / "dataset.zarr").load()
    assert bool(data["valid"].all())
    assert float(data["residual"].max()) <= 1e-8
    meanings = set(data["method"].attrs["flag_meanings"].split())
    served = {"cg+amg(learned-shipped)", "cg+amg(learned-v0001)", "cg+amg(learned-v0002)", "cg+amg(guard)"}
    assert meanings <= served | {"none"}
    assert meanings & served


def test_elasticity_is_refused_before_anything_is_solved(tmp_path):
    problem = 'name = "elasticity"\nsize = 2'
    with pytest.raises(StudyError, match="trains on scalar matrices, the problem's has 3 unknowns a node"):
        launch(study(tmp_path, problem), [], "local", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.ray
@pytest.mark.slow
def test_a_version_of_the_training_actor_serves_the_rest_of_a_long_run(tmp_path):
    """Nothing is made easier here: steps are a share of the solving, and the version has passed its trial."""
    problem = 'name = "darcy_fem"\nelement_size = 0.05'
    overrides = ["samples=20000", "dataset.block_samples=64", "validation.every=1000", "run.cores=2"]
    assert launch(study(tmp_path, problem), overrides, "ray", tmp_path / "run") == 0
    published = events(tmp_path / "run", "preconditioner_published")
    assert published
    assert all(event["iterations"] < 0.99 * event["iterations_before"] for event in published)
    data = xarray.open_zarr(tmp_path / "run" / "dataset.zarr").load()
    assert bool(data["valid"].all())
    method = data["method"]
    flags = dict(zip(method.attrs["flag_meanings"].split(), method.attrs["flag_values"], strict=True))
    assert int((method >= flags["cg+amg(learned-v0001)"]).sum()) >= 64

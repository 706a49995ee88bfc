"""Whole runs that train smoothed aggregation on their own matrices, on a grid and on a mesh."""

from __future__ import annotations

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
    if problem == MESH:
        pytest.importorskip("dolfinx")
    monkeypatch.setattr(online_aggregation, "STEPS_A_VERSION", 1)
    monkeypatch.setattr(preconditioner, "STEPS_A_BLOCK", 1)
    monkeypatch.setattr(preconditioner, "SHARE", 1e9)
    monkeypatch.setattr(solver, "PROBE_COST", 0)
    assert launch(study(tmp_path, problem), [], "local", tmp_path / "run") == 0
    published = events(tmp_path / "run", "preconditioner_published")
    assert [event["version"] for event in published] == [1, 2, 3], "one a block"
    assert all(0 < event["factor"] < 1 for event in published)
    assert AmgWeights.load(tmp_path / "run" / "preconditioner" / "v0003.safetensors").version == 3
    data = xarray.open_zarr(tmp_path / "run" / "dataset.zarr").load()
    assert bool(data["valid"].all())
    assert float(data["residual"].max()) <= 1e-8
    meanings = set(data["method"].attrs["flag_meanings"].split())
    versions = {f"cg+amg(learned-v{k:04d})" for k in (1, 2, 3)} | {"cg+amg(guard)"}
    assert meanings <= versions | {"none", "cg+amg"}
    assert meanings & versions


def test_elasticity_is_refused_before_anything_is_solved(tmp_path):
    pytest.importorskip("dolfinx")
    problem = 'name = "elasticity"\nsize = 2'
    with pytest.raises(StudyError, match="trains on scalar matrices, the problem's has 3 unknowns a node"):
        launch(study(tmp_path, problem), [], "local", tmp_path / "run")
    assert not (tmp_path / "run").exists()

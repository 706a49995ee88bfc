"""Every built-in problem and every example goes through a whole run: solved, streamed, trained on, kept, reported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray

from forebay.cluster.launch import launch, prepare
from forebay.cluster.templates import write_study
from forebay.learners.surrogate import Surrogate
from forebay.solvers.problems import PROBLEMS

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL = [
    "samples=24",
    "validation.samples=6",
    "validation.every=4",
    "buffer.threshold=4",
    "dataset.block_samples=8",
    "learner.batch_size=4",
    "learner.batches=8",
]
FNO = ["learner.model.width=8", "learner.model.modes=4", "learner.model.layers=2"]
SOLID = ['learner.fields=["u"]', "learner.model.name=mlp"]
CASES = {
    "darcy": ["problem.size=32", *FNO],
    "poisson": ["problem.size=32", *FNO],
    "helmholtz": ["problem.size=32", "learner.model.name=unet", "learner.model.width=8", "learner.model.levels=2"],
    "convection_diffusion": ["problem.size=32", "design=sobol", *FNO],
    "heat": ["problem.size=16", "problem.steps=5", "learner.model.name=mlp", "design=latin_hypercube"],
    "darcy3d": ["problem.size=8", "learner.model.name=mlp"],
    "helmholtz3d": ["problem.size=12", "learner.model.name=mlp"],
    "darcy_fem": ["problem.element_size=0.15", "learner.model.name=mlp"],
    "elasticity": ["problem.size=3", "solver.method=cg", "learner.model.name=mlp"],
    "necked_bar": ["problem.cells=[6,2,2]", "problem.steps=8", "problem.frames=2", "solver.method=rom", *SOLID],
    "blade": ["problem.layers=2", "problem.steps=4", "problem.frames=1", "samples=8", *SOLID],
}


@pytest.mark.parametrize("problem", CASES)
def test_a_built_in_problem_goes_through_a_whole_run(tmp_path, problem, capsys):
    study = tmp_path / "study.toml"
    study.write_text(f'name = "{problem}"\n[problem]\nname = "{problem}"\n')
    assert launch(study, [*SMALL, *CASES[problem]], "local", tmp_path / "run") == 0
    assert "complete" in capsys.readouterr().out
    data = xarray.open_zarr(tmp_path / "run" / "dataset.zarr").load()
    assert data.sizes["sample"] == (8 if problem == "blade" else 24)
    assert bool(data["valid"].all())
    assert float(data["residual"].max()) <= 1e-8
    surrogate = Surrogate.load(tmp_path / "run" / "surrogate")
    inputs = {f.name: data[f.name].values[:3] for f in surrogate.io.inputs}
    if surrogate.io.parameters:
        inputs["parameters"] = data["parameters"].values[:3]
    if surrogate.io.transient:
        inputs["time"] = np.full((3, 1), data["time"].values[-1])
    assert np.isfinite(surrogate.predict(inputs)["u"]).all()
    assert (tmp_path / "run" / "report.html").stat().st_size > 100_000


@pytest.mark.parametrize("problem", PROBLEMS)
def test_the_study_that_init_writes_is_valid(tmp_path, problem):
    write_study(tmp_path / "study.toml", problem)
    prepared = prepare(tmp_path / "study.toml")
    assert type(prepared.problem).__name__ == PROBLEMS[problem].rpartition(":")[2]


@pytest.mark.parametrize("study", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.stem)
def test_an_example_study_is_valid(study):
    prepared = prepare(study)
    assert prepared.spec.plan.mean_uses >= 0.9, "an example that never sees most of its samples is a bad example"


def test_the_example_of_an_own_problem_obeys_the_maximum_principle(tmp_path):
    small = [*SMALL, "problem.n=32", "learner.model.modes=4", "learner.model.width=8"]
    assert launch(EXAMPLES / "my_problem.toml", small, "local", tmp_path / "run") == 0
    data = xarray.open_zarr(tmp_path / "run" / "dataset.zarr").load()
    sinks = data["parameters"].values[:, list(data["parameters"].attrs["names"]).index("s")]
    hottest = data["f"].max(("y", "x")).values / sinks
    assert (data["u"].values > 0).all(), "heat flows from the source to colder surroundings"
    assert (data["u"].max(("y", "x")).values <= hottest).all(), "nowhere hotter than without conduction"

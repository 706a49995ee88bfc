"""Full samples of a solid on two MPI ranks: the same as on one, and what a rank that dies costs."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from running import wait_for_exit

from forebay.cluster.mpi import MpiCancelled, MpiUnavailable
from forebay.cluster.mpi_full import MpiFull
from forebay.cluster.specs import RunSpec, make_solver
from forebay.pipeline.errors import RunError
from forebay.pipeline.plan import make_plan
from forebay.pipeline.records import ChunkPlan, Outcome
from forebay.pipeline.study import SolverTable, study_from_dict
from forebay.solvers.compose import LIBRARY, Sampling, SolidStudy, make_solid
from forebay.solvers.problems import load_problem
from forebay.solvers.problems.necked_bar import NeckedBar
from forebay.solvers.rom.basis import Settings
from forebay.solvers.rom.library import Library
from forebay.solvers.rom.local_full import LocalFull
from forebay.solvers.rom.tasks import FullSolveError

PROBLEMS = Path(__file__).parent / "problems"
SIZE = {"cells": [6, 2, 2], "steps": 8, "frames": 3}
BAR = NeckedBar(cells=(6, 2, 2), steps=8, frames=3)
DRAW = {"parameters": np.array([220.0, 650.0, 21.0, 0.95])}
OTHER = {"parameters": np.array([180.0, 450.0, 15.0, 1.1])}
SAMPLING = Sampling(2026, {"train": ChunkPlan("train", 4, 2)})
"""Of the second block the first sample has a traction above `mortal.LIMIT`, the other has not."""


def solid_study(folder, *, method="rom", name="necked_bar", options=SIZE, rtol=1e-11, **rom):
    return SolidStudy(name, options, PROBLEMS, folder, SolverTable(method=method, rtol=rtol, rom={"ranks": 2} | rom))


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two samples, one after the other, by two ranks and by this process; each with a library of its own."""
    folder = tmp_path_factory.mktemp("pair")
    study = solid_study(folder)
    ranks = MpiFull(BAR, study)
    alone = Library(folder / "alone")
    here = LocalFull(BAR, name="necked_bar", rtol=1e-11, learn=(alone, Settings(**study.settings)))
    samples = [(ranks.solve(draw, learn=True), here.solve(draw, learn=True)) for draw in (DRAW, OTHER)]
    yield ranks, here, samples, (Library(folder / LIBRARY), alone)
    ranks.close()
    here.close()


@pytest.mark.mpi
def test_two_ranks_give_the_fields_of_one(pair):
    _, _, samples, _ = pair
    for parallel, serial in samples:
        for name in ("displacement", "p"):
            found, true = getattr(parallel, name), getattr(serial, name)
            assert found.shape == true.shape
            assert np.linalg.norm(found - true) < 1e-9 * np.linalg.norm(true)
        assert parallel.iterations == pytest.approx(serial.iterations, abs=3)
        assert 0 < parallel.residual < 1e-10
        assert parallel.version == serial.version


@pytest.mark.mpi
def test_two_ranks_publish_the_version_that_one_would(pair):
    _, here, samples, (parallel, serial) = pair
    assert [sample.version for sample, _ in samples] == [1, 2]
    for version in (1, 2):
        found, true = parallel.package(version, BAR.law), serial.package(version, BAR.law)
        assert (found.modes, found.extra, found.version) == (true.modes, true.extra, version)
        assert found.displacement_scale == pytest.approx(true.displacement_scale, rel=1e-9)
        assert found.p_scale == pytest.approx(true.p_scale, rel=1e-9)
        assert found.parameters == true.parameters
        ours, theirs = (library.basis(version, here.model) for library in (parallel, serial))
        np.testing.assert_allclose(ours.displacement.singular_values[:4], theirs.displacement.singular_values[:4], 1e-6)
        first, second = (basis.displacement.modes[:, 0] for basis in (ours, theirs))
        assert abs(first @ (here.model.dof_weights * second)) == pytest.approx(1.0, abs=1e-9)


@pytest.mark.mpi
def test_without_learning_there_is_no_further_version(pair):
    ranks, _, samples, (library, _) = pair
    again = ranks.solve(DRAW, learn=False)
    assert again.version == 0
    assert library.latest == 2
    np.testing.assert_allclose(again.p, samples[0][0].p, rtol=1e-12, atol=1e-15)


@pytest.mark.mpi
def test_a_study_with_ranks_learns_on_them_and_solves_reduced_samples_here(tmp_path):
    tree = {
        "name": "ranks",
        "seed": 2026,
        "samples": 5,
        "problem": {"name": "necked_bar"} | SIZE,
        "solver": {"method": "rom", "rom": {"ranks": 2, "training": 4, "tolerance": 0.9, "audit": 0.0}},
        "validation": {"samples": 1},
        "learner": {"fields": ["u"], "batch_size": 2},
    }
    study = study_from_dict(tree)
    plan = make_plan(study, BAR.schema, cores=5)
    assert plan.solvers == 2, "of five cores one learns, two make a solver"
    solver = make_solver(RunSpec(study, plan, BAR.schema, tmp_path / "run", tmp_path))
    assert isinstance(solver._full, MpiFull)
    validation = solver.solve_block("validation", 0)
    block = solver.solve_block("train", 0)
    pids = solver._full._service.pids
    assert len(pids) == 2
    solver.destroy()
    assert wait_for_exit(list(pids), 10) == []
    assert [record.method for record in validation.records] == ["full"]
    assert [record.method for record in block.records] == ["full"] * 4 + ["rom"]
    assert Library(tmp_path / "run" / LIBRARY).latest == 4
    assert all(np.isfinite(array).all() for array in block.arrays.values())


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("fault", "method", "lasts", "outcome", "messages"),
    [
        (
            "kill",
            "rom",
            False,
            Outcome.CONVERGED,
            [
                r"^there is no reduced model yet; solved in the solver's own process, for the ranks failed: ",
                r"failed: MPI task on 2 ranks: .*rank 1 of 2 was killed by signal 9 \(Killed",
            ],
        ),
        (
            "raise",
            "full",
            True,
            Outcome.PROBLEM_RAISED,
            [
                r"^history: ArithmeticError: no programme; before that, MPI task on 2 ranks: .*all ranks raised; ",
                r'(?s)Traceback .*mortal.py", line \d+, in history\n +raise ArithmeticError\("no programme"\)',
            ],
        ),
        (
            "law",
            "rom",
            True,
            Outcome.DIVERGED,
            [r"^step 1 of model 'necked_bar' did not converge .*failed: law 'chaboche': broken in two"],
        ),
    ],
)
def test_a_sample_that_fails_on_its_ranks_is_solved_here_or_told_and_the_next_one_is_solved(
    tmp_path, caplog, fault, method, lasts, outcome, messages
):
    study = solid_study(tmp_path, name="mortal.py:Mortal", options=SIZE | {"fault": fault}, method=method, rtol=1e-8)
    problem = load_problem(study.name, study.options, folder=PROBLEMS)
    full = MpiFull(problem, study)
    full._service.start()
    pids = full._service.pids
    solver = make_solid(problem, study, SAMPLING, full=full)
    block = solver.solve_block("train", 1)
    assert (full._service.pids == pids) is lasts
    assert len(full._service.pids) == 2
    solver.destroy()
    lost, sound = block.records
    assert lost.outcome is outcome
    for message in messages:
        assert re.search(message, lost.message), lost.message
    kept = outcome is Outcome.CONVERGED
    assert all(np.isfinite(array[0]).all() == kept for array in block.arrays.values())
    assert sound.outcome is Outcome.CONVERGED
    assert all(np.isfinite(array[1]).all() for array in block.arrays.values())
    assert Library(tmp_path / LIBRARY).latest == (0 if method == "full" else 1 + kept)
    told = [entry for entry in caplog.records if entry.name == "forebay.cluster.mpi_full"]
    assert len(told) == (0 if fault == "law" else 1)
    assert all(entry.levelname == "ERROR" for entry in told)
    assert all(entry.message.startswith("MPI task on 2 ranks: ") for entry in told)
    assert all(("Traceback" in entry.message) == (fault == "raise") for entry in told)


@pytest.mark.mpi
def test_ranks_that_cannot_be_had_end_the_run(tmp_path, monkeypatch):
    full = MpiFull(BAR, solid_study(tmp_path))

    def missing(*arguments, **options):
        raise MpiUnavailable("no mpiexec on PATH; install mpich")

    monkeypatch.setattr(full._service, "run", missing)
    with pytest.raises(RunError, match=r"solver.rom.ranks = 2: no mpiexec on PATH; install mpich"):
        full.solve(DRAW, learn=False)
    full.close()


@pytest.mark.mpi
def test_a_sample_whose_ranks_are_taken_away_is_lost(tmp_path, monkeypatch):
    full = MpiFull(BAR, solid_study(tmp_path))

    def cancelled(*arguments, **options):
        raise MpiCancelled("the service was closed")

    monkeypatch.setattr(full._service, "run", cancelled)
    with pytest.raises(FullSolveError, match="the service was closed"):
        full.solve(DRAW, learn=False)
    full.close()

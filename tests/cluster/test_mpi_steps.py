"""Full steps of a solid on two MPI ranks, which sleep while steps stay reduced."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from forebay.cluster.mpi_full import MpiFull
from forebay.pipeline.records import ChunkPlan, Outcome
from forebay.pipeline.study import SolverTable
from forebay.solvers.compose import LIBRARY, Sampling, SolidStudy, learns_by, make_solid
from forebay.solvers.problems import load_problem
from forebay.solvers.problems.necked_bar import NeckedBar
from forebay.solvers.rom.growth import Place
from forebay.solvers.rom.library import Library
from forebay.solvers.rom.local_full import LocalFull
from forebay.solvers.rom.march import Tolerance
from forebay.solvers.rom.step_tasks import adapted

PROBLEMS = Path(__file__).parent / "problems"
SIZE = {"cells": [6, 2, 2], "steps": 8, "frames": 3}
BAR = NeckedBar(cells=(6, 2, 2), steps=8, frames=3)
TIGHT = Tolerance(0.01, 0.01)
DRAWS = [
    {"parameters": np.array(values)}
    for values in ((170.0, 550.0, 20.0, 1.0), (215.0, 450.0, 16.0, 1.0), (200.0, 700.0, 23.0, 1.05))
]
FAR = {"parameters": np.array([238.0, 780.0, 27.0, 0.95])}


def study_of(folder, name="necked_bar", options=SIZE, **rom):
    table = SolverTable(method="rom", rtol=1e-11, rom={"ranks": 2, "adapt": "step", "bases": "global"} | rom)
    return SolidStudy(name, options, PROBLEMS, folder, table)


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A library of three samples."""
    folder = tmp_path_factory.mktemp("taught")
    study = study_of(folder)
    full = LocalFull(BAR, name="necked_bar", rtol=1e-11, learn=learns_by(study))
    for draw in DRAWS:
        full.solve(draw, learn=True)
    full.close()
    return folder / LIBRARY


def march(full, library):
    base = Place(3)
    package = library.package(3, BAR.law)
    return adapted(full.adapt(FAR, base), package, BAR.history(FAR), BAR.law, TIGHT, None)


@pytest.mark.mpi
def test_two_ranks_decide_find_and_publish_what_one_process_does(taught, tmp_path):
    found = []
    for name, kind in (("here", LocalFull), ("ranks", MpiFull)):
        shutil.copytree(taught, tmp_path / name / LIBRARY)
        study = study_of(tmp_path / name)
        full = (
            MpiFull(BAR, study)
            if kind is MpiFull
            else LocalFull(BAR, name="necked_bar", rtol=1e-11, learn=learns_by(study))
        )
        library = Library(tmp_path / name / LIBRARY)
        sample = march(full, library)
        full.close()
        found.append((sample, library.package(library.latest, BAR.law)))
    (one, alone), (two, several) = found
    assert 0 < one.full_steps == two.full_steps
    assert [d.reduced for d in one.decisions] == [d.reduced for d in two.decisions]
    for mine, other in zip(one.decisions, two.decisions, strict=True):
        np.testing.assert_allclose(
            [other.displacement_error, other.p_error], [mine.displacement_error, mine.p_error], rtol=1e-3
        )
    assert two.judgement.estimate == pytest.approx(one.judgement.estimate, rel=1e-3)
    for name in ("displacement", "p"):
        mine, other = getattr(one.fields, name), getattr(two.fields, name)
        assert mine.shape == other.shape
        assert np.linalg.norm(other - mine) < 1e-6 * np.linalg.norm(mine)
    assert one.fields.version == two.fields.version == alone.version == several.version == 4
    assert several.modes == alone.modes
    np.testing.assert_allclose(several.calibration.pairs, alone.calibration.pairs, rtol=1e-3, atol=1e-8)


@pytest.mark.mpi
def test_ranks_are_not_started_for_reduced_steps_and_serve_one_sample_after_another(taught, tmp_path):
    shutil.copytree(taught, tmp_path / LIBRARY)
    study = study_of(tmp_path)
    full = MpiFull(BAR, study)
    library = Library(tmp_path / LIBRARY)
    half = full.adapt(FAR, Place(3))
    package = library.package(3, BAR.law)
    loose = adapted(half, package, BAR.history(FAR), BAR.law, Tolerance(np.inf, np.inf), None)
    assert (loose.full_steps, loose.fields) == (0, None)
    assert not full._service.alive
    first, second = march(full, library), march(full, library)
    assert (first.fields.version, second.fields.version) == (4, 5)
    assert full._service.alive
    full.close()


@pytest.mark.mpi
def test_a_study_tells_of_steps_that_ranks_have_solved(taught, tmp_path):
    shutil.copytree(taught, tmp_path / LIBRARY)
    study = study_of(tmp_path, tolerance=0.01, training=2, audit=0.0)
    solver = make_solid(BAR, study, Sampling(2026, {"train": ChunkPlan("train", 3, 3)}), full=MpiFull(BAR, study))
    block = solver.solve_block("train", 0)
    solver.destroy()
    stepped = [record for record in block.records if record.method == "rom+full"]
    assert len(stepped) >= 1
    for record in stepped:
        assert 1 <= record.full_steps <= 8
        assert f"; {record.full_steps} of 8 steps in full (" in record.message
        assert record.estimate <= 0.01
    assert all(np.isfinite(array).all() for array in block.arrays.values())


@pytest.mark.mpi
def test_a_rank_that_dies_in_a_step_leaves_the_sample_to_fresh_ranks_and_then_to_this_process(taught, tmp_path, caplog):
    shutil.copytree(taught, tmp_path / LIBRARY)
    study = study_of(tmp_path, "mortal.py:Mortal", SIZE | {"fault": "kill"}, tolerance=1e-3, training=2)
    problem = load_problem(study.name, study.options, folder=PROBLEMS)
    solver = make_solid(
        problem, study, Sampling(2026, {"train": ChunkPlan("train", 4, 2)}), full=MpiFull(problem, study)
    )
    block = solver.solve_block("train", 1)
    solver.destroy()
    lost, sound = block.records
    assert (lost.outcome, lost.method, lost.full_steps) == (Outcome.CONVERGED, "full", None)
    killed = "rank 1 of 2 was killed by signal 9"
    assert re.search(f"; not solved by steps: MPI task on 2 ranks: {killed}", lost.message)
    assert re.search(
        f"; solved in the solver's own process, for the ranks failed: MPI task on 2 ranks: {killed}", lost.message
    )
    assert sound.outcome is Outcome.CONVERGED
    assert all(np.isfinite(array).all() for array in block.arrays.values())
    told = [entry.message for entry in caplog.records if entry.name == "forebay.cluster.mpi_full"]
    assert len(told) == 2
    assert Library(tmp_path / LIBRARY).latest == 5


@pytest.mark.mpi
def test_a_full_model_that_fails_leaves_the_ranks_alive(taught, tmp_path, caplog):
    shutil.copytree(taught, tmp_path / LIBRARY)
    study = study_of(tmp_path, "mortal.py:Mortal", SIZE | {"fault": "law"}, tolerance=1e-3, training=2)
    problem = load_problem(study.name, study.options, folder=PROBLEMS)
    full = MpiFull(problem, study)
    full._service.start()
    pids = full._service.pids
    solver = make_solid(problem, study, Sampling(2026, {"train": ChunkPlan("train", 4, 2)}), full=full)
    (lost, _) = solver.solve_block("train", 1).records
    assert full._service.pids == pids
    solver.destroy()
    assert lost.outcome is Outcome.DIVERGED
    assert "broken in two" in lost.message
    assert not [entry for entry in caplog.records if entry.name == "forebay.cluster.mpi_full"]

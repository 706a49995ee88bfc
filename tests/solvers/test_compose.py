"""From `[solver]` to what solves blocks: what is refused before anything is solved, and what is made of the rest."""

from __future__ import annotations

import numpy as np
import pytest

from forebay.pipeline.errors import StudyError
from forebay.pipeline.records import ChunkPlan
from forebay.pipeline.study import SolverTable
from forebay.solvers.block_solver import BlockSolver
from forebay.solvers.compose import (
    LIBRARY,
    Sampling,
    SolidStudy,
    check_solver,
    linear_table,
    make_linear,
    make_solid,
    solid_method,
)
from forebay.solvers.problems.necked_bar import NeckedBar
from forebay.solvers.problems.poisson import Poisson
from forebay.solvers.rom.basis import Settings
from forebay.solvers.rom.block_solver import SolidBlockSolver
from forebay.solvers.rom.local_full import LocalFull

BAR, POISSON = NeckedBar(cells=(4, 2, 2), steps=4, frames=2), Poisson(size=32)
PLANS = {"train": ChunkPlan("train", 3, 3)}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            {"method": "gmres"},
            'solver.method = \'gmres\' solves linear systems, and this problem is a solid; choose "full", or "rom", '
            "which learns a reduced model",
        ),
        ({"method": "auto"}, "solver.method = 'auto' solves linear systems"),
        ({"method": "rom", "preconditioner": "gamg"}, "solver.preconditioner = 'gamg' has no use for a solid; leave"),
        ({"factor": "mumps"}, "solver.factor = 'mumps' has no use for a solid; leave it out"),
        ({"max_iterations": 7}, "solver.max_iterations = 7 has no use for a solid"),
        ({"restart": 30}, "solver.restart = 30 has no use"),
        ({"omega": 1.5}, "solver.omega = 1.5 has no use"),
        ({"fill": 1}, "solver.fill = 1 has no use"),
        ({"recycle": 7}, "solver.recycle = 7 has no use"),
        ({"variant": "frozen"}, "solver.variant = 'frozen' has no use"),
        ({"reuse": "preconditioner"}, "solver.reuse = 'preconditioner' has no use"),
        ({"options": {"pc_type": "lu"}}, r"solver.options = \{'pc_type': 'lu'\} has no use"),
        ({"arms": [{"method": "cg"}]}, "solver.arms = .* has no use"),
        ({"sort": True}, "solver.sort = True has no use"),
        ({"guesses": 4}, "solver.guesses = 4 has no use"),
        (
            {"method": "full", "rom": {"tolerance": 0.05}},
            'solver.rom has no use with solver.method = "full", but for ranks; set method = "rom"',
        ),
        ({"rom": {"audit": 0.5, "ranks": 2}}, 'solver.rom has no use with solver.method = "full", but for ranks'),
    ],
)
def test_what_a_solid_has_no_use_for_is_refused(table, message):
    with pytest.raises(StudyError, match=message):
        check_solver(BAR, SolverTable(**table))


@pytest.mark.parametrize(
    ("table", "method"),
    [
        ({}, "full"),
        ({"method": "full"}, "full"),
        ({"method": "rom"}, "rom"),
        ({"method": "rom", "rtol": 1e-7, "actors": 2, "rom": {"tolerance": 0.05, "ranks": 2}}, "rom"),
        ({"method": "full", "rom": {"ranks": 3}}, "full"),
        ({"rom": {"ranks": 2}, "rtol": 1e-6}, "full"),
    ],
)
def test_a_solid_is_solved_in_full_unless_the_study_says_otherwise(table, method):
    check_solver(BAR, SolverTable(**table))
    assert solid_method(SolverTable(**table)) == method


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            {"method": "full"},
            r"solver.method = 'full' is for solids \(necked_bar, blade\), whose samples are simulations; this problem "
            "is a linear system: choose direct, cg, gmres, gcrodr, ..., or auto",
        ),
        ({"method": "rom"}, "solver.method = 'rom' is for solids"),
        ({"rom": {"tolerance": 0.05}}, "solver.rom is for solids .*: choose direct"),
        ({"method": "cg", "rom": {"ranks": 2}}, "solver.rom is for solids"),
        ({"method": "cgs"}, "'cgs'"),
        ({"guesses": 4}, "solver.guesses = 4 has no use with solver.method = 'direct'"),
        ({"method": "cg", "preconditioner": "wombat"}, "wombat"),
    ],
)
def test_what_a_linear_problem_has_no_use_for_is_refused(table, message):
    with pytest.raises(StudyError, match=message):
        check_solver(POISSON, SolverTable(**table))


@pytest.mark.parametrize("table", [{}, {"method": "auto"}, {"method": "cg", "preconditioner": "icc", "guesses": 4}])
def test_a_linear_problem_has_its_methods(table):
    check_solver(POISSON, SolverTable(**table))
    assert "rom" not in linear_table(SolverTable(**table))
    solver = make_linear(POISSON, SolverTable(**table), Sampling(7, PLANS))
    assert isinstance(solver, BlockSolver)
    assert len(solver.solve_block("train", 0).valid_rows) == 3
    solver.destroy()


def solid_study(folder, **table):
    return SolidStudy("necked_bar", {}, folder, folder / "run", SolverTable(**table))


def test_only_a_reduced_study_has_a_library(tmp_path):
    assert solid_study(tmp_path).library is None
    assert solid_study(tmp_path, method="rom").library == tmp_path / "run" / LIBRARY


def test_settings_of_the_study_are_those_of_the_basis(tmp_path):
    rom = {"displacement": 3e-5, "stress": 2e-3, "p": 5e-3, "cubature": 7e-3, "test_modes": 3, "tolerance": 0.07}
    study = solid_study(tmp_path, method="rom", rom=rom)
    assert Settings(**study.settings) == Settings(3e-5, 2e-3, 5e-3, 7e-3, 3, bases="auto")


@pytest.mark.parametrize("method", ["full", "rom"])
def test_a_solid_study_makes_a_solver_of_its_method(tmp_path, method):
    solver = make_solid(BAR, solid_study(tmp_path, method=method), Sampling(7, PLANS))
    assert isinstance(solver, SolidBlockSolver)
    assert solver.method == method
    assert not (tmp_path / "run").exists(), "nothing is made before the first sample"


def test_the_rule_and_the_design_of_the_study_reach_the_solver(tmp_path):
    study = solid_study(tmp_path, method="rom", rom={"training": 2, "tolerance": 0.9, "audit": 0.0})
    solver = make_solid(BAR, study, Sampling(7, PLANS, "sobol"))
    block = solver.solve_block("train", 0)
    solver.destroy()
    assert "has seen 1 of 2" in block.records[1].message
    assert " % of 90 %" in block.records[2].message
    random = make_solid(BAR, solid_study(tmp_path), Sampling(7, PLANS)).solve_block("train", 0)
    assert np.all(block.arrays["parameters"] != random.arrays["parameters"])


def test_the_studys_tolerance_reaches_the_full_model(tmp_path):
    def residual(rtol):
        solver = make_solid(BAR, solid_study(tmp_path, rtol=rtol), Sampling(7, PLANS))
        record = solver.resolve("train", 0)[1]
        solver.destroy()
        return record.residual

    assert 1e-8 < residual(1e-3) <= 1e-3
    assert residual(1e-10) <= 1e-10


def test_full_samples_may_be_made_elsewhere(tmp_path):
    elsewhere = LocalFull(BAR, name="necked_bar", rtol=1e-8, learn=None)
    solver = make_solid(BAR, solid_study(tmp_path), Sampling(7, PLANS), full=elsewhere)
    solver.resolve("train", 0)
    assert "model" in elsewhere.__dict__
    solver.destroy()

"""The command itself: fast help, and one clear message for each mistake."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest
from running import ENVIRONMENT, forebay, write_tiny

from forebay.solvers.problems import PROBLEMS


def test_help_is_there_in_half_a_second():
    best = float("inf")
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        result = forebay("--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        # Processor time: the command is one thread, and wall time on a busy test machine says nothing about it.
        best = min(best, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    assert result.returncode == 0
    for verb in ("init", "check", "run", "resume", "status", "report", "dataset", "problems", "models"):
        assert verb in result.stdout
    assert best < 0.5


def test_help_imports_neither_torch_nor_ray_nor_petsc():
    code = (
        "import sys, forebay.cluster.cli as c; c.app(['--help'], exit_on_error=False, result_action='return_value');"
        "bad = {'torch', 'ray', 'petsc4py', 'zarr', 'numpy'} & set(sys.modules);"
        "sys.exit(f'imported {bad}' if bad else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_init_writes_a_study_that_checks(tmp_path):
    study = tmp_path / "study.toml"
    assert forebay("init", study, "--problem", "helmholtz").returncode == 0
    checked = forebay("check", study)
    assert checked.returncode == 0, checked.stderr
    assert "unknowns" in checked.stdout
    assert "expected bottleneck" in checked.stdout
    again = forebay("init", study)
    assert again.returncode == 2
    assert "exists already and is not overwritten" in again.stderr


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("problem.size=31", "problem.size"),
        ("problem.colour=3", "problem.colour"),
        ("problem.name=my_problem.py:Nothing", "my_problem.py"),
        ("problem.name=dracy", "darcy"),
        ("learner.model.name=resnet", "learner.model.name"),
        ("learner.model.modes=400", "modes"),
        ("solver.method=bicg", "solver.method"),
        ("learner.batch_size=4000", "batch_size"),
    ],
)
def test_a_bad_value_is_one_message_without_a_traceback(tmp_path, override, message):
    result = forebay("check", write_tiny(tmp_path, executor="local"), "--set", override)
    assert result.returncode == 2, result.stdout
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_a_run_folder_that_is_in_use_is_refused(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious").write_text("x")
    result = forebay("run", write_tiny(tmp_path, executor="local"), "--folder", tmp_path / "run")
    assert result.returncode == 2
    assert "is not empty; choose another --folder" in result.stderr


@pytest.mark.parametrize("verb", ["resume", "status"])
def test_a_folder_that_is_no_run_is_named(tmp_path, verb):
    result = forebay(verb, tmp_path)
    assert result.returncode == 2
    assert "is no run folder" in result.stderr


@pytest.mark.parametrize("words", [("status",), ("stop",), ("resume",), ("replay",)])
def test_a_file_in_place_of_a_run_folder_is_named(tmp_path, words):
    (tmp_path / "study.toml").write_text("")
    result = forebay(*words, tmp_path / "study.toml")
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert "study.toml" in result.stderr
    assert result.stderr.count("\n") == 1


def test_problems_and_models_are_listed_with_their_options():
    problems = forebay("problems").stdout
    for name in PROBLEMS:
        assert name in problems
    models = forebay("models").stdout
    for name in ("fno", "mlp", "unet"):
        assert name in models

"""Whole runs of a tiny bar whose reduced model learns: what is kept, verified, resumed, and shared by Ray actors."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import xarray
from running import events, forebay, start, wait_until

from forebay.cluster.console import print_dataset_info, print_verification
from forebay.cluster.launch import launch, prepare, reopen
from forebay.cluster.local_executor import LocalExecutor
from forebay.cluster.plan_text import REDUCED_SHARE, forecast, print_plan
from forebay.learners.surrogate import Surrogate
from forebay.pipeline.dataset_info import dataset_info
from forebay.pipeline.dataset_reader import DatasetReader
from forebay.pipeline.errors import ProblemError, StudyError
from forebay.solvers.problems.necked_bar import NeckedBar
from forebay.solvers.rom import local_models
from forebay.solvers.rom.block_solver import SolidBlockSolver
from forebay.solvers.rom.library import Library
from forebay.solvers.rom.package import RomPackage

TINY = """
name = "tiny-bar"
seed = 2026
samples = 16
[problem]
name = "necked_bar"
cells = [6, 2, 2]
steps = 8
frames = 2
[solver]
method = "rom"
actors = {actors}
[solver.rom]
tolerance = 0.08
audit = 0.0
[validation]
samples = 2
every = 5
[learner]
fields = ["p"]
batch_size = 4
batches = 8
threads_after_production = 1
[learner.model]
name = "mlp"
hidden = [16]
[dataset]
block_samples = 4
[run]
executor = "{executor}"
cores = 2
checkpoint_every_s = 0.01
publish_every_s = 0.05
"""
TOLERANCE = 0.08
BAR = NeckedBar(cells=(6, 2, 2), steps=8, frames=2)


def write_study(folder, *, executor="local", actors=1) -> Path:
    path = folder / "tiny.toml"
    path.write_text(TINY.format(executor=executor, actors=actors))
    return path


def records(run, split="train"):
    """Every sample's record columns, in the order of blocks stored."""
    lines = [line["records"] for line in events(run, "block_stored") if line["split"] == split]
    names = ("sample_id", "method", "outcome", "message", "iterations")
    rows = [dict(zip(names, row, strict=True)) for r in lines for row in zip(*(r[n] for n in names), strict=True)]
    estimates = itertools.chain.from_iterable(r.get("estimate", [None] * len(r["method"])) for r in lines)
    return [row | {"estimate": estimate} for row, estimate in zip(rows, estimates, strict=True)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rom")
    assert launch(write_study(folder), [], None, folder / "run") == 0
    return folder / "run"


def test_a_run_keeps_every_version_of_its_reduced_model(finished):
    kinds = [record["method"] for record in records(finished)]
    versions = kinds.count("full")
    library = Library(finished / "rom")
    assert library.latest == versions
    for version in range(1, versions + 1):
        package = RomPackage.load(finished / "rom" / f"v{version:04d}" / "package.npz", BAR.law)
        assert (package.version, package.problem) == (version, "necked_bar")
        assert package.parameters["traction"] == (160.0, 240.0)
    assert (finished / "rom" / f"v{versions:04d}" / "basis.npz").exists()


def test_the_journal_says_how_each_sample_was_made_and_with_which_estimate(finished):
    found = records(finished)
    assert [record["sample_id"] for record in found] == list(range(16))
    reduced = [record for record in found if record["method"] == "rom"]
    assert len(reduced) >= 4
    for record in found:
        assert record["outcome"] == "CONVERGED"
        assert record["message"]
        assert (record["estimate"] is None) == (record["sample_id"] == 0)
    assert all(0 < record["estimate"] <= TOLERANCE for record in reduced)
    late = [record for record in found[4:] if record["method"] == "full"]
    assert all(record["estimate"] > TOLERANCE for record in late)
    assert {record["method"] for record in records(finished, "validation")} == {"full"}
    choices = events(finished, "block_stored")[-1]["choices"]
    assert [choice["method"] for choice in choices] == ["rom", "full"]
    assert choices[0]["solved"] == len(reduced)


def test_the_data_set_is_complete_and_says_what_certifies_each_sample(finished, capsys):
    data = xarray.open_zarr(finished / "dataset.zarr").load()
    assert data.u.shape == (16, 2, 63, 3)
    assert data.p.shape == (16, 2, 24)
    assert bool(data.valid.all())
    assert float(data.residual.max()) <= 1e-8
    reader = DatasetReader(finished / "dataset.zarr")
    assert set(reader.methods) == {"full", "rom"}
    estimates = reader.column("estimate")
    np.testing.assert_array_equal(np.isnan(estimates), np.arange(16) == 0)
    reduced = reader.column("method") == reader.methods.index("rom")
    assert reduced.tolist() == [record["method"] == "rom" for record in records(finished)]
    print_dataset_info(finished)
    assert f"error up to {100 * estimates[reduced].max():.3g} %" in " ".join(
        re.findall(r"[^\s│]+", capsys.readouterr().out)
    )


def test_the_report_and_the_summary_are_there(finished):
    assert (finished / "report.html").stat().st_size > 100_000
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["status"] == "complete"
    assert (finished / "dataset.zarr" / "README.md").exists()


def test_the_surrogate_has_learned_the_chosen_field_alone(finished):
    surrogate = Surrogate.load(finished / "surrogate")
    assert [field.name for field in surrogate.io.outputs] == ["p"]
    data = DatasetReader(finished / "dataset.zarr")
    found = surrogate.predict({"parameters": data.column("parameters")[:3], "time": np.full((3, 1), 2.0)})
    assert found.keys() == {"p"}
    assert found["p"].shape == (3, 24)


# --- verify ---------------------------------------------------------------------------------------------------------


def test_verify_solves_reduced_samples_in_full_and_finds_them_within_their_tolerance(finished, capsys):
    version = Library(finished / "rom").latest
    assert print_verification(finished, samples=16, rtol=1e-5, seed=7) == 0
    train, _, validation, _ = capsys.readouterr().out.splitlines()
    worst = [float(number) for number in re.findall(r"[up] (\S+?)(?:,|$)", train.partition("difference: ")[2])]
    assert "solved 16 samples again" in train
    assert len(worst) == 2
    assert all(1e-4 < value < TOLERANCE for value in worst), "the true errors of the reduced samples"
    assert "u 0.0e+00, p 0.0e+00" in validation or re.search(r"u \S+e-0[6-9]", validation)
    assert Library(finished / "rom").latest == version, "verifying teaches nothing"


def test_what_verifying_has_started_is_ended(finished, monkeypatch):
    ended = []
    monkeypatch.setattr(SolidBlockSolver, "destroy", lambda self: ended.append(self))
    print_verification(finished, samples=1, rtol=1e-5, seed=7)
    assert len(set(ended)) == 2, "one solver for each data set"
    ended.clear()
    monkeypatch.setattr("forebay.pipeline.verify.verify", lambda *arguments, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        print_verification(finished, samples=1, rtol=1e-5, seed=7)
    assert len(ended) == 1


@pytest.mark.parametrize("closing", ["closes", "fails"])
def test_a_local_run_ends_what_its_solver_has_started(closing):
    class Part:
        def __init__(self):
            self.metrics, self.done = self, []

        def destroy(self):
            self.done.append("destroyed")

        def close(self):
            self.done.append("closed")
            if closing == "fails":
                raise OSError("no space left")

    solver, learner = Part(), Part()
    with contextlib.nullcontext() if closing == "closes" else pytest.raises(OSError, match="no space left"):
        LocalExecutor(solver, {}, learner, lambda key: None).close()
    assert (solver.done, learner.done) == (["destroyed"], ["closed"])
    if closing == "closes":
        LocalExecutor(object(), {}, learner, lambda key: None).close()


@pytest.mark.parametrize("method", ["full", "rom"])
def test_verify_finds_a_field_that_was_changed(finished, tmp_path, capsys, method):
    shutil.copytree(finished, tmp_path / "run")
    path = tmp_path / "run" / "dataset.zarr"
    sample = next(record["sample_id"] for record in records(finished) if record["method"] == method)
    chunk, row = divmod(sample, 4)
    file = path / "u" / "c" / str(chunk) / "0" / "0" / "0"
    values = np.fromfile(file, np.float32).reshape(4, -1)
    values[row] *= 1.3 if method == "rom" else 1.0001
    values.tofile(file)
    assert print_verification(path, samples=16, rtol=1e-5, seed=7) == 1
    wrong = [line for line in capsys.readouterr().out.splitlines() if line.startswith("WRONG")]
    assert len(wrong) == 1
    bound = "0.24" if method == "rom" else "1e-05"
    assert re.search(rf"sample {sample} solved again differs by .* in 'u', above {bound}$", wrong[0])


# --- before and after a run -----------------------------------------------------------------------------------------


def test_a_field_to_learn_that_the_problem_has_not_is_refused(tmp_path):
    message = "learner.fields names 'stress', which the problem does not put out; it has u, p"
    with pytest.raises(StudyError, match=message):
        prepare(write_study(tmp_path), ['learner.fields=["stress"]'])


def test_fields_of_two_grids_cannot_be_learned_together(tmp_path):
    with pytest.raises(ProblemError, match=r"differ in their grids; .* choose some by learner.fields, or"):
        prepare(write_study(tmp_path), ["learner.fields=[]"])


def test_a_method_of_linear_systems_is_refused_for_the_bar(tmp_path):
    with pytest.raises(StudyError, match=r"solver.method = 'cg' solves linear systems, and this problem is a solid"):
        prepare(write_study(tmp_path), ["solver.method=cg"])


def test_the_plan_of_a_reduced_study_counts_its_full_samples(tmp_path, capsys):
    study = write_study(tmp_path)
    reduced = prepare(study)
    full = prepare(study, ["solver.method=full", "solver.rom={}"])
    assert forecast(reduced).unknowns == forecast(full).unknowns == 63 * 3
    assert forecast(full).solves_per_s == pytest.approx(REDUCED_SHARE * forecast(reduced).solves_per_s)
    print_plan(reduced)
    text = capsys.readouterr().out
    assert re.search(r"unknowns\W+189\b", text)
    assert re.search(r"frames per sample\W+2\b", text)
    assert re.search(r"ring\W+32 frames", text)


def test_a_finished_run_opens_with_the_same_study(finished):
    spec = reopen(finished).spec
    assert spec.study.solver.rom.tolerance == TOLERANCE
    assert [field.name for field in spec.learned.outputs] == ["p"]
    assert [field.name for field in spec.schema.outputs] == ["u", "p"]


def test_a_run_that_was_killed_goes_on_with_the_versions_that_it_had(tmp_path):
    run = tmp_path / "run"
    process = start("run", write_study(tmp_path), "--folder", run, "--set", "samples=32")
    wait_until(lambda: len(events(run, "block_stored")) >= 3, process)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    kept = records(run)
    before = Library(run / "rom").latest
    assert before >= 4
    assert len(kept) < 32, "the run was over before it was killed"
    resumed = forebay("resume", run)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    found = records(run)
    assert found[: len(kept)] == kept
    assert sorted(record["sample_id"] for record in found) == list(range(32))
    number = re.match(r"version (\d+): ", found[len(kept)]["message"])
    assert number is not None
    assert int(number[1]) >= before, "the first sample after the kill was tried with what was there"
    assert Library(run / "rom").latest >= before
    assert print_verification(run, samples=6, rtol=1e-5, seed=7) == 0


@pytest.mark.ray
def test_two_ray_actors_share_what_they_learn(tmp_path):
    run = tmp_path / "run"
    study = write_study(tmp_path, executor="ray", actors=2)
    result = forebay("run", study, "--folder", run, "--set", "samples=40", "--set", "solver.rom.tolerance=0.15")
    assert result.returncode == 0, result.stdout + result.stderr
    stored = [line for line in events(run, "block_stored") if line["split"] == "train"]
    makers = {line["solver"] for line in stored if "rom" in line["records"]["method"]}
    assert makers == {"solver-0", "solver-1"}
    learned = [record for record in records(run) if record["method"] == "full"]
    assert Library(run / "rom").latest == len(learned)
    assert sorted(record["sample_id"] for record in records(run)) == list(range(40))
    assert bool(xarray.open_zarr(run / "dataset.zarr").valid.all())


@pytest.mark.ray
@pytest.mark.slow  # test_two_ray_actors_share and the steps of one process below cover the most of it
def test_two_ray_actors_mend_single_steps_of_one_model(tmp_path):
    run = tmp_path / "run"
    study = write_study(tmp_path, executor="ray", actors=2)
    tighter = ["--set", 'solver.rom.adapt="step"', "--set", "solver.rom.tolerance=0.03"]
    result = forebay("run", study, "--folder", run, *tighter)
    assert result.returncode == 0, result.stdout + result.stderr
    everything = [*records(run), *records(run, "validation")]
    mended = [record for record in everything if record["method"] == "rom+full"]
    assert mended
    assert max(record["estimate"] for record in mended) <= 0.03
    learned = [record for record in everything if record["method"] in ("full", "rom+full")]
    assert 0 < Library(run / "rom").latest <= len(learned)
    assert sorted(record["sample_id"] for record in records(run)) == list(range(16))
    assert bool(xarray.open_zarr(run / "dataset.zarr").valid.all())


# --- single steps in full, and bases that are judged meanwhile ------------------------------------------------------


@pytest.fixture(scope="module")
def stepped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("steps")
    patch = pytest.MonkeyPatch()
    patch.setattr(local_models, "ASKED", {"global": (), "auto": (4,), "local": ()})
    patch.setattr(local_models, "MODES", 2)
    overrides = ['solver.rom.adapt="step"', "solver.rom.tolerance=0.03"]
    assert launch(write_study(folder), overrides, None, folder / "run") == 0
    patch.undo()
    return folder / "run"


def test_the_journal_has_the_full_steps_of_each_sample_of_both_kinds(stepped):
    lines = [line["records"] for line in events(stepped, "block_stored") if line["split"] == "train"]
    rows = [(*row,) for r in lines if "full_steps" in r for row in zip(r["method"], r["full_steps"], strict=True)]
    assert {method for method, steps in rows if steps is not None} == {"rom+full"}
    assert all(1 <= steps <= 8 for method, steps in rows if method == "rom+full")
    mixed = [record for record in records(stepped) if record["method"] == "rom+full"]
    assert all(re.search(r"; \d of 8 steps in full \(", record["message"]) for record in mixed)


def test_samples_of_both_kinds_are_certified_and_verified_by_their_estimates(stepped, capsys):
    reader = DatasetReader(stepped / "dataset.zarr")
    assert set(reader.methods) == {"full", "rom", "rom+full"}
    mixed = reader.column("method") == reader.methods.index("rom+full")
    assert reader.column("valid").all()
    assert 0 < reader.column("estimate")[mixed].max() <= 0.03
    info = {method.name: method for method in dataset_info(stepped / "dataset.zarr").methods}
    assert info["rom+full"].estimate_max == reader.column("estimate")[mixed].max()
    assert print_verification(stepped, samples=16, rtol=1e-5, seed=7) == 0
    summary = json.loads((stepped / "summary.json").read_text())
    assert {row["method"] for row in summary["arms"]} == {"full", "rom", "rom+full"}


def test_the_report_has_the_verdict_on_bases_that_the_run_came_to(stepped):
    verdict = local_models.verdict_of(Library(stepped / "rom"))
    assert verdict["samples"] == 4
    summary = json.loads((stepped / "summary.json").read_text())
    assert summary["local_bases"] == verdict["reason"]
    assert events(stepped, "local_bases")[-1]["decision"]["reason"] == verdict["reason"]


def test_keys_of_adaptation_and_bases_are_checked(tmp_path):
    for key, known in (("adapt", "'sample' or 'step'"), ("bases", "'auto', 'global' or 'local'")):
        with pytest.raises(StudyError, match=f'solver.rom.{key} = "often" is not allowed: it should be {known}'):
            prepare(write_study(tmp_path), [f"solver.rom.{key}=often"])

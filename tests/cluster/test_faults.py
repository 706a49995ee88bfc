"""Faults: samples that fail, solvers that die, a full disk, signals, and a killed driver, each with its clean end."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import xarray
from running import events, forebay, start, wait_for_exit, wait_until, write_tiny

FLAKY = Path(__file__).parent / "problems" / "flaky.py"


def flaky_study(folder: Path) -> Path:
    shutil.copy(FLAKY, folder)
    study = write_tiny(folder, executor="local", samples=48)
    study.write_text(study.read_text().replace('name = "darcy"\nsize = 32', 'name = "flaky.py:Flaky"'))
    return study


def test_failed_samples_are_told_by_outcome_and_reach_neither_buffer_nor_valid_data(tmp_path):
    run = tmp_path / "run"
    result = forebay("run", flaky_study(tmp_path), "--folder", run)
    assert result.returncode == 0, result.stdout + result.stderr
    outcomes = Counter(o for e in events(run, "block_stored") for o in e["records"]["outcome"] if e["split"] == "train")
    assert {"CONVERGED", "NONFINITE_INPUT", "FACTORISATION_FAILED", "PROBLEM_RAISED"} <= set(outcomes), outcomes
    ingested = sum(e["frames"] for e in events(run, "block_ingested") if e["split"] == "train")
    assert ingested == outcomes["CONVERGED"] < 48
    data = xarray.open_zarr(run / "dataset.zarr").load()
    assert data.sizes["sample"] == 48
    assert int(data["valid"].sum()) == outcomes["CONVERGED"]
    assert np.isfinite(data["u"].values[data["valid"].values.astype(bool)]).all()
    assert np.isnan(data["u"].values[~data["valid"].values.astype(bool)]).all()
    assert "no medium for s" in (run / "journal.jsonl").read_text()
    assert "PROBLEM_RAISED" in result.stdout


def test_a_study_whose_every_sample_fails_ends_with_the_outcome_and_the_remedy(tmp_path):
    hopeless = ["solver.method=cg", "solver.preconditioner=none", "solver.max_iterations=2"]
    sets = [word for override in hopeless for word in ("--set", override)]
    result = forebay("run", write_tiny(tmp_path, executor="local"), "--folder", tmp_path / "run", *sets)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    assert "MAX_ITERATIONS: residual still above rtol: raise `solver.max_iterations`" in result.stdout
    assert "none of the 12 validation samples is valid" in result.stdout


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(disk)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_stops_the_run_with_the_cause_and_resume_completes_it_once_there_is_room(tmp_path, small_disk):
    run = small_disk / "run"
    study = write_tiny(tmp_path, executor="local", samples=160)
    result = forebay("run", study, "--folder", run)
    assert result.returncode in (1, 2), result.stdout + result.stderr
    assert "space" in (result.stdout + result.stderr).lower()
    assert "Traceback" not in result.stderr
    subprocess.run(["mount", "-o", "remount,size=200m", str(small_disk)], check=True)
    resumed = forebay("resume", run)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    stored = [(e["split"], e["chunk"]) for e in events(run, "block_stored")]
    assert len(stored) == len(set(stored)) == 22
    data = xarray.open_zarr(run / "dataset.zarr")
    assert data.sizes["sample"] == 160
    assert bool(data["valid"].all())


def child_processes(pid: int) -> list[int]:
    """Process ids of all descendants."""
    listing = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = {int(a): int(b) for a, b in (line.split() for line in listing.splitlines())}
    found = [pid]
    for parent in found:
        found += [child for child, ppid in parents.items() if ppid == parent]
    return found[1:]


def name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except (FileNotFoundError, ProcessLookupError):
        return ""


@pytest.mark.ray
@pytest.mark.parametrize(
    "fault",
    [
        "SIGTERM",
        # test_chaos.py kills these too.
        *(
            pytest.param(f"kill {what}", marks=pytest.mark.slow)
            for what in ("the driver", "a solver", "the learner", "the writer")
        ),
    ],
)
def test_a_ray_run_survives(tmp_path, fault):
    study = write_tiny(tmp_path, executor="ray", samples=2400, batches=400, checkpoint_every_s=0.2)
    run = tmp_path / "run"
    process = start("run", study, "--folder", run)
    wait_until(lambda: len(events(run, "checkpoint")) >= 1 and len(events(run, "block_stored")) > 4, process)
    family = child_processes(process.pid)
    match fault:
        case "kill the driver":
            process.kill()
            process.wait(timeout=60)
        case "SIGTERM":
            process.terminate()
            output, _ = process.communicate(timeout=120)
            assert process.returncode == 0, output
        case _:
            stage = fault.split()[-1]
            actors = [pid for pid in family if f"{stage.title()}Actor" in name_of(pid)]
            assert actors, [name_of(pid) for pid in family]
            os.kill(actors[0], signal.SIGKILL)
            output, _ = process.communicate(timeout=200)
            assert process.returncode == 0, output
            assert events(run, f"{stage}_lost")
            assert f"1 {stage} lost and started again" in output
    if fault in ("kill the driver", "SIGTERM"):
        assert len(events(run, "block_stored")) < 302, "the run was over before the fault"
        resumed = forebay("resume", run, timeout=250)
        assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    stored = Counter((e["split"], e["chunk"]) for e in events(run, "block_stored"))
    assert len(stored) == 302
    assert set(stored.values()) == {1}, "a block was kept twice"
    data = xarray.open_zarr(run / "dataset.zarr")
    assert data.sizes["sample"] == 2400
    assert bool(data["valid"].all())
    left = wait_for_exit(family, timeout=60)
    assert not [name_of(pid) for pid in left], "processes outlived their driver"


def deadly_study(folder: Path, **faults: int) -> Path:
    shutil.copy(FLAKY.with_name("deadly.py"), folder)
    study = write_tiny(folder, executor="ray", samples=48)
    text = study.read_text().replace('name = "darcy"\nsize = 32', 'name = "deadly.py:Deadly"')
    table = "\n".join(f"{key} = {value}" for key, value in faults.items())
    study.write_text(text + f"[faults]\n{table}\n")
    return study


@pytest.mark.ray
@pytest.mark.parametrize("redraws", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_samples_that_take_their_solver_down_are_given_up_or_drawn_anew_and_the_rest_is_solved(tmp_path, redraws):
    run = tmp_path / "run"
    result = forebay("run", deadly_study(tmp_path, sample_losses=1, redraws=redraws), "--folder", run, timeout=400)
    assert result.returncode == 0, result.stdout + result.stderr
    records = [e["records"] for e in events(run, "block_stored") if e["split"] == "train"]
    outcomes = Counter(o for r in records for o in r["outcome"])
    marked = [e["sample"] for e in events(run, "solver_lost") if e["sample"]]
    assert {sample for _, sample in marked} == {15, 38}, "the samples below the limit"
    data = xarray.open_zarr(run / "dataset.zarr").load()
    assert data.sizes["sample"] == 48
    if redraws:
        told = [m for r in records for m in r["message"] if m]
        assert told
        assert all("drawn anew 1 times: its solver was lost" in m for m in told)
        assert outcomes == {"CONVERGED": 48}
        assert (data["parameters"].values[:, 0] >= 0.5615).all()
        verified = forebay("dataset", "verify", run, "--samples", 48, "--trust-study")
        assert verified.returncode == 0, verified.stdout + verified.stderr
    else:
        assert set(outcomes) == {"CONVERGED", "PROCESS_LOST"}
        guilty = {sample for split, sample in marked if split == "train"}
        assert outcomes["PROCESS_LOST"] == len(guilty)
        assert set(np.flatnonzero(~data["valid"].values.astype(bool)).tolist()) == guilty

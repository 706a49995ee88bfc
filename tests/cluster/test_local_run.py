"""Whole runs in one process: what a run leaves behind, stopping, being killed, resuming."""

from __future__ import annotations

import json
import signal

import numpy as np
import pytest
import torch
import xarray
from running import events, forebay, start, wait_until, write_tiny
from safetensors.torch import load_file


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("local")
    result = forebay("run", write_tiny(folder, executor="local"), "--folder", folder / "run")
    assert result.returncode == 0, result.stdout + result.stderr
    return folder / "run", result.stdout


def weights(run):
    return load_file(run / "surrogate" / "weights.safetensors")


def test_a_run_ends_with_error_rates_and_the_report(finished):
    run, output = finished
    assert "report.html" in output
    assert (run / "report.html").stat().st_size > 10_000
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "complete"


def test_the_data_set_is_complete_and_certified(finished):
    run, _ = finished
    data = xarray.open_zarr(run / "dataset.zarr")
    assert data.sizes["sample"] == 40
    assert bool(data["valid"].all())
    assert float(data["residual"].max()) <= 1e-8
    assert np.isfinite(data["u"]).all()


def test_verify_solves_samples_again_and_finds_them_equal(finished):
    run, _ = finished
    result = forebay("dataset", "verify", run, "--samples", "3")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "3" in result.stdout


def test_verify_finds_a_tampered_field(finished, tmp_path):
    import shutil

    run, _ = finished
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    chunk = next((copy / "dataset.zarr" / "u" / "c").rglob("0"))
    raw = np.fromfile(chunk, np.float32) if chunk.is_file() else None
    if raw is None:
        chunk = next(p for p in (copy / "dataset.zarr" / "u" / "c").rglob("*") if p.is_file())
        raw = np.fromfile(chunk, np.float32)
    (raw * 1.01).astype(np.float32).tofile(chunk)
    result = forebay("dataset", "verify", copy / "dataset.zarr", "--samples", "40")
    assert result.returncode == 1, result.stdout


def test_status_and_report_work_on_a_finished_run(finished):
    run, _ = finished
    assert "complete" in forebay("status", run).stdout
    assert forebay("report", run).returncode == 0


def test_resuming_a_complete_run_changes_nothing(finished):
    run, _ = finished
    before = (run / "journal.jsonl").read_bytes()
    result = forebay("resume", run)
    assert "nothing to resume" in result.stdout
    assert (run / "journal.jsonl").read_bytes() == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_stopped_or_killed_run_resumes_to_the_same_weights_bit_for_bit(finished, tmp_path, number):
    reference, _ = finished
    study = write_tiny(tmp_path, executor="local", checkpoint_every_s=0.01)
    run = tmp_path / "run"
    process = start("run", study, "--folder", run)
    wait_until(lambda: len(events(run, "checkpoint")) >= 2, process)
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == (-9 if number == signal.SIGKILL else 0), output
    if number != signal.SIGKILL:
        assert "forebay resume" in output
    resumed = forebay("resume", run)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    stored = [(e["split"], e["chunk"]) for e in events(run, "block_stored")]
    assert len(stored) == len(set(stored)) == 7, "a block was solved and kept twice, or never"
    for name, value in weights(reference).items():
        assert torch.equal(value, weights(run)[name]), name


def test_a_run_whose_output_nobody_reads_any_more_goes_on_to_its_end(tmp_path):
    run = tmp_path / "run"
    process = start("run", write_tiny(tmp_path, executor="local", samples=48, batches=16), "--folder", run)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("run folder")
    process.stdout.close()
    assert process.wait(timeout=200) == 0
    assert events(run, "run_finished")[-1]["status"] == "complete"
    assert (run / "report.html").exists()

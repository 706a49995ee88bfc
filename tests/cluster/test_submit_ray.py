"""`forebay submit --ray` against a real Ray with a dashboard: followed, told about, stopped, and gone on with."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import running
import xarray
from running import ENVIRONMENT, POLL, brake_of, events, write_tiny

UP_S = 90.0
TOKEN = "7f" * 32

pytestmark = pytest.mark.ray


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def cluster():
    """A Ray on loopback with tokens, and its dashboard's address."""
    folder = Path(tempfile.mkdtemp(prefix="r"))
    token = folder / "token"
    token.touch(0o600)
    token.write_text(TOKEN)
    secured = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    }
    ports = {name: free_port() for name in ("port", "dashboard-port", "ray-client-server-port")}
    words = [f"--{name}={port}" for name, port in ports.items()]
    words += ["--num-cpus=2", "--object-store-memory=300000000", f"--temp-dir={folder}/ray", "--disable-usage-stats"]
    words += ["--min-worker-port=0", "--max-worker-port=0", f"--dashboard-agent-listen-port={free_port()}"]
    with (folder / "log").open("w") as log:
        head = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", *words],
            env=ENVIRONMENT | secured,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    address = f"127.0.0.1:{ports['dashboard-port']}"
    end = time.monotonic() + UP_S
    while not listens(ports["dashboard-port"]):
        assert head.poll() is None, (folder / "log").read_text()
        assert time.monotonic() < end, (folder / "log").read_text()
        POLL.wait(0.3)
    yield address, secured
    head.send_signal(signal.SIGTERM)
    head.wait(timeout=60)
    shutil.rmtree(folder)


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def forebay(cluster, tmp_path, monkeypatch):
    _, secured = cluster
    secured = {key: secured[key] for key in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")}
    monkeypatch.setattr(running, "ENVIRONMENT", ENVIRONMENT | secured | {"FOREBAY_CLUSTER": str(tmp_path / "site")})
    (tmp_path / "site").touch()
    return running.forebay


def braked_study(folder, **sizes):
    """Slow until the brake is off, so that a stop always finds it at work."""
    study = write_tiny(folder, executor="ray", **sizes)
    brake_of(study).touch()
    return study


def test_a_job_is_stopped_gracefully_and_gone_on_with_to_its_end_and_leaves_no_token(cluster, forebay, tmp_path):
    address, secured = cluster
    study = braked_study(tmp_path, samples=400, batches=60)
    run = tmp_path / "elsewhere" / "run"
    sets = ["--set", "learner.batches=50", "--set", "dataset.block_samples=2"]
    sent = forebay("submit", "--ray", address, "--no-follow", study, "--folder", run, *sets)
    assert sent.returncode == 0, sent.stdout + sent.stderr
    assert f"run folder on the cluster: {run}" in sent.stdout
    end = time.monotonic() + UP_S
    while sum(line["split"] == "train" for line in events(run, "block_stored")) < 2:
        assert time.monotonic() < end, forebay("status", run).stdout
        POLL.wait(0.2)
    stopped = forebay("stop", run)
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert "was asked to stop" in stopped.stdout
    assert [line["status"] for line in events(run, "run_finished")] == ["stopped"]
    assert list((run / "checkpoints").iterdir())

    for name in (study.name, "braked.py", "brake"):
        (tmp_path / name).unlink()
    resumed = forebay("submit", "--ray", address, run)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert "tiny: complete" in resumed.stdout, "the job's output is followed"
    assert [line["status"] for line in events(run, "run_finished")] == ["stopped", "complete"]
    again = forebay("stop", run)
    assert again.returncode == 0
    assert "has ended already; nothing to stop" in again.stdout
    assert "SUCCEEDED" in forebay("status", run).stdout

    with xarray.open_zarr(run / "dataset.zarr") as data:
        assert data.sizes["sample"] == 400
        assert bool(data["valid"].all())
    kept = json.loads((run / "study.json").read_text())
    assert kept["study"]["learner"]["batches"] == 50
    assert (Path(kept["study_folder"]) / "braked.py").is_file(), "the problem stays when Ray removes the job's package"
    assert Path(kept["study_folder"]).is_relative_to(run)
    assert json.loads((run / "submission.json").read_text())["kind"] == "ray"
    assert [path for path in run.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()] == []
    assert TOKEN not in sent.stdout + sent.stderr + resumed.stdout + resumed.stderr
    assert stat.S_IMODE(os.stat(secured["RAY_AUTH_TOKEN_PATH"]).st_mode) == 0o600


def test_the_exit_status_of_a_failed_run_is_passed_on(cluster, forebay, tmp_path):
    address, _ = cluster
    study = braked_study(tmp_path)
    run = tmp_path / "run"
    run.mkdir()
    (run / "precious").touch()
    result = forebay("submit", "--ray", address, study, "--folder", run)
    assert result.returncode == 2, result.stdout + result.stderr
    assert "is not empty; choose another --folder" in result.stdout

"""A study on two nodes of a real Slurm: through a time limit, a stop and a new job to its end.

Needs root, and Debian's packages, which it installs.  Elsewhere it is skipped, unless FOREBAY_REQUIRE_SLURM=1.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import stat
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

import pytest
import running
import xarray
from running import POLL, events

HERE = Path(__file__).parent
LIMIT_S = 200.0

STUDY = """
name = "spied"
seed = 2026
samples = 480
[problem]
name = "spy.py:Spy"
notes = "{notes}"
[solver]
actors = 2
[validation]
samples = 8
every = 20
[buffer]
threshold = 8
[learner]
batch_size = 8
batches = 60
[learner.model]
name = "mlp"
[dataset]
block_samples = 2
[run]
publish_every_s = 0.2
[cluster]
nodes = 2
cores_per_node = 2
memory_gib = 1.5
time = "00:10:00"
"""
SITE = """
address = "echo 127.0.0.$((1 + ${{SLURMD_NODENAME#n}}))"   # two nodes on one host
tmp = "{tmp}"
partition = "main"
setup = ["export SPIED_BY=site"]
extra = ["--comment=spied"]
"""

pytestmark = pytest.mark.slurm


def load_one_host():
    spec = importlib.util.spec_from_file_location("one_host", HERE / "one_host.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def slurm():
    one_host = load_one_host()
    if reason := one_host.install():
        if os.environ.get("FOREBAY_REQUIRE_SLURM") == "1":
            pytest.fail(f"FOREBAY_REQUIRE_SLURM=1, but {reason}")
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="one-host-"))
    one_host.up(folder)
    yield one_host.environment(folder)
    one_host.down(folder)
    pids = [int(path.read_text()) for path in folder.glob("*.pid")]
    assert running.wait_for_exit(pids, timeout=10) == []
    shutil.rmtree(folder)


@pytest.fixture
def forebay(slurm, tmp_path, monkeypatch):
    """The command in the environment of a user of this Slurm."""
    nodes = Path(tempfile.mkdtemp(prefix="n"))
    (tmp_path / "site.toml").write_text(SITE.format(tmp=nodes))
    monkeypatch.setattr(
        running, "ENVIRONMENT", running.ENVIRONMENT | slurm | {"FOREBAY_CLUSTER": str(tmp_path / "site.toml")}
    )
    monkeypatch.setenv("SLURM_CONF", slurm["SLURM_CONF"])
    yield running.forebay
    assert left_behind(nodes) == []
    assert list(nodes.iterdir()) == []
    nodes.rmdir()


def left_behind(nodes):
    """Command lines of processes that know the nodes' folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(nodes) in words:
            found.append(words)
    return found


def until(condition, run, what):
    """Poll; what the job printed if it never comes true."""
    for _ in range(int(LIMIT_S / 0.5)):
        if found := condition():
            return found
        POLL.wait(0.5)
    logs = "\n".join(path.read_text(errors="replace")[-3000:] for path in sorted((run / "logs").glob("*")))
    raise AssertionError(f"not within {LIMIT_S} s: {what}\n{logs}")


def squeue(*words):
    return subprocess.run(["squeue", "--noheader", *words], capture_output=True, text=True, check=True).stdout.strip()


def blocks_since_start(run, attempt):
    lines = [line for name in ("run_started", "block_stored") for line in events(run, name)]
    started = [line["t"] for line in lines if line["event"] == "run_started"]
    if len(started) < attempt:
        return 0
    return sum(line["event"] == "block_stored" and line["t"] > started[attempt - 1] for line in lines)


def read_tokens(nodes):
    """The job's token as every node has it, each in a file and a folder that nobody else can read."""
    paths = list(nodes.glob("*/token"))
    for path in paths:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    return {path.read_text() for path in paths}


@pytest.mark.timeout(600)
def test_a_run_on_two_nodes_survives_its_time_limit_and_a_stop(forebay, tmp_path):
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "brake").touch()
    shutil.copy(HERE / "spy.py", tmp_path)
    study = tmp_path / "spied.toml"
    study.write_text(STUDY.format(notes=notes))
    run = tmp_path / "run"
    nodes = Path(re.search(r'tmp = "(.*)"', (tmp_path / "site.toml").read_text())[1])

    submitted = forebay("submit", "--slurm", study, "--folder", run)
    assert submitted.returncode == 0, submitted.stderr
    job = json.loads((run / "submission.json").read_text())
    assert job == {"kind": "slurm", "job": job["job"]}
    assert "#SBATCH --signal=B:USR1@120" in (run / "job.sh").read_text()

    # The first job: solvers on both nodes, and then what Slurm sends before the time limit.
    until(lambda: blocks_since_start(run, 1) >= 4, run, "blocks of the first job")
    tokens = read_tokens(nodes)
    assert len(tokens) == 1
    assert len(list(nodes.glob("*/token"))) == 3, "the script's and each node's"
    subprocess.run(["scancel", "--signal=USR1", "--batch", job["job"]], check=True)

    # The second one, queued by the first: it goes on, and is stopped by the user.
    until(lambda: blocks_since_start(run, 2) >= 1, run, "blocks of the job that was queued again")
    assert squeue("--format=%i", "--states=all", f"--jobs={job['job']}") == job["job"], "the same job"
    assert not tokens & read_tokens(nodes), "a new token for each attempt"
    tokens |= read_tokens(nodes)
    assert f"Slurm job {job['job']}: RUNNING" in forebay("status", run).stdout
    again = forebay("submit", "--slurm", run)
    assert again.returncode == 2
    assert f"Slurm job {job['job']} is RUNNING" in again.stderr
    stopped = forebay("stop", run)
    assert stopped.returncode == 0, stopped.stderr
    assert "was asked to stop" in stopped.stdout
    ends = [(line["status"], line["reason"]) for line in events(run, "run_finished")]
    assert ends == [("stopped", "SIGTERM"), ("stopped", "SIGTERM")]
    assert squeue() == ""

    # The third one, submitted for the run folder, completes it.
    (notes / "brake").unlink()
    third = forebay("submit", "--slurm", run)
    assert third.returncode == 0, third.stderr
    until(lambda: len(events(run, "run_finished")) == 3, run, "the end of the run")
    until(lambda: squeue() == "", run, "the end of the job")
    assert events(run, "run_finished")[-1]["status"] == "complete"

    told = [json.loads(path.read_text()) for path in notes.glob("*.json")]
    assert {note["node"] for note in told} == {"n1", "n2"}, "solver actors on both nodes"
    assert all(note["ranks"] == 2 and note["sum"] == [2.0] * 3 and note["seen"] == [] for note in told), told

    stored = Counter((line["split"], line["chunk"]) for line in events(run, "block_stored"))
    assert len(stored) == 244
    assert set(stored.values()) == {1}
    verified = forebay("dataset", "verify", run, "--samples", 2)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    with xarray.open_zarr(run / "dataset.zarr") as data:
        assert data.sizes["sample"] == 480
        assert bool(data["valid"].all())

    script = (run / "job.sh").read_text()
    assert "export SPIED_BY=site" in script
    assert "#SBATCH --comment=spied" in script
    kept = b"".join(path.read_bytes() for path in run.rglob("*") if path.is_file())
    assert [token for token in tokens if token.encode() in kept] == [], "the token is in the run folder"

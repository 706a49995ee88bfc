"""Runs on three Ray nodes: shards on several of them, nodes that vanish with what is on them, nodes that join."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import xarray
from running import ENVIRONMENT, brake_of, events, wait_until, write_tiny

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
pytestmark = pytest.mark.ray


@pytest.fixture
def nodes(monkeypatch):
    """A Ray whose head has no cores, so that solvers have to be elsewhere; workers are added by the tests."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setenv("OMP_NUM_THREADS", ENVIRONMENT["OMP_NUM_THREADS"])
    made = importlib.import_module("chaos_monkey").Nodes(workers=0)
    yield made
    made.close()


def begin(nodes, study: Path, run: Path) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "forebay.cluster.cli", "run", str(study), "--folder", str(run)]
    return subprocess.Popen(words, env=nodes.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen[str], run: Path, samples: int) -> str:
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    stored = Counter((e["split"], e["chunk"]) for e in events(run, "block_stored"))
    assert set(stored.values()) == {1}, "a block was kept twice"
    data = xarray.open_zarr(run / "dataset.zarr")
    assert data.sizes["sample"] == samples
    assert bool(data["valid"].all())
    return output


def study_of(folder: Path, solvers: int, **size: int) -> Path:
    study = write_tiny(folder, executor="ray", checkpoint_every_s=0.5, **size)
    text = study.read_text().replace("actors = 1", f"actors = {solvers}").replace("[learner]", "[learner]\nranks = 2")
    # A small buffer makes the solvers wait for the learners, so that there is work left when a node is lost.
    study.write_text(text.replace("[buffer]", "[buffer]\ncapacity = 256"))
    return study


def solving(run: Path, since_s: float) -> set[str]:
    """Names of the solvers that have been asked for a block since then which is not stored yet."""
    stored = {(e["split"], e["chunk"]) for e in events(run, "block_stored")}
    asked = [e for e in events(run, "block_requested") if e["t"] > since_s]
    return {e["solver"] for e in asked if (e["split"], e["chunk"]) not in stored}


def test_a_node_that_vanishes_with_a_learner_and_solvers_costs_no_sample(tmp_path, nodes):
    for _ in range(3):
        nodes.add()
    run = tmp_path / "run"
    study = study_of(tmp_path, 3, samples=1600, batches=500)
    brake = brake_of(study)
    process = begin(nodes, study, run)
    wait_until(lambda: len(events(run, "checkpoint")) >= 1 and len(events(run, "block_stored")) > 20, process)
    brake.touch()
    braked_s = time.time()
    # A solver that has nothing to do is missed only once there is something for it.
    wait_until(lambda: len(solving(run, braked_s)) == 3, process)
    (home, *_) = nodes.hosts("learner") or nodes.hosts("solver")
    lost = [kind for kind in ("learner", "solver") if home in nodes.hosts(kind)]
    nodes.kill(home)
    brake.unlink()
    output = finish(process, run, 1600)
    for kind in lost:
        assert events(run, f"{kind}_lost"), output
    draws = [(run / name).read_text().splitlines() for name in ("draws.jsonl", "draws-1.jsonl")]
    last = [json.loads(lines[-1])["batch"] for lines in draws]
    assert last == [500, 500], "all learners stop at the same batch"
    flow = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines() if '"flow"' in line]
    assert max(line["blocks_near"] for line in flow) > 0, "no block found a learner on its own node"


def test_solvers_begin_on_nodes_that_join_later(tmp_path, nodes):
    nodes.add(cores=1)
    run = tmp_path / "run"
    study = study_of(tmp_path, 3, samples=1200, batches=300)
    brake = brake_of(study)
    process = begin(nodes, study, run)
    wait_until(lambda: len(events(run, "block_stored")) > 4, process)
    brake.touch()  # there is work left for those that come later, however long that takes them
    assert {e["solver"] for e in events(run, "block_stored")} == {"solver-0"} or not events(run, "solver_ready")
    nodes.add()
    wait_until(lambda: len(events(run, "solver_ready")) == 2, process)
    brake.unlink()
    finish(process, run, 1200)
    assert len({e["solver"] for e in events(run, "block_stored")}) == 3, "a solver that came later had no work"

"""What Prometheus is shown of a run, scraped from a real Ray, and what `forebay check` tells of memory."""

import ipaddress
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from types import SimpleNamespace

import pytest
import running
from running import ENVIRONMENT, POLL, events, start, wait_until, write_tiny

from forebay.cluster.cluster_size import LEAST_STORE
from forebay.cluster.launch import prepare
from forebay.cluster.plan_text import print_plan

OFTEN = {"RAY_metrics_report_interval_ms": "1000"}
"""Ray's exporter lags behind by that much; by default ten seconds."""
SAMPLE = re.compile(r"ray_forebay_(\w+)\{(.*)\} (\S+)")
TAGS = re.compile(r'(run|split|outcome|kind|state|part|le)="([^"]*)"')

WITHOUT_A_RUN = """
import json, sys, time
from pathlib import Path
from types import SimpleNamespace

from forebay.cluster.security import secure_ray
secure_ray()
import ray
from forebay.cluster.metrics_export import MetricsExport
from forebay.cluster.security import private_folder
from forebay.pipeline.journal import Journal
from forebay.pipeline.messages import (
    BlockIngested, BlockLost, BlockSolved, BlockStored, LearnerLost, SolverLost, SolverReady, Tick, WriterLost
)
from forebay.pipeline.records import Outcome

ray.init(
    address="local", num_cpus=1, include_dashboard=False, object_store_memory=100 * 2**20, log_to_driver=False,
    logging_level="error", _temp_dir=str(private_folder()),
)
folder = Path(sys.argv[1])
executor = SimpleNamespace(writer_busy_s=0.5, spilled_bytes=0)
export = MetricsExport(folder, ["solver-0", "solver-1"], SimpleNamespace(in_flight=7), executor)
good, bad = (SimpleNamespace(outcome=outcome) for outcome in (Outcome.CONVERGED, Outcome.MAX_ITERATIONS))
for chunk, seconds in enumerate((0.2, 2.0, 20.0)):
    key = ("train", chunk)
    export.observe(BlockSolved(key, "solver-0", [good, good, bad], None, seconds))
    export.observe(BlockStored(key))
    export.observe(BlockIngested(key, 2))
export.observe(BlockSolved(("validation", 0), "solver-1", [good], None, 3.0))
for lost in (SolverLost("solver-1", "killed"), SolverLost("solver-0", "killed"), WriterLost("killed"),
             LearnerLost("killed"), BlockLost(("train", 1), "gone")):
    export.observe(lost)
export.observe(SolverReady("solver-1"))
with Journal(folder / "metrics.jsonl") as metrics:
    for batch in (5, 10):
        clock = {"wait_s": 1.5, "draw_s": 0.25, "step_s": 4.0}
        metrics.append("train", batch=batch, loss=1.0 / batch, unseen=batch, seen=3, **clock)
    metrics.append("validation", batch=10, mean=0.125)
executor.writer_busy_s, executor.spilled_bytes = 1.25, 4096
time.sleep(1.1)
export.observe(Tick(1.0))
print("ready", flush=True)
sys.stdin.readline()
export.close()
"""


def scrape(targets):
    """Values by name and tags of everything that the exporters in `prometheus.json` hold of us."""
    (group,) = json.loads(targets.read_text())
    assert group["labels"] == {"job": "forebay", "forebay_run": targets.parent.name}
    found = {}
    for target in group["targets"]:
        assert ipaddress.ip_address(target.rpartition(":")[0]).is_loopback
        with urllib.request.urlopen(f"http://{target}/metrics", timeout=10) as answer:
            for name, tags, value in SAMPLE.findall(answer.read().decode()):
                tags = dict(TAGS.findall(tags))
                assert tags.pop("run") == targets.parent.name
                found[" ".join([name, *(f"{key}={tags[key]}" for key in sorted(tags))])] = float(value)
    return found


def wait_for(targets, condition, timeout=90):
    end = time.monotonic() + timeout
    while not condition(found := scrape(targets)):
        assert time.monotonic() < end, found
        POLL.wait(0.2)
    return found


@pytest.mark.ray
def test_every_series_is_scraped_with_the_value_that_the_events_give_it(tmp_path):
    folder = tmp_path / "some run"
    folder.mkdir()
    words = [sys.executable, "-c", WITHOUT_A_RUN, str(folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(words, env=ENVIRONMENT | OFTEN, text=True, **pipes) as process:
        said = process.stdout.readline()
        assert said == "ready\n", process.communicate()[1]
        targets = folder / "prometheus.json"
        found = wait_for(targets, lambda found: found.get("spilled_bytes_total") and "batches" in found)
        process.communicate("\n", timeout=60)
        assert process.returncode == 0
    assert not targets.exists()
    buckets = {key: found.pop(key) for key in list(found) if key.startswith("block_seconds")}
    assert found == {
        "samples_total outcome=CONVERGED split=train": 6,
        "samples_total outcome=CONVERGED split=validation": 1,
        "samples_total outcome=MAX_ITERATIONS split=train": 3,
        "blocks_stored_total split=train": 3,
        "solver_seconds_total split=train": pytest.approx(22.2),
        "solver_seconds_total split=validation": 3.0,
        "writer_seconds_total": 1.25,
        "frames_ingested_total": 6,
        "spilled_bytes_total": 4096,
        "lost_total kind=solver": 2,
        "lost_total kind=writer": 1,
        "lost_total kind=learner": 1,
        "lost_total kind=block": 1,
        "blocks_in_flight": 7,
        "solvers_ready": 1,
        "batches": 10,
        "loss": pytest.approx(0.1),
        "validation_error": 0.125,
        "ring_frames state=unseen": 10,
        "ring_frames state=seen": 3,
        "learner_seconds part=wait": 1.5,
        "learner_seconds part=draw": 0.25,
        "learner_seconds part=step": 4.0,
    }
    assert buckets["block_seconds_count split=train"] == 3
    assert buckets["block_seconds_bucket le=0.3 split=train"] == 1
    assert buckets["block_seconds_bucket le=10.0 split=train"] == 2


@pytest.mark.ray
def test_a_run_is_exported_while_it_goes_on_and_takes_its_targets_back(tmp_path, monkeypatch):
    study = write_tiny(tmp_path, executor="ray", samples=40, batches=100_000)
    run = tmp_path / "run"
    monkeypatch.setattr(running, "ENVIRONMENT", ENVIRONMENT | OFTEN)
    process = start("run", study, "--folder", run)
    try:
        wait_until(lambda: events(run, "production_ended"), process)
        found = wait_for(run / "prometheus.json", lambda found: found.get("batches", 0) > 0)
        assert found["samples_total outcome=CONVERGED split=train"] == 40
        assert found["samples_total outcome=CONVERGED split=validation"] == 12
        assert found["frames_ingested_total"] == 40
        assert found["solvers_ready"] == 1
        assert found["blocks_in_flight"] == 0
        assert found["writer_seconds_total"] > 0
    finally:
        os.kill(process.pid, signal.SIGTERM)
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert not (run / "prometheus.json").exists()


@pytest.fixture
def plan_of(tmp_path, capsys, monkeypatch):
    """What `forebay check` prints, by its first column, blanks and line breaks aside."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("forebay.cluster.plan_text.make_console", wide_console)

    def rows(*overrides, executor="ray"):
        print_plan(prepare(write_tiny(tmp_path, executor=executor, samples=4000), overrides, folder=tmp_path / "never"))
        cells = [line.split("│")[1:3] for line in capsys.readouterr().out.splitlines() if "│" in line]
        return {key.strip(): value.strip() for key, value in cells}

    return rows


def wide_console():
    from rich.console import Console

    return Console(width=400)


@pytest.mark.parametrize(
    ("overrides", "busy"), [(["solver.actors=7"], 8), (["solver.actors=2", "learner.ranks=4"], 6), ([], None)]
)
def test_check_warns_of_processes_that_would_take_turns(tmp_path, capsys, monkeypatch, overrides, busy):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("forebay.cluster.plan_text.make_console", wide_console)
    monkeypatch.setattr("forebay.cluster.plan_text.available_cores", lambda: 2)
    study = write_tiny(tmp_path, executor="ray")
    print_plan(prepare(study, ["run.cores=1000", "learner.threads=1", *overrides], folder=tmp_path / "never"))
    warned = re.findall(r"would keep (\d+) cores busy, and there are 2: they take turns", capsys.readouterr().out)
    assert warned == ([str(busy)] if busy else [])


def test_check_shows_memory_and_what_it_follows_from(plan_of):
    shown = plan_of("solver.actors=3", "dataset.block_samples=2000", "buffer.capacity=2000", "learner.ranks=2")
    # a sample is two float32 fields of 32 x 32; 2,000 of them make a block; 3 solvers have 4 blocks each
    assert shown["block"].startswith("15.6 MiB: 2000 samples of 8 KiB (dataset.block_samples, by default")
    assert shown["credits"] == (
        "4 blocks a solver not yet both stored and handed to the learner (run.blocks_in_flight): 12 in all, 188 MiB"
    )
    assert shown["object store"] == "750 MiB of this run (4 x all blocks in flight)"
    assert shown["ring"] == (
        "2,000 frames of 8 KiB, 15.6 MiB, reservoir; each of 2 learners holds 1,000 frames, 7.81 MiB"
    )
    small = plan_of("solver.actors=3")
    assert small["object store"] == "256 MiB of this run (4 x all blocks in flight; 256 MiB at least)"
    assert LEAST_STORE == 256 * 2**20
    assert shown["cores"].endswith(": 3 solver(s), 2 learner(s) of 1 thread(s)")
    assert "learners" not in small["ring"]


def test_check_shows_that_a_local_run_needs_no_object_store(plan_of):
    shown = plan_of(executor="local")
    assert shown["object store"] == "none: blocks do not leave the process"
    assert shown["credits"] == "1 block at a time, 64 KiB: one process solves and trains in turn"


def test_check_says_that_a_running_cluster_keeps_its_object_store(plan_of, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:7777")
    assert "of every node; that of a running cluster stays as it was started" in plan_of("run.cores=2")["object store"]


def test_targets_that_cannot_be_written_do_not_end_the_run(tmp_path, monkeypatch, caplog):
    from forebay.cluster import metrics_export

    nodes = [{"NodeManagerAddress": "127.0.0.1", "MetricsExportPort": 7, "Alive": True}]
    monkeypatch.setattr(metrics_export, "ray", SimpleNamespace(nodes=lambda: nodes))
    targets = metrics_export.Targets(tmp_path / "gone" / "prometheus.json", "run")
    targets.refresh()
    assert "could not be written, so Prometheus will not find this run" in caplog.text
    (tmp_path / "gone").mkdir()
    targets.refresh()
    assert not targets.path.exists(), "it looked a moment ago"
    targets._looked_s -= metrics_export.TARGETS_EVERY_S
    nodes.append({"NodeManagerAddress": "127.0.0.2", "MetricsExportPort": 9, "Alive": False})
    targets.refresh()
    assert json.loads(targets.path.read_text())[0]["targets"] == ["127.0.0.1:7"]
    targets.remove()
    targets.remove()
    assert not targets.path.exists()

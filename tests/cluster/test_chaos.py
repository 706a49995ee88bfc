"""Eight kills of everything there is, one after the other: the data set is that of a run that nobody disturbed."""

from __future__ import annotations

import importlib
import random
from pathlib import Path

import pytest
from running import ENVIRONMENT, brake_of, forebay, write_tiny

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
KILLS = ["solver", "node", "learner", "driver", "writer", "solver", "writer", "learner"]


@pytest.fixture
def monkeys(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(name, ENVIRONMENT[name])
    return importlib.import_module("chaos_monkey")


@pytest.mark.ray
def test_eight_kills_lose_no_sample_and_double_none(tmp_path, monkeys):
    size = {"samples": 4800, "batches": 600, "checkpoint_every_s": 0.5}
    study = write_tiny(tmp_path, executor="ray", **size)
    text = study.read_text().replace("actors = 1", "actors = 2").replace("[buffer]", '[buffer]\npolicy = "firo"')
    study.write_text(text + "[faults]\nrestarts = 100\n")
    # Each frame is used once, so that no stage can come to its end before the brake is off, however fast it is.
    brake = brake_of(study, 0.05)
    calm = forebay("run", study, "--folder", tmp_path / "calm", "--executor", "local", "--set", "learner.batches=4")
    assert calm.returncode == 0, calm.stdout + calm.stderr
    brake.touch()
    nodes = monkeys.Nodes(workers=2)
    try:
        monkey = monkeys.Monkey(study, tmp_path / "run", nodes, random.Random(7), (0.1, 0.6))
        outcome = monkey.rampage(KILLS, then=brake.unlink)
    finally:
        nodes.close()
    monkeys.inspect(tmp_path / "run", tmp_path / "calm", outcome)
    assert len(outcome.kills) == len(KILLS)
    assert {kill.victim for kill in outcome.kills} == set(monkeys.VICTIMS)
    assert (outcome.lost, outcome.doubled, outcome.missing) == (0, 0, 0)
    assert outcome.faults == []
    again = forebay("dataset", "verify", tmp_path / "run", "--samples", 3)
    assert again.returncode == 0, again.stdout + again.stderr


def test_the_inspection_notices_what_a_faulty_run_would_leave(tmp_path, monkeys):
    import json
    import shutil

    study = write_tiny(tmp_path, executor="local", samples=24, batches=6)
    run, calm = tmp_path / "run", tmp_path / "calm"
    assert forebay("run", study, "--folder", calm).returncode == 0
    shutil.copytree(calm, run)
    outcome = monkeys.Outcome()
    monkeys.inspect(run, calm, outcome)
    assert (outcome.lost, outcome.doubled, outcome.missing, outcome.faults) == (0, 0, 0, [])
    (chunk,) = (path for path in (run / "dataset.zarr" / "u" / "c" / "1").rglob("0") if path.is_file())
    data = bytearray(chunk.read_bytes())
    data[40] ^= 1
    chunk.write_bytes(bytes(data))
    lines = (run / "journal.jsonl").read_text().splitlines()
    stored = next(line for line in lines if json.loads(line)["event"] == "block_stored" and '"train"' in line)
    (run / "journal.jsonl").write_text("\n".join([*lines, stored]) + "\n")
    draws = (run / "draws.jsonl").read_text().splitlines()
    (run / "draws.jsonl").write_text("\n".join(draws[:-1]) + "\n")
    (run / "report.html").unlink()
    monkeys.inspect(run, calm, outcome)
    assert (outcome.lost, outcome.doubled, outcome.missing) == (1, 8, 0)
    assert outcome.faults == ["5 batches count, 6 were asked for", "there is no report"]

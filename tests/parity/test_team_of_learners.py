"""Learners that train together: two with half batches are one with whole ones, and all stop at the same batch."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from suites import team_member

from forebay.learners.normalise import moments_of
from forebay.learners.schedule import read_schedule
from forebay.learners.team import Solo

MEMBER = Path(team_member.__file__)


def together(task: str, folder: Path, *, size: int = 2) -> list:
    """Run all ranks of a team to their end; what each wrote."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    members = [
        subprocess.Popen(
            [sys.executable, str(MEMBER), task, str(rank), str(size), str(port), str(folder)],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(size)
    ]
    try:
        for member in members:
            output, _ = member.communicate(timeout=200)
            assert member.returncode == 0, output
    finally:
        for member in members:
            member.kill()
    return [json.loads((folder / f"{task}-{rank}.json").read_text()) for rank in range(size)]


def test_a_team_agrees_on_the_least_ready_and_on_whatever_one_of_them_wants(tmp_path):
    heard = together("agree", tmp_path)
    assert heard[0] == heard[1]
    assert heard[0] == [
        [False, False, False, False, False],  # one is not ready
        [True, False, True, False, False],  # one wants to save
        [True, True, False, True, False],
    ]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Where both ranks have left the weights of every model."""
    folder = tmp_path_factory.mktemp("models")
    together("models", folder)
    return folder


@pytest.fixture(scope="module")
def even(tmp_path_factory):
    """A team with equal shards that has trained to its end: its folder, and what each said."""
    folder = tmp_path_factory.mktemp("even")
    return folder, together("even", folder)


@pytest.mark.parametrize("model", sorted(team_member.MODELS))
def test_two_learners_with_half_batches_are_one_with_whole_batches_within_rounding(trained, model):
    first, second = (torch.load(trained / f"{model}-{rank}.pt") for rank in range(2))
    alone = team_member.train_steps(Solo(), model)
    start = team_member.Surrogate(
        team_member.SurrogateConfig(
            team_member.IOSpec.from_schema(team_member.SCHEMA), model, team_member.MODELS[model], 1000
        ),
        seed=7,
    ).state_dict()
    largest = max(float(alone[name].abs().max()) for name in alone if name.startswith("gradient."))
    for name, value in alone.items():
        assert first[name].equal(second[name]), "the two of the team differ"
        if name.startswith("gradient."):
            torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-6 * largest)
    trained = [name for name in start if start[name].is_floating_point() and name.startswith("model.")]
    moved = torch.cat([(alone[name] - start[name]).abs().flatten() for name in trained])
    apart = torch.cat([(alone[name] - first[name]).abs().flatten() for name in trained])
    # AdamW makes steps of full length of gradients that are rounding alone: a few weights may go their own way.
    assert float(apart.median()) < 1e-5 * float(moved.median())
    assert float(apart.norm()) < 0.05 * float(moved.norm())


def test_members_share_statistics_stop_at_the_same_batch_and_leave_the_same_weights(even):
    folder, (first, second) = even
    assert first["batches"] == second["batches"] == 14
    assert first["weights"] == second["weights"]
    assert first["moments"] == second["moments"]
    assert (first["chunks"], second["chunks"]) == (list(range(8)), list(range(8, 16)))
    everything = np.stack([team_member.block("train", chunk).arrays["u"] for chunk in range(16)])
    count, mean, square = moments_of(torch.from_numpy(everything)).tolist()
    seen = first["moments"][-1]
    assert seen[0] <= count
    if first["frames"] == 96:
        np.testing.assert_allclose(seen, [count, mean, square], rtol=1e-9)
    draws = [read_schedule(folder / name) for name in ("draws.jsonl", "draws-1.jsonl")]
    assert [len(d) for d in draws] == [14, 14]
    assert {len(b.keys) for d in draws for b in d} == {4}, "each draws half of the batch of 8"
    keys = [{int(k) for b in d for k in b.keys} for d in draws]
    assert max(keys[0]) < 48 <= min(keys[1]), "each draws from its own shard"


def test_a_member_whose_shard_runs_out_ends_the_training_of_all_at_the_same_batch(tmp_path):
    first, second = together("uneven", tmp_path)
    assert first["batches"] == second["batches"]
    assert 0 < first["batches"] <= 14
    assert first["weights"] == second["weights"]


def test_a_checkpoint_of_the_first_alone_leaves_the_team_in_step_and_its_last_one_whole(tmp_path):
    first, second = together("saved", tmp_path)
    assert first["batches"] == second["batches"] == 14
    assert (first["moments"], first["frames"]) == (second["moments"], second["frames"])
    assert first["weights"] == second["weights"]
    *_, latest = sorted((tmp_path / "checkpoints").iterdir())
    assert len(json.loads((latest / "state.json").read_text())["extra"]["shards"]) == 2


def test_a_team_goes_on_from_its_checkpoint_with_what_each_ring_held(even, tmp_path):
    folder, _ = even
    *_, earlier = sorted((folder / "checkpoints").iterdir())
    state = json.loads((earlier / "state.json").read_text())
    assert state["extra"]["ingested_chunks"] == list(range(16)), "what resume must not feed again"
    assert [shard["ingested_chunks"] for shard in state["extra"]["shards"]] == [list(range(8)), list(range(8, 16))]
    again = tmp_path / "again"
    shutil.copytree(folder / "checkpoints", again / "checkpoints")
    first, second = together("even", again)
    assert first["begun"] == [14, list(range(8))]
    assert second["begun"] == [14, list(range(8, 16))]
    assert first["batches"] == second["batches"] == 14

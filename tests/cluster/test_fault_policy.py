"""The policy of faults, as the pure function that it is, and the marks that tell which sample a dead solver was at."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.cluster.faults import decide
from forebay.cluster.marks import Mark, mark_file, read_mark
from forebay.pipeline.losses import Failures, Loss, Remedy
from forebay.pipeline.records import Outcome
from forebay.pipeline.study import FaultsTable

POLICY = FaultsTable(restarts=3, sample_losses=2, redraws=1, failures=0.25, failures_after=20)


def loss(in_a_row, at_sample=0, draw=0):
    return Loss("solver-0", "killed", in_a_row, at_sample, draw)


@pytest.mark.parametrize(
    ("what", "remedy"),
    [
        (loss(1), Remedy.RETRY),
        (loss(3), Remedy.RETRY),
        (loss(4), Remedy.GIVE_UP_RUN),
        (loss(2, at_sample=1), Remedy.RETRY),
        (loss(3, at_sample=2), Remedy.REDRAW),
        (loss(3, at_sample=2, draw=1), Remedy.GIVE_UP_SAMPLE),
        (loss(4, at_sample=1), Remedy.RETRY),  # the suspect has one chance more than the run
        (loss(6, at_sample=1), Remedy.GIVE_UP_RUN),  # a solver that dies at another sample every time
        (Failures(5, 19, Outcome.DIVERGED), Remedy.RETRY),  # too few to judge
        (Failures(5, 20, Outcome.DIVERGED), Remedy.RETRY),  # as many as allowed
        (Failures(6, 20, Outcome.DIVERGED), Remedy.GIVE_UP_RUN),
    ],
)
def test_the_policy_says(what, remedy):
    assert decide(POLICY, what) is remedy


@given(
    restarts=st.integers(1, 6),
    sample_losses=st.integers(1, 6),
    redraws=st.integers(0, 4),
    in_a_row=st.integers(1, 30),
    at_sample=st.integers(0, 30),
    draw=st.integers(0, 4),
)
def test_no_loss_is_retried_for_ever_and_no_sample_is_drawn_more_often_than_allowed(
    restarts, sample_losses, redraws, in_a_row, at_sample, draw
):
    policy = FaultsTable(restarts=restarts, sample_losses=sample_losses, redraws=redraws)
    remedy = decide(policy, loss(in_a_row, at_sample, draw))
    if in_a_row > restarts + sample_losses:
        assert remedy is not Remedy.RETRY
    if remedy is Remedy.REDRAW:
        assert draw < redraws
    if remedy in (Remedy.REDRAW, Remedy.GIVE_UP_SAMPLE):
        assert at_sample >= sample_losses


MARKED = """
import os, signal, sys
from pathlib import Path
from forebay.cluster.marks import Mark
with Mark(Path(sys.argv[1]), "solver-3", "train") as mark:
    mark.at(123456)
    mark.at(None)
    if sys.argv[2] == "at a sample":
        mark.at(7)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(("where", "told"), [("at a sample", ("train", 7)), ("between samples", None)])
def test_the_mark_of_a_killed_process_tells_its_sample(tmp_path, where, told):
    words = [sys.executable, "-c", MARKED, str(tmp_path), where]
    killed = subprocess.run(words, env=os.environ, check=False, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert read_mark(tmp_path, "solver-3") == told


def test_a_solver_that_finished_its_block_leaves_no_mark(tmp_path: Path):
    with Mark(tmp_path, "solver-0", "validation") as mark:
        mark.at(3)
        assert read_mark(tmp_path, "solver-0") == ("validation", 3)
    assert read_mark(tmp_path, "solver-0") is None


def test_a_mark_that_was_being_written_tells_nothing(tmp_path: Path):
    path = mark_file(tmp_path, "solver-0")
    path.parent.mkdir()
    path.write_text('{"split": "tra')
    assert read_mark(tmp_path, "solver-0") is None

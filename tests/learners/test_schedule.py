"""Reading back what a learner did: the batches that count, in order, with what was normalised before each."""

from __future__ import annotations

import json

import numpy as np
import pytest

from forebay.learners.schedule import read_schedule, read_team_schedule
from forebay.pipeline.errors import RunError


def written(folder, *lines):
    path = folder / "draws.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def batch(number, *keys, threads=1):
    return {"batch": number, "threads": threads, "keys": list(keys)}


def begin(number, *chunks):
    return {"begin": number, "normalised": list(chunks)}


def numbers(schedule):
    return [(b.number, b.keys.tolist(), b.normalised) for b in schedule]


def test_chunks_are_normalised_before_the_batch_that_follows_them(tmp_path):
    path = written(
        tmp_path, begin(0), {"normalised": 3}, batch(1, 7, 8), {"normalised": 1}, {"normalised": 2}, batch(2, 9)
    )
    assert numbers(read_schedule(path)) == [(1, [7, 8], (3,)), (2, [9], (1, 2))]


def test_what_a_killed_attempt_drew_after_its_checkpoint_does_not_count(tmp_path):
    path = written(
        tmp_path,
        begin(0),
        {"normalised": 0},
        batch(1, 1),
        batch(2, 2),
        {"normalised": 1},  # the checkpoint after batch 2 has it
        {"normalised": 2},  # this one came later
        batch(3, 3),
        begin(2, 0, 1),
        batch(3, 33),
        {"normalised": 2},
        batch(4, 4, threads=2),
    )
    schedule = read_schedule(path)
    assert numbers(schedule) == [(1, [1], (0,)), (2, [2], ()), (3, [33], (1,)), (4, [4], (2,))]
    assert [b.threads for b in schedule] == [1, 1, 1, 2]
    assert schedule[0].keys.dtype == np.int64


def test_an_attempt_that_was_killed_before_its_first_checkpoint_leaves_nothing(tmp_path):
    path = written(tmp_path, begin(0), {"normalised": 0}, batch(1, 1), begin(0), batch(1, 11))
    assert numbers(read_schedule(path)) == [(1, [11], ())]


def test_a_missing_batch_and_a_missing_file_are_told(tmp_path):
    with pytest.raises(RunError, match="has drawn no batch yet"):
        read_schedule(tmp_path / "draws.jsonl")
    with pytest.raises(RunError, match=r"batch 2 is missing or incomplete \(found 3\)"):
        read_schedule(written(tmp_path, begin(0), batch(1, 1), batch(3, 3)))
    with pytest.raises(RunError, match="batch 1 is missing or incomplete"):
        read_schedule(written(tmp_path, {"batch": 1, "keys": [1]}))  # as written by version 0.2
    for odd in ({"foo": 5}, {"batch": 1, "threads": 1}):
        with pytest.raises(RunError, match="batch 1 is missing or incomplete"):
            read_schedule(written(tmp_path, odd))


def test_the_shares_of_a_team_are_one_batch_and_what_one_of_them_lacks_does_not_count(tmp_path):
    written(tmp_path, begin(0), {"normalised": 0}, batch(1, 1, 2), batch(2, 3, 4), batch(3, 5, 6))
    second = [begin(0), {"normalised": 7}, batch(1, 11, 12), {"normalised": 8}, batch(2, 13, 14)]
    (tmp_path / "draws-1.jsonl").write_text("".join(json.dumps(line) + "\n" for line in second))
    assert numbers(read_team_schedule(tmp_path, 2)) == [(1, [1, 2, 11, 12], (0, 7)), (2, [3, 4, 13, 14], (8,))]
    assert len(read_team_schedule(tmp_path, 1)) == 3

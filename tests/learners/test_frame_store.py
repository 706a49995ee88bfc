"""Frames by key from a data set that does not fit into memory: the right rows, and no read too many."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from forebay.learners.replay import FrameStore
from forebay.learners.schedule import ScheduledBatch
from forebay.pipeline.errors import RunError
from forebay.pipeline.records import Block, Field, Outcome, Parameter, Schema, SolveRecord

SCHEMA = Schema((Parameter("s", 0.0, 1.0),), (), (Field("u", ("x",), (5,)),), times=(0.0, 1.0))
SAMPLES = 4
FRAMES = SAMPLES * SCHEMA.steps


def load(chunk):
    """Every value of a frame is its key; sample 1 of chunk 2 is not valid."""
    ids = np.arange(chunk * SAMPLES, (chunk + 1) * SAMPLES)
    valid = [not (chunk == 2 and k == 1) for k in range(SAMPLES)]
    keys = ids[:, None] * SCHEMA.steps + np.arange(SCHEMA.steps)
    u = np.repeat(keys[:, :, None], 5, axis=2).astype(np.float32)
    records = [
        SolveRecord(int(i), 7, Outcome.CONVERGED if ok else Outcome.DIVERGED, "cg", 1, 0.0, 0.1)
        for i, ok in zip(ids, valid, strict=True)
    ]
    return Block("train", chunk, ids, {"parameters": ids[:, None] * 0.5, "u": u}, records)


def schedule_of(*batches):
    return [ScheduledBatch(n, np.array(keys, np.int64), 1, ()) for n, keys in enumerate(batches, start=1)]


def store_of(schedule, chunks_in_memory):
    frame_bytes = 4 * (5 + 1 + 1)
    return FrameStore(load, SCHEMA, SAMPLES, schedule, memory_bytes=chunks_in_memory * FRAMES * frame_bytes)


def read(store, schedule):
    for batch in schedule:
        arrays = store.batch(batch.number, batch.keys)
        torch.testing.assert_close(arrays["u"], torch.tensor(batch.keys).float()[:, None].expand(-1, 5), rtol=0, atol=0)
        torch.testing.assert_close(arrays["parameters"][:, 0], torch.tensor(batch.keys // 2).float() * 0.5)
        torch.testing.assert_close(arrays["time"][:, 0], torch.tensor(batch.keys % 2).float())


def test_batches_have_their_frames_in_order_whatever_the_memory():
    rng = np.random.default_rng(7)
    allowed = np.array([k for k in range(5 * FRAMES) if k // 2 != 2 * SAMPLES + 1])
    schedule = schedule_of(*(rng.choice(allowed, 6, replace=False) for _ in range(40)))
    reads = {}
    for chunks in (0, 2, 100):
        store = store_of(schedule, chunks)
        read(store, schedule)
        reads[chunks] = store.reads
    assert reads[100] == 5, "with room for all, each chunk is read once"
    assert reads[100] < reads[2] < reads[0]


def test_the_chunk_whose_next_use_is_farthest_goes_first():
    one_of = lambda chunk: [chunk * FRAMES]  # noqa: E731
    schedule = schedule_of(one_of(0), one_of(1), one_of(2), one_of(0), one_of(0), one_of(2), one_of(1))
    store = store_of(schedule, 2)
    read(store, schedule)
    assert store.reads == 4, "least recently used would have read 6"


def test_a_chunk_that_is_not_needed_any_more_is_dropped_at_once():
    schedule = schedule_of([0], [FRAMES], [2 * FRAMES])
    store = store_of(schedule, 100)
    read(store, schedule)
    assert not store._held


def test_a_frame_that_the_data_set_lacks_is_told():
    lacking = 2 * FRAMES + 2  # of the sample that is not valid
    schedule = schedule_of([0, lacking])
    with pytest.raises(RunError, match="batch 1 has frames that chunk 2 of the data set lacks"):
        store_of(schedule, 100).batch(1, schedule[0].keys)

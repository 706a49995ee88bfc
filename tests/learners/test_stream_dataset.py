import fcntl
import itertools
import logging
import os
import threading

import numpy as np
import pytest
import torch
from dataset_samples import (
    ATTRIBUTES,
    make_dataset,
    sample_arrays,
    stationary_schema,
    store_and_commit,
    transient_schema,
    without_fsync,
)
from torch.utils.data import DataLoader

from forebay.learners.stream import StreamDataset
from forebay.pipeline.dataset import DatasetCoordinator, DatasetWriter
from forebay.pipeline.errors import DatasetError
from forebay.pipeline.records import ChunkPlan

SCHEMA, TIMED = stationary_schema(), transient_schema()
PLAN = ChunkPlan("train", 43, 4)
FAILING = (2, 3, 29)
VALID = [i for i in range(43) if i not in FAILING]
SOON = 0.002


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    with without_fsync():
        make_dataset(folder / "dataset.zarr", SCHEMA, PLAN, failing=FAILING)
        make_dataset(folder / "validation.zarr", SCHEMA, ChunkPlan("validation", 7, 4))
    return folder


@pytest.fixture(scope="module")
def identity():
    """Bytes of u → sample id."""
    return {sample_arrays(SCHEMA, i)["u"].tobytes(): i for i in range(43)}


@pytest.fixture
def ids_of(identity):
    return lambda batches: [identity[row.numpy().tobytes()] for batch in batches for row in batch["u"]]


# -- from disk ---------------------------------------------------------------------------------------------------------


def test_a_pass_gives_every_valid_frame_once_in_batches_of_float32_tensors(run, ids_of):
    batches = list(StreamDataset(run, batch_size=16))
    assert [len(batch["u"]) for batch in batches] == [16, 16, 8]
    assert sorted(ids_of(batches)) == VALID
    assert {name: (tuple(t.shape), t.dtype) for name, t in batches[0].items()} == {
        "a": ((16, 4, 3), torch.float32),
        "u": ((16, 4, 3), torch.float32),
        "flux": ((16,), torch.float32),
        "parameters": ((16, 2), torch.float32),
    }
    for batch in batches:
        for row, sample in enumerate(ids_of([batch])):
            made = sample_arrays(SCHEMA, sample)
            assert batch["a"][row].numpy().tobytes() == made["a"].tobytes()
            assert batch["parameters"][row].tolist() == made["parameters"].astype(np.float32).tolist()


def test_the_order_follows_from_the_seed_and_differs_from_pass_to_pass(run, ids_of):
    first, again = StreamDataset(run, batch_size=8, seed=11), StreamDataset(run, batch_size=8, seed=11)
    passes = [ids_of(first), ids_of(first), ids_of(again), ids_of(StreamDataset(run, batch_size=8, seed=13))]
    assert passes[0] == passes[2]
    assert passes[0] != passes[1]
    assert passes[0] != passes[3]
    assert passes[0] != VALID
    assert all(sorted(order) == VALID for order in passes)


def test_so_many_batches_are_given_as_were_asked_for(run, ids_of):
    batches = list(StreamDataset(run, batch_size=16, batches=7))
    assert [len(batch["u"]) for batch in batches] == [16, 16, 8, 16, 16, 8, 16]
    seen = ids_of(batches)
    assert sorted(seen[:40]) == sorted(seen[40:80]) == VALID
    assert seen[:40] != seen[40:80]


def test_frames_in_time_have_their_time_and_fields_can_be_chosen(tmp_path):
    with without_fsync():
        path = make_dataset(tmp_path / "dataset.zarr", TIMED, ChunkPlan("train", 5, 2))
    (batch,) = StreamDataset(path, batch_size=99, fields=["temperature"])
    assert set(batch) == {"temperature", "parameters", "time"}
    assert tuple(batch["temperature"].shape) == (15, 5)
    assert sorted(batch["time"].flatten().tolist()) == sorted([0.5, 1.0, 2.0] * 5)


def test_the_validation_split_and_the_schema_are_at_hand(run):
    stream = StreamDataset(run, batch_size=99, split="validation")
    assert [len(batch["u"]) for batch in stream] == [7]
    assert [item.name for item in stream.schema.outputs] == ["u", "flux"]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than this machine has cores
@pytest.mark.parametrize("workers", [0, 2])
def test_under_a_loader_workers_divide_the_samples(run, ids_of, workers):
    torch.manual_seed(7)
    loader = DataLoader(StreamDataset(run, batch_size=8), batch_size=None, num_workers=workers)
    first, second = list(loader), list(loader)
    assert sorted(ids_of(first)) == sorted(ids_of(second)) == VALID
    assert ids_of(first) != ids_of(second), "every epoch has its own order"
    limited = DataLoader(StreamDataset(run, batch_size=8, batches=9), batch_size=None, num_workers=workers)
    assert len(list(limited)) == 9


def test_processes_that_train_together_divide_the_chunks(run, ids_of):
    parts = [ids_of(StreamDataset(run, batch_size=8, shard=(rank, 3))) for rank in range(3)]
    assert sorted(itertools.chain(*parts)) == VALID
    assert all({i // 4 % 3 for i in part} == {rank} for rank, part in enumerate(parts))


# -- following a run ---------------------------------------------------------------------------------------------------


class FakeRun:
    """A run folder to which samples are added by hand; its journal is locked as a writer's would be."""

    def __init__(self, folder, *, journal=True):
        self.folder = folder
        self.coordinator = DatasetCoordinator.create(folder / "dataset.zarr", SCHEMA, PLAN, ATTRIBUTES)
        self.writer = DatasetWriter(folder / "dataset.zarr", SCHEMA, PLAN)
        self.lock = None
        if journal:
            self.begin()

    def begin(self):
        self.lock = os.open(self.folder / "journal.jsonl", os.O_CREAT | os.O_RDWR)
        fcntl.flock(self.lock, fcntl.LOCK_SH)

    def add(self, *chunks):
        with without_fsync():
            store_and_commit(self.writer, self.coordinator, SCHEMA, chunks, FAILING)
            self.coordinator.publish()

    def end(self):
        self.coordinator.close()
        if self.lock is not None:
            os.close(self.lock)
            self.lock = None


@pytest.fixture
def going_on(tmp_path):
    with without_fsync():
        run = FakeRun(tmp_path)
        yield run
        run.end()


@pytest.mark.parametrize("policy", ["fifo", "firo"])
def test_a_run_is_followed_to_its_last_sample_and_every_frame_given_once(going_on, ids_of, policy):
    going_on.add(0, 1, 2, 3)
    stream = StreamDataset(going_on.folder, batch_size=4, follow=True, policy=policy, threshold=0, poll_s=SOON)
    batches, seen_early = iter(stream), []
    seen_early += ids_of([next(batches)])
    assert set(seen_early) <= set(range(16)), "nothing else was there"
    going_on.add(*range(4, 11))
    seen = seen_early + ids_of(batches)  # ends by itself: the last sample is there although the run still goes on
    assert sorted(seen) == VALID
    assert (seen == VALID) == (policy == "fifo")


def test_a_reservoir_draws_while_it_waits_and_drains_at_the_end(going_on, ids_of):
    going_on.add(0, 1)
    stream = StreamDataset(going_on.folder, batch_size=5, follow=True, threshold=3, poll_s=SOON)
    batches = iter(stream)
    early = ids_of(next(batches) for _ in range(20))
    assert set(early) == {0, 1, 4, 5, 6, 7}
    going_on.add(*range(2, 11))
    late = ids_of(batches)
    assert set(late) == set(VALID)
    assert sorted(late[-40:]) == VALID, "the drain gives each frame that it holds once"


def test_a_small_buffer_gives_way_and_still_sees_every_frame(going_on, ids_of):
    going_on.add(*range(11))
    stream = StreamDataset(going_on.folder, batch_size=3, follow=True, policy="firo", capacity=8, poll_s=SOON)
    assert sorted(ids_of(stream)) == VALID


def test_a_run_that_ends_early_ends_the_stream_with_a_warning(going_on, ids_of, caplog):
    going_on.add(0, 1, 2)
    going_on.end()
    with caplog.at_level(logging.WARNING):
        seen = ids_of(StreamDataset(going_on.folder, batch_size=4, follow=True, policy="fifo", poll_s=SOON))
    assert seen == [i for i in VALID if i < 12]
    assert "its run has ended with 12 of 43 samples; `forebay resume` makes the others" in caplog.text


def test_a_stream_waits_for_a_run_that_has_not_begun(tmp_path, ids_of):
    made = []

    def begin():
        with without_fsync():
            run = FakeRun(tmp_path)
            run.add(*range(11))
        made.append(run)

    timer = threading.Timer(0.2, begin)
    timer.start()
    stream = StreamDataset(tmp_path, batch_size=8, follow=True, policy="fifo", poll_s=SOON, patience_s=60)
    assert ids_of(stream) == VALID
    timer.join()
    made[0].end()


def test_patience_ends(tmp_path):
    stream = StreamDataset(tmp_path, batch_size=8, follow=True, poll_s=SOON, patience_s=0.01)
    with pytest.raises(DatasetError, match=r"no data set at .*dataset.zarr: it has no zarr.json"):
        next(iter(stream))
    with without_fsync():
        run = FakeRun(tmp_path, journal=False)  # a data set whose run never opens its journal
        run.add(0)
        stream = StreamDataset(tmp_path, batch_size=8, follow=True, policy="fifo", poll_s=SOON, patience_s=0.01)
        assert sum(len(batch["u"]) for batch in stream) == 2
        run.end()


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than this machine has cores
@pytest.mark.parametrize("workers", [2])
def test_workers_follow_their_own_chunks(going_on, ids_of, workers):
    going_on.add(*range(11))
    stream = StreamDataset(going_on.folder, batch_size=8, follow=True, policy="firo", poll_s=SOON)
    assert sorted(ids_of(DataLoader(stream, batch_size=None, num_workers=workers))) == VALID


def test_draws_of_one_seed_are_equal_when_everything_is_there(run, ids_of):
    def draws(seed):
        return ids_of(StreamDataset(run, batch_size=8, follow=True, batches=12, seed=seed, poll_s=SOON))

    assert draws(7) == draws(7)
    assert draws(7) != draws(11)


# -- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size = 0 and batches = None: both must be at least 1"),
        ({"batches": 0}, "batches = 0"),
        ({"shard": (2, 2)}, r"shard = \(2, 2\) is no \(number, how many\)"),
        ({"split": "test"}, "split = 'test' is none of train, validation"),
        ({"fields": ["v"]}, r"has no field 'v'; it has a, u, flux"),
    ],
)
def test_arguments_out_of_range_are_refused(run, arguments, message):
    with pytest.raises(ValueError, match=message):
        StreamDataset(run, **({"batch_size": 8} | arguments))


def test_a_batch_that_can_never_be_drawn_is_refused(run):
    stream = StreamDataset(run, batch_size=8, follow=True, policy="firo", capacity=10, threshold=5)
    with pytest.raises(ValueError, match="a batch of 8 frames can never be drawn from firo with capacity 10"):
        next(iter(stream))


def test_a_folder_without_samples_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="no data set at"):
        StreamDataset(tmp_path, batch_size=8)
    with without_fsync():
        make_dataset(tmp_path / "dataset.zarr", SCHEMA, PLAN, chunks=[])
    with pytest.raises(DatasetError, match="has no valid samples; with follow=True they are waited for"):
        next(iter(StreamDataset(tmp_path, batch_size=8)))


def test_a_device_in_a_worker_is_refused(run):
    loader = DataLoader(StreamDataset(run, batch_size=8, device="meta"), batch_size=None, num_workers=1)
    with pytest.raises(ValueError, match="device = 'meta' in a worker of a DataLoader: give device='cpu' and move"):
        next(iter(loader))
    assert next(iter(StreamDataset(run, batch_size=8, device="meta")))["u"].device.type == "meta"


# -- memory of the batches ---------------------------------------------------------------------------------------------


def test_memory_is_used_again_when_nobody_holds_the_batch_any_more(run):
    addresses = [batch["u"].data_ptr() for batch in StreamDataset(run, batch_size=8, batches=5)]
    assert len(set(addresses)) <= 2


@pytest.mark.parametrize("hold", [lambda u: u, lambda u: u[1:], lambda u: u.numpy(), lambda u: u.view(-1)])
def test_a_batch_that_is_held_keeps_its_values(run, ids_of, hold):
    held, ids, stream = [], [], StreamDataset(run, batch_size=8, batches=20)
    for batch in stream:
        ids.append(ids_of([batch]))
        held.append(hold(batch["u"]))
    for view, samples in zip(held, ids, strict=True):
        whole = np.stack([sample_arrays(SCHEMA, i)["u"] for i in samples])
        assert np.array_equal(np.asarray(view), np.asarray(hold(torch.from_numpy(whole))))

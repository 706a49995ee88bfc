"""The run's core without a process of its own: small rings, early ends, and files that cannot be written."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from running import write_tiny

from forebay.cluster import drive as driving
from forebay.cluster import launch as launching
from forebay.cluster import provenance
from forebay.cluster.faults import decide
from forebay.cluster.history import read_history
from forebay.cluster.local_executor import LocalExecutor
from forebay.learners.learner import StreamLearner
from forebay.pipeline.controller import Controller
from forebay.pipeline.dataset import DatasetCoordinator
from forebay.pipeline.errors import DatasetError, RunError, StudyError
from forebay.pipeline.journal import Journal, read_journal
from forebay.pipeline.keeper import Keeper
from forebay.pipeline.losses import Losses
from forebay.pipeline.messages import (
    BlockIngested,
    BlockLost,
    BlockStored,
    CheckpointSaved,
    Event,
    Finish,
    Solve,
    SolverLost,
    StopRequested,
    Store,
    Tick,
    TrainingEnded,
    WriterLost,
)
from forebay.pipeline.plan import make_plan
from forebay.pipeline.records import Block, Field, Outcome, Parameter, Schema, SolveRecord
from forebay.pipeline.run import run
from forebay.pipeline.study import FaultsTable, study_from_dict

SCHEMA = Schema((Parameter("height", 0.0, 1.0),), (), (Field("u", ("y", "x"), (4, 4)),))


def study_of(**buffer):
    """64 samples in blocks of 16, batches of 4."""
    batches = buffer.pop("batches")
    return study_from_dict(
        {
            "name": "core",
            "samples": 64,
            "problem": {"name": "any.py:Any"},
            "validation": {"samples": 8},
            "buffer": buffer,
            "learner": {"model": {"name": "mlp", "hidden": [8]}, "batch_size": 4, "batches": batches},
            "dataset": {"block_samples": 16},
        }
    )


@dataclass
class BlockMaker:
    """A solver of random numbers; `outcome` is that of every training sample."""

    plans: dict
    outcome: Outcome = Outcome.CONVERGED

    def solve_block(self, split, chunk):
        ids = self.plans[split].sample_ids(chunk)
        rng = np.random.default_rng([317, chunk])
        outcome = Outcome.CONVERGED if split == "validation" else self.outcome
        records = [SolveRecord(int(i), 7, outcome, "none", 0, 0.0, 0.0) for i in ids]
        arrays = {"parameters": rng.random((len(ids), 1)), "u": rng.random((len(ids), 4, 4), np.float32)}
        return Block(split, chunk, ids, arrays, records)


@dataclass
class Memory:
    """Sink and keeper that remember."""

    stored: list = field(default_factory=list)
    events: list[Event] = field(default_factory=list)

    def store(self, block):
        self.stored.append((block.split, block.chunk))

    def note(self, command):
        pass

    def keep(self, event):
        self.events.append(event)

    def close(self, ending):
        self.events.append(ending)


def run_in_process(folder, study, outcome=Outcome.CONVERGED, *, stop_after=None, earlier=None, tick=False):
    """A whole local run, or what follows an earlier one in the same folder; how it ended, what was remembered, weights.

    `stop_after` is the number of stored training blocks after which the run is asked to stop; with `tick` a checkpoint
    is due whenever a block is stored.
    """
    plan = make_plan(study, SCHEMA, cores=1)
    maker, memory = BlockMaker(plan.chunks, outcome), Memory()
    learner = StreamLearner.open(
        SCHEMA,
        study.learner,
        plan,
        policy=study.buffer.policy,
        validate_every=1000,
        seed=331,
        folder=folder,
        clock_zero=time.time(),
        keep_checkpoints=1,
        load=lambda key: maker.solve_block(*key),
        resume=earlier is not None,
    )
    executor = LocalExecutor(
        maker, {"train": memory, "validation": memory}, learner, lambda key: maker.solve_block(*key)
    )
    controller = Controller(
        plan.chunks,
        ["solver-0"],
        1,
        losses=Losses(partial(decide, FaultsTable())),
        stored=earlier.stored if earlier else (),
        ingested=read_history(folder).ingested,
        checkpoint_every_s=1e-9 if tick else 1e12,
        batches_ended=bool(earlier and any(isinstance(e, TrainingEnded) for e in earlier.events)),
    )

    def observe(event):
        if tick and isinstance(event, BlockStored):
            executor.post(Tick(time.time()))
        if isinstance(event, BlockStored) and sum(split == "train" for split, _ in memory.stored) == stop_after:
            executor.post(StopRequested("the test"))

    ending = run(controller, executor, memory, observe=observe)
    return ending, memory, learner.state.surrogate.state_dict()


@pytest.mark.parametrize(
    "buffer",
    [
        {"policy": "fifo", "capacity": 8},
        {"policy": "firo", "capacity": 8, "threshold": 4},
        {"policy": "reservoir", "capacity": 8, "threshold": 4},
    ],
    ids=lambda buffer: buffer["policy"],
)
def test_a_budget_that_is_spent_before_the_data_ends_training_and_the_data_set_is_completed(tmp_path, buffer):
    ending, memory, _ = run_in_process(tmp_path, study_of(batches=6, **buffer))
    assert ending == Finish("complete"), ending
    assert sorted(memory.stored) == [("train", c) for c in range(4)] + [("validation", 0)]
    assert [e.batches for e in memory.events if isinstance(e, TrainingEnded)] == [6]
    fed = [e.key for e in memory.events if isinstance(e, BlockIngested) and e.key[0] == "train"]
    assert len(fed) < 4, "blocks were still handed over when training had ended"


@pytest.mark.parametrize("policy", ["fifo", "firo", "reservoir"])
def test_a_block_that_is_larger_than_the_ring_is_ingested_completely_and_counted_once(tmp_path, policy):
    ending, memory, _ = run_in_process(tmp_path, study_of(policy=policy, capacity=8, batches=80))
    assert ending == Finish("complete"), ending
    frames = [e.frames for e in memory.events if isinstance(e, BlockIngested) and e.key[0] == "train"]
    assert frames == [16, 16, 16, 16]


@pytest.mark.parametrize(("batches", "stop_after"), [(6, 1), (6, 3), (20, 1), (20, 3), (20, 4)])
@pytest.mark.parametrize("policy", ["fifo", "firo", "reservoir"])
def test_a_stopped_run_with_a_small_ring_resumes_to_the_weights_of_the_uninterrupted_one(
    tmp_path, policy, stop_after, batches
):
    study = study_of(policy=policy, capacity=8, batches=batches)
    _, _, whole = run_in_process(tmp_path / "whole", study)
    stopped, first, _ = run_in_process(tmp_path / "halves", study, stop_after=stop_after)
    assert stopped == Finish("stopped", "the test")
    ending, second, resumed = run_in_process(tmp_path / "halves", study, earlier=first)
    assert ending == Finish("complete")
    assert sorted(first.stored + second.stored) == [("train", c) for c in range(4)] + [("validation", 0)]
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


@pytest.mark.parametrize("policy", ["firo", "reservoir"])
def test_checkpoints_by_the_clock_leave_no_trace_in_the_weights(tmp_path, policy):
    study = study_of(policy=policy, capacity=8, batches=20)
    _, _, without = run_in_process(tmp_path / "without", study)
    _, memory, with_them = run_in_process(tmp_path / "with", study, tick=True)
    assert sum(isinstance(e, CheckpointSaved) for e in memory.events) >= 3
    for name, value in without.items():
        assert torch.equal(value, with_them[name]), name


def test_a_study_without_a_valid_training_sample_fails_and_resumes_as_not_trained(tmp_path):
    ending, memory, _ = run_in_process(tmp_path, study_of(policy="reservoir", batches=16), Outcome.DIVERGED)
    assert ending.status == "failed"
    assert "no training sample is valid" in ending.reason
    assert len(memory.stored) == 5, "the data set has every sample, and why each failed"
    with Journal(tmp_path / "journal.jsonl") as journal:
        journal.append("training_ended", batches=0)
    assert not read_history(tmp_path).training_ended


def test_a_keeper_whose_disk_is_full_still_closes_everything_and_journals_the_end(tmp_path):
    closed = []

    def dataset(name):
        def close():
            closed.append(name)
            raise DatasetError(f"no space for {name}")

        return SimpleNamespace(close=close)

    keeper = Keeper(
        Journal(tmp_path / "journal.jsonl"), {"train": dataset("train"), "validation": dataset("validation")}
    )
    with pytest.raises(DatasetError, match="no space for"):
        keeper.close(None)
    assert sorted(closed) == ["train", "validation"]
    (line,) = read_journal(tmp_path / "journal.jsonl")
    assert line["status"] == "failed"
    with pytest.raises(ValueError, match="is closed"):
        keeper.journal.append("late")


def test_a_buffer_threshold_that_the_study_never_exceeds_is_refused():
    with pytest.raises(StudyError, match=r"buffer.threshold = 64 is never exceeded by the 64 frames .* at most 63"):
        make_plan(study_of(policy="reservoir", capacity=100, threshold=64, batches=6), SCHEMA, cores=1)
    assert make_plan(study_of(policy="reservoir", capacity=5000, batches=6), SCHEMA, cores=1).threshold == 16


def test_training_options_are_checked_before_a_run_folder_is_made(tmp_path):
    overrides = ["learner.schedule=cosine", "learner.warmup=30"]
    with pytest.raises(StudyError, match=r"learner.warmup = 30 is not below learner.batches = 30"):
        launching.launch(write_tiny(tmp_path, executor="local"), overrides, None, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_folder_that_cannot_be_made_is_one_message(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match=r"cannot be made: .*choose a --folder that can be written"):
        launching.launch(write_tiny(tmp_path, executor="local"), [], None, tmp_path / "file" / "run")


def starting(monkeypatch, event):
    """Instead of the stages' start."""

    def start(prepared, clock_zero, *, resume):
        event()
        raise AssertionError("the start went on")

    monkeypatch.setattr(driving, "_start", start)


def test_a_signal_while_the_stages_start_ends_the_run_as_stopped_and_resume_starts_it_again(tmp_path, monkeypatch):
    run_folder, before = tmp_path / "run", signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        starting(patch, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert launching.launch(write_tiny(tmp_path, executor="local"), [], None, run_folder) == 0
    assert signal.getsignal(signal.SIGTERM) is before
    first = list(read_journal(run_folder / "journal.jsonl"))
    assert [line["event"] for line in first] == ["run_started", "run_finished"]
    assert (first[-1]["status"], first[-1]["reason"]) == ("stopped", "SIGTERM")
    assert json.loads((run_folder / "summary.json").read_text())["status"] == "stopped"
    starts = []
    monkeypatch.setattr(driving, "_start", lambda prepared, zero, *, resume: starts.append(resume) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        launching.relaunch(run_folder)
    assert starts == [True]


def test_a_start_that_fails_is_a_run_that_failed_and_leaves_no_lock(tmp_path, monkeypatch):
    run_folder = tmp_path / "run"
    starting(monkeypatch, lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        launching.launch(write_tiny(tmp_path, executor="local"), [], None, run_folder)
    ends = [line.get("status") for line in read_journal(run_folder / "journal.jsonl")]
    assert ends == [None, "failed"]
    DatasetCoordinator.open(run_folder / "dataset.zarr").close()


def test_resume_reads_what_was_stored_only_when_no_other_attempt_can_add_to_it(tmp_path, monkeypatch):
    run_folder = tmp_path / "run"
    opened = []
    monkeypatch.setattr(driving, "drive", lambda prepared, datasets, history, words: opened.append(datasets) or 0)
    launching.launch(write_tiny(tmp_path, executor="local"), [], None, run_folder)
    for dataset in opened.pop().values():
        dataset.close()
    locked = []

    def read(folder):
        try:
            DatasetCoordinator.open(folder / "dataset.zarr").close()
        except DatasetError as error:
            locked.append("another process is writing" in str(error))
        else:
            locked.append(False)
        return read_history(folder)

    monkeypatch.setattr(launching, "read_history", read)
    assert launching.relaunch(run_folder) == 0
    assert locked[-1], "a block that another attempt stores now would be solved and kept twice"
    for dataset in opened.pop().values():
        dataset.close()
    assert json.loads((run_folder / "study.json").read_text())["study"]["name"] == "tiny"


def test_the_commit_is_that_of_our_own_source_tree_and_not_of_a_repository_around_an_installed_copy(monkeypatch):
    asked = []

    def git(folder, *words):
        asked.append(words[0])
        return "" if words[0] == "ls-files" else "0123456789ab"

    monkeypatch.setattr(provenance, "_git", git)
    assert provenance._commit() == ""
    assert asked == ["ls-files"]


@pytest.mark.parametrize(
    ("kind", "event"), [("ActorDiedError", WriterLost("gone")), ("ObjectLostError", BlockLost(("train", 3), "gone"))]
)
def test_lost_processes_and_lost_objects_are_events_that_name_what_is_gone(monkeypatch, tmp_path, kind, event):
    from ray import exceptions

    from forebay.cluster import ray_executor

    error = exceptions.ActorDiedError() if kind == "ActorDiedError" else exceptions.ObjectLostError("ab" * 28, None, "")

    def get(reference):
        raise error

    monkeypatch.setattr(ray_executor.ray, "get", get)
    monkeypatch.setattr(ray_executor, "_reason", lambda error: "gone")
    executor = ray_executor.RayExecutor(SimpleNamespace(folder=tmp_path), time.time, 0.0, False)
    executor._generation |= {"solver-0": 1, "writer": 2}
    key = ("train", 3)
    lost = executor._event_of("a", ray_executor._Pending(Solve(key, "solver-0"), "solver-0", 1))
    assert lost == SolverLost("solver-0", "gone")
    assert executor._event_of("b", ray_executor._Pending(Store(key), "writer", 2)) == event
    late = executor._event_of("c", ray_executor._Pending(Store(key), "writer", 1))
    assert isinstance(late, Tick), "asked of a writer that was replaced before"


@pytest.mark.parametrize(("text", "message"), [("{", "is not JSON"), ('{"study": {}}', "holds no study")])
def test_a_run_whose_study_is_damaged_is_not_resumed(tmp_path, text, message):
    (tmp_path / "study.json").write_text(text)
    with pytest.raises((RunError, DatasetError), match=message):
        launching.relaunch(tmp_path)

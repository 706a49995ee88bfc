"""The run's state machine: random event orders never break its invariants, and every run ends with every block."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forebay.cluster.faults import decide
from forebay.pipeline.controller import Controller as PlainController
from forebay.pipeline.losses import Losses
from forebay.pipeline.messages import (
    BlockIngested,
    BlockLost,
    BlockSolved,
    BlockStored,
    Checkpoint,
    CheckpointSaved,
    EndProduction,
    Feed,
    Finish,
    LearnerLost,
    LearnerReady,
    LoadAndFeed,
    RestartLearner,
    RestartSolver,
    RestartWriter,
    Solve,
    SolverLost,
    SolverReady,
    StageFailed,
    StartTraining,
    StopRequested,
    Store,
    Tick,
    TrainingEnded,
    WriterLost,
)
from forebay.pipeline.records import Care, ChunkPlan, Outcome, SolveRecord
from forebay.pipeline.study import FaultsTable


def Controller(*words, faults=None, **options):
    """A controller with the real policy."""
    return PlainController(*words, losses=Losses(partial(decide, faults or FaultsTable())), **options)


@dataclass
class World:
    """Carries out commands in an arbitrary order, loses what it likes, and reports events."""

    controller: PlainController
    rng: random.Random
    todo: list = field(default_factory=list)
    solves: list = field(default_factory=list)
    stores: list = field(default_factory=list)
    fed: list = field(default_factory=list)
    """What the present learner holds."""
    saved: frozenset = frozenset()
    """Training chunks in its checkpoint."""
    started: int = 0
    ended: int = 0

    def submit(self, commands):
        for command in commands:
            match command:
                case StartTraining():
                    assert {k for k in self.fed if k[0] == "validation"}, "training begins without validation data"
                    self.started += 1
                case EndProduction():
                    self.ended += 1
                    self.todo.append(TrainingEnded(7))
                case Finish() | RestartWriter():
                    pass
                case RestartSolver(solver=name):
                    self.todo.append(SolverReady(name))
                case RestartLearner():
                    self.todo.append(LearnerReady(2, self.saved))
                case _:
                    self.todo.append(command)

    def handle(self, event):
        self.submit(self.controller.handle(event))
        self.controller.validate()

    def step(self, loss_probability: float):
        item = self.todo.pop(self.rng.randrange(len(self.todo)))
        lost = self.rng.random() < loss_probability
        match item:
            case Solve(solver=solver) if lost:
                self.todo = [t for t in self.todo if not (isinstance(t, Solve) and t.solver == solver)]
                self.handle(SolverLost(solver, "killed by the test"))
            case Store() if lost:
                self.todo = [t for t in self.todo if not isinstance(t, Store)]
                self.handle(WriterLost("killed by the test"))
            case Feed(key=key) if lost and self.rng.random() < 0.5:
                self.handle(BlockLost(key, "its node is gone"))
            case Feed() | LoadAndFeed() | Checkpoint() | TrainingEnded() if lost:
                mine = (Feed, LoadAndFeed, Checkpoint, TrainingEnded)
                self.todo = [t for t in self.todo if not isinstance(t, mine)]
                self.fed = []
                self.handle(LearnerLost("killed by the test"))
            case Solve(key=key, solver=solver):
                self.solves.append(key)
                self.handle(BlockSolved(key, solver, (), np.zeros((0, 0)), 0.1))
            case Store(key=key):
                self.stores.append(key)
                self.handle(BlockStored(key))
            case Feed(key=key) | LoadAndFeed(key=key):
                self.fed.append(key)
                self.handle(BlockIngested(key, 4))
            case Checkpoint():
                self.saved = frozenset(chunk for split, chunk in self.fed if split == "train")
                self.handle(CheckpointSaved(3, "here"))
            case LearnerReady(chunks=chunks):
                self.fed = [("train", chunk) for chunk in chunks]
                self.handle(item)
            case TrainingEnded() | SolverReady():
                self.handle(item)

    def run(self, loss_probability=0.0):
        self.submit(self.controller.start())
        self.controller.validate()
        for count in range(10_000):
            if self.controller.finished:
                return self.controller.finished
            assert self.todo, "the run waits for something that nobody will do"
            self.step(loss_probability)
            if loss_probability and count % 7 == 0:
                self.handle(Tick(100.0 * count))
        raise AssertionError("the run does not end")


def plans(train=5, validation=2):
    return {"train": ChunkPlan("train", 4 * train - 1, 4), "validation": ChunkPlan("validation", 4 * validation, 4)}


def every_key(p):
    return {(split, c) for split, plan in p.items() for c in range(plan.chunks)}


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(2, 10**6),
    train=st.integers(1, 9),
    solvers=st.integers(1, 4),
    credits=st.integers(1, 3),
    loss=st.sampled_from([0.0, 0.2]),
)
def test_every_block_is_stored_and_fed_exactly_once_whatever_the_order(seed, train, solvers, credits, loss):
    p = plans(train)
    controller = Controller(p, [f"solver-{i}" for i in range(solvers)], credits, faults=FaultsTable(restarts=1000))
    world = World(controller, random.Random(seed))
    assert world.run(loss).status == "complete"
    assert set(world.stores) == every_key(p)
    assert set(world.fed) == every_key(p), "the learner that ended has not seen everything"
    if not loss:
        assert sorted(world.stores) == sorted(world.fed) == sorted(every_key(p))
        assert world.started == world.ended == 1


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(2, 10**6), stored=st.sets(st.integers(0, 4)), ingested=st.sets(st.integers(0, 4)))
def test_resume_solves_only_what_is_not_stored_and_feeds_only_what_the_checkpoint_lacks(seed, stored, ingested):
    p = plans(5)
    done = {("train", c) for c in stored} | {("validation", 0), ("validation", 1)}
    known = {("train", c) for c in ingested & stored}
    controller = Controller(p, ["solver-0"], 2, stored=done, ingested=known)
    world = World(controller, random.Random(seed))
    assert world.run().status == "complete"
    assert set(world.solves) == every_key(p) - done
    assert sorted(world.fed) == sorted(every_key(p) - known), "validation is always fed again"


def test_validation_is_complete_before_the_first_training_solve():
    controller = Controller(plans(), ["solver-0"], 4)
    first = controller.start()
    assert {c.key[0] for c in first} == {"validation"}


def test_a_run_whose_training_ended_early_still_completes_the_data_set_without_feeding():
    p = plans(6)
    controller = Controller(p, ["solver-0"], 1)
    world = World(controller, random.Random(7))
    world.submit(controller.start())
    while world.started == 0:
        world.step(0.0)
    world.handle(TrainingEnded(3))
    while not controller.finished:
        world.step(0.0)
    assert sorted(world.stores) == sorted(every_key(p))
    assert sum(1 for k in world.fed if k[0] == "train") <= 1


def test_stop_checkpoints_first_and_then_finishes_as_stopped():
    controller = Controller(plans(), ["solver-0"], 4)
    world = World(controller, random.Random(7))
    world.submit(controller.start())
    while world.started == 0:
        world.step(0.0)
    assert controller.handle(StopRequested("SIGTERM")) == [Checkpoint()]
    assert controller.handle(StopRequested("SIGTERM")) == [], "a second signal changes nothing"
    assert controller.handle(CheckpointSaved(3, "x")) == [Finish("stopped", "SIGTERM")]


def test_stop_during_validation_ends_at_once_because_nothing_was_trained():
    controller = Controller(plans(), ["solver-0"], 4)
    controller.start()
    assert controller.handle(StopRequested("SIGINT")) == [Finish("stopped", "SIGINT")]


def test_a_solver_that_is_lost_again_and_again_fails_the_run_with_the_last_reason():
    controller = Controller(plans(), ["solver-0"], 4, faults=FaultsTable(restarts=2))
    controller.start()
    for _ in range(2):
        assert RestartSolver("solver-0") in controller.handle(SolverLost("solver-0", "out of memory"))
        controller.handle(SolverReady("solver-0"))
    (finish,) = controller.handle(SolverLost("solver-0", "out of memory"))
    assert finish == Finish("failed", "solver-0 was lost 3 times without progress in between: out of memory")


def test_a_late_block_of_a_lost_solver_is_ignored():
    controller = Controller(plans(), ["solver-0", "solver-1"], 1)
    (first, *_) = controller.start()
    controller.handle(SolverLost(first.solver, "killed"))
    late = BlockSolved(first.key, "nobody", (), np.zeros((0, 0)), 0.1)
    assert not [c for c in controller.handle(late) if isinstance(c, Store | Feed)]
    controller.validate()


def test_checkpoints_come_by_the_clock_and_only_while_training():
    controller = Controller(plans(), ["solver-0"], 4, checkpoint_every_s=10)
    world = World(controller, random.Random(7))
    world.submit(controller.start())
    assert controller.handle(Tick(60.0)) == []
    while world.started == 0:
        world.step(0.0)
    assert controller.handle(Tick(61.0)) == [Checkpoint()]
    assert controller.handle(Tick(65.0)) == []


@pytest.mark.parametrize(("stage", "first"), [("sink", Checkpoint()), ("learner", None)])
def test_a_failed_stage_ends_the_run_and_saves_the_learner_unless_it_is_the_learner(stage, first):
    controller = Controller(plans(), ["solver-0"], 4)
    world = World(controller, random.Random(7))
    world.submit(controller.start())
    while world.started == 0:
        world.step(0.0)
    (command,) = controller.handle(StageFailed(stage, "no space left"))
    assert command == (first or Finish("failed", "learner: no space left"))


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(2, 10**6),
    stored=st.sets(st.integers(0, 8)),
    credits=st.integers(1, 3),
    fed_until_the_end=st.integers(0, 9),
)
def test_a_run_completes_when_training_ends_early_and_the_learner_takes_no_more_blocks(
    seed, stored, credits, fed_until_the_end
):
    p = plans(9)
    done = {("train", c) for c in stored} | {("validation", 0), ("validation", 1)}
    controller = Controller(p, ["solver-0", "solver-1"], credits, stored=done)
    world = World(controller, random.Random(seed))
    world.submit(controller.start())
    for _ in range(200):
        if controller.finished:
            break
        if world.started and sum(key[0] == "train" for key in world.fed) >= fed_until_the_end:
            world.todo = [t for t in world.todo if not isinstance(t, Feed | LoadAndFeed | TrainingEnded)]
            world.handle(TrainingEnded(3))
            fed_until_the_end = 1000
        else:
            world.step(0.0)
        if fed_until_the_end == 1000:  # the ring is full and nobody draws: no answer ever comes
            world.todo = [t for t in world.todo if not isinstance(t, Feed | LoadAndFeed | TrainingEnded)]
        assert controller.finished or world.todo, "the run waits for the learner, which has ended"
    assert controller.finished == Finish("complete")
    assert set(world.stores) == every_key(p) - done


def started(**options):
    """A controller whose validation is over, with four training blocks requested."""
    controller = Controller(plans(), ["solver-0", "solver-1"], 2, **options)
    world = World(controller, random.Random(7))
    world.submit(controller.start())
    while world.started == 0:
        world.step(0.0)
    return controller


def test_what_else_fails_while_stopping_does_not_cut_off_the_last_checkpoint():
    controller = started()
    assert controller.handle(StageFailed("data set", "no space left")) == [Checkpoint()]
    assert controller.handle(StageFailed("data set", "no space left")) == []
    assert controller.handle(CheckpointSaved(3, "x")) == [Finish("failed", "data set: no space left")]


def test_a_stop_whose_checkpoint_cannot_be_saved_is_a_failure_that_names_both():
    controller = started()
    controller.handle(StopRequested("SIGTERM"))
    ending = controller.handle(StageFailed("learner", "no space left"))
    assert ending == [Finish("failed", "SIGTERM, then learner: no space left")]


def test_one_checkpoint_at_a_time_and_a_stop_waits_for_its_own():
    controller = started(checkpoint_every_s=10)
    assert controller.handle(Tick(61.0)) == [Checkpoint()]
    assert controller.handle(Tick(75.0)) == [], "the first one is not saved yet"
    assert controller.handle(StopRequested("SIGTERM")) == [Checkpoint()]
    assert controller.handle(CheckpointSaved(3, "x")) == [], "this one was asked for before the stop"
    assert controller.handle(CheckpointSaved(4, "y")) == [Finish("stopped", "SIGTERM")]


def test_nothing_is_saved_by_the_clock_once_training_has_ended():
    controller = started(checkpoint_every_s=10)
    controller.handle(TrainingEnded(3))
    assert controller.handle(Tick(61.0)) == []


def test_a_training_without_a_single_batch_is_a_failure_and_not_complete():
    (ending,) = started().handle(TrainingEnded(0))
    assert ending.status == "failed"
    assert "no training sample is valid" in ending.reason


def test_a_solver_gets_work_only_once_it_is_ready():
    controller = Controller(plans(), ["solver-0", "solver-1"], 2, ready=["solver-1"])
    assert {command.solver for command in controller.start()} == {"solver-1"}
    more = controller.handle(SolverReady("solver-0"))
    assert {c.solver for c in more if isinstance(c, Solve)} <= {"solver-0"}
    lost = controller.handle(SolverLost("solver-1", "killed"))
    assert "solver-1" not in {c.solver for c in lost if isinstance(c, Solve)}, "it is not back yet"
    controller.validate()


def test_nothing_is_asked_for_while_no_solver_is_ready_and_the_first_that_comes_gets_it():
    controller = Controller(plans(), ["solver-0"], 2, ready=[])
    assert controller.start() == []
    assert [c.key for c in controller.handle(SolverReady("solver-0"))] == [("validation", 0), ("validation", 1)]


def test_what_the_writer_had_in_hand_is_stored_by_its_successor():
    controller = Controller(plans(), ["solver-0"], 4)
    first, second = controller.start()
    for command in (first, second):
        assert Store(command.key) in controller.handle(BlockSolved(command.key, "solver-0", (), np.zeros((0, 0)), 1))
    controller.handle(BlockStored(first.key))
    assert controller.handle(WriterLost("killed")) == [RestartWriter(), Store(second.key)]


def test_a_block_that_is_lost_before_it_is_stored_is_solved_again_and_afterwards_it_is_read_back():
    controller = Controller(plans(), ["solver-0"], 4)
    first, second = controller.start()
    for command in (first, second):
        controller.handle(BlockSolved(command.key, "solver-0", (), np.zeros((0, 0)), 1))
    controller.handle(BlockStored(second.key))
    again = controller.handle(BlockLost(first.key, "its node is gone"))
    assert [c.key for c in again if isinstance(c, Solve)] == [first.key]
    assert controller.handle(BlockLost(second.key, "its node is gone")) == [LoadAndFeed(second.key)]
    controller.validate()


def test_a_lost_learner_comes_back_as_its_checkpoint_was_and_is_fed_what_that_lacks():
    controller = started()
    world = World(controller, random.Random(11))
    stored = [("train", 0), ("train", 1)]
    for key in stored:
        controller.handle(BlockSolved(key, controller._solving[key], (), np.zeros((0, 0)), 1))
        controller.handle(BlockStored(key))
        controller.handle(BlockIngested(key, 4))
    assert controller.handle(LearnerLost("killed")) == [RestartLearner()]
    assert not [c for c in controller.handle(Tick(1e6)) if isinstance(c, Checkpoint)], "nobody is there to save"
    commands = controller.handle(LearnerReady(2, frozenset({0})))
    assert commands[0] == LoadAndFeed(("validation", 0)), "the validation split comes first"
    assert StartTraining() not in commands
    world.todo = [*commands, *(Solve(key, solver) for key, solver in controller._solving.items())]
    world.saved, world.fed = frozenset({0}), [("train", 0)]
    while not controller.finished:
        world.step(0.0)
    assert sorted(world.fed) == sorted(every_key(plans())), "what the checkpoint accounts for is not fed again"
    assert not set(world.solves) & set(stored), "what is stored is not solved again"


def test_a_learner_that_is_lost_while_the_run_stops_ends_it_with_its_last_checkpoint():
    controller = started()
    controller.handle(StopRequested("SIGTERM"))
    assert controller.handle(LearnerLost("killed")) == [Finish("stopped", "SIGTERM")]


def test_a_learner_is_not_needed_any_more_once_training_has_ended():
    controller = started()
    controller.handle(TrainingEnded(5))
    assert controller.handle(LearnerLost("killed")) == []


def test_a_learner_that_is_lost_again_and_again_fails_the_run_unless_it_saves_in_between():
    controller = started(faults=FaultsTable(restarts=1))
    assert controller.handle(LearnerLost("killed")) == [RestartLearner()]
    controller.handle(LearnerReady(2, frozenset()))
    controller.handle(CheckpointSaved(3, "x"))
    assert controller.handle(LearnerLost("killed")) == [RestartLearner()]
    controller.handle(LearnerReady(3, frozenset()))
    (finish,) = controller.handle(LearnerLost("out of memory"))
    assert finish == Finish("failed", "learner was lost 2 times without progress in between: out of memory")


def record(sample_id, outcome):
    return SolveRecord(sample_id, 7, outcome, "cg", 3, 0.1, 0.1)


def test_a_run_most_of_whose_samples_fail_is_given_up_with_the_outcome_and_the_remedy():
    controller = started(faults=FaultsTable(failures=0.5, failures_after=4))
    outcomes = [Outcome.CONVERGED, Outcome.MAX_ITERATIONS, Outcome.MAX_ITERATIONS, Outcome.DIVERGED]
    records = [record(i, outcome) for i, outcome in enumerate(outcomes)]
    key = ("train", 0)
    commands = controller.handle(BlockSolved(key, controller._solving[key], records, np.zeros((4, 0)), 1))
    assert commands == [Store(key), Checkpoint()], "what is solved is still kept"
    (finish,) = controller.handle(CheckpointSaved(3, "x"))
    assert finish.status == "failed"
    assert "3 of 4 samples failed, most with MAX_ITERATIONS: residual still above rtol" in finish.reason


def test_the_sample_that_takes_solvers_down_is_drawn_anew_and_then_given_up_while_the_others_are_solved():
    controller = started(faults=FaultsTable(restarts=2, sample_losses=2, redraws=1))
    key, culprit = ("train", 0), ("train", 2)
    seen = []
    for sample in (None, *(culprit,) * 4):
        solver = controller._solving[key]
        commands = controller.handle(SolverLost(solver, "segmentation fault", sample))
        assert RestartSolver(solver) in commands
        commands += controller.handle(SolverReady(solver))
        seen += [c.care for c in commands if isinstance(c, Solve) and c.key == key]
    drawn = Care({2: 1})
    assert seen == [Care(), Care(), drawn, drawn, Care({2: 1}, frozenset({2}))]
    solver = controller._solving[key]
    controller.handle(BlockSolved(key, solver, [record(2, Outcome.PROCESS_LOST)], np.zeros((1, 0)), 1))
    assert controller.finished is None
    controller.validate()

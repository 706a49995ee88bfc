"""Which solver is given the next block."""

from functools import partial

import numpy as np

from forebay.cluster.faults import decide
from forebay.pipeline.controller import Controller
from forebay.pipeline.losses import Losses
from forebay.pipeline.messages import BlockIngested, BlockSolved, BlockStored, Solve, SolverLost, SolverReady
from forebay.pipeline.records import ChunkPlan
from forebay.pipeline.study import FaultsTable


class Run:
    """A controller past its validation split; solvers and blocks by their numbers."""

    def __init__(self, solvers, *, credits=4, ready=None):
        plans = {"validation": ChunkPlan("validation", 1, 1), "train": ChunkPlan("train", 10_000, 1)}
        names = [f"solver-{i}" for i in range(solvers)]
        losses = Losses(partial(decide, FaultsTable()))
        able = None if ready is None else [f"solver-{i}" for i in ready]
        self.controller = Controller(plans, names, credits=credits, losses=losses, ready=able)
        (first,) = self.controller.start()
        self.asked = []
        self.solved(first.solver, first.key)
        self.tell(BlockStored(first.key))
        self.tell(BlockIngested(first.key, 0))

    def tell(self, event):
        """Solvers that are asked for a block because of it."""
        solves = [command for command in self.controller.handle(event) if isinstance(command, Solve)]
        self.controller.validate()
        self.asked += [(int(solve.solver.removeprefix("solver-")), solve.key) for solve in solves]
        return [int(solve.solver.removeprefix("solver-")) for solve in solves]

    def solved(self, solver, key=None):
        """A solver has made its oldest block."""
        if key is None:
            place = next(place for place, (who, _) in enumerate(self.asked) if who == solver)
            key = self.asked.pop(place)[1]
            solver = f"solver-{solver}"
        return self.tell(BlockSolved(key, solver, (), np.zeros((0, 0)), 1.0))


def test_every_solver_has_one_block_before_any_has_two_and_none_has_three():
    run = Run(3)
    assert [who for who, _ in run.asked] == [0, 1, 2, 0, 1, 2]


def test_the_solver_with_the_fewest_blocks_is_next_and_of_equals_the_first():
    run = Run(3, credits=2)  # six blocks in flight, so a solved one is not followed before it is stored and fed
    assert run.solved(2) == []
    assert run.solved(1) == []
    assert run.solved(2) == []
    stored = [("train", 2), ("train", 1), ("train", 5)]
    asked = []
    for key in stored:
        run.tell(BlockStored(key))
        asked += run.tell(BlockIngested(key, 1))
    assert asked == [2, 1, 2]


def test_a_solver_that_is_ready_twice_is_given_no_more():
    run = Run(2)
    assert run.tell(SolverReady("solver-1")) == []


def test_a_solver_that_is_not_there_yet_or_no_longer_is_asked_for_nothing():
    run = Run(3, ready=[0, 1])
    assert [who for who, _ in run.asked] == [0, 1, 0, 1]
    assert run.tell(SolverLost("solver-0", "killed")) == []
    assert run.solved(1) == [1]
    assert run.tell(SolverReady("solver-2")) == [2, 2]
    assert run.tell(SolverReady("solver-0")) == [0, 0]


def test_a_lost_solver_is_asked_for_nothing_though_it_had_room():
    run = Run(2, credits=1)
    assert [who for who, _ in run.asked] == [0, 1]
    assert run.tell(SolverLost("solver-0", "killed")) == [1]


def test_however_long_a_run_is_a_solver_is_listed_once_for_each_load():
    run = Run(3, credits=1)
    for _ in range(50):
        _, key = run.asked[0]
        run.solved(run.asked[0][0])
        run.tell(BlockStored(key))
        assert run.tell(BlockIngested(key, 1))
    assert len(run.controller._free) <= 6

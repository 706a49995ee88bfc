"""Blocks of certified samples: draw, assemble, solve, certify, hand over.

One object per process owns a problem, its system and its linear solver; they are reused for every sample.  What a
sample holds follows from (run seed, split, sample id) alone.  Methods that learn from the samples before (recycled
spaces, kept factors, guesses) begin every block from the same state, a space learned on the first samples of the
training split, so that a block comes out bit for bit the same whoever solves it and when; only `auto`, which is steered
by the clock, gives that up: its samples are certified, and their records say by what.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from forebay.pipeline.records import Block, Care, ChunkPlan, Outcome, SolveRecord, Split
from forebay.pipeline.sampling import Design, DesignKind, draw_number, draw_parameters, keyed_generator, sample_seed
from forebay.pipeline.stages import Draw, Problem, TransientProblem
from forebay.solvers.arms import Automatic, check_method, facts_of
from forebay.solvers.assemble import System, system_of
from forebay.solvers.krylov.gcrodr import YOUNG
from forebay.solvers.krylov.guess import SnapshotGuess
from forebay.solvers.krylov.sorting import FeatureMap, nearest_order, path_gain
from forebay.solvers.krylov.space import RecycleSpace
from forebay.solvers.linear import LinearSolver, Solution
from forebay.solvers.march import BlockMarch
from forebay.solvers.methods import Method
from forebay.solvers.portfolio import Context, Portfolio
from forebay.solvers.sample import Arrays, GuardedProblem, Mark, Row, Timings, begin_rows
from forebay.solvers.single import make_single

if TYPE_CHECKING:
    from forebay.solvers.batched.block import StencilBlock
    from forebay.solvers.batched.solver import StencilSolver
    from forebay.solvers.batched.weights import WeightsFolder


class BlockSolver:
    """Solves the chunks of a problem by one method; see `pipeline.records.Block` for what it returns.

    A sample whose solve fails, or whose problem raises, costs that sample only: its record has the outcome, its rows
    hold NaN.  A problem that breaks its contract (wrong names or shapes) ends the run.  `sort` solves the samples of a
    block along a chain of near neighbours; `guesses` starts iterations from the best combination of so many earlier
    solutions of the block (4 ... 16; 0: from zero).  By "batched" all samples of a block are solved together, on
    `threads` cores or a GPU.  Weights that appear in the folder `published` are taken at the start of the next block.
    With `keep_resident`, what a device has solved stays there as well, for a learner of the same process.
    A sample that failed is drawn anew up to `redraws` times, which shifts the distribution of what is kept away from
    where the problem is hard; 0 keeps the failure.

    Raises:
        StudyError: the method does not fit the problem's matrix.
        ProblemError: the problem returns what its schema does not say.
    """

    def __init__(
        self,
        problem: Problem,
        method: Method | Automatic,
        *,
        run_seed: int,
        plans: Mapping[Split, ChunkPlan],
        design: DesignKind = "random",
        sort: bool = False,
        guesses: int = 0,
        threads: int = 1,
        published: WeightsFolder | None = None,
        redraws: int = 0,
        keep_resident: bool = False,
    ) -> None:
        self.timings = Timings()
        self._redraws = redraws
        self._schema = problem.schema
        self._run_seed = run_seed
        self._plans = plans
        dimension = len(self._schema.parameters)
        self._designs = {
            split: Design(design, run_seed, split, plan.samples, dimension) for split, plan in plans.items()
        }
        self._system = system_of(problem)
        self._context = Context(problem.schema)
        self._solver = make_solver(
            self._system, method, problem, seed=run_seed, features=self._context.features, threads=threads
        )
        self._sort = sort
        self._guess = _guess_of(problem, guesses, len(self._system.rhs)) if guesses else None
        self._learned: RecycleSpace | None = None
        self._warm = False
        self._path = (0.0, 0.0)
        self._guarded = GuardedProblem(problem, self._system, self.timings)
        self._transient = problem if self._schema.times and isinstance(problem, TransientProblem) else None
        self._published = published
        self._keep_resident = keep_resident
        self._resident: Mapping[str, Any] = {}
        self._together = self._samples_together()

    def _samples_together(self) -> BlockMarch | StencilBlock | None:
        """What solves the samples of a block at the same time, where the method can."""
        solver, transient = self._solver, self._transient
        if isinstance(solver, Portfolio) or (transient is not None and not transient.fixed_matrix):
            return None
        if isinstance(solver, LinearSolver):
            if transient is None or not solver.choice.direct:
                return None
            return BlockMarch(transient, self._guarded, self._system, solver, self.timings)
        from forebay.solvers.batched.block import StencilBlock

        return StencilBlock(solver, self._guarded, self.timings, problem=transient, keep_resident=self._keep_resident)

    @property
    def method(self) -> str:
        """Name of the method as the records carry it."""
        return self._solver.label

    def solve_block(self, split: Split, chunk: int, *, care: Care | None = None, mark: Mark | None = None) -> Block:
        """Draw, assemble, solve and certify the samples of one chunk; see `pipeline.stages.Solver`."""
        start = time.perf_counter()
        ids = self._plans[split].sample_ids(chunk)
        self._take_published()
        arrays, records = self._solve(split, begin_rows(self._run_seed, split, ids, care, mark), self._redraws)
        choices = self._solver.table() if isinstance(self._solver, Portfolio) else ()
        seconds = time.perf_counter() - start
        return Block(split, chunk, ids, arrays, records, seconds, choices, self._path, self._resident)

    def resolve(
        self, split: Split, sample_id: int, seed: int | None = None
    ) -> tuple[dict[str, np.ndarray], SolveRecord]:
        """Solve one sample again: its parameters and fields by name, shapes as in the schema, and its record.

        `seed` is the recorded one, which tells a sample that was drawn anew.  Where samples of a block depend on each
        other, the whole block is solved again, and the same bits come out unless some of it was drawn anew.
        """
        remembers = isinstance(self._solver, LinearSolver) and self._solver.choice.remembers
        if remembers or self._guess is not None:
            plan = self._plans[split]
            ids = plan.sample_ids(sample_id // plan.size)
        else:
            ids = np.array([sample_id])
        draw = 0 if seed is None else draw_number(self._run_seed, split, sample_id, seed)
        arrays, records = self._solve(split, begin_rows(self._run_seed, split, ids, Care({sample_id: draw}), None))
        row = int(np.flatnonzero(ids == sample_id)[0])
        return {name: array[row] for name, array in arrays.items()}, records[row]

    def destroy(self) -> None:
        """Free PETSc's side; collective over the system's communicator."""
        if self._together is not None:
            self._together.destroy()
        self._solver.destroy()
        self._system.destroy()

    def _solve(
        self, split: Split, rows: list[Row], redraws: int = 0
    ) -> tuple[dict[str, np.ndarray], list[SolveRecord]]:
        arrays = self._allocate(len(rows))
        self._resident = {}
        todo = [row for row in rows if row.fault is None]
        if self._together is None:
            self._begin_block()
        self._solve_rows(split, todo, arrays)
        path = self._path
        for _ in range(redraws):
            todo = [row.anew(self._run_seed, split) for row in todo if row.fault is not None]
            self._solve_rows(split, todo, arrays)
            for row in todo:
                rows[row.position] = row
        self._path = path
        self.timings.samples += len(rows)
        return arrays, [row.record(self.method) for row in rows]

    def _solve_rows(self, split: Split, rows: list[Row], arrays: Arrays) -> None:
        if self._together is not None and rows:
            self._solve_together(self._together, split, rows, arrays)
            return
        for row, draw in self._drawn(split, rows, arrays):
            with row.guard(arrays):
                self._solve_sample(draw, row, arrays)

    def _solve_together(
        self, together: BlockMarch | StencilBlock, split: Split, rows: list[Row], arrays: Arrays
    ) -> None:
        """All rows at once; where some of the block are left out, the others move up for as long as it takes."""
        if len(rows) == len(arrays["parameters"]):
            together.run(rows, lambda row: self._draw(split, row, arrays), arrays)
            self._resident = {} if isinstance(together, BlockMarch) else together.resident
            return
        self._resident = {}  # not all of the block's samples would be there
        places = [row.position for row in rows]
        part = {name: array[places] for name, array in arrays.items()}
        for position, row in enumerate(rows):
            row.position = position
        together.run(rows, lambda row: self._draw(split, row, part), part)
        for place, row in zip(places, rows, strict=True):
            row.position = place
        for name, array in part.items():
            arrays[name][places] = array

    def _take_published(self) -> None:
        """Weights that have been trained since the block before."""
        weights = None if self._published is None else self._published.newer()
        if weights is not None and not isinstance(self._solver, Portfolio):
            self._solver.use(weights)

    def _begin_block(self) -> None:
        """Set what the method remembers to where every block begins."""
        self._path = (0.0, 0.0)
        if self._guess is not None:
            self._guess.clear()
        if not isinstance(self._solver, LinearSolver) or not self._solver.choice.remembers:
            return
        if self._solver.choice.recycles and not self._warm:
            self._solver.recall(None)
            self._learned, self._warm = self._warm_up(self._solver), True
        self._solver.recall(self._learned)

    def _warm_up(self, solver: LinearSolver) -> RecycleSpace | None:
        """The space that the first training samples leave; they are solved for it alone."""
        ids = np.arange(min(YOUNG, self._plans["train"].samples)) if "train" in self._plans else np.arange(0)
        arrays = self._allocate(len(ids))
        for k, i in enumerate(ids):
            row = Row(k, int(i), sample_seed(self._run_seed, "train", int(i)))
            with row.guard(arrays):
                draw = self._draw("train", row, arrays)
                self._guarded.assemble(draw)
                if self._transient is not None:
                    state = self._guarded.initial(self._transient, draw)
                    self._guarded.advance(self._transient, draw, 1, state, self._system.rhs)
                solver.solve()
        return solver.space

    def _drawn(self, split: Split, rows: list[Row], arrays: Arrays) -> Iterator[tuple[Row, Draw]]:
        """The rows whose inputs could be drawn, with them, in the order of solving."""
        drawn = self._draw_each(split, rows, arrays)
        if not self._sort:
            return drawn
        pairs = list(drawn)
        if len(pairs) < 3:
            return iter(pairs)
        draws = [draw for _, draw in pairs]
        features = FeatureMap(self._schema, draws).matrix(draws)
        order = nearest_order(features, window=None)
        gain = path_gain(features, order)
        self._path = gain.given, gain.path
        return iter([pairs[k] for k in order])

    def _draw_each(self, split: Split, rows: list[Row], arrays: Arrays) -> Iterator[tuple[Row, Draw]]:
        for row in rows:
            draw: Draw | None = None
            with row.guard(arrays):
                draw = self._draw(split, row, arrays)
            if draw is not None:
                yield row, draw

    def _allocate(self, count: int) -> dict[str, np.ndarray]:
        schema = self._schema
        arrays = {"parameters": np.full((count, len(schema.parameters)), np.nan)}
        for field in (*schema.inputs, *schema.outputs):
            arrays[field.name] = np.full((count, *schema.sample_shape(field.name)), np.nan, dtype=np.float32)
        return arrays

    def _draw(self, split: Split, row: Row, arrays: Arrays) -> Draw:
        parameters = draw_parameters(self._schema, self._designs[split], row.sample_id, row.draw)
        return self._guarded.draw(parameters, keyed_generator(row.seed), arrays, row.position)

    def _solve_sample(self, draw: Draw, row: Row, arrays: Arrays) -> None:
        self._guarded.assemble(draw)
        if self._transient is None:
            self._guarded.keep(arrays, row.position, draw, self._certified(row, draw))
        else:
            self._march_alone(self._transient, draw, row, arrays)
        self._guarded.check_outputs(arrays, row.position)

    def _march_alone(self, problem: TransientProblem, draw: Draw, row: Row, arrays: Arrays) -> None:
        """All steps of one sample; its matrix is set up once."""
        state = self._guarded.initial(problem, draw)
        for step in range(1, self._schema.steps + 1):
            self._guarded.advance(problem, draw, step, state, self._system.rhs)
            state[:] = self._certified(row, draw)
            self._guarded.keep(arrays, row.position, draw, state, step - 1)

    def _certified(self, row: Row, draw: Draw) -> np.ndarray:
        """Solve, add to the row's record, and return the solution if it is certified."""
        start, certifying = time.perf_counter(), self._solver.seconds_certifying
        solution = self._solve_from_guess(draw)
        certifying = self._solver.seconds_certifying - certifying
        self.timings.solve += time.perf_counter() - start - certifying
        self.timings.certify += certifying
        row.certify(solution.iterations, solution.residual, solution.outcome, solution.message, method=solution.label)
        return solution.x

    def _solve_from_guess(self, draw: Draw) -> Solution:
        guess = None if self._guess is None else self._guess.propose(draw, self._system.matrix, self._system.rhs)
        if isinstance(self._solver, Portfolio):
            solution = self._solver.solve(guess, self._context.of(draw))
        else:
            solution = self._solver.solve(guess)
        if self._guess is not None and solution.outcome is Outcome.CONVERGED:
            self._guess.learn(draw, solution.x)
        return solution


def _guess_of(problem: Problem, capacity: int, unknowns: int) -> SnapshotGuess:
    return SnapshotGuess(capacity, unknowns, minimise="energy" if problem.symmetry == "spd" else "residual")


def make_solver(
    system: System, method: Method | Automatic, problem: Problem, *, seed: int, features: int = 0, threads: int = 1
) -> LinearSolver | StencilSolver | Portfolio:
    """One method, or the portfolio that chooses; one arm needs no choice.

    Raises:
        StudyError: a method that does not fit the matrix.
    """
    facts = facts_of(problem)
    arms = method.resolve(facts) if isinstance(method, Automatic) else (method,)
    for arm in arms:
        check_method(arm, facts)
    if len(arms) == 1:
        return make_single(system, arms[0], facts, threads=threads)
    return Portfolio(system, arms, facts, seed=seed, features=features)

"""Blocks of certified samples: draw, assemble, solve, certify, hand over.

One object per process owns a problem, its system and its linear solver; they are reused for every sample.  What a
sample holds follows from (run seed, split, sample id) alone, never from the samples solved before it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np

from forebay.pipeline.records import Block, ChunkPlan, SolveRecord, Split
from forebay.pipeline.sampling import Design, DesignKind, draw_parameters, sample_generator, sample_seed
from forebay.pipeline.stages import Draw, Problem, TransientProblem
from forebay.solvers.assemble import system_of
from forebay.solvers.linear import LinearSolver
from forebay.solvers.march import BlockMarch
from forebay.solvers.methods import Method
from forebay.solvers.sample import Arrays, GuardedProblem, Row, Timings


class BlockSolver:
    """Solves the chunks of a problem by one method; see `pipeline.records.Block` for what it returns.

    A sample whose solve fails, or whose problem raises, costs that sample only: its record has the outcome, its rows
    hold NaN.  A problem that breaks its contract (wrong names or shapes) ends the run.

    Raises:
        StudyError: the method does not fit the problem's matrix.
        ProblemError: the problem returns what its schema does not say.
    """

    def __init__(
        self,
        problem: Problem,
        method: Method,
        *,
        run_seed: int,
        plans: Mapping[Split, ChunkPlan],
        design: DesignKind = "random",
    ) -> None:
        self.timings = Timings()
        self._schema = problem.schema
        self._run_seed = run_seed
        self._plans = plans
        dimension = len(self._schema.parameters)
        self._designs = {
            split: Design(design, run_seed, split, plan.samples, dimension) for split, plan in plans.items()
        }
        self._system = system_of(problem)
        self._solver = LinearSolver(self._system, method, symmetry=problem.symmetry)
        self._guarded = GuardedProblem(problem, self._system, self.timings)
        self._transient = problem if self._schema.times and isinstance(problem, TransientProblem) else None
        self._march: BlockMarch | None = None
        if self._transient is not None and self._transient.fixed_matrix and self._solver.choice.direct:
            self._march = BlockMarch(self._transient, self._guarded, self._system, self._solver, self.timings)

    @property
    def method(self) -> str:
        """Name of the method as the records carry it."""
        return self._solver.label

    def solve_block(self, split: Split, chunk: int) -> Block:
        """Draw, assemble, solve and certify the samples of one chunk."""
        start = time.perf_counter()
        ids = self._plans[split].sample_ids(chunk)
        arrays, records = self._solve(split, ids)
        return Block(split, chunk, ids, arrays, records, time.perf_counter() - start)

    def resolve(self, split: Split, sample_id: int) -> tuple[dict[str, np.ndarray], SolveRecord]:
        """Solve one sample again: its parameters and fields by name, shapes as in the schema, and its record."""
        arrays, records = self._solve(split, np.array([sample_id]))
        return {name: array[0] for name, array in arrays.items()}, records[0]

    def destroy(self) -> None:
        """Free PETSc's side; collective over the system's communicator."""
        if self._march is not None:
            self._march.destroy()
        self._solver.destroy()
        self._system.destroy()

    def _solve(self, split: Split, ids: np.ndarray) -> tuple[dict[str, np.ndarray], list[SolveRecord]]:
        arrays = self._allocate(len(ids))
        rows = [Row(k, int(i), sample_seed(self._run_seed, split, int(i))) for k, i in enumerate(ids)]
        if self._march is not None:
            self._march.run(rows, lambda row: self._draw(split, row, arrays), arrays)
        else:
            for row in rows:
                with row.guard(arrays):
                    self._solve_sample(split, row, arrays)
        self.timings.samples += len(rows)
        return arrays, [row.record(self.method) for row in rows]

    def _allocate(self, count: int) -> dict[str, np.ndarray]:
        schema = self._schema
        arrays = {"parameters": np.full((count, len(schema.parameters)), np.nan)}
        for field in (*schema.inputs, *schema.outputs):
            arrays[field.name] = np.full((count, *schema.sample_shape(field.name)), np.nan, dtype=np.float32)
        return arrays

    def _draw(self, split: Split, row: Row, arrays: Arrays) -> Draw:
        parameters = draw_parameters(self._schema, self._designs[split], row.sample_id)
        rng = sample_generator(self._run_seed, split, row.sample_id)
        return self._guarded.draw(parameters, rng, arrays, row.position)

    def _solve_sample(self, split: Split, row: Row, arrays: Arrays) -> None:
        draw = self._draw(split, row, arrays)
        self._guarded.assemble(draw)
        if self._transient is None:
            self._guarded.keep(arrays, row.position, draw, self._certified(row))
        else:
            self._march_alone(self._transient, draw, row, arrays)
        self._guarded.check_outputs(arrays, row.position)

    def _march_alone(self, problem: TransientProblem, draw: Draw, row: Row, arrays: Arrays) -> None:
        """All steps of one sample; its matrix is set up once."""
        state = self._guarded.initial(problem, draw)
        for step in range(1, self._schema.steps + 1):
            self._guarded.advance(problem, draw, step, state, self._system.rhs)
            state[:] = self._certified(row)
            self._guarded.keep(arrays, row.position, draw, state, step - 1)

    def _certified(self, row: Row) -> np.ndarray:
        """Solve, add to the row's record, and return the solution if it is certified."""
        start, certifying = time.perf_counter(), self._solver.seconds_certifying
        solution = self._solver.solve()
        certifying = self._solver.seconds_certifying - certifying
        self.timings.solve += time.perf_counter() - start - certifying
        self.timings.certify += certifying
        row.certify(solution.iterations, solution.residual, solution.outcome, solution.message)
        return solution.x

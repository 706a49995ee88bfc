"""What every (problem, method) pair must do; subclass with the fixtures `problem` and `method`.

    class TestMySolver(SolverSuite):
        @pytest.fixture
        def problem(self): return MyProblem(n=12)
        @pytest.fixture
        def method(self): return Method("cg", "icc")

Residuals are recomputed with scipy from the problem's own `pattern` and `assemble`, so PETSc cannot certify itself.
"""

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.sparse.linalg import factorized

from forebay.pipeline.records import ChunkPlan, Outcome
from forebay.pipeline.sampling import Design, draw_parameters, sample_generator, sample_seed
from forebay.solvers.block_solver import BlockSolver

RUN_SEED = 29
TRAIN = ChunkPlan("train", 7, 3)
VALIDATION = ChunkPlan("validation", 2, 3)
FLOAT32 = float(np.finfo(np.float32).eps)


class SolverSuite:
    @pytest.fixture
    def opened(self, problem, method):
        """A function that makes block solvers; they are destroyed afterwards."""
        made = []

        def make():
            plans = {"train": TRAIN, "validation": VALIDATION}
            made.append(BlockSolver(problem, method, run_seed=RUN_SEED, plans=plans))
            return made[-1]

        yield make
        for solver in made:
            solver.destroy()

    def test_a_block_has_the_shapes_and_types_of_the_schema(self, opened, problem):
        schema = problem.schema
        block = opened().solve_block("train", 1)
        assert (block.split, block.chunk, block.sample_ids.tolist()) == ("train", 1, [3, 4, 5])
        assert set(block.arrays) == {"parameters", *(f.name for f in (*schema.inputs, *schema.outputs))}
        assert block.arrays["parameters"].shape == (3, len(schema.parameters))
        assert block.arrays["parameters"].dtype == np.float64
        for field in (*schema.inputs, *schema.outputs):
            assert block.arrays[field.name].shape == (3, *schema.sample_shape(field.name))
            assert block.arrays[field.name].dtype == np.float32
            assert np.isfinite(block.arrays[field.name]).all()
        assert block.seconds > 0

    def test_the_last_block_of_a_split_is_shorter(self, opened):
        assert opened().solve_block("train", 2).sample_ids.tolist() == [6]

    def test_every_record_certifies_its_sample(self, opened, method):
        solver = opened()
        block = solver.solve_block("train", 0)
        for sample_id, record in zip(block.sample_ids, block.records, strict=True):
            assert record.sample_id == sample_id
            assert record.seed == sample_seed(RUN_SEED, "train", sample_id)
            assert record.outcome is Outcome.CONVERGED
            assert record.method == solver.method
            assert 0 <= record.residual <= method.rtol
            assert record.seconds > 0
            assert record.message == ""
            assert (record.iterations > 0) == (method.method != "direct")

    def test_scipy_finds_the_residual_below_the_tolerance(self, opened, problem, method):
        block = opened().solve_block("train", 0)
        for row, sample_id in enumerate(block.sample_ids):
            draw = self.draw(problem, int(sample_id))
            for field in problem.schema.inputs:
                np.testing.assert_array_equal(block.arrays[field.name][row], draw[field.name].astype(np.float32))
            np.testing.assert_array_equal(block.arrays["parameters"][row], draw["parameters"])
            for name, expected in self.solutions(problem, draw).items():
                scale = np.abs(expected).max()
                # A residual of rtol is an error of condition number × rtol; these meshes stay below 1e5.
                np.testing.assert_allclose(
                    block.arrays[name][row], expected, atol=(4 * FLOAT32 + 1e5 * method.rtol) * scale, rtol=0
                )

    def test_the_same_chunk_is_bit_equal_from_another_solver_in_another_order(self, opened):
        first, second = opened(), opened()
        blocks = [first.solve_block("train", chunk) for chunk in (0, 1)]
        second.solve_block("validation", 0)
        second.solve_block("train", 1)
        again = second.solve_block("train", 0)
        for name, array in blocks[0].arrays.items():
            np.testing.assert_array_equal(array, again.arrays[name], err_msg=name)
        assert [(r.iterations, r.residual) for r in blocks[0].records] == [
            (r.iterations, r.residual) for r in again.records
        ]

    def test_a_resolved_sample_is_the_stored_one(self, opened):
        solver = opened()
        block = solver.solve_block("train", 1)
        arrays, record = solver.resolve("train", 4)
        assert record.seed == block.records[1].seed
        for name, array in arrays.items():
            scale = np.abs(array).max(initial=1e-30)
            np.testing.assert_allclose(block.arrays[name][1], array, atol=2 * FLOAT32 * scale, rtol=0, err_msg=name)

    def test_splits_have_samples_of_their_own(self, opened, problem):
        solver = opened()
        output = problem.schema.outputs[0].name
        train, validation = solver.solve_block("train", 0), solver.solve_block("validation", 0)
        assert not np.array_equal(train.arrays[output][0], validation.arrays[output][0])

    def test_the_time_is_accounted_for(self, opened):
        solver = opened()
        seconds = solver.solve_block("train", 0).seconds
        spent = solver.timings
        parts = (spent.draw, spent.assemble, spent.solve, spent.certify, spent.keep)
        assert spent.samples == 3
        assert all(part > 0 for part in parts)
        assert sum(parts) <= seconds

    @staticmethod
    def draw(problem, sample_id):
        """The sample's inputs, drawn without a solver."""
        design = Design("random", RUN_SEED, "train", TRAIN.samples, len(problem.schema.parameters))
        parameters = draw_parameters(problem.schema, design, sample_id)
        fields = problem.draw(parameters, sample_generator(RUN_SEED, "train", sample_id))
        return {**fields, "parameters": parameters}

    @staticmethod
    def solutions(problem, draw):
        """Output fields by scipy's direct solver."""
        indptr, indices = problem.pattern()
        values, rhs = np.zeros(len(indices)), np.zeros(len(indptr) - 1)
        problem.assemble(draw, values, rhs)
        solve = factorized(sp.csr_array((values, indices, indptr)).tocsc())
        times = problem.schema.times
        if not times:
            return problem.fields(draw, solve(rhs))
        state, frames = problem.initial(draw), []
        for step in range(1, len(times) + 1):
            problem.advance(draw, step, state, rhs)
            state = solve(rhs)
            frames.append({name: np.array(value) for name, value in problem.fields(draw, state).items()})
        return {name: np.stack([frame[name] for frame in frames]) for name in frames[0]}

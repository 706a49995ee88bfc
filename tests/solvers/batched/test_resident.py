"""Solutions that stay on the device: the same bits as the arrays, only where a field is the solution, never pickled."""

import pickle

import numpy as np
import pytest

from forebay.pipeline.records import ChunkPlan, Field, Outcome, Schema
from forebay.solvers.batched.resident import ResidentFields
from forebay.solvers.block_solver import BlockSolver
from forebay.solvers.methods import Method
from forebay.solvers.problems.darcy import Darcy
from forebay.solvers.problems.heat import Heat

torch = pytest.importorskip("torch")
PLANS = {"train": ChunkPlan("train", 4, 4)}
PROBLEMS = {"darcy": Darcy(size=16), "heat": Heat(size=8, steps=3)}


class Faulty(Darcy):
    """Its second sample has a NaN among the coefficients' neighbours; its third raises after the solve."""

    def draw(self, parameters, rng):
        self.__dict__["drawn"] = self.__dict__.get("drawn", 0) + 1
        return super().draw(parameters, rng)

    def assemble(self, draw, values, rhs):
        super().assemble(draw, values, rhs)
        if self.__dict__["drawn"] == 2:
            rhs[3] = np.nan

    def fields(self, draw, solution):
        self.__dict__["kept"] = self.__dict__.get("kept", 0) + 1
        if self.__dict__["kept"] == 2:
            raise ArithmeticError("not this one")
        return super().fields(draw, solution)


def solver_of(problem, backend="torch", **options):
    return BlockSolver(problem, Method("batched", backend=backend), run_seed=13, plans=PLANS, **options)


def solved(problem, backend="torch", **options):
    solver = solver_of(problem, backend, **options)
    block = solver.solve_block("train", 0)
    solver.destroy()
    return block


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_resident_field_has_the_bits_of_its_array(name):
    block = solved(PROBLEMS[name], keep_resident=True)
    assert list(block.resident) == ["u"]
    assert block.resident["u"].dtype == torch.float32
    np.testing.assert_array_equal(block.resident["u"].cpu().numpy(), block.arrays["u"])


def test_a_later_block_leaves_the_tensors_of_an_earlier_one_alone():
    solver = solver_of(PROBLEMS["darcy"], keep_resident=True)
    first = solver.solve_block("train", 0)
    kept = first.resident["u"].clone()
    solver._run_seed = 7
    second = solver.solve_block("train", 0)
    solver.destroy()
    assert not torch.equal(second.resident["u"], kept)
    assert torch.equal(first.resident["u"], kept)


def test_samples_that_fault_do_not_shift_the_others():
    block = solved(Faulty(size=16), keep_resident=True)
    outcomes = [record.outcome for record in block.records]
    converged = Outcome.CONVERGED
    assert outcomes == [converged, Outcome.NONFINITE_INPUT, Outcome.PROBLEM_RAISED, converged]
    rows = block.valid_rows
    np.testing.assert_array_equal(block.resident["u"].cpu().numpy()[rows], block.arrays["u"][rows])
    assert torch.isnan(block.resident["u"][1]).all()


def test_samples_that_are_drawn_anew_are_read_from_the_arrays():
    block = solved(Faulty(size=16), keep_resident=True, redraws=1)
    assert [record.outcome for record in block.records] == [Outcome.CONVERGED] * 4
    assert block.resident == {}


@pytest.mark.parametrize(("backend", "options"), [("torch", {}), ("cpu", {"keep_resident": True})])
def test_nothing_is_kept_unasked_or_by_the_processors_own_kernels(backend, options):
    assert solved(PROBLEMS["darcy"], backend, **options).resident == {}


def test_a_block_is_pickled_without_them_and_with_all_else():
    block = solved(PROBLEMS["darcy"], keep_resident=True)
    buffers = []
    data = pickle.dumps(block, protocol=5, buffer_callback=buffers.append)
    assert len(data) < 4000, "arrays travel beside the pickle"
    copy = pickle.loads(data, buffers=buffers)
    assert copy.resident == {}
    assert (copy.split, copy.chunk, copy.records, copy.seconds) == ("train", 0, block.records, block.seconds)
    np.testing.assert_array_equal(copy.arrays["u"], block.arrays["u"])


SCHEMA = Schema(
    (), (), (Field("u", ("x",), (3,)), Field("double", ("x",), (3,)), Field("mean", ("one",), (1,))), times=(0.5, 1.0)
)


def taken(x, arrays, positions=(0, 2), steps=(0, 1)):
    kept = ResidentFields(SCHEMA, 3, 3)
    for step in steps:
        kept.take(torch.from_numpy(x[step]), x[step], arrays, positions, step)
    return kept.fields()


def arrays_of(x):
    u = np.full((3, 2, 3), np.nan, np.float32)
    u[[0, 2]] = x.swapaxes(0, 1)
    return {"u": u, "double": 2 * u, "mean": u.mean(2, keepdims=True)}


def test_a_field_is_resident_only_where_it_is_the_solution_in_every_step():
    x = np.random.default_rng(7).random((2, 2, 3))
    arrays = arrays_of(x)
    fields = taken(x, arrays)
    assert list(fields) == ["u"]
    np.testing.assert_array_equal(fields["u"].numpy(), arrays["u"])
    arrays["u"][2, 1, 0] += 1e-6
    assert taken(x, arrays) == {}
    zero = np.zeros_like(x)
    assert sorted(taken(zero, arrays_of(zero))) == ["double", "u"], "twice nothing is the solution as well"


def test_values_beyond_float32_are_the_same_on_both_sides():
    x = np.full((2, 2, 3), 1e300)
    with np.errstate(over="ignore"):
        arrays = arrays_of(x)
    assert torch.isinf(taken(x, arrays)["u"][0]).all()

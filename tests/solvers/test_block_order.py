"""Methods that learn from earlier samples: a block comes out the same whoever solves it, and when."""

import numpy as np
import pytest

from forebay.pipeline.records import ChunkPlan
from forebay.solvers.arms import Automatic
from forebay.solvers.block_solver import BlockSolver
from forebay.solvers.methods import Method
from forebay.solvers.problems.darcy import Darcy
from forebay.solvers.problems.helmholtz import Helmholtz
from forebay.solvers.problems.poisson import Poisson

PLANS = {"train": ChunkPlan("train", 24, 6), "validation": ChunkPlan("validation", 6, 6)}
DARCY, HELMHOLTZ = Darcy(size=20, coefficient="log_normal", sigma=0.3), Helmholtz(size=20)
CASES = {
    "gcrodr": (HELMHOLTZ, Method("gcrodr"), {}),
    "gcrodr exact, sorted": (HELMHOLTZ, Method("gcrodr", variant="exact", restart=40), {"sort": True}),
    "deflated_cg": (DARCY, Method("deflated_cg"), {}),
    "kept factor": (DARCY, Method("cg", "cholesky", reuse="preconditioner"), {}),
    "kept factor, sorted": (DARCY, Method("cg", "cholesky", reuse="preconditioner"), {"sort": True}),
    "guesses": (DARCY, Method("cg", "icc"), {"guesses": 4}),
    "guesses, indefinite": (HELMHOLTZ, Method("gmres", "ilu", restart=60), {"guesses": 4, "sort": True}),
    "lgmres": (HELMHOLTZ, Method("lgmres"), {}),
    "multigrid": (DARCY, Method("cg", "mg"), {}),
    "direct, sorted": (DARCY, Method(), {"sort": True}),
}


def blocks_of(name, order):
    problem, method, options = CASES[name]
    solver = BlockSolver(problem, method, run_seed=11, plans=PLANS, **options)
    found = {key: solver.solve_block(*key) for key in order}
    solver.destroy()
    return found


@pytest.mark.parametrize("name", CASES)
def test_blocks_do_not_depend_on_the_order_of_solving(name):
    keys = [("validation", 0), *(("train", chunk) for chunk in range(4))]
    first, second = blocks_of(name, keys), blocks_of(name, keys[::-1])
    for key in keys:
        assert all(record.valid and record.residual <= 1e-8 for record in first[key].records)
        assert np.array_equal(first[key].arrays["u"], second[key].arrays["u"])
        # Fields are float32; the residuals show what rounding to it would hide.
        assert [(r.iterations, r.residual) for r in first[key].records] == [
            (r.iterations, r.residual) for r in second[key].records
        ]


@pytest.mark.parametrize("name", ["gcrodr", "kept factor, sorted", "guesses"])
def test_a_sample_solved_again_has_the_bits_of_its_block(name):
    problem, method, options = CASES[name]
    block = blocks_of(name, [("train", 2)])["train", 2]
    fresh = BlockSolver(problem, method, run_seed=11, plans=PLANS, **options)
    for row in (0, 4):
        arrays, record = fresh.resolve("train", int(block.sample_ids[row]))
        assert np.array_equal(arrays["u"], block.arrays["u"][row])
        assert record.iterations == block.records[row].iterations


@pytest.mark.parametrize("variant", ["exact", "economical"])
def test_a_matrix_that_never_changes_gives_the_same_blocks_in_any_order(variant):
    problem, method = Poisson(size=32), Method("gcrodr", "jacobi", restart=20, recycle=8, variant=variant)
    plans = {"train": ChunkPlan("train", 4, 4), "validation": ChunkPlan("validation", 8, 4)}
    first = BlockSolver(problem, method, run_seed=3, plans=plans).solve_block("validation", 1)
    other = BlockSolver(problem, method, run_seed=3, plans=plans)
    other.solve_block("validation", 0)
    later = other.solve_block("validation", 1)
    assert np.array_equal(later.arrays["u"], first.arrays["u"])
    assert [r.residual for r in later.records] == [r.residual for r in first.records]


def test_sorting_changes_the_order_of_solving_and_not_the_samples():
    keys = [("train", 0)]
    problem, method, _ = CASES["kept factor"]
    plain = BlockSolver(problem, method, run_seed=11, plans=PLANS).solve_block(*keys[0])
    along = BlockSolver(problem, method, run_seed=11, plans=PLANS, sort=True).solve_block(*keys[0])
    assert [r.sample_id for r in along.records] == [r.sample_id for r in plain.records]
    assert np.array_equal(along.arrays["a"], plain.arrays["a"])
    assert np.allclose(along.arrays["u"], plain.arrays["u"], rtol=1e-6)
    assert plain.path == (0.0, 0.0)
    given, path = along.path
    assert 0 < path < given


def test_a_recycled_space_is_learned_once_and_serves_the_first_block_too():
    problem, method, _ = CASES["gcrodr"]
    recycled = BlockSolver(problem, method, run_seed=11, plans=PLANS).solve_block("validation", 0)
    alone = BlockSolver(problem, Method("gmres", "ilu", restart=60), run_seed=11, plans=PLANS)
    plain = alone.solve_block("validation", 0)
    assert sum(r.iterations for r in recycled.records) < 0.7 * sum(r.iterations for r in plain.records)


def test_auto_names_the_method_of_every_sample_and_tells_what_it_learned():
    solver = BlockSolver(DARCY, Automatic(), run_seed=11, plans=PLANS)
    blocks = [solver.solve_block("train", chunk) for chunk in range(4)]
    records = [record for block in blocks for record in block.records]
    assert all(record.valid for record in records)
    table = blocks[-1].choices
    assert {record.method for record in records} <= {row["method"] for row in table}
    assert sum(row["solved"] for row in table) == len(records)
    assert all(row["tries"] for row in table)
    assert blocks[0].choices != table

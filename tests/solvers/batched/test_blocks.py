"""`method = "batched"`: the suite of every method, equal bits alone and together, and faults that cost one sample."""

import dataclasses

import numpy as np
import pytest
from grid_systems import drawn
from suites.solver_suite import SolverSuite

from forebay.pipeline.errors import StudyError
from forebay.pipeline.records import ChunkPlan, Outcome
from forebay.solvers.assemble import system_of
from forebay.solvers.batched.solver import StencilSolver
from forebay.solvers.block_solver import BlockSolver
from forebay.solvers.methods import Method
from forebay.solvers.problems.convection_diffusion import ConvectionDiffusion
from forebay.solvers.problems.darcy import Darcy
from forebay.solvers.problems.darcy3d import Darcy3D
from forebay.solvers.problems.darcy_fem import DarcyFem
from forebay.solvers.problems.heat import Heat
from forebay.solvers.problems.helmholtz import Helmholtz
from forebay.solvers.problems.poisson import Poisson

BATCHED = Method("batched", backend="cpu")
PROBLEMS = {
    "darcy": Darcy(size=32),
    "darcy log-normal": Darcy(size=37, coefficient="log_normal"),
    "darcy3d": Darcy3D(size=10),
    "poisson": Poisson(size=32),
    "heat": Heat(size=16, steps=5),
}
PLAN = {"train": ChunkPlan("train", 6, 3)}


def solved(problem, method=BATCHED, chunk=0, **options):
    solver = BlockSolver(problem, method, run_seed=13, plans=PLAN, **options)
    block = solver.solve_block("train", chunk)
    solver.destroy()
    return block


class TestBatched(SolverSuite):
    @pytest.fixture(params=PROBLEMS)
    def problem(self, request):
        return PROBLEMS[request.param]

    @pytest.fixture
    def method(self):
        return BATCHED


@pytest.mark.parametrize("name", ["darcy log-normal", "darcy3d", "poisson"])
def test_a_sample_has_the_same_bits_alone_and_in_a_block(name):
    problem = PROBLEMS[name]
    block = solved(problem)
    system = system_of(problem)
    alone = StencilSolver(system, BATCHED, grid=problem.grid_shape)
    for row in range(3):
        system.update(drawn(problem, sample_id=row, run_seed=13))
        solution = alone.solve()
        field = problem.fields({}, solution.x)["u"].astype(np.float32)
        record = block.records[row]
        np.testing.assert_array_equal(block.arrays["u"][row], field)
        assert (record.residual, record.iterations, record.method) == (
            solution.residual,
            solution.iterations,
            solution.label,
        )
    system.destroy()


@pytest.mark.parametrize("name", ["darcy", "heat"])
def test_the_number_of_threads_leaves_no_trace(name):
    one, two = solved(PROBLEMS[name]), solved(PROBLEMS[name], threads=2)
    np.testing.assert_array_equal(one.arrays["u"], two.arrays["u"])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Faulty(Darcy):
    """Sample 1 has the fault."""

    fault: str = ""

    def draw(self, parameters, rng):
        drawn = super().draw(parameters, rng)
        if self.fault == "draw raises" and self.hit(drawn):
            raise ZeroDivisionError("no heat")
        return drawn

    def hit(self, draw):
        return bool(np.array_equal(draw["a"], drawn(Darcy(size=self.size), sample_id=1, run_seed=13)["a"]))

    def assemble(self, draw, values, rhs):
        super().assemble(draw, values, rhs)
        if not self.hit(draw):
            return
        match self.fault:
            case "assemble raises":
                raise RuntimeError("no matrix")
            case "nan matrix":
                values[11] = np.nan
            case "nan rhs":
                rhs[7] = np.inf
            case "zero rhs":
                rhs[:] = 0.0
            case "wrong sign":
                values *= -1.0
            case "neumann":
                values[self._grid.stencil.diagonal] -= np.add.reduceat(values, self._grid.stencil.indptr[:-1])
            case "zero row":
                values[:] = 0.0

    def fields(self, draw, solution):
        if self.fault == "fields raises" and self.hit(draw):
            raise KeyError("u")
        return super().fields(draw, solution)


@pytest.mark.parametrize(
    ("fault", "outcomes", "message"),
    [
        ("draw raises", {Outcome.PROBLEM_RAISED}, "draw: ZeroDivisionError: no heat"),
        ("assemble raises", {Outcome.PROBLEM_RAISED}, "assemble: RuntimeError: no matrix"),
        ("fields raises", {Outcome.PROBLEM_RAISED}, "fields: KeyError: 'u'"),
        ("nan matrix", {Outcome.NONFINITE_INPUT}, "the matrix holds NaN or inf"),
        ("nan rhs", {Outcome.NONFINITE_INPUT}, "the right-hand side holds NaN or inf"),
        (
            "wrong sign",
            {Outcome.DIVERGED},
            "an entry off the diagonal is positive: the stencil solver takes M-matrices",
        ),
        ("neumann", {Outcome.DIVERGED, Outcome.RESIDUAL_ABOVE_TOLERANCE}, ""),
        ("zero row", {Outcome.DIVERGED, Outcome.RESIDUAL_ABOVE_TOLERANCE, Outcome.NONFINITE_SOLUTION}, ""),
    ],
)
def test_a_fault_costs_its_own_sample_and_leaves_the_others_bits(fault, outcomes, message):
    sound, block = solved(Faulty(size=32)), solved(Faulty(size=32, fault=fault))
    bad = block.records[1]
    assert bad.outcome in outcomes
    assert message in bad.message
    assert np.isnan(block.arrays["u"][1]).all()
    for row in (0, 2):
        assert block.records[row].outcome is Outcome.CONVERGED
        np.testing.assert_array_equal(block.arrays["u"][row], sound.arrays["u"][row])


def test_a_zero_right_hand_side_has_the_solution_zero():
    block = solved(Faulty(size=32, fault="zero rhs"))
    assert block.records[1].outcome is Outcome.CONVERGED
    assert (block.records[1].residual, block.records[1].iterations) == (0.0, 0)
    assert not block.arrays["u"][1].any()


def test_a_sample_that_cannot_be_drawn_leaves_a_block_of_the_others_and_none_of_nobody():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Never(Darcy):
        def draw(self, parameters, rng):
            raise ValueError("never")

    block = solved(Never(size=32))
    assert {record.outcome for record in block.records} == {Outcome.PROBLEM_RAISED}
    assert {record.method for record in block.records} == {"batched:multigrid"}


def test_a_step_that_fails_ends_its_sample_and_the_others_march_on():
    class Cold(Heat):
        def advance(self, draw, step, state, rhs):
            super().advance(draw, step, state, rhs)
            if step == 3 and self.first(draw):
                rhs[4] = np.nan

        def first(self, draw):
            return draw["parameters"][0] == drawn(Heat(size=16, steps=5), 0, run_seed=13)["parameters"][0]

    sound, block = solved(Heat(size=16, steps=5)), solved(Cold(size=16, steps=5))
    assert [record.outcome for record in block.records] == [
        Outcome.NONFINITE_INPUT,
        Outcome.CONVERGED,
        Outcome.CONVERGED,
    ]
    assert np.isnan(block.arrays["u"][0]).all()
    np.testing.assert_array_equal(block.arrays["u"][1:], sound.arrays["u"][1:])


def test_a_sample_that_a_step_has_ended_is_not_taken_up_again():
    calls = []

    class Flaky(Heat):
        def fields(self, draw, solution):
            calls.append(draw["parameters"][0])
            if len(calls) == 2:
                raise KeyError("u")
            return super().fields(draw, solution)

    block = solved(Flaky(size=16, steps=5))
    assert [record.outcome for record in block.records] == [
        Outcome.CONVERGED,
        Outcome.PROBLEM_RAISED,
        Outcome.CONVERGED,
    ]
    assert np.isnan(block.arrays["u"][1]).all()
    assert len(calls) == 3 + 2 * 4


def test_a_shared_matrix_that_is_no_stencil_fails_every_sample():
    class Wrong(Heat):
        def assemble(self, draw, values, rhs):
            super().assemble(draw, values, rhs)
            np.negative(values, out=values)

    block = solved(Wrong(size=16, steps=3))
    assert {(r.outcome, "off the diagonal is positive" in r.message) for r in block.records} == {
        (Outcome.DIVERGED, True)
    }


def test_steps_whose_matrix_differs_by_sample_are_solved_one_sample_at_a_time():
    class Own(Heat):
        fixed_matrix = False

    together, alone = solved(Heat(size=16, steps=5)), solved(Own(size=16, steps=5))
    assert {record.outcome for record in alone.records} == {Outcome.CONVERGED}
    np.testing.assert_allclose(alone.arrays["u"], together.arrays["u"], rtol=1e-5)


def test_a_certificate_is_of_the_matrix_and_not_of_its_upper_half():
    class Skewed(Darcy):
        def assemble(self, draw, values, rhs):
            super().assemble(draw, values, rhs)
            lower = self._grid.stencil.diagonal[40] - 1
            values[lower] *= 0.5

    block = solved(Skewed(size=32))
    for record in block.records:
        assert record.outcome is Outcome.RESIDUAL_ABOVE_TOLERANCE
        assert record.residual > 1e-6
        assert "is the matrix symmetric?" in record.message


def test_a_missed_tolerance_is_recorded_with_its_residual():
    block = solved(PROBLEMS["darcy"], Method("batched", backend="cpu", max_iterations=2))
    for record in block.records:
        assert record.outcome is Outcome.MAX_ITERATIONS
        assert record.iterations <= 2
        assert 1e-8 < record.residual < 10


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (
            Helmholtz(size=32),
            "needs a symmetric positive definite matrix on a structured grid, the problem's is symmetric",
        ),
        (ConvectionDiffusion(size=32), r"the problem's is general \(not symmetric\); use direct, gmres or auto"),
        (DarcyFem(element_size=0.1), "the problem has no `grid_shape`; use direct, cg or auto"),
    ],
)
def test_a_problem_without_a_stencil_is_refused_before_any_sample(problem, message):
    with pytest.raises(StudyError, match=message):
        BlockSolver(problem, BATCHED, run_seed=13, plans=PLAN)


def test_a_grid_whose_pattern_is_wider_is_refused_with_what_it_has():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Pair(Darcy):
        def pattern(self):
            dense = np.ones((self.size**2, self.size**2), dtype=bool)
            columns = np.nonzero(dense)[1]
            return np.arange(0, dense.size + 1, len(dense)).astype(np.int32), columns.astype(np.int32)

    with pytest.raises(
        StudyError, match=r"solver.method = 'batched' needs the 5-point stencil .* use method = \"direct\""
    ):
        BlockSolver(Pair(size=8), BATCHED, run_seed=13, plans=PLAN)


def test_a_capped_solve_ends_early_and_the_next_one_is_as_if_it_had_not_been():
    problem = PROBLEMS["darcy log-normal"]
    system = system_of(problem)
    system.update(drawn(problem))
    solver = StencilSolver(system, BATCHED, grid=problem.grid_shape)
    free = solver.solve()
    answer, iterations = free.x.copy(), free.iterations
    capped = solver.solve(cap_s=1e-7)
    assert capped.outcome is Outcome.MAX_ITERATIONS
    assert capped.iterations < 0.5 * iterations
    generous = solver.solve(cap_s=100.0)
    assert (generous.outcome, generous.iterations) == (Outcome.CONVERGED, iterations)
    assert np.array_equal(solver.solve().x, answer)
    system.destroy()


def test_a_guess_that_is_the_solution_needs_no_iteration():
    problem = PROBLEMS["darcy"]
    system = system_of(problem)
    system.update(drawn(problem))
    solver = StencilSolver(system, BATCHED, grid=problem.grid_shape)
    first = solver.solve()
    again = solver.solve(first.x.copy())
    assert (again.outcome, again.iterations) == (Outcome.CONVERGED, 0)
    system.destroy()

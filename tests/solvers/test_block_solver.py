import dataclasses
import functools
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from suites.solver_suite import SolverSuite

from forebay.pipeline.errors import ProblemError, StudyError
from forebay.pipeline.records import ChunkPlan, Field, Outcome, Parameter, Schema
from forebay.solvers.block_solver import BlockSolver
from forebay.solvers.linear import LinearSolver
from forebay.solvers.methods import Method
from forebay.solvers.problems import load_problem

EXAMPLES = Path(__file__).parents[2] / "examples"


@functools.cache
def problem_named(name):
    options = {
        "my_problem.py:MyProblem": {"n": 12},
        "darcy": {"size": 32},
        "helmholtz": {"size": 32},
        "convection_diffusion": {"size": 32},
        "poisson": {"size": 32},
        "heat": {"size": 16, "steps": 5},
        "darcy3d": {"size": 10},
        "helmholtz3d": {"size": 12},
        "darcy_fem": {"element_size": 0.1},
    }[name]
    return load_problem(name, options, folder=EXAMPLES)


DIRECT, MUMPS = Method(), Method(factor="mumps")
PAIRS = [
    *(
        ("my_problem.py:MyProblem", method)
        for method in (DIRECT, MUMPS, Method("cg", "icc"), Method("cg", "eisenstat"))
    ),
    *(("darcy", method) for method in (DIRECT, Method("cg", "gamg"), Method("minres"))),
    *(("poisson", method) for method in (DIRECT, Method("cg", "bjacobi"))),
    *(("helmholtz", method) for method in (DIRECT, MUMPS)),
    *(("convection_diffusion", method) for method in (DIRECT, Method("gmres"), Method("bcgsl"))),
    *(("heat", method) for method in (DIRECT, MUMPS, Method("cg", "sor"))),
    *(("darcy3d", method) for method in (DIRECT, MUMPS, Method("cg", "gamg"), Method("cg", "icc"))),
    *(("helmholtz3d", method) for method in (DIRECT, MUMPS)),
    *(("darcy_fem", method) for method in (DIRECT, Method("cg", "icc"))),
]


def name_of(pair):
    name, method = pair
    parts = (name.rpartition(":")[2], method.method, method.preconditioner, method.factor)
    return "-".join(part for part in parts if part and part != "auto")


class TestProblemsAndMethods(SolverSuite):
    @pytest.fixture(params=PAIRS, ids=name_of)
    def pair(self, request):
        return request.param

    @pytest.fixture
    def problem(self, pair):
        return problem_named(pair[0])

    @pytest.fixture
    def method(self, pair):
        return pair[1]


# --- problems that misbehave ----------------------------------------------------------------------------------------

N = 6


@dataclasses.dataclass(frozen=True)
class Rod:
    """(c + 2) u_i - u_{i-1} - u_{i+1} = f_i; `fault` is what goes wrong where the parameter exceeds one half."""

    fault: str = ""
    times: tuple[float, ...] = ()
    fixed_matrix: bool = False
    symmetry = "spd"

    @property
    def schema(self):
        return Schema(
            parameters=(Parameter("p", 0.0, 1.0),),
            inputs=(Field("f", ("x",), (N,)),),
            outputs=(Field("u", ("x",), (N,)), Field("twice", ("x",), (N,))),
            times=self.times,
        )

    def hit(self, draw, fault):
        return self.fault == fault and draw["parameters"][0] > 0.5

    def draw(self, parameters, rng):
        f = 1.0 + rng.random(N)
        draw = {"parameters": parameters}
        if self.hit(draw, "draw raises"):
            raise ZeroDivisionError("no heat")
        if self.hit(draw, "draw exits"):
            raise KeyboardInterrupt
        if self.hit(draw, "wrong shape"):
            return {"f": f[:-1]}
        if self.hit(draw, "wrong name"):
            return {"g": f}
        if self.hit(draw, "nan input"):
            f[2] = np.nan
        if self.hit(draw, "huge input"):
            f[2] = 1e300
        return {"f": f}

    def pattern(self):
        matrix = sp.csr_array(sp.diags_array([1.0, 1.0, 1.0], offsets=[-1, 0, 1], shape=(N, N)))
        return matrix.indptr, matrix.indices

    def assemble(self, draw, values, rhs):
        if self.hit(draw, "assemble raises"):
            raise RuntimeError("no matrix")
        indptr, indices = self.pattern()
        rows = np.repeat(np.arange(N), np.diff(indptr))
        # A matrix shared by all samples cannot depend on the parameter.
        c = 0.3 if self.fixed_matrix else 0.1 + draw["parameters"][0]
        values[:] = np.where(rows == indices, 2.0 + c, -1.0)
        if self.hit(draw, "nan matrix"):
            values[3] = np.nan
        if self.hit(draw, "singular"):
            values[:] = 0.0
        rhs[:] = np.nan if self.hit(draw, "nan rhs") else draw["f"]

    def initial(self, draw):
        if self.hit(draw, "initial raises"):
            raise ValueError("no start")
        return np.full(N, draw["parameters"][0])

    def advance(self, draw, step, state, rhs):
        if step == 2 and self.hit(draw, "advance raises"):
            raise ArithmeticError("no step")
        rhs[:] = state + 0.1 * step * draw["f"]
        if step == 2 and self.hit(draw, "nan step"):
            rhs[0] = np.nan

    def fields(self, draw, solution):
        if self.hit(draw, "fields raises"):
            raise KeyError("u")
        huge = 1e200 if self.hit(draw, "huge output") else 2.0
        return {"u": solution, "twice": huge * solution}


STATIONARY_FAULTS = [
    ("draw raises", Outcome.PROBLEM_RAISED, "draw: ZeroDivisionError: no heat"),
    ("nan input", Outcome.NONFINITE_INPUT, "input 'f' has values that float32 cannot hold"),
    ("huge input", Outcome.NONFINITE_INPUT, "input 'f' has values that float32 cannot hold"),
    ("assemble raises", Outcome.PROBLEM_RAISED, "assemble: RuntimeError: no matrix"),
    ("nan matrix", Outcome.NONFINITE_INPUT, "the matrix holds NaN or inf"),
    ("nan rhs", Outcome.NONFINITE_INPUT, "the right-hand side holds NaN or inf"),
    ("singular", Outcome.FACTORISATION_FAILED, ""),
    ("fields raises", Outcome.PROBLEM_RAISED, "fields: KeyError: 'u'"),
    ("huge output", Outcome.NONFINITE_SOLUTION, "output 'twice' has values that float32 cannot hold"),
]
STEP_FAULTS = [
    ("initial raises", Outcome.PROBLEM_RAISED, "initial: ValueError: no start"),
    ("advance raises", Outcome.PROBLEM_RAISED, "advance: ArithmeticError: no step"),
    ("nan step", Outcome.NONFINITE_INPUT, "the right-hand side holds NaN or inf"),
]
MATRIX_FAULTS = ("nan rhs", "assemble raises", "nan matrix", "singular")
PLAN = {"train": ChunkPlan("train", 16, 16)}


def solved(problem, method=DIRECT, plan=None):
    solver = BlockSolver(problem, method, run_seed=31, plans=plan or PLAN)
    try:
        return solver.solve_block("train", 0)
    finally:
        solver.destroy()


def check_faults(problem, outcome, message):
    """Exactly the samples that were hit fail; the others are what they are without the fault."""
    sound = solved(dataclasses.replace(problem, fault=""))
    block = solved(problem)
    hit = sound.arrays["parameters"][:, 0] > 0.5
    assert 3 < hit.sum() < 13
    for row, record in enumerate(block.records):
        if hit[row]:
            assert record.outcome is outcome
            assert record.message == message
            assert all(np.isnan(array[row]).all() for array in block.arrays.values())
        else:
            assert record.outcome is Outcome.CONVERGED
            for name, array in block.arrays.items():
                np.testing.assert_array_equal(array[row], sound.arrays[name][row])
    np.testing.assert_array_equal(block.valid_rows, np.flatnonzero(~hit))


@pytest.mark.parametrize(("fault", "outcome", "message"), STATIONARY_FAULTS)
def test_a_faulty_sample_is_recorded_and_costs_itself_only(fault, outcome, message):
    check_faults(Rod(fault), outcome, message)


@pytest.mark.parametrize(
    ("fault", "outcome", "message"),
    [case for case in (*STATIONARY_FAULTS, *STEP_FAULTS) if case[0] != "nan rhs"],
)
def test_a_faulty_sample_in_time_costs_itself_only(fault, outcome, message):
    check_faults(Rod(fault, times=(0.1, 0.2, 0.3)), outcome, message)


@pytest.mark.parametrize(
    ("fault", "outcome", "message"),
    [case for case in (*STATIONARY_FAULTS, *STEP_FAULTS) if case[0] not in MATRIX_FAULTS],
)
def test_a_faulty_sample_among_those_that_march_together_costs_itself_only(fault, outcome, message):
    check_faults(Rod(fault, times=(0.1, 0.2, 0.3), fixed_matrix=True), outcome, message)


@pytest.mark.parametrize("fixed_matrix", [False, True])
def test_a_right_hand_side_that_assembly_leaves_to_the_steps_is_not_looked_at(fixed_matrix):
    problem = Rod("nan rhs", times=(0.1, 0.2), fixed_matrix=fixed_matrix)
    assert {record.outcome for record in solved(problem).records} == {Outcome.CONVERGED}


@pytest.mark.parametrize("method", [DIRECT, MUMPS])
def test_a_shared_matrix_that_is_singular_fails_every_sample(method):
    @dataclasses.dataclass(frozen=True)
    class Singular(Rod):
        def assemble(self, draw, values, rhs):
            values[:] = 0.0

    block = solved(Singular(times=(0.1, 0.2), fixed_matrix=True), method)
    assert {record.outcome for record in block.records} == {Outcome.FACTORISATION_FAILED}


@pytest.mark.parametrize("method", [DIRECT, MUMPS])
def test_marching_together_equals_marching_alone(method):
    together = Rod(times=(0.1, 0.2, 0.3), fixed_matrix=True)

    class Alone(Rod):
        """The same matrix, without saying so."""

        def assemble(self, draw, values, rhs):
            together.assemble(draw, values, rhs)

    expected = solved(Alone(times=(0.1, 0.2, 0.3)), method)
    for name, array in solved(together, method).arrays.items():
        np.testing.assert_allclose(array, expected.arrays[name], rtol=2e-7, err_msg=name)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("wrong shape", r"draw\(\) returned 'f' of shape \(5,\); the schema says 'f' of shape \(6,\)"),
        ("wrong name", r"draw\(\) returned no field 'f'; the schema says 'f' of shape \(6,\)"),
    ],
)
def test_a_problem_that_breaks_its_schema_ends_the_run(fault, message):
    with pytest.raises(ProblemError, match=message):
        solved(Rod(fault))


def test_an_initial_state_of_the_wrong_shape_ends_the_run():
    class Short(Rod):
        def initial(self, draw):
            return np.zeros(N - 1)

    with pytest.raises(ProblemError, match=r"initial\(\) returned shape \(5,\); the state has shape \(6,\)"):
        solved(Short(times=(0.1,)))


def test_an_interrupt_is_not_an_outcome():
    with pytest.raises(KeyboardInterrupt):
        solved(Rod("draw exits"))


def test_a_method_that_does_not_fit_is_refused_before_any_sample():
    with pytest.raises(StudyError, match="'cg' needs a symmetric positive definite matrix"):
        solved(problem_named("helmholtz"), Method("cg"))


def test_a_missed_tolerance_is_recorded_with_its_residual():
    block = solved(problem_named("my_problem.py:MyProblem"), Method("cg", "none", max_iterations=2))
    for record in block.records:
        assert record.outcome is Outcome.MAX_ITERATIONS
        assert record.iterations == 2
        assert 1e-8 < record.residual < 10


def test_solving_makes_no_petsc_objects(monkeypatch):
    solver = BlockSolver(problem_named("my_problem.py:MyProblem"), DIRECT, run_seed=31, plans=PLAN)
    built = []
    monkeypatch.setattr(LinearSolver, "_build", lambda self: built.append(self))
    solver.solve_block("train", 0)
    assert built == []
    solver.destroy()


def test_the_example_loses_through_its_sides_and_its_surface_what_it_is_heated_with():
    problem = problem_named("my_problem.py:MyProblem")
    block = solved(problem)
    h = 1 / problem.n
    for row in range(4):
        u = block.arrays["u"][row].astype(float)
        kx, ky, s, beta = block.arrays["parameters"][row]
        sides = sum(
            beta * k / (k + beta * h / 2) * h * ends.sum() for k, ends in ((kx, u[:, [0, -1]]), (ky, u[[0, -1]]))
        )
        heating = block.arrays["f"][row].sum(dtype=float) * h**2
        assert s * u.sum() * h**2 + sides == pytest.approx(heating, rel=1e-6)
        assert u.min() > 0


def test_the_example_is_short():
    assert len((EXAMPLES / "my_problem.py").read_text().splitlines()) < 60

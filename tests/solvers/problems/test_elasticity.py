import functools
import pickle
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from suites.solver_suite import SolverSuite

from forebay.learners.models import check_model
from forebay.learners.surrogate import IOSpec
from forebay.pipeline.errors import StudyError
from forebay.pipeline.sampling import sample_generator
from forebay.pipeline.stages import Problem
from forebay.solvers.assemble import AssembledProblem, CsrSystem, system_of
from forebay.solvers.linear import LinearSolver
from forebay.solvers.methods import Method
from forebay.solvers.problems import check_contract, load_problem
from forebay.solvers.problems.elasticity import LENGTHS, Elasticity, modes_at


def drawn(problem, seed=5, nu=None):
    rng = sample_generator(seed, "train", 0)
    xi = rng.standard_normal(problem.modes)
    parameters = np.append(xi, rng.uniform(problem.poisson_low, problem.poisson_high) if nu is None else nu)
    return {**problem.draw(parameters, rng), "parameters": parameters}


@pytest.fixture(scope="module")
def problem():
    return Elasticity(size=2, modes=6)


class TestElasticityAndMethods(SolverSuite):
    @pytest.fixture
    def problem(self):
        return small()

    @pytest.fixture(params=[Method(), Method("cg", "gamg")], ids=["direct", "cg-gamg"])
    def method(self, request):
        return request.param


@functools.cache
def small():
    return Elasticity(size=3)


def test_the_problem_keeps_its_contract(problem):
    assert isinstance(problem, Problem)
    assert isinstance(problem, AssembledProblem)
    check_contract(problem)


def test_the_matrix_is_symmetric_positive_definite_and_the_one_that_assemble_describes(problem):
    indptr, indices = problem.pattern()
    values, rhs = np.full(len(indices), np.nan), np.full(len(indptr) - 1, np.nan)
    system = system_of(problem)
    shared = system.values
    for seed, nu in ((5, 0.4), (7, 0.4999)):
        draw = drawn(problem, seed, nu)
        problem.assemble(draw, values, rhs)
        system.update(draw)
        assert system.values is shared, "written in place"
        np.testing.assert_array_equal(system.values, values)
        np.testing.assert_array_equal(system.rhs, rhs)
        np.testing.assert_array_equal(system.matrix.getValuesCSR()[2], values)
        matrix = sp.csr_array((values, indices, indptr))
        assert abs(matrix - matrix.T).max() < 1e-12 * abs(values).max()
        assert np.linalg.eigvalsh(matrix.toarray()).min() > 1e-4
    assert system.matrix.getBlockSize() == 3
    system.destroy()


def test_a_sample_does_not_depend_on_the_samples_before_it(problem):
    used, fresh = problem.system(), problem.system()
    used.update(drawn(problem, 7))
    kept = used.values.copy()
    for system in (used, fresh):
        system.update(drawn(problem, 11))
    np.testing.assert_array_equal(used.values, fresh.values)
    assert not np.array_equal(used.values, kept)
    used.destroy()
    fresh.destroy()


def iterations(system, draw):
    solver = LinearSolver(system, Method("cg", "gamg"), symmetry="spd")
    system.update(draw)
    solution = solver.solve()
    assert solution.residual <= 1e-8
    solver.destroy()
    return solution.iterations


def test_multigrid_needs_the_rigid_motions():
    problem = Elasticity(size=5)
    draw = drawn(problem, nu=0.45)
    told = problem.system()
    plain = CsrSystem(*problem.pattern(), problem.assemble, symmetry="spd")
    blocked = CsrSystem(*problem.pattern(), problem.assemble, symmetry="spd")
    blocked.matrix.setBlockSize(3)
    counts = [iterations(system, draw) for system in (told, blocked, plain)]
    for system in (told, blocked, plain):
        system.destroy()
    assert counts[0] < 0.7 * counts[1], f"against three translations alone: {counts}"
    assert counts[0] < 0.5 * counts[2], f"against one constant: {counts}"


def displacement_of(problem, draw):
    system = problem.system()
    solver = LinearSolver(system, Method(), symmetry="spd")
    system.update(draw)
    u = problem.fields(draw, solver.solve().x)["u"].copy()
    solver.destroy()
    system.destroy()
    return u


def test_the_beam_hangs_from_its_clamped_face(problem):
    nodes = problem.mesh.nodes
    u = displacement_of(problem, drawn(problem))
    assert u.shape == nodes.shape
    assert not u[nodes[:, 0] == 0].any()
    assert u[nodes[:, 0] > 0, 2].max() < 0, "pulled down"
    assert nodes[u[:, 2].argmin(), 0] == LENGTHS[0], "most at its free end"


def test_displacements_follow_the_traction_and_the_inverse_of_the_modulus(problem):
    draw = drawn(problem)
    u = displacement_of(problem, draw)
    twice = Elasticity(size=2, modes=6, traction=(0.0, 0.0, -0.02))
    np.testing.assert_allclose(displacement_of(twice, draw), 2 * u, rtol=1e-6, atol=1e-9)
    stiffer = {**draw, "E": 4 * draw["E"]}
    np.testing.assert_allclose(displacement_of(problem, stiffer), u / 4, rtol=1e-6, atol=1e-9)


def test_the_logarithm_of_the_modulus_has_the_deviation_asked_for():
    axes = [(np.arange(n) + 0.5) / n * length for n, length in zip((32, 16, 16), LENGTHS, strict=True)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    modes = modes_at(points, 12, alpha=2.0, tau=3.0, sigma=0.7)
    assert (modes**2).sum(axis=1).mean() == pytest.approx(0.7**2, rel=1e-12)
    gram = modes.T @ modes / len(points)
    np.testing.assert_allclose(gram - np.diag(np.diag(gram)), 0.0, atol=1e-14)
    assert (np.diff(np.diag(gram)) <= 1e-15).all(), "sorted by variance"
    expected = ((np.pi**2 + 9) / (np.pi**2 / 4 + 9)) ** -2.0  # λ(0, 0, 1) / λ(1, 0, 0)
    assert gram[1, 1] / gram[0, 0] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("count", [1, 7, 100, 512])
def test_no_longer_wave_is_left_out(count):
    kept = [
        tuple(map(int, p.description.split("(i, j, k) = (")[1].split(")")[0].split(",")))
        for p in Elasticity(modes=count).schema.parameters[:-1]
    ]
    assert len(set(kept)) == count
    assert (0, 0, 0) not in kept
    squares = [i**2 / 4 + j**2 + k**2 for i, j, k in kept]
    assert squares == sorted(squares)
    box = np.indices((80, 40, 40)).reshape(3, -1)
    every = box[0] ** 2 / 4 + box[1] ** 2 + box[2] ** 2
    assert np.count_nonzero(every < squares[-1]) <= count, "(0, 0, 0) apart, all shorter waves are kept"


def test_the_schema_has_a_vector_field_and_keeps_the_bricks(problem):
    schema = problem.schema
    assert [p.name for p in schema.parameters] == [*(f"xi_{k}" for k in range(1, 7)), "nu"]
    assert (schema.parameters[-1].quantile(0.0), schema.parameters[-1].quantile(1.0)) == (0.40, 0.49)
    n = len(problem.mesh.nodes)
    assert schema.outputs[0].dims == ("node", "component")
    assert schema.sample_shape("u") == (n, 3)
    assert schema.sample_shape("E") == (n,)
    coordinates = {c.name: c.values for c in schema.coordinates}
    np.testing.assert_array_equal(coordinates["node_z"], problem.mesh.nodes[:, 2])
    np.testing.assert_array_equal(coordinates["hexahedra"], problem.mesh.hexahedra)


def test_only_models_that_need_no_grid_take_it(problem):
    io = IOSpec.from_schema(problem.schema)
    check_model("mlp", {}, io)
    for model in ("fno", "unet"):
        with pytest.raises(StudyError, match=r"needs fields on a structured grid, but 'u' lives on .* use 'mlp'"):
            check_model(model, {}, io)


def test_a_problem_that_has_solved_travels_to_another_process(problem):
    problem.pattern()
    copy = pickle.loads(pickle.dumps(problem))
    assert copy == problem
    np.testing.assert_array_equal(copy.pattern()[1], problem.pattern()[1])
    np.testing.assert_array_equal(drawn(copy)["E"], drawn(problem)["E"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 64}, r"problem.size = 64 is not allowed: .* less than or equal to 32; the default is 8"),
        ({"poisson_high": 0.5}, r"problem.poisson_high = 0.5 is not allowed: .* less than or equal to 0.4999"),
        ({"poisson_low": 0.49}, r"problem.poisson_low = 0.49 must be below problem.poisson_high = 0.49"),
        ({"traction": [0, 0, 0]}, r"problem.traction = \[0.0, 0.0, 0.0\] leaves every sample at rest; at least one"),
        ({"traction": [1.0, 0.0]}, r"problem.traction = \[1.0, 0.0\] is not allowed"),
    ],
)
def test_options_of_a_study_are_checked(options, message):
    with pytest.raises(StudyError, match=message):
        load_problem("elasticity", options, folder=Path())

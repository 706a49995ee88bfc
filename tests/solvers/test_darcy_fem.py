import pickle

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.sparse.linalg import spsolve

from forebay.pipeline.errors import ProblemError, StudyError
from forebay.pipeline.stages import Problem
from forebay.solvers.assemble import AssembledProblem, system_of
from forebay.solvers.fem.diffusion import DiffusionForms
from forebay.solvers.fem.mesh import circle, difference, generate_mesh, rectangle
from forebay.solvers.linear import LinearSolver
from forebay.solvers.methods import Method
from forebay.solvers.problems import load_problem
from forebay.solvers.problems.darcy_fem import HOLE, DarcyFem, modes_at

SIZES = (0.1, 0.05, 0.025)
PLATE = difference(rectangle(1.0, 1.0), circle(*HOLE))
CORNERS = [(0, 0), (1, 0), (1, 1), (0, 1)]
HOLE_AREA = np.pi * HOLE[2] ** 2


@pytest.fixture(scope="module")
def meshes():
    return [DarcyFem(element_size=size).mesh for size in SIZES]


# --- the mesh -------------------------------------------------------------------------------------------------------


def test_the_mesh_tiles_the_plate_without_its_hole(meshes):
    lost = []
    for mesh in meshes:
        assert mesh.areas.min() > 0, "triangles are counter-clockwise"
        np.testing.assert_allclose(PLATE(mesh.nodes[mesh.boundary]), 0.0, atol=1e-8)
        interior = np.setdiff1d(np.arange(len(mesh.nodes)), mesh.boundary)
        assert PLATE(mesh.nodes[interior]).max() < 0
        lost.append(mesh.areas.sum() - (1 - HOLE_AREA))
    slope = np.polyfit(np.log(SIZES), np.log(lost), 1)[0]
    assert abs(slope - 2.0) < 0.3, f"chords cut the circle's area off with order {slope:.2f}: {lost}"


def test_one_boundary_runs_around_the_plate_and_one_around_the_hole(meshes):
    for mesh in meshes:
        vertices, triangles = len(mesh.nodes), len(mesh.triangles)
        edges = np.unique(np.sort(mesh.triangles[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1), axis=0)
        assert vertices - len(edges) + triangles == 0, "Euler characteristic of a ring"
        assert {(0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)} <= {tuple(p) for p in mesh.nodes[mesh.boundary]}


def test_triangles_are_nearly_equilateral_and_edges_have_the_size_asked_for(meshes):
    for size, mesh in zip(SIZES, meshes, strict=True):
        assert mesh.quality.min() > 0.6
        assert mesh.quality.mean() > 0.95
        corners = mesh.nodes[mesh.triangles]
        lengths = np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=2)
        assert lengths.mean() == pytest.approx(size, rel=0.15)


def test_the_same_size_gives_the_same_mesh():
    first, second = (generate_mesh(PLATE, 0.11, box=(1.0, 1.0), corners=CORNERS) for _ in range(2))
    np.testing.assert_array_equal(first.nodes, second.nodes)
    np.testing.assert_array_equal(first.triangles, second.triangles)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (0.0, "element_size = 0.0 must be positive and at most half the domain's width, 0.5"),
        (0.7, "element_size = 0.7 must be positive"),
        (0.2, "element_size = 0.2 does not resolve the domain: .* edges off the boundary .*; halve it"),
    ],
)
def test_an_element_size_that_cannot_work_is_refused(size, message):
    with pytest.raises(ProblemError, match=message):
        generate_mesh(PLATE, size, box=(1.0, 1.0), corners=CORNERS)


def test_a_corner_that_was_not_named_is_noticed():
    with pytest.raises(
        ProblemError, match=r"edges off the boundary .*; halve it, or name the corners that are missing"
    ):
        generate_mesh(rectangle(1.0, 1.0), 0.09, box=(1.0, 1.0), corners=[(0, 0)])


# --- the discretisation ---------------------------------------------------------------------------------------------


def exact_solution(points):
    x, y = points.T
    return np.sin(2 * x + 0.3) * np.cos(3 * y) + x * y


def coefficient(points):
    x, y = points.T
    return 1.0 + 0.5 * x + 0.25 * y


def source(points):
    """-∇·(a ∇u) of the two above: -a Δu - ∂ₓa ∂ₓu - ∂ᵧa ∂ᵧu."""
    x, y = points.T
    wave = np.sin(2 * x + 0.3) * np.cos(3 * y)
    u_x = 2 * np.cos(2 * x + 0.3) * np.cos(3 * y) + y
    u_y = -3 * np.sin(2 * x + 0.3) * np.sin(3 * y) + x
    return coefficient(points) * 13 * wave - 0.5 * u_x - 0.25 * u_y


def l2_error(mesh, nodal):
    """‖u_h - u‖ in L²(Ω_h) by the rule of the edges' midpoints, exact for quadratics."""
    halves = 0.5 * (np.eye(3) + np.roll(np.eye(3), 1, axis=1))
    points = np.einsum("qc,tcd->tqd", halves, mesh.nodes[mesh.triangles])
    difference_ = np.einsum("qc,tc->tq", halves, nodal[mesh.triangles]) - exact_solution(points.reshape(-1, 2)).reshape(
        points.shape[:2]
    )
    return np.sqrt((mesh.areas * (difference_**2).mean(axis=1)).sum())


def solve_manufactured(mesh):
    forms = DiffusionForms(mesh, source=source(mesh.nodes), dirichlet=exact_solution(mesh.nodes))
    system = forms.system("a")
    solver = LinearSolver(system, Method(), symmetry="spd")
    system.update({"a": coefficient(mesh.nodes)})
    nodal = solver.solve().x[forms.dof_of_node]
    solver.destroy()
    system.destroy()
    return nodal


def test_linear_elements_converge_at_order_two(meshes):
    errors = [l2_error(mesh, solve_manufactured(mesh)) for mesh in meshes]
    slope = np.polyfit(np.log(SIZES), np.log(errors), 1)[0]
    assert abs(slope - 2.0) < 0.2, f"observed order {slope:.2f} from errors {errors}"
    assert errors[-1] < 4e-4


def test_boundary_values_are_met_exactly(meshes):
    mesh = meshes[0]
    nodal = solve_manufactured(mesh)
    np.testing.assert_allclose(nodal[mesh.boundary], exact_solution(mesh.nodes[mesh.boundary]), rtol=1e-13)


def test_a_linear_field_is_reproduced_exactly(meshes):
    mesh = meshes[0]
    linear = 2.0 * mesh.nodes[:, 0] - mesh.nodes[:, 1] + 0.5
    forms = DiffusionForms(mesh, source=np.zeros(len(linear)), dirichlet=linear)
    rhs = np.zeros(len(linear))
    forms.assemble(np.full(len(linear), 3.0), rhs)
    indptr, indices = forms.pattern()
    solution = spsolve(sp.csc_array(sp.csr_array((forms.values, indices, indptr))), rhs)
    np.testing.assert_allclose(solution[forms.dof_of_node], linear, atol=1e-12)


# --- the problem ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def problem():
    return DarcyFem(element_size=0.1, modes=6)


def test_the_system_of_dolfinx_is_the_one_that_pattern_and_assemble_describe(problem):
    assert isinstance(problem, Problem)
    assert isinstance(problem, AssembledProblem)
    rng = np.random.default_rng(7)
    indptr, indices = problem.pattern()
    values, rhs = np.full(len(indices), np.nan), np.full(len(indptr) - 1, np.nan)
    system = system_of(problem)
    for _ in range(2):
        parameters = rng.standard_normal(6)
        draw = {**problem.draw(parameters, rng), "parameters": parameters}
        problem.assemble(draw, values, rhs)
        system.update(draw)
        np.testing.assert_array_equal(system.values, values)
        np.testing.assert_array_equal(system.rhs, rhs)
        matrix = sp.csr_array((values, indices, indptr))
        assert abs(matrix - matrix.T).max() < 1e-12 * abs(values).max()
        assert np.linalg.eigvalsh(matrix.toarray()).min() > 0
    system.destroy()


def test_the_solution_comes_back_in_the_order_of_the_nodes(problem):
    system = problem.system()
    solver = LinearSolver(system, Method(), symmetry="spd")
    system.update(problem.draw(np.zeros(6), np.random.default_rng(7)))
    u = problem.fields({}, solver.solve().x)["u"]
    interior = np.setdiff1d(np.arange(len(u)), problem.mesh.boundary)
    assert not u[problem.mesh.boundary].any()
    assert u[interior].min() > 0
    hottest = problem.mesh.nodes[interior[u[interior].argmax()]]
    assert hottest[0] < HOLE[0], "it is hottest where the hole is far"
    solver.destroy()
    system.destroy()


def test_two_systems_of_one_problem_do_not_share_their_numbers(problem):
    rng = np.random.default_rng(7)
    first, second = problem.system(), problem.system()
    first.update(problem.draw(np.ones(6), rng))
    kept = first.values.copy()
    second.update(problem.draw(-np.ones(6), rng))
    np.testing.assert_array_equal(first.values, kept)
    assert not np.array_equal(second.values, kept)
    first.destroy()
    second.destroy()


def test_the_logarithm_of_the_coefficient_has_the_deviation_asked_for():
    centres = (np.arange(64) + 0.5) / 64
    points = np.stack(np.meshgrid(centres, centres), axis=-1).reshape(-1, 2)
    modes = modes_at(points, 12, alpha=2.0, tau=3.0, sigma=0.7)
    assert (modes**2).sum(axis=1).mean() == pytest.approx(0.7**2, rel=1e-12)
    gram = modes.T @ modes / len(points)
    np.testing.assert_allclose(gram - np.diag(np.diag(gram)), 0.0, atol=1e-14)
    assert (np.diff(np.diag(gram)) <= 1e-15).all(), "sorted by variance"
    expected = ((np.pi**2 * 2 + 9) / (np.pi**2 + 9)) ** -2.0  # λ(1, 1) / λ(0, 1)
    assert gram[2, 2] / gram[0, 0] == pytest.approx(expected, rel=1e-12)


def test_the_schema_names_the_modes_and_keeps_the_triangles(problem):
    schema = problem.schema
    assert [p.name for p in schema.parameters] == [f"xi_{k}" for k in range(1, 7)]
    assert schema.parameters[2].description == "mode (i, j) = (1, 1) of log a"
    assert schema.parameters[0].quantile(0.5) == pytest.approx(0.0, abs=1e-12)
    assert schema.parameters[0].quantile(0.8413447460685429) == pytest.approx(1.0, abs=1e-9)
    coordinates = {c.name: c.values for c in schema.coordinates}
    np.testing.assert_array_equal(coordinates["node_x"], problem.mesh.nodes[:, 0])
    np.testing.assert_array_equal(coordinates["triangles"], problem.mesh.triangles)
    assert schema.sample_shape("a") == schema.sample_shape("u") == (len(problem.mesh.nodes),)


def test_a_problem_that_has_solved_travels_to_another_process(problem):
    problem.pattern()
    copy = pickle.loads(pickle.dumps(problem))
    assert copy == problem
    np.testing.assert_array_equal(copy.pattern()[1], problem.pattern()[1])


def test_options_of_a_study_are_checked(tmp_path):
    with pytest.raises(StudyError, match=r"problem.element_size = 0.9 is not allowed: .* less than or equal to 0.5"):
        load_problem("darcy_fem", {"element_size": 0.9}, folder=tmp_path)

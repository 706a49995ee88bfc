import functools

import numpy as np
import pytest
import scipy.sparse as sp

from forebay.solvers.fem.elasticity import BoxMesh, ElasticityForms, attach_near_null_space, rigid_motions
from forebay.solvers.linear import LinearSolver
from forebay.solvers.methods import Method
from forebay.solvers.petsc import petsc

BOX = (1.2, 0.9, 1.0)
SIZES = (4, 6, 9)


# --- the mesh -------------------------------------------------------------------------------------------------------

MESH = BoxMesh((2.0, 1.0, 0.5), (4, 3, 2))
# A brick as VTK orders it, on [-1, 1]³.
CORNERS = np.array(
    [[-1, -1, -1], [1, -1, -1], [1, 1, -1], [-1, 1, -1], [-1, -1, 1], [1, -1, 1], [1, 1, 1], [-1, 1, 1]], float
)


def test_bricks_tile_the_block_in_the_order_of_vtk():
    corners = MESH.nodes[MESH.hexahedra]
    half_edges = np.array(MESH.lengths) / MESH.cells / 2
    for brick in corners:
        np.testing.assert_allclose(brick - brick.mean(axis=0), CORNERS * half_edges, atol=1e-14)
    centres = np.sort(corners.mean(axis=1).round(12), axis=0)
    assert len(np.unique(corners.mean(axis=1).round(12), axis=0)) == 4 * 3 * 2
    np.testing.assert_allclose([centres.min(axis=0), centres.max(axis=0)], [half_edges, MESH.lengths - half_edges])


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("end", range(2))
def test_a_face_holds_all_nodes_of_its_plane(axis, end):
    expected = np.flatnonzero(np.isclose(MESH.nodes[:, axis], end * MESH.lengths[axis]))
    np.testing.assert_array_equal(MESH.face(axis, end), expected)


def test_points_are_found_among_the_nodes_in_any_order():
    order = np.random.default_rng(29).permutation(len(MESH.nodes))
    np.testing.assert_array_equal(MESH.numbers_of(MESH.nodes[order] + 1e-9), order)


# --- the discretisation ---------------------------------------------------------------------------------------------

COMPRESSIBLE, SOLENOIDAL = (1.0, 0.6, -0.7), (1.0, 1.0, -2.0)


def exact_displacement(points, weights):
    """∇·u = 2 Σ weights cos(2x) cos(2y) cos(2z); points (n, 3) may be complex."""
    sine, cosine = np.sin(2 * points), np.cos(2 * points)
    return np.column_stack([weights[a] * sine[:, a] * cosine[:, a - 1] * cosine[:, a - 2] for a in range(3)])


def modulus(points):
    x, y, z = points.T
    return 1.0 + 0.5 * x + 0.25 * y - 0.3 * z


def exact_stress(points, weights, nu):
    """σ (n, 3, 3) with the gradient by complex steps, which are exact to rounding."""
    gradient = np.stack(
        [exact_displacement(points + 1e-30j * np.eye(3)[axis], weights).imag / 1e-30 for axis in range(3)], axis=2
    )
    mu, lambda_ = 0.5 / (1 + nu), nu / ((1 + nu) * (1 - 2 * nu))
    pressure = lambda_ * np.trace(gradient, axis1=1, axis2=2)[:, None, None] * np.eye(3)
    return modulus(points)[:, None, None] * (mu * (gradient + gradient.transpose(0, 2, 1)) + pressure)


def body_force(points, weights, nu, step=1e-4):
    """-∇·σ by central differences; their error, about 1e-8, is far below the discretisation's."""
    differences = [
        exact_stress(points + step * np.eye(3)[axis], weights, nu)[:, :, axis]
        - exact_stress(points - step * np.eye(3)[axis], weights, nu)[:, :, axis]
        for axis in range(3)
    ]
    return -np.sum(differences, axis=0) / (2 * step)


def solved(forms, young, nu):
    """Nodal displacements (n, 3) of one material."""
    system = forms.system("E", 0)
    solver = LinearSolver(system, Method(), symmetry="spd")
    system.update({"E": young, "parameters": np.array([nu])})
    solution = solver.solve()
    assert solution.residual <= 1e-8
    nodal = forms.displacement(solution.x).copy()
    solver.destroy()
    system.destroy()
    return nodal


def all_but_the_far_end(mesh):
    return np.unique(np.concatenate([mesh.face(0, 0), *(mesh.face(axis, end) for axis in (1, 2) for end in (0, 1))]))


def l2_error(mesh, nodal, weights):
    """‖u_h - u‖ in L² by three Gauss points along each edge of a brick."""
    points, mass = np.polynomial.legendre.leggauss(3)
    at = np.stack(np.meshgrid(points, points, points), axis=-1).reshape(-1, 3)
    shapes = np.prod(1 + at[:, None] * CORNERS, axis=2) / 8
    corners = mesh.hexahedra
    found = np.einsum("qc,bcd->bqd", shapes, nodal[corners])
    places = np.einsum("qc,bcd->bqd", shapes, mesh.nodes[corners])
    difference = found - exact_displacement(places.reshape(-1, 3), weights).reshape(found.shape)
    volume = np.prod(mesh.lengths) / len(corners)
    masses = np.prod(np.stack(np.meshgrid(mass, mass, mass), axis=-1).reshape(-1, 3), axis=1) / 8
    return np.sqrt(volume * np.einsum("q,bqd->", masses, difference**2))


@functools.cache
def manufactured_error(cells, weights, nu):
    """L² error with E variable, g on five faces and the exact traction on the sixth."""
    mesh = BoxMesh(BOX, (cells, cells, cells))
    nodes = mesh.nodes
    forms = ElasticityForms(
        mesh,
        fixed=all_but_the_far_end(mesh),
        displacement=exact_displacement(nodes, weights),
        body_force=body_force(nodes, weights, nu),
        traction=exact_stress(nodes, weights, nu)[:, :, 0],
    )
    return l2_error(mesh, solved(forms, modulus(nodes), nu), weights)


@pytest.mark.parametrize(
    ("weights", "nu", "finest"),
    [(COMPRESSIBLE, 0.3, 8e-3), (COMPRESSIBLE, 0.49, 1.3e-2), (SOLENOIDAL, 0.3, 1.3e-2), (SOLENOIDAL, 0.4999, 1.3e-2)],
)
def test_bricks_converge_at_order_two(weights, nu, finest):
    errors = [manufactured_error(cells, weights, nu) for cells in SIZES]
    slope = -np.polyfit(np.log(SIZES), np.log(errors), 1)[0]
    assert abs(slope - 2.0) < 0.2, f"observed order {slope:.2f} from errors {errors}"
    assert errors[-1] < finest


def test_a_flow_without_change_of_volume_does_not_lock():
    # With full integration of the λ term the second of these is 3.9 times the first.
    compressible, rubber = (manufactured_error(SIZES[-1], SOLENOIDAL, nu) for nu in (0.3, 0.4999))
    assert rubber == pytest.approx(compressible, rel=0.05)


def test_a_cantilever_of_rubber_does_not_lock():
    deflections = []
    for size in (3, 6):
        mesh = BoxMesh((2.0, 1.0, 1.0), (2 * size, size, size))
        load = np.tile([0.0, 0.0, -1.0], (len(mesh.nodes), 1))
        forms = ElasticityForms(mesh, fixed=mesh.face(0, 0), traction=load)
        deflections.append(-solved(forms, np.ones(len(load)), 0.4999)[mesh.face(0, 1), 2].mean())
    coarse, fine = deflections
    assert coarse < fine, "a Galerkin method is too stiff"
    assert fine == pytest.approx(35.6, rel=0.03), "full integration gives 10.0"
    assert coarse > 0.94 * fine, "full integration gives 0.74"


@pytest.mark.parametrize("nu", [0.0, 0.3, 0.499])
def test_a_linear_displacement_is_reproduced_exactly(nu):
    mesh = BoxMesh(BOX, (3, 2, 4))
    gradient = np.random.default_rng(31).standard_normal((3, 3))
    linear = mesh.nodes @ gradient + [0.1, -0.2, 0.3]
    walls = np.union1d(all_but_the_far_end(mesh), mesh.face(0, 1))
    assert len(walls) < len(mesh.nodes)
    forms = ElasticityForms(mesh, fixed=walls, displacement=linear)
    nodal = solved(forms, np.full(len(linear), 2.5), nu)
    np.testing.assert_allclose(nodal, linear, atol=1e-10)


def test_a_bar_under_tension_is_stretched_exactly():
    mesh = BoxMesh(BOX, (3, 2, 2))
    young, nu, tension = 4.0, 0.45, 0.2
    stretched = mesh.nodes * (np.array([1.0, -nu, -nu]) * tension / young)
    pull = np.tile([tension, 0.0, 0.0], (len(stretched), 1))
    forms = ElasticityForms(mesh, fixed=mesh.face(0, 0), displacement=stretched, traction=pull)
    np.testing.assert_allclose(solved(forms, np.full(len(pull), young), nu), stretched, atol=1e-10)


def test_a_column_under_its_own_weight_is_shortened_exactly():
    # With ν = 0 and sides that cannot give way, (E u')' = ρg: u is quadratic, and exact at the nodes.
    mesh = BoxMesh((1.0, 1.0, 1.0), (4, 1, 1))
    x, n = mesh.nodes[:, 0], len(mesh.nodes)
    weight = np.tile([-1.0, 0.0, 0.0], (n, 1))
    forms = ElasticityForms(mesh, fixed=mesh.face(0, 0), body_force=weight)
    expected = np.column_stack([x**2 / 2 - x, np.zeros((n, 2))])
    np.testing.assert_allclose(solved(forms, np.ones(n), 0.0), expected, atol=1e-10)


@pytest.mark.parametrize("nu", [0.5, 0.6, -1.0, float("nan")])
def test_a_poisson_ratio_outside_its_range_is_refused(nu):
    mesh = BoxMesh(BOX, (1, 1, 1))
    forms = ElasticityForms(mesh, fixed=mesh.face(0, 0))
    with pytest.raises(ValueError, match=rf"Poisson's ratio {nu} must lie between -1 and 0.5; 0.5 needs a mixed"):
        forms.assemble(np.ones(8), nu, np.zeros(24))


# --- rigid motions --------------------------------------------------------------------------------------------------


def free_matrix(mesh, nu):
    """The matrix without constraints, for a random E."""
    forms = ElasticityForms(mesh, fixed=np.empty(0, dtype=np.int64))
    young = np.exp(np.random.default_rng(37).standard_normal(len(mesh.nodes)))
    forms.assemble(young, nu, np.zeros(3 * len(young)))
    indptr, indices = forms.pattern()
    return forms, sp.csr_array((forms.values, indices, indptr))


@pytest.mark.parametrize("nu", [0.0, 0.3, 0.499])
def test_rigid_motions_and_nothing_else_cost_no_energy(nu):
    forms, matrix = free_matrix(BoxMesh(BOX, (3, 2, 2)), nu)
    modes = forms.near_null_space
    np.testing.assert_allclose(modes.T @ modes, np.eye(6), atol=1e-14)
    assert abs(matrix @ modes).max() < 1e-13 * abs(matrix).max()
    spectrum = np.linalg.eigvalsh(matrix.toarray())
    assert np.count_nonzero(spectrum < 1e-3 * np.median(spectrum)) == 6, "a seventh would be an hourglass"


def test_rigid_motions_are_translations_and_rotations():
    points = np.random.default_rng(41).standard_normal((5, 3))
    motions = rigid_motions(points).reshape(5, 3, 6)
    np.testing.assert_array_equal(motions[:, :, :3], np.broadcast_to(np.eye(3), (5, 3, 3)))
    arms = points - points.mean(axis=0)
    np.testing.assert_allclose(motions[:, :, 5], np.column_stack([-arms[:, 1], arms[:, 0], np.zeros(5)]), atol=1e-15)


def test_the_near_null_space_is_zero_where_the_block_is_clamped():
    mesh = BoxMesh(BOX, (3, 2, 2))
    forms = ElasticityForms(mesh, fixed=mesh.face(0, 0))
    modes = forms.near_null_space.reshape(-1, 3, 6)[forms.dof_of_node]
    clamped = mesh.face(0, 0)
    assert not modes[clamped].any()
    assert abs(modes[np.setdiff1d(np.arange(len(mesh.nodes)), clamped)]).max(axis=(1, 2)).min() > 0


def test_a_matrix_keeps_the_near_null_space_it_was_given():
    PETSc = petsc()
    matrix = PETSc.Mat().createAIJ((6, 6), comm=PETSc.COMM_SELF)
    matrix.setUp()
    modes = np.linalg.qr(np.random.default_rng(43).standard_normal((6, 2)))[0]
    attach_near_null_space(matrix, modes)
    space = matrix.getNearNullSpace()
    assert space, "null, and asking it for vectors would end the process"
    modes_kept = np.column_stack([vector.getArray(readonly=True) for vector in space.getVecs()])
    np.testing.assert_array_equal(modes_kept, modes)
    matrix.destroy()

import amg_cases
import numpy as np
import pytest

from forebay.kernels.amg import CLASSICAL, AmgSolver, AmgWeights
from forebay.kernels.amg.hierarchy import Hierarchy
from forebay.learners.amg_meshes import grid_mesh

DOUBLE = np.dtype(np.float64)


@pytest.fixture(scope="module", params=["triangles", "tetrahedra", "5-point", "7-point"])
def mesh(request):
    return amg_cases.meshes()[request.param]


@pytest.fixture(scope="module")
def matrix(mesh):
    return mesh.draw("two_valued", 1e3, np.random.default_rng(13))


def hierarchy_of(matrix, weights=CLASSICAL, reference=None, **options):
    reference = matrix if reference is None else reference
    hierarchy = Hierarchy(amg_cases.symbolic_of(reference, **options), weights, DOUBLE)
    hierarchy.set_up(matrix.data)
    return hierarchy


def test_coarse_matrices_are_the_galerkin_products(mesh, matrix):
    hierarchy = hierarchy_of(matrix, amg_cases.random_weights(7), reference=mesh.reference)
    fine = matrix
    for prolong, coarse in zip(amg_cases.prolongators(hierarchy), amg_cases.coarse_matrices(hierarchy), strict=True):
        expected = (prolong.T @ fine @ prolong).toarray()
        np.testing.assert_allclose(coarse.toarray(), expected, atol=1e-13 * np.abs(expected).max())
        fine = coarse
    inverse = np.linalg.inv(fine.toarray() / hierarchy.scale)
    np.testing.assert_allclose(hierarchy.inverse, inverse, rtol=1e-9, atol=1e-10 * np.abs(inverse).max())


def test_galerkin_products_of_several_candidates():
    matrix, motions = amg_cases.stiffness(600)
    hierarchy = hierarchy_of(matrix, amg_cases.random_weights(11), candidates=motions, block_size=2, threshold=0.0)
    assert len(hierarchy.symbolic.levels) >= 2
    fine = matrix
    for prolong, coarse in zip(amg_cases.prolongators(hierarchy), amg_cases.coarse_matrices(hierarchy), strict=True):
        expected = (prolong.T @ fine @ prolong).toarray()
        empty = np.flatnonzero(expected.diagonal() == 0)
        expected[empty, empty] = 1.0
        np.testing.assert_allclose(coarse.toarray(), expected, atol=1e-12 * np.abs(expected).max())
        fine = coarse


def test_the_prolongator_is_one_filtered_jacobi_step_on_the_tentative_one(matrix):
    hierarchy = hierarchy_of(matrix, AmgWeights.constant(1.1, 1.5))
    plan = hierarchy.symbolic.levels[0]
    strong = amg_cases.strong_entries(matrix, 0.08)
    filtered = matrix.toarray() * strong
    weak = matrix.toarray() - filtered
    np.fill_diagonal(weak, 0.0)
    filtered[np.diag_indices_from(filtered)] = matrix.diagonal() + weak.sum(1)
    tentative = np.zeros((plan.unknowns, plan.coarse_unknowns))
    kept = plan.aggregate >= 0
    tentative[np.flatnonzero(kept), plan.aggregate[kept]] = 1.0
    omega = 1.1 / np.abs(filtered).sum(1)
    expected = tentative - omega[:, None] * (filtered @ tentative)
    expected[~kept] = 0.0
    np.testing.assert_allclose(amg_cases.prolongators(hierarchy)[0].toarray(), expected, atol=1e-7)


def test_a_cycle_is_symmetric_positive_definite_for_any_weights(mesh, matrix):
    for seed in (7, 13):
        weights = amg_cases.random_weights(seed, 5.0)
        solver = AmgSolver(
            matrix.indptr, matrix.indices, mesh.reference.data, weights=weights, precision="float64", guard=False
        )
        solver.setup(matrix.data)
        b = amg_cases.cycle_matrix(solver)
        assert np.abs(b - b.T).max() <= 1e-12 * np.abs(b).max()
        factor = np.linalg.cholesky(matrix.toarray())
        eigenvalues = np.linalg.eigvalsh(factor.T @ b @ factor)
        assert eigenvalues.min() > 0
        assert eigenvalues.max() < 1 + 1e-9, "the smoother converges, so no error grows"


def test_a_cycle_of_elasticity_with_rigid_motions_is_symmetric_positive_definite():
    matrix, motions = amg_cases.stiffness(200)
    solver = AmgSolver(
        matrix.indptr,
        matrix.indices,
        matrix.data,
        candidates=motions,
        block_size=2,
        threshold=0.0,
        precision="float64",
        weights=amg_cases.random_weights(13),
        guard=False,
    )
    assert solver.symbolic.levels
    b = amg_cases.cycle_matrix(solver)
    assert np.abs(b - b.T).max() <= 1e-12 * np.abs(b).max()
    assert np.linalg.eigvalsh(b).min() > 0


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_a_cycle_on_a_panel_is_the_cycle_on_each_column(matrix, precision):
    solver = AmgSolver(matrix.indptr, matrix.indices, matrix.data, precision=precision)
    r = np.random.default_rng(11).standard_normal((matrix.shape[0], 3)) * [1.0, 1e-20, 1e20]
    panel, column = np.empty_like(r), np.empty(len(r))
    solver.cycle(r, panel)
    for c in range(3):
        solver.cycle(r[:, c].copy(), column)
        bound = (1e-5 if precision == "float32" else 1e-13) * np.abs(column).max()
        assert np.abs(panel[:, c] - column).max() < bound


@pytest.mark.parametrize("sweeps", [1, 2])
def test_a_two_level_cycle_is_smoothing_around_an_exact_coarse_correction(sweeps):
    matrix = grid_mesh(20, 2).draw("log_normal", 1e2, np.random.default_rng(7))
    solver = AmgSolver(matrix.indptr, matrix.indices, matrix.data, precision="float64", sweeps=sweeps)
    (prolong,) = (p.toarray() for p in amg_cases.prolongators(solver.hierarchy))
    a, identity = matrix.toarray(), np.eye(matrix.shape[0])
    smoothing = np.linalg.matrix_power(identity - (4 / 3 / np.abs(a).sum(1))[:, None] * a, sweeps)
    correction = identity - prolong @ np.linalg.solve(prolong.T @ a @ prolong, prolong.T @ a)
    propagator = identity - amg_cases.cycle_matrix(solver) @ a
    np.testing.assert_allclose(propagator, smoothing @ correction @ smoothing, atol=1e-6)


def test_float32_levels_survive_entries_beyond_its_range(mesh):
    for factor in (1e-60, 1e60):
        matrix = mesh.reference * factor
        solver = AmgSolver(matrix.indptr, matrix.indices, matrix.data)
        rhs = factor * np.random.default_rng(7).standard_normal(matrix.shape[0])
        x, (record,) = solver.solve(rhs)
        assert record.valid
        assert np.linalg.norm(rhs - matrix @ x) <= 1e-8 * np.linalg.norm(rhs)

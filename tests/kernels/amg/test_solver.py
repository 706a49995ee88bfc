import subprocess
import sys

import amg_cases
import numpy as np
import pytest
from scipy.sparse import csr_array, diags_array, kron
from scipy.sparse.linalg import spsolve

from forebay.kernels.amg import AmgSolver, AmgWeights
from forebay.kernels.guard import Decision, Probation
from forebay.kernels.records import Outcome
from forebay.learners.amg_meshes import grid_mesh

WORST = AmgWeights.constant(0.05, 0.02)


@pytest.fixture(scope="module", params=["triangles", "tetrahedra", "5-point", "7-point"])
def mesh(request):
    return amg_cases.meshes()[request.param]


def solver_of(matrix, **options):
    return AmgSolver(matrix.indptr, matrix.indices, matrix.data, **options)


def true_residual(matrix, x, rhs):
    return np.linalg.norm(rhs - matrix @ x, axis=0) / np.linalg.norm(rhs, axis=0)


def learned(seed=7, size=0.0):
    """The classical cycle with hidden units, or something near it."""
    weights = amg_cases.random_weights(seed, size)
    output = weights.output.copy()
    output[:, -1] = [-0.5, 0.5]
    return AmgWeights(weights.hidden, output)


def bad():
    """Weights with hidden units that hardly smooth."""
    weights = learned()
    output = weights.output.copy()
    output[:, -1] = [-50.0, -50.0]
    return AmgWeights(weights.hidden, output)


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("family", ["log_normal", "two_valued", "white"])
def test_solutions_are_those_of_a_direct_solver_and_certified(mesh, family, precision):
    rng = np.random.default_rng(7)
    solver = solver_of(mesh.reference, precision=precision)
    for contrast in (1e2, 1e4):
        matrix = mesh.draw(family, contrast, rng)
        rhs = rng.standard_normal(matrix.shape[0])
        solver.setup(matrix.data)
        x, (record,) = solver.solve(rhs, rtol=1e-10, max_iterations=400)
        assert record.valid
        assert record.residual == pytest.approx(true_residual(matrix, x, rhs), rel=1e-3)
        assert true_residual(matrix, x, rhs) <= 1e-10
        exact = spsolve(matrix.tocsc(), rhs)
        assert np.linalg.norm(x - exact) <= 1e-6 * np.linalg.norm(exact)


@pytest.mark.parametrize(("family", "contrast", "most"), [("two_valued", 1e6, 60), ("log_normal", 1e2, 25)])
def test_iterations_hardly_grow_with_contrast(mesh, family, contrast, most):
    matrix = mesh.draw(family, contrast, np.random.default_rng(13))
    solver = solver_of(mesh.reference)
    solver.setup(matrix.data)
    _, (record,) = solver.solve(np.ones(matrix.shape[0]))
    assert record.valid
    assert 3 <= record.iterations <= most


def test_iterations_hardly_grow_with_size():
    found = []
    for side in (30, 60, 120):
        matrix = grid_mesh(side, 2).reference
        _, (record,) = solver_of(matrix).solve(np.random.default_rng(7).standard_normal(matrix.shape[0]))
        found.append(record.iterations)
    assert found[-1] <= found[0] + 6, found


def test_several_right_hand_sides_are_each_solved_as_if_alone(mesh):
    matrix = mesh.draw("white", 1e2, np.random.default_rng(11))
    rng = np.random.default_rng(13)
    rhs = rng.standard_normal((matrix.shape[0], 4)) * [1, 1e-12, 1e12, 1]
    rhs[:, 3] = matrix @ np.ones(matrix.shape[0])
    solver = solver_of(matrix)
    panel, records = solver.solve(rhs)
    assert all(record.valid for record in records)
    assert (true_residual(matrix, panel, rhs) <= 1e-8).all()
    for c in range(4):
        _, (alone,) = solver.solve(rhs[:, c].copy())
        assert abs(alone.iterations - records[c].iterations) <= 1


def test_a_good_guess_saves_iterations_and_an_exact_one_all(mesh):
    matrix, rhs = mesh.reference, np.ones(mesh.unknowns)
    solver = solver_of(matrix)
    cold, (first,) = solver.solve(rhs, rtol=1e-6)
    _, (second,) = solver.solve(rhs, rtol=1e-6, guess=cold * (1 + 1e-4))
    again, (third,) = solver.solve(rhs, rtol=1e-5, guess=cold)
    assert second.iterations < first.iterations
    assert (third.iterations, third.refinements) == (0, 0)
    np.testing.assert_array_equal(again, cold)


def test_a_guess_just_above_the_tolerance_is_still_worked_on(mesh):
    matrix, rhs = mesh.reference, np.ones(mesh.unknowns)
    solver = solver_of(matrix)
    cold, (first,) = solver.solve(rhs, rtol=1e-4)
    x, (record,) = solver.solve(rhs, rtol=0.5 * first.residual, guess=cold)
    assert record.valid
    assert true_residual(matrix, x, rhs) <= 0.5 * first.residual


def test_a_zero_right_hand_side_has_the_zero_solution(mesh):
    x, records = solver_of(mesh.reference).solve(np.zeros((mesh.unknowns, 2)))
    assert not x.any()
    assert [(r.outcome, r.iterations) for r in records] == [(Outcome.CONVERGED, 0)] * 2


def test_nan_in_one_column_costs_that_column_only(mesh):
    rhs = np.ones((mesh.unknowns, 3))
    rhs[5, 1] = np.nan
    x, records = solver_of(mesh.reference).solve(rhs)
    assert [r.outcome for r in records] == [Outcome.CONVERGED, Outcome.NONFINITE_INPUT, Outcome.CONVERGED]
    assert "the right-hand side or the guess holds NaN or inf" in records[1].message
    assert np.isnan(x[:, 1]).all()
    assert np.isfinite(x[:, [0, 2]]).all()


def test_a_bad_sample_is_an_outcome_and_the_next_one_is_solved(mesh):
    solver, rhs = solver_of(mesh.reference), np.ones(mesh.unknowns)
    values = mesh.reference.data.copy()
    values[3] = np.inf
    solver.setup(values)
    x, (record,) = solver.solve(rhs)
    assert record.outcome is Outcome.NONFINITE_INPUT
    assert "the matrix holds NaN or inf" in record.message
    assert np.isnan(x).all()
    solver.setup(-mesh.reference.data)
    _, (record,) = solver.solve(rhs)
    assert record.outcome is Outcome.DIVERGED
    assert "diagonal entry" in record.message
    assert "coefficients must be positive" in record.message
    solver.setup(mesh.reference.data)
    assert solver.solve(rhs)[1][0].valid


def test_an_indefinite_matrix_diverges_instead_of_going_on():
    matrix = grid_mesh(30, 2).reference
    solver = solver_of(matrix)
    solver.setup((matrix - 0.5 * diags_array(np.ones(matrix.shape[0]))).tocsr().data)
    _, (record,) = solver.solve(np.random.default_rng(7).standard_normal(matrix.shape[0]))
    assert record.outcome is Outcome.DIVERGED
    assert "not positive definite" in record.message


def neumann(side):
    line = diags_array(
        [-np.ones(side - 1), np.r_[1.0, 2 * np.ones(side - 2), 1.0], -np.ones(side - 1)], offsets=[-1, 0, 1]
    )
    identity = diags_array(np.ones(side))
    matrix = csr_array(kron(line, identity) + kron(identity, line))
    matrix.sort_indices()
    return matrix


def test_a_singular_problem_is_solved_where_it_has_a_solution():
    matrix = neumann(40)
    rhs = np.random.default_rng(7).standard_normal(1600)
    solver = solver_of(matrix)
    x, (record,) = solver.solve(rhs - rhs.mean())
    assert record.valid
    assert true_residual(matrix, x, rhs - rhs.mean()) <= 1e-8
    _, (record,) = solver.solve(rhs + 1.0)
    assert record.outcome in (Outcome.DIVERGED, Outcome.MAX_ITERATIONS, Outcome.RESIDUAL_ABOVE_TOLERANCE)
    assert record.message
    assert record.residual > 0.1


def test_rows_of_the_identity_are_solved_at_once():
    inner = grid_mesh(24, 2).reference
    n = inner.shape[0]
    matrix = csr_array(np.block([[inner.toarray(), np.zeros((n, 30))], [np.zeros((30, n)), 7 * np.eye(30)]]))
    solver = solver_of(matrix)
    rhs = np.random.default_rng(7).standard_normal(n + 30)
    z = np.empty(n + 30)
    solver.cycle(rhs, z)
    np.testing.assert_allclose(z[n:], rhs[n:] / 7, rtol=1e-5)
    assert solver.solve(rhs)[1][0].iterations <= 25


def test_rigid_motions_pay_for_elasticity():
    matrix, motions = amg_cases.stiffness(1500)
    rhs = np.random.default_rng(7).standard_normal(3000)
    counts = []
    for options in ({}, {"block_size": 2}, {"block_size": 2, "candidates": motions, "threshold": 0.0}):
        x, (record,) = solver_of(matrix, **options).solve(rhs, max_iterations=3000)
        assert true_residual(matrix, x, rhs) <= 1e-8
        counts.append(record.iterations)
    assert counts[2] < 0.8 * counts[0], counts


def test_the_iteration_limit_is_kept_and_said():
    matrix = grid_mesh(30, 2).reference
    _, (record,) = solver_of(matrix).solve(np.ones(matrix.shape[0]), max_iterations=3)
    assert record.outcome is Outcome.MAX_ITERATIONS
    assert record.iterations == 3
    assert record.residual > 1e-8
    assert "max_iterations" in record.message


def test_a_tolerance_below_rounding_is_not_claimed_to_be_reached():
    mesh = amg_cases.meshes()["triangles"]
    matrix = mesh.draw("two_valued", 1e6, np.random.default_rng(7))
    x, (record,) = solver_of(matrix).solve(np.ones(mesh.unknowns), rtol=1e-17, max_iterations=2000)
    assert record.outcome is Outcome.RESIDUAL_ABOVE_TOLERANCE
    assert record.residual == pytest.approx(true_residual(matrix, x, np.ones(mesh.unknowns)), rel=0.5)


# -- the guard ---------------------------------------------------------------------------------------------------------


def iterations_of(solver, matrices, rhs):
    total = 0
    for matrix in matrices:
        solver.setup(matrix.data)
        _, (record,) = solver.solve(rhs, max_iterations=3000)
        assert record.valid
        total += record.iterations
    return total


@pytest.fixture(scope="module")
def stream():
    mesh, rng = amg_cases.meshes()["triangles"], np.random.default_rng(7)
    return mesh, [mesh.draw("log_normal", 1e2, rng) for _ in range(60)]


def test_bad_weights_cost_no_more_than_the_probes_that_found_them_out(stream):
    mesh, matrices = stream
    rhs = np.ones(mesh.unknowns)
    classical = iterations_of(solver_of(mesh.reference), matrices, rhs)
    trusted = iterations_of(solver_of(mesh.reference, weights=bad(), guard=False), matrices[:5], rhs)
    assert trusted > 2 * classical / 12
    guarded = solver_of(mesh.reference, weights=bad(), guard=Probation(budget=0.05))
    assert iterations_of(guarded, matrices, rhs) == classical
    assert guarded.guard.spent > 0
    assert guarded.guard.spent <= 0.05 * classical
    assert guarded.preconditioner == "amg(guard)"
    assert guarded.solve(rhs)[1][0].preconditioner == "amg(guard)"
    assert "slower than classical" in guarded.decision.reason


def test_better_weights_serve_as_soon_as_a_probe_is_paid_for(stream):
    mesh, matrices = stream
    rhs = np.ones(mesh.unknowns)
    solver = solver_of(mesh.reference, weights=AmgWeights.shipped(), guard=Probation(budget=0.1))
    labels = []
    for matrix in matrices:
        solver.setup(matrix.data)
        labels.append(solver.solve(rhs)[1][0].preconditioner)
    first = labels.index("amg:learned")
    assert 0 < first < 30
    assert labels[:first] == ["amg(guard)"] * first
    assert labels[-1] == "amg:learned"


def test_solves_withdraw_weights_that_a_probe_let_through(stream):
    mesh, matrices = stream
    solver = solver_of(mesh.reference, weights=bad(), guard=Probation())
    rhs = np.ones(mesh.unknowns)
    labels = []
    for k, matrix in enumerate(matrices[:12]):
        if k == 4:  # a probe that was wrong
            solver.guard.decision = Decision(True, 0.9, "learned no slower than classical")
        solver.setup(matrix.data)
        labels.append(solver.solve(rhs, max_iterations=3000)[1][0].preconditioner)
    assert labels == ["amg(guard)"] * 4 + ["amg:learned"] * 3 + ["amg(guard)"] * 5
    assert "times the iterations of its solves" in solver.decision.reason


def test_without_a_guard_weights_are_trusted_and_named(stream):
    mesh, _ = stream
    assert solver_of(mesh.reference, weights=bad(), guard=False).preconditioner == "amg:learned"
    assert solver_of(mesh.reference, weights=WORST).preconditioner == "amg"
    assert solver_of(mesh.reference).decision is None


def test_a_decision_that_holds_serves_the_next_samples(stream):
    mesh, matrices = stream
    guard = Probation(decision=Decision(True, 0.8, "as found before"))
    solver = solver_of(mesh.reference, weights=learned(), guard=guard)
    assert solver.preconditioner == "amg:learned"
    solver.setup(matrices[0].data)
    assert solver.solve(np.ones(mesh.unknowns))[1][0].valid


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_arguments_that_do_not_fit_are_refused():
    matrix = grid_mesh(8, 2).reference
    solver = solver_of(matrix)
    with pytest.raises(ValueError, match=r"\(3,\) values for a pattern of 156 entries"):
        solver.setup(np.ones(3))
    with pytest.raises(ValueError, match=r"a right-hand side of shape \(5,\) for 36 unknowns; it must be \(36,\)"):
        solver.solve(np.ones(5))
    with pytest.raises(ValueError, match=r"a guess of shape \(36, 1\) for right-hand sides of shape \(36,\)"):
        solver.solve(np.ones(36), guess=np.ones((36, 1)))
    with pytest.raises(ValueError, match="rtol = 0 must lie between 0 and 1; 1e-8 is good"):
        solver.solve(np.ones(36), rtol=0.0)
    with pytest.raises(ValueError, match="sweeps = 0; a V"):
        solver_of(matrix, sweeps=0)


def test_importing_it_loads_no_torch():
    code = "import sys, forebay.kernels.amg; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

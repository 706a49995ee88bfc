"""Deflated CG as a plain class: answers, iterations, bad input."""

import numpy as np
import pytest
import scipy.sparse as sp
from suites.linear_cases import diffusion, helmholtz
from suites.spd_cases import SIDE, Darcies, Sequence, cosines, drifting, spectral

from forebay.pipeline.records import Outcome
from forebay.solvers.krylov.deflated_cg import DeflatedCg
from forebay.solvers.krylov.space import RecycleSpace
from forebay.solvers.petsc import petsc

VARIANTS = ("exact", "economical", "frozen")


@pytest.mark.parametrize("flexible", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_agrees_with_a_dense_solve(variant, flexible):
    sequence = drifting(3)
    solver, space = DeflatedCg(recycle=8, variant=variant, flexible=flexible), None
    for k in range(3):
        x, record, space = sequence.ready(solver, k).solve(sequence.rhs, space, rtol=1e-11)
        exact = np.linalg.solve(sequence.matrices[k].toarray(), sequence.rhs)
        assert np.linalg.norm(x - exact) <= 1e-9 * np.linalg.norm(exact)
        assert record.outcome is Outcome.CONVERGED
        assert record.residual == pytest.approx(sequence.residual(k, x), rel=1e-2)
        assert record.residual <= 1e-11
        assert space.dimension == 8
        assert space.vectors.dtype == (np.float64 if variant == "exact" else np.float32)


@pytest.mark.parametrize("pc", ["none", "jacobi", "icc"])
def test_without_directions_it_is_conjugate_gradients(pc):
    sequence = Darcies(pc, size=32)
    PETSc = petsc()
    ksp = PETSc.KSP().create(PETSc.COMM_SELF)
    ksp.setOperators(sequence.system.matrix)
    ksp.setType("cg")
    ksp.setNormType(PETSc.KSP.NormType.UNPRECONDITIONED)
    ksp.setPC(sequence.pc)
    ksp.setTolerances(rtol=1e-8, atol=0)
    ksp.setConvergenceHistory()
    b, x = sequence.system.matrix.createVecs()
    b.setArray(sequence.system.rhs)
    ksp.solve(b, x)
    seen = []
    solver = DeflatedCg(recycle=0)
    solver.init(sequence.system.matrix, sequence.pc)
    answer, record, space = solver.solve(sequence.system.rhs, monitor=lambda _, norm: seen.append(norm))
    assert abs(record.iterations - ksp.getIterationNumber()) <= 1
    early = min(40, record.iterations // 2)  # later, rounding decides
    assert np.allclose(seen[:early], ksp.getConvergenceHistory()[1 : early + 1], rtol=1e-8)
    assert np.allclose(answer, x.getArray(), rtol=1e-6)
    assert space is None
    assert (record.cycles, record.products) == (1, record.iterations + 1)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("pc", "share"), [("jacobi", 0.62), ("icc", 0.5)])
def test_recycling_saves_iterations_on_a_slow_sequence(pc, share, variant):
    sequence = Darcies(pc)
    solver, plain, space = DeflatedCg(recycle=20, variant=variant), DeflatedCg(recycle=0), None
    counts, plain_counts = [], []
    for k in range(7):
        _, record, space = sequence.solve(solver, k, space)
        counts.append(record.iterations)
        plain_counts.append(sequence.solve(plain, k)[1].iterations)
    assert counts[0] == plain_counts[0]
    assert counts[-1] < share * plain_counts[-1], (counts, plain_counts)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exact_eigenvectors_remove_their_eigenvalues(dtype):
    values = np.concatenate([np.logspace(-4, -2, 6), np.linspace(0.5, 3, 114)])
    matrix, axes = spectral(values)
    sequence = Sequence([matrix], "none")
    rest = Sequence([sp.csr_array(sp.diags_array(values[6:]))], "none")
    rest.rhs = axes[:, 6:].T @ sequence.rhs
    # The residual is judged against the same length in both.
    rtol = 1e-8 * np.linalg.norm(sequence.rhs) / np.linalg.norm(rest.rhs)
    seen, expected = [], []
    _, plain, _ = rest.ready(DeflatedCg(recycle=0)).solve(
        rest.rhs, rtol=rtol, monitor=lambda _, norm: expected.append(norm)
    )
    space = RecycleSpace(axes[:, :6].T.astype(dtype))
    x, record, _ = sequence.ready(DeflatedCg(recycle=6)).solve(
        sequence.rhs, space, rtol=1e-8, monitor=lambda _, norm: seen.append(norm)
    )
    assert record.iterations == plain.iterations
    assert np.allclose(seen, expected, rtol=1e-6 if dtype == np.float64 else 2e-2)
    assert np.allclose(x, axes @ ((axes.T @ sequence.rhs) / values), rtol=1e-4, atol=1e-4)
    undeflated = sequence.ready(DeflatedCg(recycle=0)).solve(sequence.rhs)[1]
    assert undeflated.iterations > 2 * record.iterations


def test_the_space_becomes_the_lowest_eigenvectors():
    values = np.concatenate([np.array([1e-4, 3e-4, 1e-3]), np.linspace(0.5, 3, 97)])
    matrix, axes = spectral(values)
    sequence = Sequence([matrix], "none")
    solver, space = DeflatedCg(recycle=3, search=30, variant="exact"), None
    for _ in range(4):
        _, _, space = sequence.ready(solver).solve(sequence.rhs, space, rtol=1e-10)
    assert cosines(space.vectors.T, axes[:, :3]).min() > 1 - 1e-6
    assert np.allclose(np.linalg.norm(space.vectors, axis=1), 1)


def test_the_space_is_that_of_the_preconditioned_operator():
    # Jacobi hides the small diagonal entries of a badly scaled matrix, so that its lowest modes are other ones.
    values = np.concatenate([np.array([1e-3, 2e-3]), np.linspace(0.5, 1.5, 98)])
    inner, _ = spectral(values)
    scale = np.logspace(-2, 2, 100)
    unit = 1 / np.sqrt(inner.diagonal())
    matrix = sp.csr_array(sp.diags_array(scale * unit) @ inner @ sp.diags_array(scale * unit))
    sequence = Sequence([matrix], "jacobi")
    # So few directions a solve that the eigenvectors must be collected from several.
    solver, space = DeflatedCg(recycle=2, search=6, variant="exact"), None
    for _ in range(8):
        _, _, space = sequence.ready(solver).solve(sequence.rhs, space)
    dense = matrix.toarray()
    root = 1 / np.sqrt(np.diag(dense))
    modes = root[:, None] * np.linalg.eigh(root[:, None] * dense * root)[1][:, :2]
    assert cosines(space.vectors.T * scale[:, None], modes * scale[:, None]).min() > 1 - 1e-4


def test_a_space_that_contains_the_solution_needs_no_iteration():
    sequence = drifting(1)
    exact = np.linalg.solve(sequence.matrices[0].toarray(), sequence.rhs)
    noise = np.random.default_rng(3).standard_normal((3, len(exact)))
    x, record, _ = sequence.ready(DeflatedCg(recycle=5)).solve(sequence.rhs, RecycleSpace(np.vstack([noise, exact])))
    assert record.iterations == 0
    assert np.allclose(x, exact, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dependent_directions_are_left_out(dtype):
    sequence = drifting(1)
    one = np.random.default_rng(3).standard_normal((2, len(sequence.rhs)))
    space = RecycleSpace(np.repeat(one, 3, axis=0).astype(dtype))
    x, record, space = sequence.ready(DeflatedCg(recycle=6)).solve(sequence.rhs, space)
    assert record.outcome is Outcome.CONVERGED
    assert sequence.residual(0, x) <= 1e-8
    assert space.dimension == 6


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1.0, 1e30])
def test_a_meaningless_space_costs_time_but_not_the_answer(scale, variant):
    sequence = drifting(1)
    noise = scale * np.random.default_rng(3).standard_normal((6, len(sequence.rhs)))
    solver = sequence.ready(DeflatedCg(recycle=6, variant=variant))
    x, record, _ = solver.solve(sequence.rhs, RecycleSpace(noise.astype(np.float32)))
    assert record.outcome is Outcome.CONVERGED
    assert sequence.residual(0, x) <= 1e-8


@pytest.mark.parametrize("power", [-300, 0, 300])
def test_units_do_not_matter(power):
    sequence = drifting(2)
    solver = DeflatedCg(recycle=6)
    _, _, space = sequence.ready(solver).solve(sequence.rhs)
    sequence.ready(solver, 1)
    x, record, _ = solver.solve(sequence.rhs, space)
    scaled, scaled_record, _ = solver.solve(np.ldexp(sequence.rhs, power), space)
    assert np.array_equal(np.ldexp(x, power), scaled)
    assert scaled_record.iterations == record.iterations


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_a_zero_right_hand_side_and_a_good_guess_need_nothing():
    sequence = drifting(1)
    solver = sequence.ready(DeflatedCg(recycle=8))
    _, _, space = solver.solve(sequence.rhs)
    x, record, after = solver.solve(np.zeros_like(sequence.rhs), space)
    assert not x.any()
    assert (record.outcome, record.iterations, record.residual) == (Outcome.CONVERGED, 0, 0.0)
    assert after is space
    exact = np.linalg.solve(sequence.matrices[0].toarray(), sequence.rhs)
    x, record, after = solver.solve(sequence.rhs, space, guess=exact)
    assert (record.iterations, record.products) == (0, 1)
    assert np.array_equal(x, exact)
    assert after is space


def test_a_guess_saves_iterations():
    sequence = drifting(1)
    solver = sequence.ready(DeflatedCg(recycle=8))
    x, cold, _ = solver.solve(sequence.rhs)
    noise = np.random.default_rng(3).standard_normal(len(x))
    y, warm, _ = solver.solve(sequence.rhs, guess=x + 1e-5 * noise)
    assert warm.iterations < 0.6 * cold.iterations
    assert sequence.residual(0, y) <= 1e-8


def test_a_limit_and_a_monitor_end_a_solve():
    sequence = drifting(1)
    solver = sequence.ready(DeflatedCg(recycle=8))
    _, record, space = solver.solve(sequence.rhs, max_iterations=7)
    assert (record.outcome, record.iterations) == (Outcome.MAX_ITERATIONS, 7)
    _, record, _ = solver.solve(sequence.rhs, space, max_iterations=0)
    assert (record.outcome, record.iterations) == (Outcome.MAX_ITERATIONS, 0)
    x, record, _ = solver.solve(sequence.rhs, space, monitor=lambda iteration, _: iteration == 5)
    assert (record.outcome, record.iterations) == (Outcome.MAX_ITERATIONS, 5)
    assert record.residual == pytest.approx(sequence.residual(0, x), rel=1e-6)


def test_a_limit_is_not_taken_for_stagnation():
    sequence = drifting(1, pc="none", contrast=1e4)
    solver = sequence.ready(DeflatedCg(recycle=8))
    _, _, space = solver.solve(sequence.rhs, max_iterations=20)
    _, record, _ = solver.solve(sequence.rhs, space, max_iterations=5)
    assert (record.outcome, record.iterations) == (Outcome.MAX_ITERATIONS, 5)
    assert record.residual > 0.5
    assert not record.fell_back


@pytest.mark.parametrize("with_space", [False, True])
def test_an_indefinite_matrix_is_an_outcome(with_space):
    sequence = Sequence([helmholtz(1, side=SIDE)], "none", "symmetric")
    space = RecycleSpace(np.random.default_rng(3).standard_normal((4, SIDE**2))) if with_space else None
    _, record, after = sequence.ready(DeflatedCg(recycle=4)).solve(sequence.rhs, space)
    assert record.outcome is Outcome.DIVERGED
    assert record.reason.startswith("p·A p = -")
    assert "indefinite" in record.reason
    assert after is space


class Negative:
    """The preconditioner -1."""

    def apply(self, pc, x, y):
        x.copy(y)
        y.scale(-1.0)


def test_an_indefinite_preconditioner_is_an_outcome():
    sequence = drifting(1, pc=Negative())
    _, record, _ = sequence.ready(DeflatedCg(recycle=4)).solve(sequence.rhs)
    assert record.outcome is Outcome.DIVERGED
    assert record.reason.startswith("r·M⁻¹ r = -")
    assert "preconditioner" in record.reason


def test_a_singular_matrix_is_an_outcome():
    values = np.concatenate([[0.0], np.linspace(1, 2, 60)])
    every = np.arange(len(values))
    sequence = Sequence([sp.csr_array((values, (every, every)))], "none")  # with an explicit zero
    _, record, _ = sequence.ready(DeflatedCg(recycle=4)).solve(sequence.rhs)
    assert record.outcome in (Outcome.DIVERGED, Outcome.RESIDUAL_ABOVE_TOLERANCE)
    assert record.iterations < 1000


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("with_space", [False, True])
def test_what_is_not_finite_is_an_outcome_and_the_solver_survives(with_space, value):
    good = diffusion(1, side=SIDE)
    bad = good.copy()
    bad.data[3] = value
    sequence = Sequence([good, bad], "none")
    solver = DeflatedCg(recycle=8)
    _, _, space = sequence.ready(solver).solve(sequence.rhs)
    space = space if with_space else None
    _, record, after = sequence.ready(solver, 1).solve(sequence.rhs, space)
    assert record.outcome is Outcome.DIVERGED
    assert "not finite" in record.reason
    assert after is space
    sequence.ready(solver, 0)
    for bad_input in ({"rhs": np.full_like(sequence.rhs, value)}, {"rhs": sequence.rhs, "guess": sequence.rhs + value}):
        _, record, after = solver.solve(space=space, **bad_input)
        assert record.outcome is Outcome.NONFINITE_INPUT
        assert after is space
    x, record, _ = solver.solve(sequence.rhs, space)
    assert record.outcome is Outcome.CONVERGED
    assert sequence.residual(0, x) <= 1e-8


def test_a_right_hand_side_too_long_to_measure_is_an_outcome():
    sequence = drifting(1)
    _, record, _ = sequence.ready(DeflatedCg(recycle=4)).solve(np.ldexp(sequence.rhs, 600))
    assert record.outcome is Outcome.NONFINITE_INPUT


def test_a_tolerance_below_float64_ends_above_it():
    sequence = drifting(1, pc="jacobi", contrast=1e4)
    solver, space = sequence.ready(DeflatedCg(recycle=8)), None
    for _ in range(2):
        x, record, space = solver.solve(sequence.rhs, space, rtol=1e-15)
        assert record.outcome is Outcome.RESIDUAL_ABOVE_TOLERANCE
        assert record.iterations < 2000
        assert sequence.residual(0, x) < 1e-11


@pytest.mark.parametrize("seed", range(4))
def test_a_single_precision_solve_that_stagnates_goes_on_in_double(seed):
    # Eight eigenvalues so small that float32 cannot tell W A Wᵀ, and directions that are wrong by one per cent.
    rng = np.random.default_rng(seed)
    eigenvalues = np.concatenate([3e-11 * np.arange(1, 9), np.linspace(1, 50, 392)])
    sequence = Sequence([sp.diags_array(eigenvalues).tocsr()], "none")
    sequence.rhs = rng.standard_normal(400)
    space = RecycleSpace((np.eye(8, 400) + 5e-4 * rng.standard_normal((8, 400))).astype(np.float32))
    x, record, after = sequence.ready(DeflatedCg(recycle=8)).solve(sequence.rhs, space, rtol=1e-10)
    assert record.fell_back
    assert record.outcome is Outcome.CONVERGED
    assert sequence.residual(0, x) <= 1.1e-10
    assert after.vectors.dtype == np.float64


def test_corrections_of_the_residual_do_not_spoil_the_steps():
    # With r·z instead of r·p for the length of a step the residual grows to 600 times the right-hand side here.
    sequence = Sequence([diffusion(3, side=SIDE, contrast=1e4)], "none")
    sequence.rhs = np.random.default_rng(3).standard_normal(len(sequence.rhs))
    _, cold, space = sequence.ready(DeflatedCg(recycle=8)).solve(sequence.rhs, rtol=1e-13)
    solver = sequence.ready(DeflatedCg(recycle=8, variant="exact"))
    _, record, _ = solver.solve(sequence.rhs, RecycleSpace(space.vectors.astype(np.float64)), rtol=1e-13)
    assert record.outcome is Outcome.CONVERGED
    assert record.iterations < 1.2 * cold.iterations


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"recycle": -1}, "recycle = -1 .* 20 is a good value"),
        ({"search": 0}, "search = 0 .* at least 1"),
        ({"variant": "quick"}, "'quick' does not exist; choose exact"),
    ],
)
def test_bad_settings_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        DeflatedCg(**arguments)


def test_bad_arguments_of_a_solve_are_refused():
    solver = DeflatedCg()
    with pytest.raises(RuntimeError, match="call init"):
        solver.solve(np.ones(4))
    sequence = drifting(1)
    sequence.ready(solver)
    with pytest.raises(ValueError, match=f"space has 12 unknowns .* the matrix has {SIDE**2}"):
        solver.solve(sequence.rhs, RecycleSpace(np.ones((2, 12))))
    with pytest.raises(ValueError, match="guess has shape"):
        solver.solve(sequence.rhs, guess=np.ones(3))
    with pytest.raises(ValueError, match="right-hand side has shape"):
        solver.solve(np.ones(3))
    with pytest.raises(ValueError, match="rtol = 2"):
        solver.solve(sequence.rhs, rtol=2)
    solver.destroy()
    with pytest.raises(RuntimeError, match="call init"):
        solver.solve(sequence.rhs)


def test_one_solver_serves_matrices_of_several_sizes():
    solver = DeflatedCg(recycle=4)
    for side in (8, 12, 8):
        sequence = Sequence([diffusion(1, side=side)])
        x, record, space = sequence.ready(solver).solve(sequence.rhs)
        x, record, space = solver.solve(sequence.rhs, space)
        assert record.outcome is Outcome.CONVERGED
        assert sequence.residual(0, x) <= 1e-8

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from suites.linear_cases import MATRICES, diffusion, system_over, true_residual

from forebay.pipeline.errors import ForebayError, ProblemError, StudyError
from forebay.pipeline.records import Outcome
from forebay.solvers.assemble import CsrSystem
from forebay.solvers.columns import Columns
from forebay.solvers.linear import LinearSolver
from forebay.solvers.methods import Method
from forebay.solvers.petsc import petsc, refuse_other_scalars

DIRECT = [Method(factor="petsc"), Method(factor="mumps")]
ANY_MATRIX = [
    Method("gmres"),
    Method("gmres", "jacobi"),
    Method("gmres", "asm"),
    Method("bcgsl"),
    Method("gmres", "sor"),
]
SPD = [
    *(Method("cg", pc) for pc in ("none", "jacobi", "bjacobi", "sor", "eisenstat", "ilu", "icc", "gamg")),
    Method("minres"),
    Method("minres", "icc"),
]
PRODUCT = (
    [("spd", method) for method in DIRECT + ANY_MATRIX + SPD]
    + [("symmetric", method) for method in [*DIRECT, Method("gmres", "none", restart=90), Method("minres")]]
    + [("general", method) for method in DIRECT + ANY_MATRIX]
)


def name_of(value):
    if isinstance(value, Method):
        return "-".join(filter(None, (value.method, value.preconditioner, value.factor)))
    return None


@pytest.fixture
def opened():
    """Make (system, solver) pairs that are destroyed at the end of the test."""
    made = []

    def make(matrices, method, symmetry="spd"):
        system = system_over(matrices, symmetry)
        solver = LinearSolver(system, method, symmetry=symmetry)
        made.append((solver, system))
        return system, solver

    yield make
    for solver, system in made:
        solver.destroy()
        system.destroy()


def rhs_of(seed, n=100):
    return np.random.default_rng(seed).standard_normal(n)


def update(system, k, rhs):
    system.update({"k": np.array(k), "rhs": rhs})


@pytest.mark.parametrize(("symmetry", "method"), PRODUCT, ids=name_of)
def test_a_sequence_of_systems_is_solved_to_the_true_residual_that_was_asked_for(opened, symmetry, method):
    matrices = [MATRICES[symmetry](seed) for seed in (3, 5, 7)]
    system, solver = opened(matrices, method, symmetry)
    for k in (0, 1, 2, 1):
        rhs = rhs_of(11 + k)
        update(system, k, rhs)
        solution = solver.solve()
        assert solution.outcome is Outcome.CONVERGED
        assert true_residual(matrices[k], solution.x, rhs) <= method.rtol * (1 + 1e-6)
        assert solution.residual == pytest.approx(true_residual(matrices[k], solution.x, rhs), rel=1e-3, abs=1e-15)
        exact = sp.linalg.spsolve(matrices[k].tocsc(), rhs)
        np.testing.assert_allclose(solution.x, exact, atol=1e-5 * np.abs(exact).max(), rtol=0)
        assert (solution.iterations == 0) == (method.method == "direct")


@pytest.mark.parametrize(("symmetry", "method"), PRODUCT, ids=name_of)
def test_an_answer_does_not_depend_on_the_systems_solved_before(opened, symmetry, method):
    matrices = [MATRICES[symmetry](seed) for seed in (3, 5, 7)]
    answers = []
    for order in ((0, 1, 2), (2, 1, 0, 2)):
        system, solver = opened(matrices, method, symmetry)
        for k in order:
            update(system, k, rhs_of(13 + k))
            solution = solver.solve()
        answers.append((solution.x.copy(), solution.iterations, solution.residual))
    np.testing.assert_array_equal(answers[0][0], answers[1][0])
    assert answers[0][1:] == answers[1][1:]


def broken_matrices(good):
    """The same pattern with values that a solver cannot use, and the outcomes that are honest for each."""
    floating = good.copy()
    floating.setdiag(floating.diagonal() - np.asarray(floating.sum(axis=1)).ravel())
    nan, zero, blank = (good.copy() for _ in range(3))
    nan.data[17] = np.nan
    zero.data[:] = 0.0
    blank.data[blank.indptr[4] : blank.indptr[5]] = 0.0
    unsolvable = set(Outcome) - {Outcome.CONVERGED, Outcome.NONFINITE_INPUT, Outcome.PROBLEM_RAISED}
    return {
        "nan": (nan, {Outcome.NONFINITE_INPUT}),
        "all zero": (zero, unsolvable),
        "empty row": (blank, unsolvable),
        "pure Neumann": (floating, unsolvable),
    }


@pytest.mark.parametrize("method", [*DIRECT, *ANY_MATRIX, *SPD], ids=name_of)
def test_after_every_kind_of_failure_the_next_system_is_solved_as_if_nothing_had_happened(opened, method):
    good = diffusion(3)
    broken = broken_matrices(good)
    system, solver = opened([good, *(matrix for matrix, _ in broken.values())], method)
    rhs = 1.0 + np.abs(rhs_of(19))
    update(system, 0, rhs)
    expected = solver.solve().x.copy()
    for k, (name, (_, honest)) in enumerate(broken.items(), start=1):
        update(system, k, rhs)
        assert solver.solve().outcome in honest, name
        update(system, 0, rhs)
        after = solver.solve()
        assert after.outcome is Outcome.CONVERGED, name
        np.testing.assert_array_equal(after.x, expected, err_msg=name)


@pytest.mark.parametrize("factor", ["petsc", "mumps"])
def test_a_singular_matrix_is_a_failed_factorisation(opened, factor):
    zero = diffusion(3)
    zero.data[:] = 0.0
    system, solver = opened([zero], Method(factor=factor))
    update(system, 0, rhs_of(7))
    assert solver.solve().outcome is Outcome.FACTORISATION_FAILED
    assert solver.factor().outcome is Outcome.FACTORISATION_FAILED


@pytest.mark.parametrize("preconditioner", ["icc", "bjacobi"])
def test_incomplete_cholesky_of_a_singular_chain_ends(opened, preconditioner):
    chain = sp.diags_array([-1.0, 2.0, -1.0], offsets=[-1, 0, 1], shape=(40, 40)).tolil()
    chain[0, 0] = chain[39, 39] = 1.0
    system, solver = opened([sp.csr_array(chain)], Method("cg", preconditioner))
    update(system, 0, np.ones(40))
    assert not solver.solve().residual <= 1e-8


def test_a_right_hand_side_with_nan_is_named_before_the_solve(opened):
    system, solver = opened([diffusion(3)], Method("cg", "icc"))
    update(system, 0, np.where(np.arange(100) == 40, np.nan, 1.0))
    solution = solver.solve()
    assert solution.outcome is Outcome.NONFINITE_INPUT
    assert solution.message == "the right-hand side holds NaN or inf"


@pytest.mark.parametrize("preconditioner", ["sor", "eisenstat"])
def test_a_zero_on_the_diagonal_is_named_where_the_preconditioner_divides_by_it(opened, preconditioner):
    matrix = diffusion(3)
    matrix.setdiag(np.where(np.arange(100) == 40, 0.0, matrix.diagonal()))
    system, solver = opened([matrix], Method("cg", preconditioner))
    update(system, 0, rhs_of(7))
    solution = solver.solve()
    assert solution.outcome is Outcome.FACTORISATION_FAILED
    assert solution.message == f"zero on the diagonal, which {preconditioner} divides by"


@pytest.mark.parametrize("method", [Method(), Method("cg", "icc"), Method("gmres")], ids=name_of)
def test_a_zero_right_hand_side_has_the_zero_solution(opened, method):
    system, solver = opened([diffusion(3)], method)
    update(system, 0, rhs_of(7))
    solver.solve()
    update(system, 0, np.zeros(100))
    solution = solver.solve()
    assert solution.outcome is Outcome.CONVERGED
    assert solution.residual == 0.0
    assert not solution.x.any()


def test_an_error_raised_inside_petsc_costs_one_solve(opened):
    method = Method("cg", "none", max_iterations=4, options={"ksp_error_if_not_converged": True})
    system, solver = opened([diffusion(3), _identity_like(diffusion(3))], method)
    update(system, 0, rhs_of(7))
    failed = solver.solve()
    assert failed.outcome is Outcome.DIVERGED
    assert "has not converged, reason DIVERGED_ITS" in failed.message
    update(system, 1, rhs_of(7))
    assert solver.solve().outcome is Outcome.CONVERGED


def _identity_like(matrix):
    result = matrix.copy()
    result.data[:] = 0.0
    result.setdiag(1.0)
    return result


@pytest.mark.parametrize("method", [Method("cg", "none", max_iterations=4), Method("gmres", "none", max_iterations=4)])
def test_too_few_iterations_are_reported_with_the_residual_reached(opened, method):
    matrix = diffusion(3)
    system, solver = opened([matrix], method)
    rhs = rhs_of(7)
    update(system, 0, rhs)
    solution = solver.solve()
    assert solution.outcome is Outcome.MAX_ITERATIONS
    assert solution.iterations == 4
    assert solution.residual == pytest.approx(true_residual(matrix, solution.x, rhs), rel=1e-9)


def test_conjugate_gradients_own_up_to_an_indefinite_matrix(opened):
    system, solver = opened([MATRICES["symmetric"](3)], Method("cg", "jacobi", max_iterations=60))
    update(system, 0, rhs_of(7))
    assert solver.solve().outcome in (Outcome.DIVERGED, Outcome.MAX_ITERATIONS)


@pytest.mark.parametrize("method", [Method("cg", "eisenstat"), Method("bcgsl"), Method("minres")], ids=name_of)
def test_a_method_that_stops_by_another_norm_goes_on_until_the_true_residual_is_met(opened, method):
    # Rows of very different size: the preconditioned residual says little about the true one.
    scale = sp.diags_array(np.exp(2.0 * rhs_of(5)))
    matrix = sp.csr_array(scale @ diffusion(3) @ scale)
    system, solver = opened([matrix], method)
    rhs = rhs_of(7)
    update(system, 0, rhs)
    solution = solver.solve()
    assert solution.outcome is Outcome.CONVERGED
    assert true_residual(matrix, solution.x, rhs) <= method.rtol


def test_a_small_pivot_is_made_good_by_iterative_refinement(opened):
    # PETSc's L·U does not pivot: [[ε, 1], [1, ε]] loses as many digits as ε has, whichever row comes first.
    tiny = sp.diags_array(1e-8 * (1 + np.arange(50)))
    matrix = sp.csr_array(sp.block_array([[tiny, sp.eye_array(50)], [sp.eye_array(50), tiny]]))
    matrix.sort_indices()
    system, solver = opened([matrix], Method(factor="petsc", rtol=1e-12), "general")
    rhs = rhs_of(7)
    update(system, 0, rhs)
    solution = solver.solve()
    assert solution.outcome is Outcome.CONVERGED
    assert solution.iterations in (1, 2)
    assert true_residual(matrix, solution.x, rhs) <= 1e-12
    columns = Columns(system, 3, rtol=1e-12)
    columns.rhs[1] = rhs
    residuals, steps = columns.solve(solver.factor().matrix)
    assert steps.tolist() == [0, solution.iterations, 0]
    assert residuals.max() <= 1e-12
    columns.destroy()


def event_count(name):
    return petsc().Log.Event(name).getPerfInfo()["count"]


@pytest.mark.parametrize(
    ("symmetry", "events"),
    [("spd", ("MatCholFctrSym", "MatCholFctrNum")), ("general", ("MatLUFactorSym", "MatLUFactorNum"))],
)
@pytest.mark.parametrize("factor", ["petsc", "mumps"])
def test_one_analysis_serves_all_samples_and_an_unchanged_matrix_is_not_factorised_again(
    opened, symmetry, events, factor
):
    petsc().Log.begin()
    matrices = [MATRICES[symmetry](seed) for seed in (3, 5, 7)]
    system, solver = opened(matrices, Method(factor=factor), symmetry)
    before = [event_count(event) for event in events]
    for k in (0, 1, 1, 1, 2, 0):
        update(system, k, rhs_of(7))
        assert solver.solve().outcome is Outcome.CONVERGED
    assert [event_count(event) - start for event, start in zip(events, before, strict=True)] == [1, 4]


@pytest.mark.parametrize("method", DIRECT, ids=name_of)
def test_many_right_hand_sides_give_the_answers_of_single_solves_also_after_the_matrix_changed(opened, method):
    matrices = [diffusion(3), diffusion(5)]
    system, solver = opened(matrices, method)
    columns = Columns(system, 4, rtol=1e-8)
    for k, matrix in enumerate(matrices):
        columns.rhs[:] = np.stack([rhs_of(seed) for seed in (7, 9, 11, 13)])
        columns.rhs[2] = 0.0
        update(system, k, columns.rhs[1])
        residuals, steps = columns.solve(solver.factor().matrix)
        np.testing.assert_allclose(columns.x[1], solver.solve().x, rtol=1e-12, atol=1e-14)
        for row in (0, 1, 3):
            assert true_residual(matrix, columns.x[row], columns.rhs[row]) < 1e-12
            assert residuals[row] == pytest.approx(true_residual(matrix, columns.x[row], columns.rhs[row]), abs=1e-14)
        assert residuals[2] == 0.0
        assert not columns.x[2].any()
        assert not steps.any()
    columns.destroy()


def test_a_column_with_nan_leaves_the_others_alone(opened):
    matrix = diffusion(3)
    system, solver = opened([matrix], Method())
    update(system, 0, rhs_of(7))
    columns = Columns(system, 3, rtol=1e-8)
    columns.rhs[:] = rhs_of(9)
    columns.rhs[1, 5] = np.nan
    residuals, _ = columns.solve(solver.factor().matrix)
    assert not np.isfinite(residuals[1])
    assert true_residual(matrix, columns.x[2], rhs_of(9)) < 1e-12
    columns.destroy()


def test_a_krylov_method_has_no_factor(opened):
    _, solver = opened([diffusion(3)], Method("cg", "icc"))
    with pytest.raises(ValueError, match=r"cg\+icc does not factorise; use `solve`"):
        solver.factor()


def test_raw_options_reach_petsc(opened):
    counts = []
    for sweeps in (1, 3):
        matrices = [diffusion(3, side=24, contrast=2.0)]
        system, solver = opened(matrices, Method("cg", "sor", options={"pc_sor_its": sweeps}))
        update(system, 0, np.ones(576))
        counts.append(solver.solve().iterations)
    assert counts[1] != counts[0]


def test_the_options_of_a_destroyed_solver_are_forgotten():
    before = petsc().Options().getAll()
    system = system_over([diffusion(3)], "spd")
    solver = LinearSolver(system, Method("cg", "icc", options={"pc_factor_fill": 2.0}), symmetry="spd")
    assert petsc().Options().getAll() != before
    solver.destroy()
    system.destroy()
    assert petsc().Options().getAll() == before


def test_an_option_that_nothing_in_petsc_asks_for_is_refused(opened):
    system, solver = opened([diffusion(3)], Method("cg", "gamg", options={"pc_gamg_treshold": 0.02}))
    update(system, 0, rhs_of(7))
    with pytest.raises(StudyError, match=r"solver.options.pc_gamg_treshold = 0.02 is not an option of cg\+gamg"):
        solver.solve()


def test_a_preconditioner_that_this_petsc_lacks_is_a_clear_error(opened):
    if petsc().Sys.hasExternalPackage("hypre"):
        pytest.skip("this PETSc has hypre")
    with pytest.raises(StudyError, match=r"this PETSc cannot do 'cg\+hypre' .*; choose another preconditioner"):
        opened([diffusion(3)], Method("cg", "hypre"))


@pytest.mark.parametrize(
    ("indptr", "indices", "message"),
    [
        ([0, 2, 3], [0, 1], "indptr of length 3 that is not a CSR row pointer for 2 indices"),
        ([0, 1, 2], [0, 5], "column indices from 0 to 5 for 2 unknowns"),
        ([0, 2, 4], [1, 0, 0, 1], r"unsorted or repeated columns in row 0; call `sum_duplicates\(\)`"),
        ([0, 1, 2], [0, 0], "lacks 1 diagonal entries, the first in row 1; add explicit zeros"),
    ],
)
def test_a_pattern_that_petsc_would_misread_is_refused(indptr, indices, message):
    with pytest.raises(ProblemError, match=message):
        CsrSystem(np.array(indptr), np.array(indices), lambda draw, values, rhs: None, symmetry="general")


def test_importing_the_solvers_loads_neither_petsc_nor_mpi_nor_torch():
    code = (
        "import sys, forebay.solvers.block_solver, forebay.solvers.problems.darcy_fem, forebay.solvers.fem.mesh;"
        "print([m for m in ('petsc4py', 'mpi4py', 'dolfinx', 'torch', 'ray', 'zarr') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's process status")
def test_petsc_leaves_the_termination_signals_alone():
    code = (
        # A shell that starts the tests in the background has SIGINT ignored, and Python then leaves it so.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "import re, pathlib, forebay.solvers.petsc as p; p.petsc();"
        "print(re.search(r'SigCgt:\\s*(\\w+)', pathlib.Path('/proc/self/status').read_text())[1])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    caught = {number for number in range(1, 65) if int(result.stdout, 16) >> (number - 1) & 1}
    assert 15 not in caught  # SIGTERM
    assert 2 in caught  # SIGINT is Python's


def test_a_missing_petsc_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "petsc4py", None)
    with pytest.raises(ForebayError, match=r"PETSc cannot be loaded .*pip install 'dolfinx-solver-real>=0.11' mpich"):
        petsc.__wrapped__()


def test_a_complex_petsc_is_refused():
    with pytest.raises(ForebayError, match="complex128 scalars, Forebay needs float64; install `dolfinx-solver-real`"):
        refuse_other_scalars("complex128")

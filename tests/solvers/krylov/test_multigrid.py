"""Geometric multigrid: the V-cycle as a PC, its coarse operators, its grids."""

import itertools
import math

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from forebay.pipeline.errors import ProblemError
from forebay.solvers.krylov.multigrid import coarsenings, configure_multigrid, halve
from forebay.solvers.petsc import petsc

_prefixes = itertools.count()


def smooth_field(shape, seed=0, amplitude=1.0):
    """exp of a few random long waves, so that it is the same field on every grid."""
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*((np.arange(n) + 0.5) / n for n in shape), indexing="ij")
    log = np.zeros(shape)
    for wave in itertools.product(range(4), repeat=len(shape)):
        phase = np.prod([np.cos(np.pi * k * axis) for k, axis in zip(wave, axes, strict=True)], axis=0)
        log += rng.standard_normal() / (1 + np.dot(wave, wave)) * phase
    return np.exp(amplitude * log)


def finite_volumes(a, reaction=0.0):
    """-∇·(a∇u) + reaction u on cubes of side 1 with u = 0 at the walls, harmonic averages; any dimension."""
    cells = np.arange(a.size).reshape(a.shape)
    resistance = 0.5 / a
    rows, columns, values = [], [], []
    diagonal = np.full(a.shape, float(reaction))
    for axis in range(a.ndim):
        lower, upper = (np.moveaxis(array, axis, 0) for array in (cells, resistance))
        face = 1.0 / (upper[1:] + upper[:-1])
        rows += [lower[1:].ravel(), lower[:-1].ravel()]
        columns += [lower[:-1].ravel(), lower[1:].ravel()]
        values += [-face.ravel()] * 2
        along = np.moveaxis(diagonal, axis, 0)
        along[1:] += face
        along[:-1] += face
        along[0] += 1.0 / upper[0]
        along[-1] += 1.0 / upper[-1]
    rows, columns = np.concatenate([*rows, cells.ravel()]), np.concatenate([*columns, cells.ravel()])
    matrix = sp.csr_array((np.concatenate([*values, diagonal.ravel()]), (rows, columns)), shape=(a.size, a.size))
    matrix.sum_duplicates()
    return matrix


def petsc_matrix(matrix):
    PETSc = petsc()
    pattern = matrix.indptr.astype(PETSc.IntType), matrix.indices.astype(PETSc.IntType)
    return PETSc.Mat().createAIJ(matrix.shape, csr=(*pattern, matrix.data), comm=PETSc.COMM_SELF)


def replace(petsc_mat, matrix):
    """New values for the same sparsity."""
    int_type = petsc().IntType
    petsc_mat.setValuesCSR(matrix.indptr.astype(int_type), matrix.indices.astype(int_type), matrix.data)
    petsc_mat.assemble()


def krylov(matrix, grid, ksp_type="cg", rtol=1e-8, options=(), **settings):
    """A KSP with multigrid around a PETSc matrix."""
    PETSc = petsc()
    ksp = PETSc.KSP().create(PETSc.COMM_SELF)
    ksp.setOptionsPrefix(f"multigrid{next(_prefixes)}_")
    ksp.setOperators(matrix)
    ksp.setType(ksp_type)
    ksp.setPCSide(PETSc.PC.Side.LEFT if ksp_type == "cg" else PETSc.PC.Side.RIGHT)
    ksp.setNormType(PETSc.KSP.NormType.UNPRECONDITIONED)
    ksp.setTolerances(rtol=rtol, atol=0.0, max_it=200)
    configure_multigrid(ksp.getPC(), grid, **settings)
    database = PETSc.Options(ksp.getOptionsPrefix())
    for name, value in dict(options).items():
        database.setValue(name, value)
    ksp.setFromOptions()
    return ksp


def solved(ksp, rhs):
    """Solution array, after checking its true residual."""
    matrix = ksp.getOperators()[0]
    b, x = matrix.createVecLeft(), matrix.createVecRight()
    b.setArray(rhs)
    ksp.solve(b, x)
    assert ksp.getConvergedReason() > 0
    residual = b.duplicate()
    matrix.mult(x, residual)
    residual.aypx(-1.0, b)
    assert residual.norm() <= 1.1e-8 * b.norm()
    return x.getArray().copy()


def iterations(a, ksp_type="cg", reaction=0.0, **settings):
    ksp = krylov(petsc_matrix(finite_volumes(a, reaction)), a.shape, ksp_type, **settings)
    solved(ksp, np.ones(a.size))
    return ksp.getIterationNumber()


def dense(pc, n):
    """The preconditioner as a matrix."""
    x, y = (petsc().Vec().createSeq(n, comm=petsc().COMM_SELF) for _ in range(2))
    columns = []
    for unit in np.eye(n):
        x.setArray(unit)
        pc.apply(x, y)
        columns.append(y.getArray().copy())
    return np.stack(columns, axis=1)


def as_dense(matrix):
    n = matrix.getSize()[0]
    return matrix.getValues(range(n), range(n))


@pytest.mark.parametrize(
    "shape", [(32, 32), (64, 64), (128, 128), (16, 16, 16), (24, 24, 24), (33, 33), (63, 63), (100, 100), (129, 129)]
)
@pytest.mark.parametrize("definite", [True, False])
def test_iterations_hardly_depend_on_the_grid(shape, definite):
    assert 3 <= iterations(smooth_field(shape), definite=definite) <= 9


@pytest.mark.parametrize("shape", [(2, 2), (2, 3), (3, 50), (5, 4, 3), (7, 96), (31, 2, 9)])
def test_small_and_thin_grids_are_solved(shape):
    assert iterations(smooth_field(shape)) <= 15


@pytest.mark.parametrize(("contrast", "most"), [(12 / 3, 9), (1e3, 20), (1e6, 40)])
def test_jumps_of_the_coefficient_cost_few_iterations(contrast, most):
    a = np.where(smooth_field((64, 64), seed=3) > 1, contrast, 1.0)
    assert iterations(a, definite=True) <= most


@pytest.mark.parametrize("reaction", [1e-3, 0.1, 10.0])
def test_a_reaction_term_is_not_halved_with_the_couplings(reaction):
    assert iterations(smooth_field((64, 64)), reaction=reaction, definite=True) <= 8


def test_it_preconditions_an_indefinite_operator_for_gmres():
    shift = -((15.0 / 64) ** 2)
    eigenvalues = np.pi**2 * np.add.outer(np.arange(1, 9) ** 2, np.arange(1, 9) ** 2) / 64**2 + shift
    assert eigenvalues.min() < 0
    assert iterations(np.ones((64, 64)), "gmres", reaction=shift) <= 10


@pytest.mark.parametrize("shape", [(8, 8), (7, 9), (18, 17), (5, 6, 7)])
@pytest.mark.parametrize("seed", [1, 2])
def test_the_preconditioner_is_symmetric_positive_definite(shape, seed):
    a = 1e3 ** np.random.default_rng(seed).random(shape)
    ksp = krylov(petsc_matrix(finite_volumes(a)), shape, options={"pc_mg_levels": 5}, definite=True)
    ksp.setUp()
    preconditioner = dense(ksp.getPC(), a.size)
    assert np.abs(preconditioner - preconditioner.T).max() <= 1e-13 * np.abs(preconditioner).max()
    eigenvalues = np.linalg.eigvalsh(0.5 * (preconditioner + preconditioner.T))
    assert eigenvalues[0] > 1e-6 * eigenvalues[-1]


@pytest.mark.parametrize("dimension", [2, 3])
@pytest.mark.parametrize("shift", [0.0, -0.01, 0.3])
def test_coarse_operators_are_those_of_the_coarse_grid(dimension, shift):
    fine, coarse = (8,) * dimension, (4,) * dimension
    (coarsening,) = coarsenings(fine, 4**dimension)
    found = as_dense(coarsening.refresh(petsc_matrix(finite_volumes(np.ones(fine), shift))))
    # On cells of side 1 the coarse couplings of side 2 are 2^(d-2) times as large, volumes 2^d times.
    wanted = 2 ** (dimension - 2) * finite_volumes(np.ones(coarse)).toarray()
    inner = np.zeros(coarse)
    inner[(slice(1, -1),) * dimension] = 1.0
    wanted += np.diag(2.0**dimension * shift * np.where(inner.ravel() > 0, 1.0, 0.5))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-13)


def test_answers_after_other_matrices_equal_those_of_a_new_object_bit_by_bit():
    shape, rhs = (40, 37), np.random.default_rng(0).standard_normal(40 * 37)
    sequence = [finite_volumes(smooth_field(shape, seed)) for seed in range(3)]
    shared = petsc_matrix(sequence[0])
    ksp = krylov(shared, shape)
    for matrix in [*sequence, sequence[1], sequence[0]]:
        replace(shared, matrix)
        np.testing.assert_array_equal(solved(ksp, rhs), solved(krylov(petsc_matrix(matrix), shape), rhs))


def test_symbolic_products_are_made_once():
    PETSc = petsc()
    PETSc.Log.begin()
    symbolic, numeric = PETSc.Log.Event("MatPtAPSymbolic"), PETSc.Log.Event("MatPtAPNumeric")
    matrix = petsc_matrix(finite_volumes(smooth_field((48, 48))))
    ksp = krylov(matrix, (48, 48), definite=True)
    ksp.setUp()
    made, redone = symbolic.getPerfInfo()["count"], numeric.getPerfInfo()["count"]
    levels = ksp.getPC().getPythonContext().levels
    assert levels == 3
    matrix.scale(2.0)
    ksp.setUp()
    ksp.getPC().setUp()
    assert symbolic.getPerfInfo()["count"] == made
    assert numeric.getPerfInfo()["count"] == redone + levels - 1


def test_a_scaled_matrix_gives_the_scaled_preconditioner():
    shape = (9, 12)
    matrix = petsc_matrix(finite_volumes(smooth_field(shape)))
    ksp = krylov(matrix, shape)
    ksp.setUp()
    before = dense(ksp.getPC(), 108)
    matrix.scale(4.0)
    ksp.getPC().setUp()
    np.testing.assert_array_equal(4.0 * dense(ksp.getPC(), 108), before)


def test_another_matrix_object_is_taken_up():
    shape, rhs = (20, 20), np.ones(400)
    first, second = (petsc_matrix(finite_volumes(smooth_field(shape, seed))) for seed in (4, 5))
    ksp = krylov(first, shape)
    solved(ksp, rhs)
    ksp.setOperators(second)
    np.testing.assert_array_equal(solved(ksp, rhs), solved(krylov(second, shape), rhs))


def test_options_behind_the_prefix_reach_the_cycle():
    a = smooth_field((64, 64))
    matrix = petsc_matrix(finite_volumes(a))
    given = {"pc_mg_levels": 2, "mg_levels_ksp_max_it": 3, "mg_levels_pc_sor_omega": 0.9}
    ksp = krylov(matrix, a.shape, options=given)
    solved(ksp, np.ones(a.size))
    assert ksp.getPC().getPythonContext().levels == 2
    assert all(petsc().Options().used(ksp.getOptionsPrefix() + name) for name in given)
    plain = krylov(matrix, a.shape)
    solved(plain, np.ones(a.size))
    assert ksp.getIterationNumber() < plain.getIterationNumber()


def test_the_default_relaxation_leaves_no_trace_in_the_options():
    ksp = krylov(petsc_matrix(finite_volumes(smooth_field((16, 16)))), (16, 16))
    ksp.setUp()
    assert petsc().Options(ksp.getOptionsPrefix()).getAll() == {}


def test_a_coarse_operator_that_cannot_be_factorised_is_a_reason_and_no_lasting_fault():
    checkers = np.where(np.add.outer(np.arange(4), np.arange(4)) % 2, 1.0, -1.0)
    good = sp.csr_array(sp.diags_array(np.arange(1.0, 17.0)))
    matrix = petsc_matrix(sp.csr_array(sp.diags_array(checkers.ravel())))
    ksp = krylov(matrix, (4, 4), "gmres")
    b = matrix.createVecLeft()
    b.set(1.0)
    ksp.solve(b, b.duplicate())
    assert ksp.getConvergedReason() == petsc().KSP.ConvergedReason.DIVERGED_PCSETUP_FAILED
    replace(matrix, good)
    ksp.getPC().setUp()  # KSPSolve looks at the old reason first
    fresh = krylov(petsc_matrix(good), (4, 4), "gmres")
    np.testing.assert_array_equal(solved(ksp, np.ones(16)), solved(fresh, np.ones(16)))


def test_a_wrong_grid_is_refused_with_its_remedy():
    pc = krylov(petsc_matrix(finite_volumes(np.ones((6, 6)))), (6, 6)).getPC()
    with pytest.raises(ProblemError, match=r"\(6, 5\) has 6 x 5 = 30 cells, but the matrix has 36 rows.*one unknown a"):
        configure_multigrid(pc, (6, 5))
    for grid in ((36, 1), (36, 1, 1), ()):
        with pytest.raises(ProblemError, match=r"cannot be coarsened.*at least 2 cells.*'direct'"):
            configure_multigrid(pc, grid)


def test_it_prints_itself_and_frees_its_objects(capfd):
    ksp = krylov(petsc_matrix(finite_volumes(np.ones((8, 8)))), (8, 8))
    ksp.view()
    ksp.setUp()
    context = ksp.getPC().getPythonContext()
    ksp.getPC().view()
    assert "type: mg" in capfd.readouterr().out
    ksp.destroy()
    assert context.levels == 0


def test_coarse_grids_end_below_the_limit_or_where_an_axis_is_spent():
    assert [c.aggregates.getSize() for c in coarsenings((64, 48), 300)] == [(3072, 768), (768, 192)]
    assert [c.aggregates.getSize() for c in coarsenings((3, 2000), 300)] == [(6000, 2000), (2000, 500)]
    assert [c.aggregates.getSize() for c in coarsenings((4, 4), 300)] == [(16, 4)]


@settings(deadline=None, max_examples=60)
@given(st.integers(min_value=2, max_value=6000))
def test_halving_an_axis_joins_at_most_three_cells_evenly_on_every_level(n):
    faces = np.arange(n + 1.0)
    while len(faces) > 2:
        coarse, owner = halve(faces)
        assert len(coarse) - 1 == math.ceil((len(faces) - 1) / 2)
        assert (coarse[0], coarse[-1]) == (0, n)
        sizes = np.bincount(owner)
        assert len(sizes) == len(coarse) - 1
        assert sizes.min() >= 1
        assert sizes.max() <= 3
        np.testing.assert_array_equal(faces[np.cumsum(sizes)], coarse[1:])
        assert np.diff(coarse).max() <= 7 * np.diff(coarse).min()
        faces = coarse


def test_an_even_number_of_cells_is_joined_in_pairs():
    coarse, owner = halve(np.arange(13.0))
    np.testing.assert_array_equal(coarse, np.arange(0, 13, 2))
    np.testing.assert_array_equal(owner, np.repeat(np.arange(6), 2))

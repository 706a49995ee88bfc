"""GCRO-DR as a plain class and as a PETSc solver of type python."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from grid_systems import drawn, matrix_of
from suites.linear_cases import convection, diffusion, system_over, true_residual

from forebay.pipeline.records import Outcome
from forebay.solvers.krylov.gcrodr import GcroDr
from forebay.solvers.krylov.space import RecycleSpace
from forebay.solvers.petsc import petsc
from forebay.solvers.problems.helmholtz import Helmholtz

SIDE = 24
VARIANTS = ("exact", "economical", "frozen")


class Sequence:
    """Matrices of one pattern, a preconditioner and a right-hand side."""

    def __init__(self, matrices, symmetry, pc="ilu"):
        self.matrices = matrices
        self.system = system_over(matrices, symmetry)
        self.rhs = np.random.default_rng(7).standard_normal(self.system.rhs.shape)
        self.pc = petsc().PC().create(petsc().COMM_SELF)
        self.pc.setType(pc)
        self.pc.setOperators(self.system.matrix)

    def select(self, k):
        self.system.update({"k": k, "rhs": self.rhs})
        self.pc.setUp()

    def residual(self, k, x):
        return true_residual(self.matrices[k], x, self.rhs)


def waves(count, pc="ilu"):
    """Indefinite Helmholtz systems of independent media."""
    problem = Helmholtz(size=SIDE)
    return Sequence([matrix_of(problem, drawn(problem, sample_id=k))[0] for k in range(count)], "symmetric", pc)


MAKERS = {
    "spd": lambda count: drifting(diffusion, count, "spd"),
    "symmetric": waves,
    "general": lambda count: drifting(convection, count, "general"),
}


def drifting(make, count, symmetry, pc="ilu"):
    """A sequence that moves slowly from one random matrix towards another."""
    first, second = make(1, side=SIDE), make(2, side=SIDE)
    return Sequence([first + (0.02 * k) * (second - first) for k in range(count)], symmetry, pc)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", MAKERS)
def test_solves_every_kind_of_matrix(kind, variant):
    sequence = MAKERS[kind](3)
    solver, space = GcroDr(restart=30, recycle=12, variant=variant), None
    for k in range(3):
        sequence.select(k)
        solver.init(sequence.system.matrix, sequence.pc)
        x, record, space = solver.solve(sequence.rhs, space, rtol=1e-10)
        assert record.outcome is Outcome.CONVERGED
        assert sequence.residual(k, x) <= 1.01e-10
        assert record.residual == pytest.approx(sequence.residual(k, x), rel=1e-3)
        assert 0 < space.dimension <= 12


@pytest.mark.parametrize("variant", VARIANTS)
def test_recycling_saves_iterations_on_an_indefinite_sequence(variant):
    sequence = waves(6)
    solver, space = GcroDr(restart=60, recycle=30, variant=variant), None
    counts = []
    for k in range(6):
        sequence.select(k)
        solver.init(sequence.system.matrix, sequence.pc)
        _, record, space = solver.solve(sequence.rhs, space)
        counts.append(record.iterations)
    assert max(counts[1:]) < 0.4 * counts[0]


def test_without_a_space_the_first_cycle_is_gmres():
    sequence = drifting(convection, 1, "general", pc="jacobi")
    sequence.select(0)
    PETSc = petsc()
    ksp = PETSc.KSP().create(PETSc.COMM_SELF)
    ksp.setOperators(sequence.system.matrix)
    ksp.setType("gmres")
    ksp.setPCSide(PETSc.PC.Side.RIGHT)
    ksp.getPC().setType("jacobi")
    ksp.setGMRESRestart(25)
    ksp.setTolerances(rtol=1e-30, max_it=25)
    ksp.setConvergenceHistory()
    b, x = sequence.system.matrix.createVecs()
    b.setArray(sequence.rhs)
    ksp.solve(b, x)
    seen = []
    solver = GcroDr(restart=25, recycle=10, variant="exact")
    solver.init(sequence.system.matrix, sequence.pc)
    solver.solve(sequence.rhs, rtol=1e-14, max_iterations=25, monitor=lambda _, norm: seen.append(norm))
    assert np.allclose(seen, ksp.getConvergenceHistory()[1:], rtol=1e-6)


def test_a_space_that_contains_the_solution_needs_no_iteration():
    sequence = drifting(diffusion, 1, "spd")
    sequence.select(0)
    exact = np.linalg.solve(sequence.matrices[0].toarray(), sequence.rhs)
    solver = GcroDr(restart=20, recycle=5, variant="exact")
    solver.init(sequence.system.matrix, sequence.pc)
    noise = np.random.default_rng(3).standard_normal((3, len(exact)))
    x, record, _ = solver.solve(sequence.rhs, RecycleSpace(np.vstack([noise, exact])))
    assert record.iterations == 0
    assert np.allclose(x, exact, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dependent_directions_are_left_out(dtype):
    sequence = drifting(diffusion, 1, "spd")
    sequence.select(0)
    solver = GcroDr(restart=20, recycle=6)
    solver.init(sequence.system.matrix, sequence.pc)
    one = np.random.default_rng(3).standard_normal((1, len(sequence.rhs)))
    x, record, space = solver.solve(sequence.rhs, RecycleSpace(np.repeat(one, 6, axis=0).astype(dtype)))
    assert record.outcome is Outcome.CONVERGED
    assert sequence.residual(0, x) <= 1e-8
    assert space.dimension > 1


def test_a_meaningless_space_costs_time_but_not_the_answer():
    sequence = drifting(diffusion, 1, "spd")
    sequence.select(0)
    solver = GcroDr(restart=20, recycle=6)
    solver.init(sequence.system.matrix, sequence.pc)
    for scale in (1e-20, 1.0, 1e20):
        noise = scale * np.random.default_rng(3).standard_normal((6, len(sequence.rhs)))
        x, record, _ = solver.solve(sequence.rhs, RecycleSpace(noise.astype(np.float32)))
        assert record.outcome is Outcome.CONVERGED, scale
        assert sequence.residual(0, x) <= 1e-8


def test_solves_do_not_depend_on_anything_but_their_arguments():
    sequence = waves(4)
    solver, space, kept = GcroDr(restart=20, recycle=8), None, []
    for k in range(4):
        sequence.select(k)
        solver.init(sequence.system.matrix, sequence.pc)
        before = space
        x, record, space = solver.solve(sequence.rhs, space)
        kept.append((before, x.copy(), record))
    other = GcroDr(restart=20, recycle=8)
    for k in (3, 0, 2, 1):
        sequence.select(k)
        other.init(sequence.system.matrix, sequence.pc)
        x, record, _ = other.solve(sequence.rhs, kept[k][0])
        assert np.array_equal(x, kept[k][1])
        assert record == kept[k][2]


def test_the_images_are_kept_for_a_second_right_hand_side():
    sequence = drifting(diffusion, 2, "spd")
    sequence.select(0)
    solver = GcroDr(restart=20, recycle=8, variant="exact")
    solver.init(sequence.system.matrix, sequence.pc)
    _, _, space = solver.solve(sequence.rhs)
    second = np.random.default_rng(8).standard_normal(len(sequence.rhs))
    _, kept, _ = solver.solve(second, space)
    fresh = GcroDr(restart=20, recycle=8, variant="exact")
    fresh.init(sequence.system.matrix, sequence.pc)
    x, computed, _ = fresh.solve(second, space)
    assert kept.iterations == computed.iterations
    assert computed.products - kept.products == space.dimension
    assert true_residual(sequence.matrices[0], x, second) <= 1e-8


def test_a_zero_right_hand_side_and_a_good_guess_need_nothing():
    sequence = drifting(diffusion, 1, "spd")
    sequence.select(0)
    solver = GcroDr(restart=20, recycle=8)
    solver.init(sequence.system.matrix, sequence.pc)
    x, record, space = solver.solve(np.zeros_like(sequence.rhs))
    assert not x.any()
    assert (record.outcome, record.iterations, space) == (Outcome.CONVERGED, 0, None)
    exact = np.linalg.solve(sequence.matrices[0].toarray(), sequence.rhs)
    x, record, _ = solver.solve(sequence.rhs, guess=exact)
    assert record.iterations == 0
    assert np.array_equal(x, exact)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_units_of_the_right_hand_side_do_not_matter(variant):
    sequence = waves(1)
    sequence.select(0)
    solver = GcroDr(restart=40, recycle=15, variant=variant)
    solver.init(sequence.system.matrix, sequence.pc)
    _, _, space = solver.solve(sequence.rhs)
    solver.init(sequence.system.matrix, sequence.pc)
    seen = []
    x, record, _ = solver.solve(sequence.rhs, space, monitor=lambda _, norm: seen.append(norm))
    for power in (-1000, -540, -150, 0, 130, 520):
        found = []
        solver.init(sequence.system.matrix, sequence.pc)  # else the images are kept, which saves products
        scaled, again, _ = solver.solve(
            np.ldexp(sequence.rhs, power), space, monitor=lambda _, norm, found=found: found.append(norm)
        )
        assert again == record
        assert np.array_equal(np.ldexp(scaled, -power), x)
        assert np.allclose(np.ldexp(found, -power), seen, rtol=1e-12)


def test_what_cannot_be_solved_is_an_outcome():
    sequence = drifting(diffusion, 1, "spd", pc="none")
    sequence.select(0)
    solver = GcroDr(restart=20, recycle=8)
    solver.init(sequence.system.matrix, sequence.pc)
    _, record, _ = solver.solve(sequence.rhs, max_iterations=7)
    assert (record.outcome, record.iterations) == (Outcome.MAX_ITERATIONS, 7)
    _, record, space = solver.solve(np.full_like(sequence.rhs, np.nan))
    assert (record.outcome, space) == (Outcome.NONFINITE_INPUT, None)
    _, record, _ = solver.solve(sequence.rhs)
    assert record.outcome is Outcome.CONVERGED


def test_a_singular_matrix_ends_above_tolerance():
    singular = diffusion(1, side=SIDE)
    singular.data[singular.indptr[5] : singular.indptr[6]] = 0.0
    sequence = Sequence([singular], "general", pc="none")
    sequence.select(0)
    solver = GcroDr(restart=20, recycle=8)
    solver.init(sequence.system.matrix, sequence.pc)
    _, record, _ = solver.solve(sequence.rhs, max_iterations=2000)
    assert record.outcome in (Outcome.RESIDUAL_ABOVE_TOLERANCE, Outcome.DIVERGED)
    assert record.iterations < 2000


def test_nan_in_the_matrix_is_an_outcome_and_the_solver_survives():
    good = diffusion(1, side=SIDE)
    bad = good.copy()
    bad.data[3] = np.nan
    sequence = Sequence([bad, good], "general", pc="none")
    solver = GcroDr(restart=20, recycle=8)
    sequence.select(0)
    solver.init(sequence.system.matrix, sequence.pc)
    _, record, space = solver.solve(sequence.rhs)
    assert (record.outcome, space) == (Outcome.DIVERGED, None)
    sequence.select(1)
    solver.init(sequence.system.matrix, sequence.pc)
    x, record, _ = solver.solve(sequence.rhs, space)
    assert record.outcome is Outcome.CONVERGED
    assert sequence.residual(1, x) <= 1e-8


def test_an_economical_solve_that_stagnates_goes_on_exactly():
    # Spectrum from 1e-4 to 1: float32 bases of a short cycle cannot resolve it, float64 ones with deflation can.
    n = 400
    sequence = Sequence([_diagonal(np.logspace(-4, 0, n))], "general", pc="none")
    sequence.select(0)
    solver = GcroDr(restart=30, recycle=12)
    solver.init(sequence.system.matrix, sequence.pc)
    x, record, space = solver.solve(sequence.rhs, rtol=1e-8, max_iterations=50_000)
    assert record.fell_back
    assert space.vectors.dtype == np.float64
    assert record.outcome is Outcome.CONVERGED
    assert sequence.residual(0, x) <= 1.01e-8


def _diagonal(values):
    import scipy.sparse as sp

    return sp.csr_array(sp.diags_array(values))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"restart": 20, "recycle": 19}, "recycle = 19 .* from 1 to 18"),
        ({"recycle": 0}, "recycle = 0"),
        ({"variant": "quick"}, "'quick' does not exist; choose exact"),
    ],
)
def test_bad_settings_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        GcroDr(**arguments)


def test_bad_arguments_of_a_solve_are_refused():
    solver = GcroDr()
    with pytest.raises(RuntimeError, match="call init"):
        solver.solve(np.ones(4))
    sequence = drifting(diffusion, 1, "spd")
    sequence.select(0)
    solver.init(sequence.system.matrix, sequence.pc)
    with pytest.raises(ValueError, match=f"space has 12 unknowns .* the matrix has {SIDE**2}"):
        solver.solve(sequence.rhs, RecycleSpace(np.ones((2, 12))))
    with pytest.raises(ValueError, match="guess has shape"):
        solver.solve(sequence.rhs, guess=np.ones(3))
    with pytest.raises(ValueError, match="rtol = 2"):
        solver.solve(sequence.rhs, rtol=2)


def test_a_space_is_saved_and_restored(tmp_path):
    sequence = waves(2)
    solver = GcroDr(restart=20, recycle=8)
    sequence.select(0)
    solver.init(sequence.system.matrix, sequence.pc)
    _, _, space = solver.solve(sequence.rhs)
    space.save(tmp_path / "space.npz")
    restored = RecycleSpace.load(tmp_path / "space.npz")
    sequence.select(1)
    solver.init(sequence.system.matrix, sequence.pc)
    x, record, _ = solver.solve(sequence.rhs, space)
    again, record_again, _ = solver.solve(sequence.rhs, restored)
    assert np.array_equal(x, again)
    assert record == record_again
    (tmp_path / "other.npz").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="not a saved recycle space"):
        RecycleSpace.load(tmp_path / "other.npz")


@pytest.mark.parametrize("vectors", [np.ones(3), np.ones((2, 3), int), np.full((2, 3), np.nan)])
def test_a_space_holds_finite_rows(vectors):
    with pytest.raises(ValueError, match="recycle space"):
        RecycleSpace(vectors)


# -- as a KSP ----------------------------------------------------------------------------------------------------------


def test_ksp_of_type_python_from_options():
    PETSc = petsc()
    sequence = waves(3)
    prefix = "gcrodr_options_"
    options = PETSc.Options(prefix)
    settings = {
        "ksp_type": "python",
        "ksp_python_type": "forebay.solvers.krylov.ksp.GcroDrKsp",
        "ksp_gcrodr_restart": 20,
        "ksp_gcrodr_recycle": 8,
        "ksp_gcrodr_variant": "exact",
        "ksp_rtol": 1e-9,
        "pc_type": "ilu",
    }
    for name, value in settings.items():
        options.setValue(name, value)
    ksp = PETSc.KSP().create(PETSc.COMM_SELF)
    ksp.setOptionsPrefix(prefix)
    ksp.setOperators(sequence.system.matrix)
    ksp.setFromOptions()
    ksp.setConvergenceHistory()
    b, x = sequence.system.matrix.createVecs()
    b.setArray(sequence.rhs)
    plain, space = GcroDr(restart=20, recycle=8, variant="exact"), None
    for k in range(3):
        sequence.select(k)
        ksp.solve(b, x)
        plain.init(sequence.system.matrix, sequence.pc)
        expected, record, space = plain.solve(sequence.rhs, space, rtol=1e-9)
        assert ksp.getConvergedReason() == PETSc.KSP.ConvergedReason.CONVERGED_RTOL
        assert ksp.getIterationNumber() == record.iterations
        assert np.array_equal(x.getArray(), expected)
        context = ksp.getPythonContext()
        assert context.record == record
        assert np.array_equal(context.space.vectors, space.vectors)
    assert len(ksp.getConvergenceHistory()) > 0
    for name in settings:
        options.delValue(name)


def test_ksp_says_why_it_stopped():
    PETSc = petsc()
    from forebay.solvers.krylov.ksp import GcroDrKsp

    sequence = waves(1)
    sequence.select(0)
    ksp = PETSc.KSP().create(PETSc.COMM_SELF)
    ksp.setOperators(sequence.system.matrix)
    ksp.setType("python")
    ksp.setPythonContext(GcroDrKsp(restart=20, recycle=8))
    ksp.getPC().setType("none")
    ksp.setTolerances(rtol=1e-10, max_it=5)
    b, x = sequence.system.matrix.createVecs()
    b.setArray(sequence.rhs)
    ksp.solve(b, x)
    assert ksp.getConvergedReason() == PETSc.KSP.ConvergedReason.DIVERGED_MAX_IT
    b.set(0.0)
    ksp.solve(b, x)
    assert ksp.getConvergedReason() > 0
    assert x.norm() == 0.0


@pytest.mark.mpi
def test_two_processes_make_the_same_iterates(tmp_path):
    mpiexec = Path(sys.executable).with_name("mpiexec")
    script = Path(__file__).with_name("gcrodr_parallel.py")
    found = {}
    for ranks in (1, 2):
        target = tmp_path / f"{ranks}.npz"
        subprocess.run(
            [mpiexec, "-n", str(ranks), sys.executable, script, target],
            check=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            timeout=120,
        )
        found[ranks] = dict(np.load(target))
    assert found[1]["iterations"].tolist() == found[2]["iterations"].tolist()
    assert found[1]["iterations"][1] < found[1]["iterations"][0]
    assert np.allclose(found[1]["history"], found[2]["history"], rtol=1e-6)
    assert np.allclose(found[1]["x"], found[2]["x"], rtol=1e-7, atol=1e-9)

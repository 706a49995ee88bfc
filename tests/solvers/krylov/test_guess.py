"""Initial guesses: exact where they can be, never worse than zero, and worth iterations on a drifting sequence."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from suites.linear_cases import MATRICES, diffusion, helmholtz, system_over, true_residual

from forebay.solvers.assemble import system_of
from forebay.solvers.krylov.guess import CallableGuess, SnapshotGuess, Snapshots
from forebay.solvers.petsc import petsc
from forebay.solvers.problems.darcy import Darcy
from forebay.solvers.random_fields import NeumannField

N = 100
MINIMISE = ("residual", "energy")
NO_DRAW = {"parameters": np.empty(0)}


class Counted:
    """A matrix that counts its products."""

    def __init__(self, matrix):
        self._matrix = matrix
        self.products = 0

    def __getattr__(self, name):
        return getattr(self._matrix, name)

    def mult(self, source, target):
        self.products += 1
        self._matrix.mult(source, target)


@pytest.fixture
def opened():
    """Make systems over matrices, set to the first; destroyed at the end of the test."""
    made = []

    def make(*matrices, symmetry="general"):
        system = system_over(matrices, symmetry)
        made.append(system)
        select(system, 0)
        return system

    yield make
    for system in made:
        system.destroy()


def select(system, k):
    system.update({"k": np.array(k), "rhs": np.zeros(N)})


def vectors(count, seed=7):
    return np.random.default_rng(seed).standard_normal((count, N))


def learned(guess, solutions):
    for x in solutions:
        guess.learn(NO_DRAW, x)
    return guess


# -- snapshots -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("symmetry", "minimise"), [*((symmetry, "residual") for symmetry in MATRICES), ("spd", "energy")]
)
def test_a_solution_in_the_span_is_found(opened, symmetry, minimise):
    matrix = MATRICES[symmetry](3)
    solutions = vectors(5)
    exact = np.array([1.0, -2.0, 0.5, 3.0, 1e-3]) @ solutions
    guess = learned(SnapshotGuess(5, N, minimise=minimise), solutions)
    x = guess.propose(NO_DRAW, opened(matrix).matrix, matrix @ exact)
    assert np.allclose(x, exact, rtol=1e-10, atol=1e-10)


def test_the_residual_norm_is_the_least_in_the_span(opened):
    matrix, rhs, solutions = MATRICES["general"](3), vectors(1)[0], vectors(4, seed=8)
    x = learned(SnapshotGuess(4, N), solutions).propose(NO_DRAW, opened(matrix).matrix, rhs)
    best = np.linalg.lstsq(matrix @ solutions.T, rhs)[0] @ solutions
    assert np.allclose(x, best, rtol=1e-10, atol=1e-12)


def test_the_energy_norm_of_the_error_is_the_least_in_the_span(opened):
    matrix = diffusion(3)
    solutions = vectors(4, seed=8)
    exact = solutions.sum(axis=0) + 0.3 * vectors(1)[0]
    x = learned(SnapshotGuess(4, N, minimise="energy"), solutions).propose(
        NO_DRAW, opened(matrix).matrix, matrix @ exact
    )
    dense = matrix.toarray()
    best = np.linalg.solve(solutions @ dense @ solutions.T, solutions @ (dense @ exact)) @ solutions
    assert np.allclose(x, best, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("minimise", MINIMISE)
@pytest.mark.parametrize("make", [diffusion, helmholtz])
def test_the_residual_is_always_below_that_of_zero(opened, make, minimise):
    system, outcomes = opened(make(3)), set()
    for seed in range(40):
        rhs, scale = vectors(1, seed)[0], 10.0 ** np.random.default_rng(seed).integers(-8, 8)
        guess = learned(SnapshotGuess(6, N, minimise=minimise), scale * vectors(6, seed + 100))
        x = guess.propose(NO_DRAW, system.matrix, rhs)
        outcomes.add(x is None)
        if x is not None:
            assert true_residual(make(3), x, rhs) < 1.0
    assert False in outcomes


def test_a_best_energy_that_raises_the_residual_is_not_proposed(opened):
    matrix = diffusion(3, contrast=1000.0)
    rough = np.zeros(N)
    rough[::2] = 1.0
    exact = np.linalg.solve(matrix.toarray(), np.ones(N))
    solutions = [exact + 3.0 * np.abs(exact).max() * rough]
    rhs, other = np.ones(N), opened(matrix).matrix
    energy = learned(SnapshotGuess(1, N, minimise="energy"), solutions)
    x = (solutions[0] @ rhs) / (solutions[0] @ (matrix @ solutions[0])) * solutions[0]
    assert true_residual(matrix, x, rhs) > 1.0
    assert energy.propose(NO_DRAW, other, rhs) is None
    assert learned(SnapshotGuess(1, N), solutions).propose(NO_DRAW, other, rhs) is not None


@pytest.mark.parametrize("minimise", MINIMISE)
def test_repeated_zero_and_nearly_equal_solutions_do_no_harm(opened, minimise):
    matrix = diffusion(3)
    exact, other = vectors(2)
    solutions = [exact, exact, np.zeros(N), 1e-9 * exact, exact + 1e-9 * other, other]
    guess = learned(SnapshotGuess(8, N, minimise=minimise), solutions)
    x = guess.propose(NO_DRAW, opened(matrix).matrix, matrix @ (exact - other))
    assert true_residual(matrix, x, matrix @ (exact - other)) < 1e-6


@pytest.mark.parametrize("minimise", MINIMISE)
def test_there_is_no_guess_from_nothing(opened, minimise):
    matrix = opened(diffusion(3)).matrix
    guess = SnapshotGuess(4, N, minimise=minimise)
    assert guess.propose(NO_DRAW, matrix, np.ones(N)) is None
    learned(guess, [np.zeros(N)])
    assert guess.propose(NO_DRAW, matrix, np.ones(N)) is None
    learned(guess, [np.ones(N)])
    assert guess.propose(NO_DRAW, matrix, np.ones(N)) is not None
    for rhs in (np.zeros(N), np.full(N, np.nan), np.full(N, 1e300)):
        assert guess.propose(NO_DRAW, matrix, rhs) is None


def test_a_matrix_with_nan_makes_no_guess(opened):
    broken = diffusion(3)
    broken.data[7] = np.nan
    system = opened(diffusion(3), broken)
    guess = learned(SnapshotGuess(4, N), vectors(4))
    assert guess.propose(NO_DRAW, system.matrix, np.ones(N)) is not None
    select(system, 1)
    assert guess.propose(NO_DRAW, system.matrix, np.ones(N)) is None
    select(system, 0)
    assert guess.propose(NO_DRAW, system.matrix, np.ones(N)) is not None


def test_only_the_last_solutions_are_kept(opened):
    matrix, solutions = diffusion(3), vectors(7)
    guess = learned(SnapshotGuess(3, N), solutions)
    system = opened(matrix)
    assert guess.known == 3
    assert np.array_equal(guess.snapshots.solutions, solutions[4:])
    x = guess.propose(NO_DRAW, system.matrix, matrix @ solutions[5])
    assert np.allclose(x, solutions[5], rtol=1e-9)
    x = guess.propose(NO_DRAW, system.matrix, matrix @ solutions[3])
    assert x is None or true_residual(matrix, x, matrix @ solutions[3]) > 0.5


def test_without_features_the_last_neighbours_are_combined(opened):
    matrix, solutions = diffusion(3), vectors(7)
    guess = learned(SnapshotGuess(5, N, neighbours=2), solutions)
    system = opened(matrix)
    for k in (5, 6):
        assert np.allclose(guess.propose(NO_DRAW, system.matrix, matrix @ solutions[k]), solutions[k], rtol=1e-9)
    x = guess.propose(NO_DRAW, system.matrix, matrix @ solutions[4])
    assert x is None or true_residual(matrix, x, matrix @ solutions[4]) > 0.5


def at(*values):
    return {"parameters": np.array(values)}


def test_with_features_the_nearest_are_combined(opened):
    matrix, solutions = diffusion(3), vectors(6)
    guess = SnapshotGuess(6, N, neighbours=2, features=lambda draw: draw["parameters"])
    for k in (3, 0, 5, 1, 4, 2):
        guess.learn(at(float(k)), solutions[k])
    system = opened(matrix)
    for place, nearest in ((0.1, (0, 1)), (2.6, (2, 3)), (9.0, (4, 5))):
        exact = solutions[nearest[0]] - 2 * solutions[nearest[1]]
        x = guess.propose(at(place), system.matrix, matrix @ exact)
        assert np.allclose(x, exact, rtol=1e-8, atol=1e-9)
    x = guess.propose(at(np.nan), system.matrix, matrix @ (solutions[4] + solutions[2]))
    assert np.allclose(x, solutions[4] + solutions[2], rtol=1e-8, atol=1e-9)


def test_images_are_made_once_for_each_matrix(opened):
    system = opened(diffusion(3), diffusion(4))
    guess = learned(SnapshotGuess(4, N), vectors(4))
    counted = Counted(system.matrix)
    rhs = np.ones(N)
    seen = []
    guess.propose(NO_DRAW, counted, rhs)
    seen.append(counted.products)
    guess.propose(NO_DRAW, counted, 2 * rhs)
    seen.append(counted.products)
    learned(guess, vectors(1, seed=9))
    guess.propose(NO_DRAW, counted, rhs)
    seen.append(counted.products)
    select(system, 1)
    changed = guess.propose(NO_DRAW, counted, rhs)
    seen.append(counted.products)
    assert seen == [4, 4, 5, 9]
    fresh = SnapshotGuess(4, N)
    fresh.restore(guess.snapshots)
    assert np.allclose(changed, fresh.propose(NO_DRAW, system.matrix, rhs), rtol=1e-9)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_solutions_that_are_not_finite_are_never_learned(value):
    guess = learned(SnapshotGuess(4, N), vectors(2))
    broken = np.ones(N)
    broken[3] = value
    learned(guess, [broken])
    assert guess.known == 2
    with_features = SnapshotGuess(4, N, features=lambda draw: draw["parameters"])
    with_features.learn(at(value), np.ones(N))
    assert with_features.known == 0


def test_what_was_learned_is_a_copy():
    x = np.ones(N)
    guess = learned(SnapshotGuess(2, N), [x])
    x[:] = 7.0
    assert np.array_equal(guess.snapshots.solutions, np.ones((1, N)))
    guess.snapshots.solutions[:] = 3.0
    assert np.array_equal(guess.snapshots.solutions, np.ones((1, N)))


def test_clear_forgets_everything(opened):
    matrix = opened(diffusion(3)).matrix
    guess = SnapshotGuess(4, N, features=lambda draw: draw["parameters"])
    guess.learn(at(1.0), np.ones(N))
    guess.propose(at(1.0), matrix, np.ones(N))
    guess.clear()
    assert guess.known == 0
    assert guess.propose(at(1.0), matrix, np.ones(N)) is None
    guess.learn(at(1.0, 2.0), 2 * np.ones(N))
    x = guess.propose(at(1.0, 2.0), matrix, np.ones(N))
    other = learned(SnapshotGuess(4, N), [2 * np.ones(N)]).propose(NO_DRAW, matrix, np.ones(N))
    assert np.array_equal(x, other)


def test_snapshots_restore_a_guess(opened):
    matrix = opened(diffusion(3)).matrix
    guesses = [SnapshotGuess(3, N, neighbours=2, features=lambda draw: draw["parameters"]) for _ in range(2)]
    for k, x in enumerate(vectors(5)):
        guesses[0].learn(at(float(k % 3)), x)
    guesses[1].learn(at(1.0), np.ones(N))
    guesses[1].restore(pickle.loads(pickle.dumps(guesses[0].snapshots)))
    for place in (0.0, 1.2, 3.0):
        first, second = (guess.propose(at(place), matrix, np.ones(N)) for guess in guesses)
        assert np.allclose(first, second, rtol=1e-10)
    assert guesses[1].known == 3


# -- any function --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("minimise", MINIMISE)
def test_a_function_with_the_right_shape_and_the_wrong_size_is_exact(opened, minimise):
    matrix, exact = diffusion(3), vectors(1)[0]
    guess = CallableGuess(lambda draw: -1e-3 * draw["exact"], minimise=minimise)
    x = guess.propose({"exact": exact}, opened(matrix).matrix, matrix @ exact)
    assert np.allclose(x, exact, rtol=1e-12)


def test_a_float32_field_is_taken_and_left_alone(opened):
    matrix, exact = diffusion(3), vectors(1)[0]
    field = exact.astype(np.float32)
    before = field.copy()
    x = CallableGuess(lambda draw: field).propose(NO_DRAW, opened(matrix).matrix, matrix @ exact)
    assert true_residual(matrix, x, matrix @ exact) < 1e-6
    assert np.array_equal(field, before)


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_a_useless_value_is_no_guess(opened, value):
    guess = CallableGuess(lambda draw: np.full(N, value))
    assert guess.propose(NO_DRAW, opened(diffusion(3)).matrix, np.ones(N)) is None


def test_a_function_that_has_nothing_to_do_with_the_solution_still_lowers_the_residual(opened):
    matrix = diffusion(3)
    system = opened(matrix)
    for seed in range(20):
        guess = CallableGuess(lambda draw, seed=seed: vectors(1, seed)[0])
        rhs = vectors(1, seed + 50)[0]
        assert true_residual(matrix, guess.propose(NO_DRAW, system.matrix, rhs), rhs) < 1.0


def test_learning_does_not_change_a_function(opened):
    matrix = opened(diffusion(3)).matrix
    guess = CallableGuess(lambda draw: np.arange(N))
    before = guess.propose(NO_DRAW, matrix, np.ones(N))
    guess.learn(NO_DRAW, np.ones(N))
    guess.clear()
    assert np.array_equal(guess.propose(NO_DRAW, matrix, np.ones(N)), before)


# -- what it is for ------------------------------------------------------------------------------------------------


def cg_iterations(draws, guess):
    """Of CG + ICC to 1e-8 of ‖b‖ on Darcy's matrices, and the guess learns each solution."""
    PETSc = petsc()
    system = system_of(Darcy(size=32))
    b = PETSc.Vec().createWithArray(system.rhs, comm=PETSc.COMM_SELF)
    x = b.duplicate()
    ksp = PETSc.KSP().create(PETSc.COMM_SELF)
    ksp.setOperators(system.matrix)
    ksp.setType("cg")
    ksp.getPC().setType("icc")
    ksp.setNormType(PETSc.KSP.NormType.UNPRECONDITIONED)
    ksp.setInitialGuessNonzero(True)
    counts = []
    for draw in draws:
        system.update(draw)
        start = guess.propose(draw, system.matrix, system.rhs)
        x.setArray(np.zeros(len(system.rhs)) if start is None else start)
        ksp.setTolerances(rtol=1e-30, atol=1e-8 * np.linalg.norm(system.rhs))
        ksp.solve(b, x)
        counts.append(ksp.getIterationNumber())
        guess.learn(draw, x.getArray())
    for thing in (ksp, x, b, system):
        thing.destroy()
    return np.array(counts)


@pytest.mark.parametrize("minimise", MINIMISE)
def test_on_a_drifting_sequence_cg_takes_half_of_its_iterations(minimise):
    field = NeumannField(32, 2.0, 3.0)
    first, second = (field.draw(np.random.default_rng(seed)) for seed in (5, 6))
    draws = [{"a": np.exp(np.cos(t) * first + np.sin(t) * second)} for t in 0.02 * np.arange(16)]
    without = cg_iterations(draws, CallableGuess(lambda draw: np.zeros(32 * 32)))
    with_guess = cg_iterations(draws, SnapshotGuess(8, 32 * 32, minimise=minimise))
    assert with_guess[0] == without[0]
    assert with_guess[8:].mean() < 0.5 * without[8:].mean()


# -- in parallel ---------------------------------------------------------------------------------------------------

PARALLEL = """
import sys
import numpy as np
from forebay.solvers.krylov.guess import SnapshotGuess
from forebay.solvers.petsc import petsc
comm = petsc().COMM_WORLD
matrix = petsc().Mat().createAIJ((60, 60), nnz=(3, 2), comm=comm)
first, last = matrix.getOwnershipRange()
for row in range(first, last):
    for column, value in ((row - 1, -1.0), (row, 2.5 + 0.01 * row), (row + 1, -1.2)):
        if 0 <= column < 60:
            matrix[row, column] = value
matrix.assemble()
guess = SnapshotGuess(4, last - first, communicator=comm)
rows = np.arange(first, last)
for k in range(6):
    x = np.cos((k + 1) * 0.03 * rows)
    x[rows == 17] = np.nan if k == 3 else x[rows == 17]
    guess.learn({}, x)
x = guess.propose({}, matrix, np.ones(last - first))
parts = comm.tompi4py().gather((x, guess.known))
if comm.rank == 0:
    np.savez(sys.argv[1], x=np.concatenate([x for x, _ in parts]), known=[known for _, known in parts])
"""


@pytest.mark.mpi
def test_two_processes_propose_what_one_does(tmp_path):
    mpiexec = Path(sys.executable).with_name("mpiexec")
    found = []
    for ranks in (1, 2):
        target = tmp_path / f"{ranks}.npz"
        command = [mpiexec, "-n", str(ranks), sys.executable, "-c", PARALLEL, target]
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=120)
        found.append(dict(np.load(target)))
    assert set(found[1]["known"]) == {4}
    assert np.allclose(found[0]["x"], found[1]["x"], rtol=1e-8, atol=1e-10)


# -- broken contracts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("capacity", "neighbours"), [(0, None), (4, 5), (4, 0), (-2, None)])
def test_bad_counts_are_refused(capacity, neighbours):
    with pytest.raises(ValueError, match=rf"neighbours of capacity = {capacity} solutions; 1 <= neighbours <= capa"):
        SnapshotGuess(capacity, N, neighbours=neighbours)


@pytest.mark.parametrize(
    "make", [lambda norm: SnapshotGuess(4, N, minimise=norm), lambda norm: CallableGuess(np.ones, minimise=norm)]
)
def test_an_unknown_norm_is_refused(make):
    with pytest.raises(ValueError, match=r"minimise = 'error' does not exist; choose residual or energy"):
        make("error")


def test_wrong_sizes_are_refused(opened):
    matrix = opened(diffusion(3)).matrix
    guess = SnapshotGuess(4, N - 1)
    with pytest.raises(ValueError, match=r"a matrix with 100 rows and 100 columns .* for a guess of 99 unknowns"):
        guess.propose(NO_DRAW, matrix, np.ones(N - 1))
    with pytest.raises(ValueError, match=r"right-hand side of shape \(99,\) for a guess of 100 unknowns"):
        SnapshotGuess(4, N).propose(NO_DRAW, matrix, np.ones(N - 1))
    with pytest.raises(ValueError, match=r"a solution of shape \(10, 10\) for a guess of 99 unknowns"):
        guess.learn(NO_DRAW, np.ones((10, 10)))
    with pytest.raises(ValueError, match=r"a right-hand side of shape \(99,\)"):
        CallableGuess(lambda draw: np.ones(N)).propose(NO_DRAW, matrix, np.ones(N - 1))


@pytest.mark.parametrize("shape", [(10, 10), (99,), ()])
def test_a_function_of_another_shape_is_refused(opened, shape):
    guess = CallableGuess(lambda draw: np.ones(shape))
    with pytest.raises(ValueError, match=r"the guess function returned shape .*; it must be \(100,\)"):
        guess.propose(NO_DRAW, opened(diffusion(3)).matrix, np.ones(N))


def test_features_that_change_their_length_are_refused():
    guess = SnapshotGuess(4, N, features=lambda draw: draw["parameters"])
    guess.learn(at(1.0), np.ones(N))
    with pytest.raises(ValueError, match=r"features of shape \(2,\), earlier draws had \(1,\)"):
        guess.learn(at(1.0, 2.0), np.ones(N))


def test_snapshots_of_another_kind_are_refused():
    guess = SnapshotGuess(4, N)
    with pytest.raises(ValueError, match=r"snapshots of shape \(2, 99\) for a guess of 100 unknowns"):
        guess.restore(Snapshots(np.ones((2, 99)), None))
    with pytest.raises(ValueError, match=r"snapshots with features for a guess that was made without them"):
        guess.restore(Snapshots(np.ones((2, N)), np.ones((2, 1))))

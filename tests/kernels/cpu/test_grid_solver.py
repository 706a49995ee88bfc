"""Certified solves of one system at a time: right answers, outcomes of what has none, and errors."""

import subprocess
import sys

import numpy as np
import pytest
import scipy.sparse.linalg as sla
from cpu_systems import grid_system, matrix_of

from forebay.kernels.cpu import GridSolver
from forebay.kernels.records import Outcome

SHAPES = [
    (1, 1),
    (1, 2),
    (7, 5),
    (1, 300),
    (300, 1),
    (33, 57),
    (64, 64),
    (1, 1, 90),
    (20, 1, 30),
    (17, 18, 19),
    (65, 3, 40),
]


def solved(system, *, preconditioner="multigrid", active=None, **options):
    solver = GridSolver(system.reaction.shape, preconditioner=preconditioner)
    solver.setup(system.faces, system.reaction, active)
    field = np.empty(system.rhs.shape)
    return field, solver.solve(system.rhs, field, **options)


@pytest.mark.parametrize("preconditioner", ["multigrid", "jacobi", "none"])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_solved_and_the_reported_residual_is_true(shape, preconditioner):
    system = grid_system(shape)
    field, result = solved(system, preconditioner=preconditioner, max_iterations=3000)
    assert result.outcome is Outcome.CONVERGED
    assert result.label == preconditioner
    assert result.residual <= 1e-8
    assert result.residual == pytest.approx(system.residual(field), rel=1e-3, abs=1e-14)


@pytest.mark.parametrize("shape", [(31, 24), (9, 10, 11)])
def test_the_field_is_that_of_a_direct_solver(shape):
    system = grid_system(shape, contrast=1e4)
    field, _ = solved(system, rtol=1e-13)
    expected = sla.spsolve(system.matrix.tocsc(), system.rhs.ravel())
    np.testing.assert_allclose(field.ravel(), expected, rtol=1e-9, atol=1e-11 * abs(expected).max())


@pytest.mark.parametrize(
    ("shape", "contrast", "most"), [((128, 128), 10.0, 9), ((96, 80), 1e3, 20), ((24, 24, 24), 10.0, 10)]
)
def test_iterations_stay_few(shape, contrast, most):
    _, result = solved(grid_system(shape, contrast=contrast))
    assert result.outcome is Outcome.CONVERGED
    assert result.iterations <= most


@pytest.mark.parametrize("shape", [(128, 128), (32, 32, 32)])
def test_two_values_in_blocks_of_contrast_a_million_need_hardly_more(shape):
    blocks = np.random.default_rng(11).random(tuple(n // 8 for n in shape)) > 0.5
    a = 1e6 ** np.kron(blocks, np.ones((8,) * len(shape)))
    faces, reaction = [], np.zeros(shape)
    for axis in range(len(shape)):
        low, high = np.delete(a, -1, axis), np.delete(a, 0, axis)
        faces.append(2 * low * high / (low + high))
        for end in (0, -1):
            np.moveaxis(reaction, axis, 0)[end] += 2 * np.moveaxis(a, axis, 0)[end]
    solver, field = GridSolver(shape), np.empty(shape)
    solver.setup(faces, reaction)
    result = solver.solve(np.ones(shape), field)
    assert result.outcome is Outcome.CONVERGED
    assert result.iterations <= 15
    matrix = matrix_of(faces, reaction)
    assert np.linalg.norm(1 - matrix @ field.ravel()) <= 1.0001e-8 * np.sqrt(field.size)


@pytest.mark.parametrize("size", [1e-300, 1e-3, 1e300])
def test_units_of_the_right_hand_side_do_not_matter(size):
    system = grid_system((40, 30))
    solver = GridSolver((40, 30))
    solver.setup(system.faces, system.reaction)
    field, expected = np.empty((2, 40, 30))
    solver.solve(system.rhs, expected)
    assert solver.solve(system.rhs * size, field).outcome is Outcome.CONVERGED
    np.testing.assert_allclose(field / size, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("size", [1e-280, 1e250])
def test_units_of_the_coefficients_do_not_matter(size):
    system = grid_system((40, 30))
    solver, field = GridSolver((40, 30)), np.empty((40, 30))
    solver.setup([size * face for face in system.faces], size * system.reaction)
    assert solver.solve(system.rhs, field).outcome is Outcome.CONVERGED
    assert system.residual(size * field) <= 1.0001e-8


def test_a_guess_is_where_the_iteration_starts():
    system = grid_system((40, 30))
    solver, field = GridSolver((40, 30)), np.empty((40, 30))
    solver.setup(system.faces, system.reaction)
    first = solver.solve(system.rhs, field)
    again = np.empty_like(field)
    assert solver.solve(system.rhs, again, guess=field).iterations == 0
    np.testing.assert_allclose(again, field, rtol=1e-14)
    near = solver.solve(system.rhs, again, guess=field * (1 + 1e-5))
    assert 0 < near.iterations < first.iterations
    assert system.residual(again) <= 1.0001e-8


def test_one_setup_serves_many_right_hand_sides_with_the_same_bits_each_time():
    system = grid_system((37, 41))
    solver, fields = GridSolver((37, 41)), np.empty((3, 37, 41))
    solver.setup(system.faces, system.reaction)
    for rhs, field in zip((system.rhs, system.rhs[::-1], system.rhs), fields, strict=True):
        assert solver.solve(rhs, field).outcome is Outcome.CONVERGED
        assert system.residual(field, rhs) <= 1.0001e-8
    assert (fields[0] == fields[2]).all()


def test_a_right_hand_side_of_zeros_gives_zeros_without_an_iteration():
    system = grid_system((12, 13))
    solver, field = GridSolver((12, 13)), np.empty((12, 13))
    solver.setup(system.faces, system.reaction)
    result = solver.solve(np.zeros((12, 13)), field, guess=system.rhs)
    assert (result.outcome, result.iterations, result.residual) == (Outcome.CONVERGED, 0, 0.0)
    assert (field == 0).all()


@pytest.mark.parametrize("preconditioner", ["multigrid", "jacobi"])
@pytest.mark.parametrize("shape", [(40, 33), (1, 50), (9, 12, 10)])
def test_a_singular_system_gets_the_solution_of_mean_zero(shape, preconditioner):
    system = grid_system(shape, walls=False)
    field, result = solved(system, preconditioner=preconditioner, max_iterations=1000)
    assert result.outcome is Outcome.CONVERGED
    assert system.residual(field) <= 1.0001e-8
    assert abs(field.mean()) < 1e-12 * abs(field).max()


@pytest.mark.parametrize("shape", [(40, 33), (9, 12, 10)])
def test_a_singular_system_with_a_source_in_total_has_no_solution(shape):
    system = grid_system(shape, walls=False)
    solver, field = GridSolver(shape), np.empty(shape)
    solver.setup(system.faces, system.reaction)
    result = solver.solve(system.rhs + 0.5, field)
    assert result.outcome is Outcome.DIVERGED
    expected = 0.5 * np.sqrt(field.size) / np.linalg.norm(system.rhs + 0.5)
    assert result.residual == pytest.approx(expected)
    assert solver.solve(system.rhs, field).outcome is Outcome.CONVERGED


@pytest.mark.parametrize("walls", [True, False])
@pytest.mark.parametrize("shape", [(40, 33), (11, 12, 10)])
def test_cells_left_out_of_the_domain_are_zero_and_take_no_part(shape, walls):
    system = grid_system(shape, walls=walls)
    active = np.ones(shape, bool)
    active[(slice(3, 8),) * len(shape)] = False
    faces = [face.copy() for face in system.faces]
    faces[0][5], rhs = np.nan, np.where(active, system.rhs, np.nan)
    faces[0][5][active[5] & active[6]] = system.faces[0][5][active[5] & active[6]]
    if not walls:
        rhs -= rhs[active].mean()
    solver, field = GridSolver(shape), np.empty(shape)
    solver.setup(faces, system.reaction, active)
    result = solver.solve(rhs, field)
    assert result.outcome is Outcome.CONVERGED
    assert result.iterations <= 12
    assert (field[~active] == 0).all()
    kept = active.ravel()
    open_faces = [
        np.where(np.delete(active, -1, axis) & np.delete(active, 0, axis), face, 0.0)
        for axis, face in enumerate(system.faces)
    ]
    inner = matrix_of(open_faces, system.reaction)[kept][:, kept]
    residual = rhs.ravel()[kept] - inner @ field.ravel()[kept]
    assert np.linalg.norm(residual) <= 1.0001e-8 * np.linalg.norm(rhs.ravel()[kept])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["face", "reaction", "rhs", "guess"])
def test_what_is_not_finite_is_an_outcome_and_leaves_no_trace(where, value):
    shape = (30, 20)
    system = grid_system(shape)
    arrays = {"face": system.faces[1], "reaction": system.reaction, "rhs": system.rhs, "guess": np.ones(shape)}
    broken = {name: array.copy() for name, array in arrays.items()}
    broken[where][3, 4] = value
    solver, field, expected = GridSolver(shape), np.empty(shape), np.empty(shape)
    solver.setup(system.faces, system.reaction)
    solver.solve(system.rhs, expected)
    solver.setup((system.faces[0], broken["face"]), broken["reaction"])
    result = solver.solve(broken["rhs"], field, guess=broken["guess"])
    assert result.outcome is Outcome.NONFINITE_INPUT
    assert np.isnan(result.residual)
    assert np.isnan(field).all()
    solver.setup(system.faces, system.reaction)
    solver.solve(system.rhs, field)
    assert (field == expected).all()


@pytest.mark.parametrize("entry", [1e308, 1e200])
def test_coefficients_beyond_any_arithmetic_end_in_an_outcome_and_leave_no_trace(entry):
    shape = (30, 20)
    system = grid_system(shape)
    solver, field, expected = GridSolver(shape), np.empty(shape), np.empty(shape)
    solver.setup(system.faces, system.reaction)
    solver.solve(system.rhs, expected)
    huge = system.faces[0].copy()
    huge[4:7, 5] = entry
    solver.setup((huge, system.faces[1]), system.reaction)
    assert solver.solve(system.rhs, field).outcome is not Outcome.CONVERGED
    solver.setup(system.faces, system.reaction)
    solver.solve(system.rhs, field)
    assert (field == expected).all()


def test_the_iteration_ends_at_its_limit_with_the_residual_it_has():
    system = grid_system((50, 50))
    field, result = solved(system, max_iterations=3)
    assert (result.outcome, result.iterations) == (Outcome.MAX_ITERATIONS, 3)
    assert result.residual == pytest.approx(system.residual(field), rel=1e-6)
    assert 1e-8 < result.residual < 1e-1
    _, none = solved(system, max_iterations=0)
    assert (none.outcome, none.iterations, none.residual) == (Outcome.MAX_ITERATIONS, 0, pytest.approx(1.0))


def test_a_tolerance_below_rounding_is_owned_up_to():
    system = grid_system((60, 60), contrast=1e4)
    field, result = solved(system, rtol=1e-17)
    assert result.outcome is Outcome.RESIDUAL_ABOVE_TOLERANCE
    assert result.iterations < 100
    assert system.residual(field) < 1e-12


@pytest.mark.parametrize("sweeps", [1, 2])
@pytest.mark.parametrize("size", [64, 128, 256])
def test_where_float64_has_no_certifiable_answer_the_iteration_stops_at_rounding_and_says_so(size, sweeps):
    # An island of high coefficient far from the walls: u is large where couplings are.
    a = np.ones((size, size))
    a[size // 4 : -size // 4, size // 4 : -size // 4] = 1e6
    faces, reaction = [], np.zeros((size, size))
    for axis in (0, 1):
        low, high = np.delete(a, -1, axis), np.delete(a, 0, axis)
        faces.append(2 * low * high / (low + high))
        for end in (0, -1):
            np.moveaxis(reaction, axis, 0)[end] += 2 * np.moveaxis(a, axis, 0)[end]
    matrix = matrix_of(faces, reaction)
    solver, field = GridSolver((size, size), sweeps=sweeps), np.empty((size, size))
    solver.setup(faces, reaction)
    result = solver.solve(np.ones((size, size)), field, max_iterations=600)
    rounding = np.finfo(float).eps * np.linalg.norm(abs(matrix) @ abs(field.ravel())) / size
    assert rounding > 1e-8
    assert result.outcome is Outcome.RESIDUAL_ABOVE_TOLERANCE
    assert result.iterations < 150
    assert result.residual < 100 * rounding


@pytest.mark.parametrize("share", [3e-9, 9e-9])
def test_a_small_share_out_of_range_is_taken_off_and_counted(share):
    system = grid_system((40, 33), walls=False)
    rhs = system.rhs + share * np.linalg.norm(system.rhs) / np.sqrt(system.rhs.size)
    solver, field = GridSolver((40, 33)), np.empty((40, 33))
    solver.setup(system.faces, system.reaction)
    result = solver.solve(rhs, field)
    assert result.outcome is Outcome.CONVERGED
    assert share < result.residual <= 1e-8
    assert result.residual == pytest.approx(system.residual(field, rhs), rel=1e-4)


def test_a_cycle_takes_residuals_of_any_size_and_spoils_nothing():
    system = grid_system((30, 20))
    solver = GridSolver((30, 20))
    solver.setup(system.faces, system.reaction)
    one, other = np.empty((2, 30, 20))
    solver.cycle(system.rhs, one)
    solver.cycle(1e200 * system.rhs, other)
    np.testing.assert_allclose(other * 1e-200, one, rtol=1e-5, atol=1e-6 * abs(one).max())
    solver.cycle(np.zeros((30, 20)), other)
    assert (other == 0).all()
    solver.cycle(np.full((30, 20), np.nan), other)
    assert np.isnan(other).all()
    solver.cycle(system.rhs, other)
    assert (one == other).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: GridSolver((5,)), r"grid shape \(5,\) must have 2 or 3 axes"),
        (lambda s: GridSolver((5, 0)), r"at least one cell each"),
        (lambda s: GridSolver((5, 5), preconditioner="ilu"), r"preconditioner='ilu'; it must be \"multigrid\""),
        (lambda s: GridSolver((5, 5), sweeps=3), r"sweeps = 3; it must be 1 or 2"),
        (
            lambda s: s.setup((np.ones((4, 6)), np.ones((5, 6))), np.ones((5, 6))),
            r"faces have shapes .*\[\(4, 6\), \(5, 5\)\]",
        ),
        (lambda s: s.setup((np.ones((4, 6)), np.ones((5, 5))), np.ones(5)), r"reaction has shape \(5,\)"),
        (
            lambda s: s.setup((-np.ones((4, 6)), np.ones((5, 5))), np.ones((5, 6))),
            r"hold a negative number; all must be",
        ),
        (lambda s: s.setup((np.ones((4, 6)), np.ones((5, 5))), -np.ones((5, 6))), r"hold a negative number"),
        (lambda s: s.solve(np.ones((5, 6)), np.ones((5, 6))), r"call `setup` first"),
        (lambda s: s.cycle(np.ones((5, 6)), np.ones((5, 6))), r"a cycle needs .* `setup` first"),
        (
            lambda s: ready(s).solve(np.ones((6, 5)), np.ones((5, 6))),
            r"rhs has shape \(6, 5\); it must have the grid's",
        ),
        (lambda s: ready(s).solve(np.ones((5, 6)), np.ones((5, 6)), rtol=0.0), r"rtol = 0.0 must lie between"),
        (lambda s: ready(s).solve(np.ones((5, 6)), np.ones((5, 6)), max_iterations=-1), r"max_iterations = -1"),
    ],
)
def test_broken_arguments_are_refused_with_the_remedy(call, message):
    with pytest.raises(ValueError, match=message):
        call(GridSolver((5, 6)))


def ready(solver):
    solver.setup((np.ones((4, 6)), np.ones((5, 5))), np.ones((5, 6)))
    return solver


def test_neither_torch_nor_petsc_is_loaded():
    code = "import sys, forebay.kernels.cpu as c; print(sorted({'torch', 'petsc4py'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

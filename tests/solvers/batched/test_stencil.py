"""Faces and reaction read off CSR values are the matrix, and what is no stencil is refused by name."""

import math

import numpy as np
import pytest
import scipy.sparse as sp
from grid_systems import drawn, matrix_of
from suites.linear_cases import helmholtz

from forebay.pipeline.errors import StudyError
from forebay.solvers.batched.stencil import StencilReader, stencil_fault
from forebay.solvers.problems.darcy import Darcy
from forebay.solvers.problems.darcy3d import Darcy3D
from forebay.solvers.problems.heat import Heat
from forebay.solvers.problems.poisson import Poisson

PROBLEMS = {
    "darcy": Darcy(size=32, coefficient="log_normal"),
    "darcy3d": Darcy3D(size=8),
    "poisson": Poisson(size=32),
    "heat": Heat(size=16, steps=2),
}


def box(shape, seed=7):
    """A random symmetric stencil on a box as a matrix, with its faces and reaction."""
    rng = np.random.default_rng(seed)
    faces = [0.1 + rng.random([n - (k == axis) for k, n in enumerate(shape)]) for axis in range(len(shape))]
    reaction = rng.random(shape)
    return assembled(faces, reaction), faces, reaction


def assembled(faces, reaction):
    """The matrix of a stencil by its definition, one face at a time; explicit zeros are kept."""
    cells = np.arange(reaction.size).reshape(reaction.shape)
    rows, columns, values = [cells.ravel()], [cells.ravel()], [reaction.ravel()]
    for axis, face in enumerate(faces):
        low = np.take(cells, range(reaction.shape[axis] - 1), axis).ravel()
        high = np.take(cells, range(1, reaction.shape[axis]), axis).ravel()
        for i, j, sign in ((low, low, 1), (high, high, 1), (low, high, -1), (high, low, -1)):
            rows, columns, values = [*rows, i], [*columns, j], [*values, sign * face.ravel()]
    matrix = sp.coo_array((np.concatenate(values), (np.concatenate(rows), np.concatenate(columns)))).tocsr()
    matrix.sort_indices()
    return matrix


def read(matrix, grid):
    reader = StencilReader(matrix.indptr, matrix.indices, grid)
    faces, reaction = reader.allocate(1)
    message = reader.read(matrix.data, tuple(face[0] for face in faces), reaction[0])
    return message, [face[0] for face in faces], reaction[0]


@pytest.mark.parametrize("grid", [(5, 7), (2, 2), (1, 6), (6, 1), (3, 4, 5), (2, 1, 3), (4, 1, 1), (2, 2, 2)])
def test_faces_and_reaction_are_those_that_the_matrix_was_made_from(grid):
    matrix, faces, reaction = box(grid)
    message, found, rest = read(matrix, grid)
    assert message == ""
    for face, expected in zip(found, faces, strict=True):
        np.testing.assert_array_equal(face, expected)
    np.testing.assert_allclose(rest, reaction, atol=1e-14)


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_stencil_of_a_problem_is_its_matrix(name):
    problem = PROBLEMS[name]
    matrix, _ = matrix_of(problem, drawn(problem))
    message, faces, reaction = read(matrix, problem.grid_shape)
    assert message == ""
    assert abs(assembled(faces, reaction) - matrix).max() <= 1e-14 * abs(matrix).max()
    inner = reaction[(slice(1, -1),) * reaction.ndim]
    if name == "heat":
        np.testing.assert_allclose(inner, 1.0, rtol=1e-12)
    else:
        assert (inner == 0.0).all()
    walls = np.ones(reaction.shape, dtype=bool)
    walls[(slice(1, -1),) * reaction.ndim] = False
    assert (reaction[walls] > 0).all()


def test_row_sums_that_cancel_to_rounding_are_zero_and_smaller_ones_that_do_not_are_kept():
    _, faces, _ = box((9, 9))
    exact = np.zeros((9, 9))
    assert (read(assembled(faces, exact), (9, 9))[2] == 0.0).all()
    exact[4, 4] = 1e-10
    assert read(assembled(faces, exact), (9, 9))[2][4, 4] == pytest.approx(1e-10, rel=1e-4)


@pytest.mark.parametrize(
    ("sign", "message"),
    [("coupling", "an entry off the diagonal is positive"), ("sum", "a row sums up to less than zero")],
)
def test_values_that_are_no_m_matrix_are_named(sign, message):
    _, faces, reaction = box((5, 5))
    if sign == "coupling":
        faces[1][2, 2] = -0.5
        reaction += 5.0
    else:
        reaction[3, 1] = -0.5
    assert message in read(assembled(faces, reaction), (5, 5))[0]
    shifted = helmholtz(13)
    assert "less than zero" in read(shifted, (10, 10))[0]


def nine_point():
    near = sp.diags_array([1.0, 1.0, 1.0], offsets=[-1, 0, 1], shape=(6, 6))
    return sp.csr_array(sp.kron(near, near))


def periodic():
    matrix = sp.lil_array(box((6, 6))[0])
    matrix[0, 5] = matrix[5, 0] = -1.0
    return sp.csr_array(matrix)


def holed():
    matrix = sp.coo_array(box((6, 6))[0])
    keep = ~(((matrix.row == 7) & (matrix.col == 8)) | ((matrix.row == 8) & (matrix.col == 7)))
    return sp.coo_array((matrix.data[keep], (matrix.row[keep], matrix.col[keep])), shape=(36, 36)).tocsr()


@pytest.mark.parametrize(
    ("matrix", "grid", "message"),
    [
        (
            nine_point,
            (6, 6),
            r"5-point stencil .* couples cells 0 and 7 of the grid 6 x 6, .* \(up to 9 entries a row\)",
        ),
        (periodic, (6, 6), "couples cells 0 and 5 of the grid 6 x 6, which share no face"),
        (holed, (6, 6), 'lacks 2 of its 156 entries; add explicit zeros, or use method = "direct"'),
        (lambda: box((6, 6))[0], (36,), r"two or three axes, grid_shape = \(36,\) has 1; use method = \"direct\""),
        (lambda: box((6, 6))[0], None, r"structured grid \(one with `grid_shape`\); use method = \"direct\""),
    ],
)
def test_what_is_no_stencil_is_refused_with_what_it_is_and_what_to_use(matrix, grid, message):
    made = matrix()
    assert math.prod(made.shape) == 36 * 36
    made.sort_indices()
    with pytest.raises(StudyError, match=message):
        StencilReader(made.indptr, made.indices, grid)
    assert stencil_fault(made.indptr, made.indices, grid)

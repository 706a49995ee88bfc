import numpy as np
import pytest
import torch
from suites.stencil_cases import SHAPES, field, fields, holes, stencils

from forebay.kernels.reference import dense
from forebay.kernels.stencil import Stencil, apply, diffusion

KINDS = ("dirichlet", "mixed", "reaction", "masked")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_apply_is_the_product_with_the_dense_matrix(shape, kind):
    stencil, u = stencils(shape)[kind], fields(shape)
    expected = (dense(stencil) @ u.flatten(1)[..., None])[..., 0].reshape(u.shape)
    torch.testing.assert_close(apply(stencil, u), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_matrix_is_symmetric_positive_definite_with_this_diagonal(shape, kind):
    stencil = stencils(shape)[kind]
    matrix = dense(stencil)
    torch.testing.assert_close(matrix, matrix.mT, rtol=0, atol=0)
    pivots = torch.linalg.cholesky_ex(matrix)
    assert (pivots.info == 0).all()
    assert (pivots.L.diagonal(dim1=1, dim2=2) > 1e-3).all()
    torch.testing.assert_close(stencil.diagonal().flatten(1), matrix.diagonal(dim1=1, dim2=2))
    assert not stencil.singular().any()


def test_one_stencil_serves_many_fields():
    stencil, u = diffusion(field((6, 7), batch=1)), fields((6, 7), batch=4)
    together = apply(stencil, u)
    for row in range(4):
        torch.testing.assert_close(together[row], apply(stencil, u[row : row + 1])[0], rtol=0, atol=0)


def test_faces_are_harmonic_means_and_walls_half_a_cell_away():
    a = torch.tensor([[[1.0, 3.0], [2.0, 6.0]]], dtype=torch.float64)
    stencil = diffusion(a, [("dirichlet", "neumann"), ("neumann", "dirichlet")], spacing=[0.5, 2.0])
    # V = 1: weights 1/h² = 4 across y and 1/4 across x.
    torch.testing.assert_close(stencil.faces[0], 4 * torch.tensor([[[4 / 3, 4.0]]], dtype=torch.float64))
    torch.testing.assert_close(stencil.faces[1], 0.25 * torch.tensor([[[1.5], [3.0]]], dtype=torch.float64))
    walls = torch.tensor([[[8.0, 24.0 + 1.5], [0.0, 3.0]]], dtype=torch.float64)
    torch.testing.assert_close(stencil.reaction, walls)


def test_the_reaction_is_integrated_over_the_cells():
    a = field((4, 5, 3), batch=2)
    number = diffusion(a, "neumann", spacing=0.5, reaction=3.0)
    array = diffusion(a, "neumann", spacing=0.5, reaction=torch.full((5, 3), 3.0, dtype=torch.float64))
    assert (number.reaction == 3.0 / 8).all()
    assert torch.equal(array.reaction, number.reaction)


def test_a_dirichlet_hole_is_a_wall_half_a_cell_away():
    a, active = field((1, 4), batch=1), torch.tensor([[[True, True, False, True]]])
    stencil = diffusion(a, "neumann", active=active, hole="dirichlet")
    assert stencil.reaction[0, 0].tolist() == [0.0, 2 * a[0, 0, 1].item(), 1.0, 2 * a[0, 0, 3].item()]
    assert stencil.faces[1][0, 0, 1:].tolist() == [0.0, 0.0]


def test_cells_left_out_are_rows_of_the_identity_whatever_they_hold():
    shape, active = (8, 9), holes((8, 9))
    a = field(shape, batch=2)
    bad = torch.where(active, a, torch.tensor([-1.0, torch.nan], dtype=torch.float64)[:, None, None])
    stencil = diffusion(bad, "neumann", active=active)
    u = fields(shape, batch=2)
    assert torch.equal(apply(stencil, u)[:, ~active[0]], u[:, ~active[0]])
    assert stencil.finite().all()
    assert torch.equal(stencil.reaction[active.expand_as(a)], torch.zeros(2 * int(active.sum()), dtype=torch.float64))


def test_only_neumann_walls_make_a_singular_system():
    a = field((6, 5), batch=2)
    reaction = torch.zeros_like(a)
    reaction[1, 2, 3] = 1e-9
    assert diffusion(a, "neumann", reaction=reaction).singular().tolist() == [True, False]
    assert diffusion(a, "neumann", active=holes((6, 5))).singular().tolist() == [True, True]
    ones = torch.ones_like(a)
    torch.testing.assert_close(apply(diffusion(a, "neumann"), ones), torch.zeros_like(a))


def test_manufactured_solutions_converge_at_second_order():
    def error(n, walls):
        y, x = torch.meshgrid(*[(torch.arange(n, dtype=torch.float64) + 0.5) / n] * 2, indexing="ij")
        wave = torch.sin if walls == "dirichlet" else torch.cos
        u, a = wave(torch.pi * y) * wave(torch.pi * x), torch.exp(x)
        slope = torch.cos(torch.pi * x) if walls == "dirichlet" else -torch.sin(torch.pi * x)
        u_x = torch.pi * wave(torch.pi * y) * slope
        forcing = a * (2 * torch.pi**2 * u - u_x) + u
        stencil = diffusion(a[None], walls, spacing=1 / n, reaction=1.0)
        found = torch.linalg.solve(dense(stencil)[0], forcing.flatten() / n**2)
        return float((found - u.flatten()).norm() / n)

    for walls in ("dirichlet", "neumann"):
        sizes = (8, 16, 32)
        errors = [error(n, walls) for n in sizes]
        order = -np.polyfit(np.log(sizes), np.log(errors), 1)[0]
        assert abs(order - 2) < 0.2, f"{walls}: order {order:.2f} from {errors}"
        assert errors[-1] < 2e-3


def test_selected_and_converted_stencils_are_the_same_operators():
    stencil = stencils((6, 7))["masked"]
    u = fields((6, 7))
    picked = stencil.select(torch.tensor([2, 0]))
    assert torch.equal(apply(picked, u[[2, 0]]), apply(stencil, u)[[2, 0]])
    part = stencil.select(slice(1, 3))
    assert part.reaction.shape == (2, 6, 7)
    assert part.faces[0].data_ptr() == stencil.faces[0][1:].data_ptr() or stencil.active is not None
    single = stencil.to(dtype=torch.float32)
    assert (single.dtype, single.dimension, single.batch, single.shape) == (torch.float32, 2, 3, (6, 7))
    torch.testing.assert_close(apply(single, u.float()), apply(stencil, u).float(), rtol=1e-4, atol=1e-4)
    twice = stencil.scaled(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    inside = stencil.active.expand_as(u)
    expected = apply(stencil, u) * torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)[:, None, None]
    torch.testing.assert_close(apply(twice, u)[inside], expected[inside])


def test_faces_between_extreme_coefficients_neither_overflow_nor_vanish():
    for size in (1e-200, 1e200):
        stencil = diffusion(torch.full((1, 3, 3), size, dtype=torch.float64))
        assert (stencil.faces[0] / size == 1).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"a": torch.ones(4, 4)}, r"shape \(4, 4\); they must be .*`a\[None\]`"),
        ({"a": torch.ones(1, 4, 4, dtype=torch.int64)}, "torch.int64"),
        ({"a": torch.tensor([[[1.0, 0.0]]])}, r"coefficient is 0 at \[system, cell\] \[0, 0, 1\]; it must be positive"),
        ({"a": torch.tensor([[[1.0, 1.0]], [[-2.5, 1.0]]])}, r"coefficient is -2.5 at \[system, cell\] \[1, 0, 0\]"),
        ({"reaction": -1.0}, r"reaction is -1 at \[system, cell\] \[0, 0, 0\]; it must not be negative"),
        ({"reaction": torch.ones(3)}, r"reaction of shape \(3,\) does not fit coefficients of shape \(2, 4, 5\)"),
        ({"walls": "robin"}, "walls='robin'; it must be \"dirichlet\""),
        ({"walls": ["neumann"]}, "one entry for each of the 2 axes"),
        ({"walls": [("neumann", "dirichlet", "neumann"), "neumann"]}, "walls="),
        ({"spacing": 0.0}, "spacing=0.0; it must be one positive number"),
        ({"spacing": [1.0, 1.0, 1.0]}, "one for each of the 2 axes"),
        ({"active": torch.ones(2, 4, 4, dtype=torch.bool)}, r"`active` is torch.bool of shape \(2, 4, 4\)"),
        ({"active": torch.ones(2, 4, 5)}, r"`active` is torch.float32 .*it must be bool of shape \[2 or 1, 4, 5\]"),
    ],
)
def test_diffusion_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        diffusion(**{"a": torch.ones(2, 4, 5), **arguments})


@pytest.mark.parametrize(
    ("faces", "reaction", "message"),
    [
        ([(1, 3, 5), (1, 4, 4)], (1, 4, 6), r"faces\[0\] has shape \[1, 3, 5\]; .* it must be \[1, 3, 6\]"),
        ([(1, 3, 5), (2, 4, 4)], (1, 4, 5), r"faces\[1\] has shape \[2, 4, 4\]"),
        ([(1, 3, 5)], (1, 4, 5), "1 face arrays and a reaction of shape"),
        ([(0, 3, 5), (0, 4, 4)], (0, 4, 5), "none of them 0"),
    ],
)
def test_a_stencil_refuses_shapes_that_do_not_fit(faces, reaction, message):
    with pytest.raises(ValueError, match=message):
        Stencil(tuple(torch.ones(shape) for shape in faces), torch.ones(reaction))


def test_a_stencil_refuses_mixed_and_integer_types():
    faces = (torch.ones(1, 1, 2), torch.ones(1, 2, 1))
    with pytest.raises(ValueError, match=r"faces\[0\] is torch.float32 on cpu, the reaction torch.float64"):
        Stencil(faces, torch.ones(1, 2, 2, dtype=torch.float64))
    whole = tuple(face.long() for face in faces)
    with pytest.raises(ValueError, match="must be float32 or float64"):
        Stencil(whole, torch.ones(1, 2, 2, dtype=torch.int64))


def test_negative_numbers_are_refused_and_nan_is_not():
    a = field((4, 4))
    stencil = diffusion(a)
    stencil.reaction[1, 2, 2] = torch.nan
    stencil.require_nonnegative()
    assert stencil.finite().tolist() == [True, False, True]
    stencil.faces[1][2, 0, 1] = -0.25
    with pytest.raises(
        ValueError, match=r"faces\[1\] is -0.25 at \[system, cell\] \[2, 0, 1\]; it must not be negative"
    ):
        stencil.require_nonnegative()

from __future__ import annotations

import pytest
import torch

from forebay.kernels.dcdm.fluid import fluid_poisson
from forebay.kernels.reference import dense


def mask(shape, *cells):
    result = torch.zeros(shape, dtype=torch.bool)
    for cell in cells:
        result[cell] = True
    return result


def test_the_plain_box_is_the_seven_point_laplacian():
    shape = (3, 4, 5)
    second = [
        torch.diag(torch.full((n,), 2.0)) - torch.diag(torch.ones(n - 1), 1) - torch.diag(torch.ones(n - 1), -1)
        for n in shape
    ]
    eye = [torch.eye(n) for n in shape]
    expected = (
        torch.kron(torch.kron(second[0], eye[1]), eye[2])
        + torch.kron(torch.kron(eye[0], second[1]), eye[2])
        + torch.kron(torch.kron(eye[0], eye[1]), second[2])
    )
    assert torch.equal(dense(fluid_poisson(shape))[0], expected.double())


def test_a_solid_neighbour_takes_no_part():
    matrix = dense(fluid_poisson((3, 3, 3), solid=mask((3, 3, 3), (1, 1, 1))))[0]
    around = [4, 10, 12, 14, 16, 22]
    assert (matrix.diagonal()[around] == 5).all()
    assert not matrix[around, 13].any()
    assert matrix[13].nonzero().flatten().tolist() == [13]


def test_air_has_no_pressure():
    matrix = dense(fluid_poisson((3, 3, 3), air=mask((3, 3, 3), (1, 1, 1))))[0]
    around = [4, 10, 12, 14, 16, 22]
    assert (matrix.diagonal()[around] == 6).all()
    assert not matrix[around, 13].any()
    assert (matrix.sum(1)[around] == 2).all()


@pytest.mark.parametrize("side", range(6))
def test_a_closed_side_is_solid(side):
    closed = [i == side for i in range(6)]
    diagonal = fluid_poisson((3, 3, 3), closed=closed).diagonal()[0]
    plane = diagonal.select(side // 2, 2 * (side % 2))
    assert (plane == 5).all()
    assert (diagonal == 6).sum() == 18


def test_a_closed_box_is_singular():
    assert fluid_poisson((3, 3), closed=[True] * 4).singular().all()
    assert not fluid_poisson((3, 3)).singular().any()


def test_a_mask_of_another_shape_or_type_is_refused():
    with pytest.raises(ValueError, match=r"`solid` is torch.bool of shape \(2, 2\); it must be bool of shape \(3, 3\)"):
        fluid_poisson((3, 3), solid=mask((2, 2)))
    with pytest.raises(ValueError, match=r"`air` is torch.float32 of shape \(3, 3\); it must be bool"):
        fluid_poisson((3, 3), air=torch.zeros(3, 3))


def test_a_wrong_number_of_sides_is_refused():
    with pytest.raises(ValueError, match="`closed` has 4 entries; a box in 3 dimensions has 6 sides"):
        fluid_poisson((3, 3, 3), closed=[True] * 4)


def test_a_box_without_fluid_is_refused():
    with pytest.raises(ValueError, match="none of the 9 cells is fluid; leave some out of `solid` and `air`"):
        fluid_poisson((3, 3), solid=torch.ones(3, 3, dtype=torch.bool))

import dataclasses

import numpy as np
import pytest
from suites.solid_cases import alone

from forebay.solvers.fem.mesh_arrays import block
from forebay.solvers.fem.solid_fields import HexahedralFields
from forebay.solvers.fem.solid_mesh import distribute
from forebay.solvers.fem.solid_space import SolidSpace

SHEAR = np.array([[2.0, 0.3, -0.4], [0.0, 1.5, 0.2], [0.1, 0.0, 3.0]])


def distorted(points):
    x, y, z = points.T
    return np.column_stack([2 * x + 0.2 * y * z, y * (1 + 0.3 * x * z), z + 0.25 * x * y])


@pytest.fixture(params=[distorted, lambda points: points @ SHEAR.T], ids=["distorted", "affine"])
def mesh(request):
    return block((3, 2, 4), request.param)


def test_every_point_has_the_volume_that_the_model_gives_it(mesh):
    space = SolidSpace(distribute(alone(), lambda: mesh), 1, None)
    order = np.argsort(space.point_ids)
    np.testing.assert_allclose(HexahedralFields(mesh).weights.ravel(), space.weights[order], rtol=1e-12)


def test_the_mean_over_a_cell_is_exact_for_cubics_in_boxes():
    edges = np.array([0.0, 0.5, 1.2, 3.0])
    mesh = block(
        (3, 1, 1), lambda points: np.column_stack([np.interp(points[:, 0], np.arange(4) / 3, edges), points[:, 1:]])
    )
    space = SolidSpace(distribute(alone(), lambda: mesh), 1, None)
    x = space.positions[np.argsort(space.point_ids), 0]
    p = HexahedralFields(mesh).fields(np.zeros((2, 3 * 16)), np.stack([x**3, 7 * np.ones_like(x)]))["p"]
    np.testing.assert_allclose(p[0], np.diff(edges**4) / (4 * np.diff(edges)), rtol=1e-13)
    np.testing.assert_allclose(p[1], 7.0, rtol=1e-14)


def test_a_mean_weighs_points_by_their_volume():
    mesh = block((1, 1, 1), distorted)
    fields = HexahedralFields(mesh)
    p = np.arange(8.0)[None]
    assert fields.fields(np.zeros((1, 24)), p)["p"][0, 0] == pytest.approx(np.average(p[0], weights=fields.weights[0]))
    assert np.ptp(fields.weights) > 1e-3


def test_displacements_keep_their_nodes_and_components():
    mesh = block((2, 1, 1), distorted)
    u = HexahedralFields(mesh).fields(np.arange(72.0).reshape(2, 36), np.zeros((2, 16)))["u"]
    assert u.shape == (2, 12, 3)
    np.testing.assert_array_equal(u[1, 5], [51.0, 52.0, 53.0])


@pytest.mark.parametrize(
    ("displacement", "p", "message"),
    [
        ((2, 35), (2, 16), r"displacement of shape \(2, 35\) for 2 times of 36 values each"),
        ((2, 36), (3, 16), r"p of shape \(3, 16\) for 2 times of 16 values each"),
        ((2, 36), (2, 2), r"p of shape \(2, 2\) for 2 times of 16 values each"),
    ],
)
def test_arrays_of_another_shape_are_refused(displacement, p, message):
    with pytest.raises(ValueError, match=message):
        HexahedralFields(block((2, 1, 1), distorted)).fields(np.zeros(displacement), np.zeros(p))


def test_other_cells_are_refused():
    mesh = block((1, 1, 1), distorted)
    with pytest.raises(ValueError, match=r"fields of cells of shape 'tetrahedron' and degree 1 are not known"):
        HexahedralFields(dataclasses.replace(mesh, shape="tetrahedron"))
    with pytest.raises(ValueError, match=r"'hexahedron' and degree 2 are not known; give linear hexahedra"):
        HexahedralFields(dataclasses.replace(mesh, degree=2))

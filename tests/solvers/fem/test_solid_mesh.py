import dataclasses
import importlib

import numpy as np
import pytest
from suites.solid_cases import alone

from forebay.solvers.fem import blade_mesh
from forebay.solvers.fem.mesh_arrays import Section, block, extrude
from forebay.solvers.fem.solid_loads import assemble_loads
from forebay.solvers.fem.solid_mesh import cube, distribute, necked_bar, plate_with_hole
from forebay.solvers.fem.solid_space import SolidSpace
from forebay.solvers.fem.solid_types import UnitLoad

BLOCK = {"x_min", "x_max", "y_min", "y_max", "z_min", "z_max"}
FACES = {f"{axis}_{end}": (k, side) for k, axis in enumerate("xyz") for end, side in (("min", 0.0), ("max", 1.0))}


def volume(mesh):
    return SolidSpace(mesh, 1, None).weights.sum()


def area(mesh, part):
    return assemble_loads(SolidSpace(mesh, 1, None), [UnitLoad("", "traction", part, (0.0, 1.0, 0.0))]).sum()


def push(mesh, part):
    """Resultant (3,) of a unit pressure on a part, minus the sum of outward normals."""
    return assemble_loads(SolidSpace(mesh, 1, None), [UnitLoad("", "pressure", part)]).reshape(-1, 3).sum(axis=0)


# --- blocks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(FACES))
def test_every_face_of_a_cube_has_its_name(name):
    axis, side = FACES[name]
    expected = np.zeros(3)
    expected[axis] = 9.0 if side == 0.0 else -9.0
    np.testing.assert_allclose(push(cube(alone(), 2, 3.0), name), expected, atol=1e-12)


def test_a_cube_has_the_cells_and_the_volume_asked_for():
    mesh = cube(alone(), (2, 3, 4), 2.0)
    assert (mesh.cells, set(mesh.names)) == (24, BLOCK)
    assert volume(mesh) == pytest.approx(8.0, rel=1e-14)


def test_cells_are_right_handed_and_numbered_x_fastest():
    arrays = block((2, 3, 4), lambda points: points)
    corners = arrays.nodes[arrays.cells]
    edges = [corners[:, k] - corners[:, 0] for k in (1, 2, 4)]
    np.testing.assert_allclose(np.linalg.det(np.stack(edges, axis=1)), 1 / 24, rtol=1e-12)
    np.testing.assert_allclose(corners[7].mean(axis=0), [0.75, 0.5 / 3, 0.375])


def test_a_necked_bar_holds_the_volume_of_its_chords():
    length, width, neck, cells = 30.0, 8.0, 0.4, 10
    mesh = necked_bar(alone(), (cells, 2, 2), length, width, neck)
    x = np.linspace(0, 1, cells + 1)
    w = width * (1 - neck * np.exp(-(((x - 0.5) / 0.15) ** 2)))
    expected = length / cells * ((w[1:] ** 2 + w[1:] * w[:-1] + w[:-1] ** 2) / 3).sum()
    assert volume(mesh) == pytest.approx(expected, rel=1e-12)
    assert area(mesh, "x_max") == pytest.approx(w[-1] ** 2, rel=1e-12)


def test_a_plate_lacks_the_polygon_inside_its_hole():
    mesh = plate_with_hole(alone(), (5, 6, 2), side=12.0, radius=3.0, thickness=1.5)
    polygon = 0.5 * 3.0**2 * 6 * np.sin(np.pi / 12)
    assert volume(mesh) == pytest.approx(1.5 * (144.0 - polygon), rel=1e-12)
    assert area(mesh, "hole") == pytest.approx(1.5 * 6 * 2 * 3.0 * np.sin(np.pi / 24), rel=1e-12)
    for part, expected in {"x_min": 9.0, "y_min": 9.0, "x_max": 12.0, "y_max": 12.0}.items():
        assert area(mesh, part) == pytest.approx(1.5 * expected, rel=1e-12)
    np.testing.assert_allclose(push(mesh, "x_min"), [1.5 * 9.0, 0, 0], atol=1e-12)


def test_grading_makes_the_plate_finer_at_the_hole():
    def first(grading):
        mesh = plate_with_hole(alone(), (5, 4, 1), grading=grading)
        x, y, _ = mesh.domain.geometry.x.T
        return np.sort(x[(np.abs(y) < 1e-12)])[[0, 2]] - 5.0

    np.testing.assert_allclose(first(1.0), [0.0, 3.0], atol=1e-12)
    np.testing.assert_allclose(first(2.0), [0.0, 0.6], atol=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: cube(alone(), 0), r"cells \(0, 0, 0\) must be three positive numbers"),
        (lambda: cube(alone(), (2, 2)), r"cells \(2, 2\) must be three positive numbers"),
        (lambda: cube(alone(), 2, -1.0), "length = -1.0 must be a positive number"),
        (lambda: necked_bar(alone(), neck=1.0), r"neck = 1.0, .* must lie in \[0, 1\)"),
        (lambda: necked_bar(alone(), width=float("nan")), "width = nan must be a positive number"),
        (lambda: plate_with_hole(alone(), (4, 5, 1)), "cells around the hole, 5, must be even"),
        (lambda: plate_with_hole(alone(), radius=20.0), "radius 20.0 must be smaller than the plate's side 20.0"),
        (lambda: cube(alone(), 2).part("left"), "no boundary part 'left', only x_max, x_min, y_max"),
    ],
)
def test_dimensions_that_make_no_body_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_mesh_without_parts_or_with_a_facet_in_two_is_refused():
    arrays = block((2, 2, 2), lambda points: points)
    with pytest.raises(ValueError, match="no named boundary parts: supports and loads need at least one"):
        distribute(alone(), lambda: dataclasses.replace(arrays, facets={}))
    twice = {**arrays.facets, "bottom": arrays.facets["z_min"][1:]}
    with pytest.raises(ValueError, match=r"3 facets belong to two boundary parts of x_min, .*, bottom"):
        distribute(alone(), lambda: dataclasses.replace(arrays, facets=twice))


# --- drawn out sections ---------------------------------------------------------------------------------------------


def test_a_section_is_swept_with_its_outline():
    corners = np.array([[0.0, 0.0], [2.0, 0.0], [2.0, 1.0], [0.0, 1.0]])
    section = Section(corners, np.array([[0, 1, 2, 3]]), {"front": np.array([[0, 1]]), "right": np.array([[1, 2]])})
    mesh = distribute(alone(), lambda: extrude(section, 3, lambda x: x * [1, 1, 6], ("low", "high")))
    assert volume(mesh) == pytest.approx(12.0, rel=1e-14)
    for part, force in {"front": [0, 12, 0], "right": [-6, 0, 0], "low": [0, 0, 2], "high": [0, 0, -2]}.items():
        np.testing.assert_allclose(push(mesh, part), force, atol=1e-12)
    with pytest.raises(ValueError, match="layers = 0 must be positive"):
        extrude(section, 0, lambda x: x, ("low", "high"))


def section_area(section):
    x, y = np.moveaxis(section.nodes[section.quadrilaterals], -1, 0)
    return 0.5 * (x * np.roll(y, -1, axis=1) - y * np.roll(x, -1, axis=1)).sum()


def test_the_blade_has_the_volume_of_its_tapered_section():
    section = blade_mesh.load_section(blade_mesh._FILE)
    mesh = blade_mesh.blade(alone(), layers=20)
    shrinking = (1 + 0.75 + 0.75**2) / 3
    assert volume(mesh) == pytest.approx(section_area(section) * 60.0 * shrinking, rel=2e-3)
    assert mesh.cells == 20 * len(section.quadrilaterals)
    assert SolidSpace(mesh, 1, None).weights.min() > 0


def test_the_parts_of_the_blade_close_its_surface():
    mesh = blade_mesh.blade(alone(), layers=4)
    assert set(mesh.names) == {"root", "tip", "pressure_side", "suction_side", "holes"}
    total = sum(push(mesh, part) for part in mesh.names)
    np.testing.assert_allclose(total, 0.0, atol=1e-9)
    # The hole's own normals cancel around each hole, whose walls only lean; those of the sides do not.
    assert push(mesh, "suction_side")[1] < -500 < 500 < push(mesh, "pressure_side")[1]
    assert push(mesh, "root")[2] == pytest.approx(area(mesh, "root"), rel=1e-12)


def test_holes_are_round_and_in_the_section():
    section = blade_mesh.load_section(blade_mesh._FILE)
    points = section.nodes[np.unique(section.edges["holes"])]
    for at, radius in blade_mesh.HOLES:
        centre = 40.0 * np.array([at, blade_mesh._camber(np.array([at]))[0]])
        near = np.abs(np.linalg.norm(points - centre, axis=1) - 40.0 * radius) < 1e-9
        assert near.sum() >= 12
        assert section.edges["holes"].shape[0] >= 36


def test_cells_of_the_section_are_convex_and_not_slender():
    section = blade_mesh.load_section(blade_mesh._FILE)
    corners = section.nodes[section.quadrilaterals]
    along, back = np.roll(corners, -1, axis=1) - corners, np.roll(corners, 1, axis=1) - corners
    lengths = np.linalg.norm(along, axis=2)
    sine = along[..., 0] * back[..., 1] - along[..., 1] * back[..., 0]
    assert (sine / (lengths * np.roll(lengths, 1, axis=1))).min() > 0.5
    assert (lengths.max(axis=1) / lengths.min(axis=1)).max() < 3.6


def test_the_section_that_comes_with_the_package_is_what_gmsh_makes(tmp_path):
    pytest.importorskip("gmsh", exc_type=(ImportError, OSError))
    made = blade_mesh.mesh_section(blade_mesh.SECTION_SIZE)
    blade_mesh.save_section(made, tmp_path / "section.npz")
    kept, again = blade_mesh.load_section(blade_mesh._FILE), blade_mesh.load_section(tmp_path / "section.npz")
    np.testing.assert_array_equal(again.nodes, made.nodes)
    # Another version of Gmsh may number differently, but draws the same section.
    assert section_area(kept) == pytest.approx(section_area(made), rel=1e-3)
    assert set(kept.edges) == set(made.edges)


def test_another_size_gives_a_finer_blade():
    pytest.importorskip("gmsh", exc_type=(ImportError, OSError))
    coarse, fine = (blade_mesh.blade(alone(), size) for size in (2.5, 1.2))
    assert fine.cells > 2.5 * coarse.cells
    assert volume(fine) == pytest.approx(volume(coarse), rel=0.05)


@pytest.mark.parametrize("size", [0.0, -1.0, 4.5, float("nan")])
def test_sizes_that_do_not_resolve_the_holes_are_refused(size):
    with pytest.raises(ValueError, match=f"size = {size} mm must be positive and at most 4"):
        blade_mesh.blade(alone(), size)


def test_without_gmsh_the_message_says_what_to_install(monkeypatch):
    def missing(name):
        raise OSError("libGLU.so.1: cannot open shared object file")

    monkeypatch.setattr(blade_mesh, "importlib", type("Import", (), {"import_module": staticmethod(missing)}))
    with pytest.raises(ValueError, match=r"Gmsh cannot be loaded \(OSError: libGLU.*pip install gmsh.*libglu1-mesa"):
        blade_mesh.mesh_section(2.0)
    assert importlib.import_module("forebay.solvers.fem.blade_mesh") is blade_mesh
    assert blade_mesh.blade(alone(), layers=2).cells > 0

import importlib

import numpy as np
import pytest
from suites.solid_cases import alone

from forebay.solvers.fem.blade_mesh import gmsh_model
from forebay.solvers.fem.solid_loads import assemble_loads
from forebay.solvers.fem.solid_mesh import cube, plate_with_hole, read_mesh
from forebay.solvers.fem.solid_mesh_file import write_mesh
from forebay.solvers.fem.solid_space import SolidSpace
from forebay.solvers.fem.solid_types import UnitLoad
from forebay.solvers.petsc import petsc


@pytest.fixture
def draw(tmp_path):
    """Draws something with Gmsh and writes it."""
    pytest.importorskip("gmsh", exc_type=(ImportError, OSError))

    def written(name, figure, **options):
        with gmsh_model() as gmsh:
            figure(gmsh, **options)
            gmsh.write(str(tmp_path / name))
        return tmp_path / name

    return written


def quarter_cylinder(gmsh, *, order=1, parts=True, volume=True):
    """Radius 3, height 2, in tetrahedra, flat sides named as symmetry planes."""
    gmsh.model.occ.addCylinder(0, 0, 0, 0, 0, 2, 3, angle=np.pi / 2)
    gmsh.model.occ.synchronize()
    if parts:
        name_planes(gmsh)
    if volume:
        gmsh.model.addPhysicalGroup(3, [1], name="body")
    gmsh.option.setNumber("Mesh.MeshSizeMax", 1.5)
    gmsh.model.mesh.generate(3 if volume else 2)
    gmsh.model.mesh.setOrder(order)


def box(gmsh, *, order):
    """1 x 2 x 3 in 27 hexahedra."""
    gmsh.model.occ.addBox(0, 0, 0, 1, 2, 3)
    gmsh.model.occ.synchronize()
    gmsh.option.setNumber("Mesh.RecombineAll", 1)
    for _, curve in gmsh.model.getEntities(1):
        gmsh.model.mesh.setTransfiniteCurve(curve, 4)
    for _, surface in gmsh.model.getEntities(2):
        gmsh.model.mesh.setTransfiniteSurface(surface)
    gmsh.model.mesh.setTransfiniteVolume(1)
    name_planes(gmsh)
    gmsh.model.addPhysicalGroup(3, [1], name="body")
    gmsh.model.mesh.generate(3)
    gmsh.model.mesh.setOrder(order)


def name_planes(gmsh):
    faces = [tag for _, tag in gmsh.model.getEntities(2)]
    for axis, name in enumerate(("x_min", "y_min", "z_min")):
        middle = [gmsh.model.occ.getCenterOfMass(2, tag)[axis] for tag in faces]
        gmsh.model.addPhysicalGroup(2, [faces[int(np.argmin(middle))]], name=name)


def volume(mesh, order=1):
    return SolidSpace(mesh, order, None).weights.sum()


def flat_area(mesh, part):
    normals = assemble_loads(SolidSpace(mesh, 1, None), [UnitLoad("", "pressure", part)])
    return np.linalg.norm(normals.reshape(-1, 3).sum(axis=0))


@pytest.mark.parametrize(("order", "tolerance"), [(1, 0.05), (2, 2e-3)])
def test_tetrahedra_from_gmsh_keep_names_volume_and_curvature(draw, order, tolerance):
    mesh = read_mesh(alone(), draw("part.msh", quarter_cylinder, order=order))
    assert set(mesh.names) == {"x_min", "y_min", "z_min"}
    assert volume(mesh, 2) == pytest.approx(0.25 * np.pi * 9 * 2, rel=tolerance)
    assert flat_area(mesh, "x_min") == pytest.approx(6.0, rel=1e-6)
    assert mesh.domain.geometry.cmaps[0].degree == order


@pytest.mark.parametrize("order", [1, 2])
def test_hexahedra_from_gmsh_are_not_turned_inside_out(draw, order):
    mesh = read_mesh(alone(), draw("box.msh", box, order=order))
    space = SolidSpace(mesh, 1, None)
    assert mesh.cells == 27
    np.testing.assert_allclose(space.weights, 6.0 / 27 / 8, rtol=1e-9)
    assert [flat_area(mesh, part) for part in ("x_min", "y_min", "z_min")] == pytest.approx([6.0, 3.0, 2.0], rel=1e-9)


def test_a_mesh_comes_back_from_xdmf_with_its_names(tmp_path):
    before = plate_with_hole(alone(), (4, 4, 1))
    write_mesh(before, tmp_path / "plate.xdmf")
    after = read_mesh(alone(), tmp_path / "plate.xdmf")
    assert dict(after.names) == dict(before.names)
    assert volume(after) == pytest.approx(volume(before), rel=1e-13)
    for part in ("hole", "x_min", "y_max"):
        assert len(after.part(part)) == len(before.part(part)) > 0
    assert flat_area(after, "y_min") == pytest.approx(2.0 * 15.0, rel=1e-12)


def test_parts_of_an_xdmf_file_without_names_are_called_by_their_tags(tmp_path):
    mesh = cube(alone(), 2)
    write_mesh(mesh, tmp_path / "cube.xdmf")
    text = (tmp_path / "cube.xdmf").read_text()
    start = text.index("<Information")
    (tmp_path / "cube.xdmf").write_text(text[:start] + text[text.index("/>", start) + 2 :])
    assert dict(read_mesh(alone(), tmp_path / "cube.xdmf").names) == {str(k): k for k in range(1, 7)}


def test_a_missing_file_and_an_unknown_ending_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"there is no mesh file .*nowhere\.msh"):
        read_mesh(alone(), tmp_path / "nowhere.msh")
    (tmp_path / "mesh.stl").write_text("solid")
    with pytest.raises(ValueError, match=r"mesh\.stl must end in \.msh or \.xdmf; other formats: convert"):
        read_mesh(alone(), tmp_path / "mesh.stl")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"volume": False}, "has no cells of three dimensions: mesh the volumes"),
        ({"parts": False}, "has no named boundary parts: make physical groups of surfaces"),
    ],
)
def test_files_from_gmsh_without_cells_or_parts_are_refused(draw, options, message):
    path = draw("part.msh", quarter_cylinder, **options)
    with pytest.raises(ValueError, match=message):
        read_mesh(alone(), path)


def prisms(gmsh):
    square = gmsh.model.occ.addRectangle(0, 0, 0, 1, 1)
    gmsh.model.occ.extrude([(2, square)], 0, 0, 1, numElements=[2], recombine=True)
    gmsh.model.occ.synchronize()
    gmsh.model.addPhysicalGroup(3, [1], name="body")
    gmsh.model.addPhysicalGroup(2, [1], name="bottom")
    gmsh.model.mesh.generate(3)


def test_prisms_are_refused_by_name(draw):
    path = draw("prisms.msh", prisms)
    with pytest.raises(ValueError, match="has cells of types Prism 6: one type is needed"):
        read_mesh(alone(), path)


def test_a_model_that_is_open_in_gmsh_stays_as_it_is(draw, tmp_path):
    path = draw("box.msh", box, order=1)
    gmsh = pytest.importorskip("gmsh")
    gmsh.initialize()
    try:
        gmsh.model.add("mine")
        gmsh.model.occ.addBox(0, 0, 0, 1, 1, 1)
        gmsh.model.occ.synchronize()
        assert read_mesh(alone(), path).cells == 27
        gmsh.model.setCurrent("mine")
        assert len(gmsh.model.getEntities(3)) == 1
        assert "forebay" not in gmsh.model.list()
    finally:
        gmsh.finalize()


def test_files_that_are_not_what_they_say_are_refused(tmp_path):
    pytest.importorskip("gmsh", exc_type=(ImportError, OSError))
    (tmp_path / "broken.msh").write_text("$MeshFormat\nnonsense")
    with pytest.raises(ValueError, match=r"broken\.msh"):
        read_mesh(alone(), tmp_path / "broken.msh")
    (tmp_path / "broken.xdmf").write_text("<Xdmf><Domain>")
    with pytest.raises(ValueError, match=r"broken\.xdmf is no XDMF file"):
        read_mesh(alone(), tmp_path / "broken.xdmf")


def test_xdmf_without_cells_or_facets_is_refused(tmp_path):
    petsc()
    io, dmesh = importlib.import_module("dolfinx.io"), importlib.import_module("dolfinx.mesh")
    for name, domain, message in (
        ("flat", dmesh.create_unit_square(alone(), 2, 2), "has no hexahedra or tetrahedra"),
        ("bare", dmesh.create_unit_cube(alone(), 2, 2, 2), "has no named boundary parts: write the tagged facets"),
    ):
        with io.XDMFFile(alone(), str(tmp_path / f"{name}.xdmf"), "w") as file:
            file.write_mesh(domain)
        with pytest.raises(ValueError, match=message):
            read_mesh(alone(), tmp_path / f"{name}.xdmf")

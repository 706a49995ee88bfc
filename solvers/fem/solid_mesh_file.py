"""Meshes of solids in files: Gmsh's format and XDMF."""

from __future__ import annotations

import importlib
import json
from os import PathLike
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from forebay.solvers.fem.blade_mesh import gmsh_model
from forebay.solvers.fem.mesh_arrays import MeshArrays, Shape
from forebay.solvers.fem.solid_mesh import SolidMesh, distribute
from forebay.solvers.petsc import petsc

_GMSH_CELLS: dict[int, tuple[Shape, int]] = {
    4: ("tetrahedron", 1),
    5: ("hexahedron", 1),
    11: ("tetrahedron", 2),
    12: ("hexahedron", 2),
}
_MESH, _FACETS, _NAMES = "mesh", "boundary_parts", "boundary_part_names"


def read(comm: Any, path: str | PathLike[str]) -> SolidMesh:
    """As `solid_mesh.read_mesh` says."""
    file = Path(path)
    if comm.bcast(not file.is_file()):
        raise ValueError(f"there is no mesh file {file}")
    match file.suffix.lower():
        case ".msh":
            return distribute(comm, lambda: _read_gmsh(file))
        case ".xdmf":
            return _read_xdmf(comm, file)
        case _:
            raise ValueError(f"mesh file {file} must end in .msh or .xdmf; other formats: convert with meshio or Gmsh")


def write_mesh(mesh: SolidMesh, path: str | PathLike[str]) -> None:
    """Write a mesh and its named boundary parts as XDMF with its HDF5 file beside it; collective."""
    io = importlib.import_module("dolfinx.io")
    mesh.domain.topology.create_connectivity(2, 3)
    mesh.domain.name, mesh.facets.name = _MESH, _FACETS
    with io.XDMFFile(mesh.comm, str(path), "w") as file:
        file.write_mesh(mesh.domain)
        file.write_meshtags(mesh.facets, mesh.domain.geometry)
        file.write_information(_NAMES, json.dumps(dict(mesh.names)))


def _read_xdmf(comm: Any, path: Path) -> SolidMesh:
    """The first grid that is no set of facets, and the first that is; without names, parts are called by their tags."""
    petsc()
    io = importlib.import_module("dolfinx.io")
    volume, facets, names = _contents(path)
    with io.XDMFFile(comm, str(path), "r") as file:
        domain = file.read_mesh(name=volume)
        domain.topology.create_connectivity(2, 3)
        tags = file.read_meshtags(domain, name=facets)
    if not names:
        found = np.unique(np.concatenate(comm.allgather(np.unique(tags.values))))
        names = {str(tag): int(tag) for tag in found}
    return SolidMesh(domain, tags, names)


def _contents(path: Path) -> tuple[str, str, dict[str, int]]:
    """Names of the grids of cells and of facets, and the boundary parts' names."""
    try:
        root = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise ValueError(f"{path} is no XDMF file: {error}") from error
    volumes, surfaces = [], []
    for grid in root.iter("Grid"):
        topology = grid.find("Topology")
        kind = "" if topology is None else topology.get("TopologyType", "").lower()
        if kind.startswith(("hexahedron", "tetrahedron")):
            volumes.append(grid.get("Name", ""))
        elif kind.startswith(("quadrilateral", "triangle")):
            surfaces.append(grid.get("Name", ""))
    if not volumes:
        raise ValueError(f"{path} has no hexahedra or tetrahedra: a solid needs cells of three dimensions")
    if not surfaces:
        raise ValueError(f"{path} has no named boundary parts: write the tagged facets into the same file")
    information = root.find(f".//Information[@Name='{_NAMES}']")
    return volumes[0], surfaces[0], {} if information is None else json.loads(information.get("Value", "{}"))


def _read_gmsh(path: Path) -> MeshArrays:
    with gmsh_model() as gmsh:
        try:
            gmsh.merge(str(path))
        except Exception as error:  # Gmsh's interface raises nothing more special
            raise ValueError(f"Gmsh cannot read {path}: {error}") from error
        shape, degree, tags = _gmsh_cells(gmsh.model, path)
        facets = _gmsh_parts(gmsh.model, path)
        node_tags, points, _ = gmsh.model.mesh.getNodes()
    used, cells = np.unique(tags, return_inverse=True)
    position = np.zeros((int(node_tags.max()) + 1, 3))
    position[node_tags] = points.reshape(-1, 3)
    order = _gmsh_order(shape, tags.shape[1])
    return MeshArrays(
        nodes=position[used],
        cells=cells.reshape(tags.shape)[:, order],
        shape=shape,
        degree=degree,
        facets={name: np.searchsorted(used, found) for name, found in facets.items()},
    )


def _gmsh_cells(model: Any, path: Path) -> tuple[Shape, int, np.ndarray]:
    """Shape, degree and node tags (c, k) of the cells."""
    types, _, tags = model.mesh.getElements(3)
    if len(types) == 0:
        raise ValueError(f"{path} has no cells of three dimensions: mesh the volumes (`gmsh -3`), and save them")
    if len(types) > 1 or types[0] not in _GMSH_CELLS:
        names = ", ".join(model.mesh.getElementProperties(kind)[0] for kind in types)
        raise ValueError(f"{path} has cells of types {names}: one type is needed, hexahedra or tetrahedra to degree 2")
    shape, degree = _GMSH_CELLS[types[0]]
    count = model.mesh.getElementProperties(types[0])[3]
    return shape, degree, np.asarray(tags[0], dtype=np.int64).reshape(-1, count)


def _gmsh_parts(model: Any, path: Path) -> dict[str, np.ndarray]:
    """Node tags (f, j) of the facets of every physical surface."""
    parts = {}
    for dimension, tag in model.getPhysicalGroups(2):
        name = model.getPhysicalName(dimension, tag) or str(tag)
        found = []
        for entity in model.getEntitiesForPhysicalGroup(dimension, tag):
            types, _, tags = model.mesh.getElements(dimension, entity)
            found += [
                np.asarray(t, dtype=np.int64).reshape(-1, model.mesh.getElementProperties(kind)[3])
                for kind, t in zip(types, tags, strict=True)
            ]
        parts[name] = np.concatenate(found)
    if not parts:
        raise ValueError(f"{path} has no named boundary parts: make physical groups of surfaces in Gmsh")
    return parts


def _gmsh_order(shape: Shape, nodes: int) -> np.ndarray:
    """Positions in Gmsh's list of a cell's nodes, in DOLFINx's order."""
    io, dolfinx_mesh = importlib.import_module("dolfinx.io.gmsh"), importlib.import_module("dolfinx.mesh")
    return np.asarray(io.cell_perm_array(dolfinx_mesh.to_type(shape), nodes))

"""Meshes of solids, spread over the processes of a communicator, with named parts of the boundary."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np

from forebay.solvers.fem.mesh_arrays import MeshArrays, block
from forebay.solvers.petsc import petsc

_NECK_WIDTH = 0.15
"""Of the neck along the bar, as a fraction of the bar's length."""


@dataclass(frozen=True, slots=True, eq=False)
class SolidMesh:
    """A DOLFINx mesh of hexahedra or tetrahedra, lengths in mm."""

    domain: Any
    """`dolfinx.mesh.Mesh`"""
    facets: Any
    """`dolfinx.mesh.MeshTags` of facets on the boundary."""
    names: Mapping[str, int]
    """Boundary part to its tag in `facets`; the same on all processes."""

    @property
    def comm(self) -> Any:
        """The communicator whose processes share the mesh."""
        return self.domain.comm

    @property
    def cells(self) -> int:
        """Of all processes together."""
        return int(self.domain.topology.index_map(3).size_global)

    def part(self, name: str) -> np.ndarray:
        """Local numbers of this process's facets on a boundary part.

        Raises:
            ValueError: there is no such part.
        """
        if name not in self.names:
            raise ValueError(f"the mesh has no boundary part {name!r}, only {', '.join(sorted(self.names))}")
        return np.asarray(self.facets.find(self.names[name]))


def distribute(comm: Any, make: Callable[[], MeshArrays]) -> SolidMesh:
    """Spread a mesh that the first process makes; collective.  What `make` raises is raised on all processes.

    Cells keep their numbers as `domain.topology.original_cell_index`, nodes as `geometry.input_global_indices`.
    """
    arrays = _on_first(comm, make)
    petsc()
    dolfinx_mesh, basix_ufl = importlib.import_module("dolfinx.mesh"), importlib.import_module("basix.ufl")
    lagrange = importlib.import_module("basix").LagrangeVariant.equispaced
    element = basix_ufl.element("P", arrays.shape, arrays.degree, lagrange, shape=(3,))
    domain = dolfinx_mesh.create_mesh(comm, arrays.cells, element, arrays.nodes)
    names = {name: tag for tag, name in enumerate(sorted(arrays.facets), start=1)}
    return SolidMesh(domain, _tags(domain, arrays.facets, names), names)


def cube(comm: Any, cells: int | Sequence[int] = 4, length: float = 1.0) -> SolidMesh:
    """[0, length]³ in `cells` hexahedra along each axis; parts "x_min", "x_max", ..., "z_max".

    Raises:
        ValueError: numbers that are not positive.
    """
    counts = (cells,) * 3 if isinstance(cells, int) else tuple(cells)
    _refuse_not_positive(length=length)
    return distribute(comm, lambda: block(counts, lambda points: length * points))


def necked_bar(
    comm: Any, cells: Sequence[int] = (24, 6, 6), length: float = 40.0, width: float = 10.0, neck: float = 0.3
) -> SolidMesh:
    """A square bar along x, 0 <= x <= length, centred on the x axis, whose width is least at its middle.

    Width at x: width (1 - neck exp(-((x - length/2) / (0.15 length))²)).  Parts "x_min", ..., "z_max".

    Raises:
        ValueError: lengths that are not positive, or neck outside [0, 1).
    """
    return distribute(comm, lambda: necked_bar_arrays(cells, length, width, neck))


def necked_bar_arrays(
    cells: Sequence[int] = (24, 6, 6), length: float = 40.0, width: float = 10.0, neck: float = 0.3
) -> MeshArrays:
    """What `necked_bar` spreads; raises what it does."""
    _refuse_not_positive(length=length, width=width)
    if not 0 <= neck < 1:
        raise ValueError(f"neck = {neck}, the part of the width that is missing at the middle, must lie in [0, 1)")

    def place(points: np.ndarray) -> np.ndarray:
        x, y, z = points.T
        local = width * (1 - neck * np.exp(-(((x - 0.5) / _NECK_WIDTH) ** 2)))
        return np.column_stack([length * x, local * (y - 0.5), local * (z - 0.5)])

    return block(cells, place)


def plate_with_hole(
    comm: Any,
    cells: Sequence[int] = (10, 12, 2),
    side: float = 20.0,
    radius: float = 5.0,
    thickness: float = 2.0,
    grading: float = 1.5,
) -> SolidMesh:
    """A quarter of a square plate with a round hole: [0, side]² × [0, thickness] without the circle about the origin.

    `cells` are those from the hole outwards, around the hole (even, so that the corner is a node) and through the
    thickness; nodes stand at (i / cells₀)^grading of the way outwards.
    Parts: "hole", the symmetry planes "x_min" and "y_min", "x_max", "y_max", "z_min", "z_max".

    Raises:
        ValueError: lengths or a grading that are not positive, a hole as wide as the plate, an odd number around it.
    """
    _refuse_not_positive(side=side, radius=radius, thickness=thickness, grading=grading)
    if radius >= side:
        raise ValueError(f"the hole's radius {radius} must be smaller than the plate's side {side}")
    if len(cells) == 3 and cells[1] % 2:
        raise ValueError(f"cells around the hole, {cells[1]}, must be even: the plate's corner is the middle node")

    def place(points: np.ndarray) -> np.ndarray:
        outwards, angle = points[:, 0] ** grading, 0.5 * np.pi * points[:, 1]
        direction = np.column_stack([np.cos(angle), np.sin(angle)])
        outer = side * direction / direction.max(axis=1, keepdims=True)
        plane = radius * direction + outwards[:, None] * (outer - radius * direction)
        return np.column_stack([plane, thickness * points[:, 2]])

    def make() -> MeshArrays:
        polar = block(cells, place)
        rim = polar.facets["x_max"].reshape(cells[2], 2, cells[1] // 2, 4)
        facets = {
            "hole": polar.facets["x_min"],
            "y_min": polar.facets["y_min"],
            "x_min": polar.facets["y_max"],
            "x_max": rim[:, 0].reshape(-1, 4),
            "y_max": rim[:, 1].reshape(-1, 4),
            "z_min": polar.facets["z_min"],
            "z_max": polar.facets["z_max"],
        }
        return MeshArrays(polar.nodes, polar.cells, polar.shape, polar.degree, facets)

    return distribute(comm, make)


def read_mesh(comm: Any, path: str | PathLike[str]) -> SolidMesh:
    """A mesh from a file: Gmsh's `.msh`, or `.xdmf` as `solid_mesh_file.write_mesh` and DOLFINx write it.

    Raises:
        ValueError: a missing file, another ending, no cells of a solid, no named parts of the boundary.
    """
    files = importlib.import_module("forebay.solvers.fem.solid_mesh_file")
    mesh: SolidMesh = files.read(comm, path)
    return mesh


def _refuse_not_positive(**values: float) -> None:
    for name, value in values.items():
        if not (np.isfinite(value) and value > 0):
            raise ValueError(f"{name} = {value} must be a positive number")


def _on_first(comm: Any, make: Callable[[], MeshArrays]) -> MeshArrays:
    """What `make` returns on the first process; on the others the same without nodes, cells and facets."""
    made: MeshArrays | None = None
    header: tuple[Any, ...] | Exception
    if comm.rank == 0:
        try:
            made = _checked(make())
            header = (made.shape, made.degree, made.cells.shape[1], {n: f.shape[1] for n, f in made.facets.items()})
        except Exception as error:
            header = error
    else:
        header = ()
    header = comm.bcast(header)
    if isinstance(header, Exception):
        raise header
    if made is not None:
        return made
    shape, degree, width, facets = header
    none = {name: np.empty((0, width), dtype=np.int64) for name, width in facets.items()}
    return MeshArrays(np.empty((0, 3)), np.empty((0, width), dtype=np.int64), shape, degree, none)


def _checked(arrays: MeshArrays) -> MeshArrays:
    if not arrays.facets:
        raise ValueError("the mesh has no named boundary parts: supports and loads need at least one")
    facets = np.sort(np.concatenate(list(arrays.facets.values())), axis=1)
    shared = len(facets) - len(np.unique(facets, axis=0))
    if shared:
        raise ValueError(
            f"{shared} facets belong to two boundary parts of {', '.join(arrays.facets)}: give each one name"
        )
    return arrays


def _tags(domain: Any, facets: Mapping[str, np.ndarray], names: Mapping[str, int]) -> Any:
    """Tags of the named facets, each on the process that owns it and those that share it."""
    dolfinx_mesh, graph = importlib.import_module("dolfinx.mesh"), importlib.import_module("dolfinx.graph")
    io = importlib.import_module("dolfinx.io")
    order = sorted(names, key=names.__getitem__)
    entities = np.concatenate([facets[name] for name in order]).astype(np.int64)
    tags = np.concatenate([np.full(len(facets[name]), names[name], dtype=np.int32) for name in order])
    domain.topology.create_connectivity(2, 3)
    local, values = io.distribute_entity_data(domain, 2, entities, tags)
    return dolfinx_mesh.meshtags_from_entities(domain, 2, graph.adjacencylist(local), values)

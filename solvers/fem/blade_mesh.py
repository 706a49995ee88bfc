"""A turbine blade with cooling holes, simplified: a cambered section with round holes, drawn out, twisted and tapered.

The section alone is meshed by Gmsh and comes with the package, so that a blade needs no Gmsh unless another element
size is asked for; `python -m forebay.solvers.fem.blade_mesh` makes that file again.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from forebay.solvers.fem.mesh_arrays import MeshArrays, Section, extrude
from forebay.solvers.fem.solid_mesh import SolidMesh, distribute

CHORD, HEIGHT = 40.0, 60.0
"""[mm]"""
TWIST, TAPER = np.deg2rad(25.0), 0.75
"""Rotation of the tip's section against the root's, and its size relative to the root's."""
HOLES = ((0.15, 0.045), (0.34, 0.052), (0.55, 0.040))
"""Centre along the chord and radius of every hole, as parts of the chord."""
_THICKNESS, _CAMBER, _CAMBER_AT, _TRAILING_EDGE = 0.21, 0.09, 0.45, 0.92
"""NACA four-digit shape, cut off before its trailing edge gets too thin for hexahedra."""
PIVOT = 0.4
"""What the twist turns about, along the chord."""
SECTION_SIZE, LAYERS = 1.5, 12
_GMSH_OPTIONS = {
    "Mesh.Algorithm": 5,
    "Mesh.RecombineAll": 1,
    "Mesh.RecombinationAlgorithm": 1,
    "Mesh.SubdivisionAlgorithm": 1,
    "Mesh.Smoothing": 10,
}
"""Of those tried, what gave the best worst cell: corners with a sine of 0.51 at least, edges within a factor of 3.5."""
_OUTLINE = 60
"""Points that every side's spline goes through."""
_FILE = Path(__file__).with_name("meshes") / "blade_section.npz"


def blade(comm: Any, size: float | None = None, layers: int | None = None) -> SolidMesh:
    """A blade of 60 mm along z on a chord of 40 mm along x, in hexahedra; its outline is described above.

    Parts: "root" (z = 0) and "tip", "pressure_side", "suction_side" (each with its half of the trailing edge) and
    "holes".  `size` [mm] is the edge length in the section (None: the mesh that comes with the package, made with
    `SECTION_SIZE`), `layers` the number of hexahedra along z, by default so that they are three times as long as wide.
    An engine's axis would be, for example, along x through (0, 0, -300).

    Raises:
        ValueError: a size that is not positive or too large for the holes, no layer, or a size without Gmsh.
    """
    return distribute(comm, lambda: blade_arrays(size, layers))


def blade_arrays(size: float | None = None, layers: int | None = None) -> MeshArrays:
    """What `blade` spreads; raises what it does."""
    if size is not None and not 0 < size <= 4.0:
        raise ValueError(f"size = {size} mm must be positive and at most 4, or the holes are not resolved")
    default = LAYERS if size is None else max(2, round(HEIGHT / (3 * size)))
    section = load_section(_FILE) if size is None else mesh_section(size)
    return extrude(section, default if layers is None else layers, place, ("root", "tip"))


def place(points: np.ndarray) -> np.ndarray:
    """Section coordinates and z in [0, 1] to space."""
    x, y, z = points[:, 0] - PIVOT * CHORD, points[:, 1], points[:, 2]
    scale, angle = 1 - (1 - TAPER) * z, TWIST * z
    cosine, sine = scale * np.cos(angle), scale * np.sin(angle)
    return np.column_stack([cosine * x - sine * y, sine * x + cosine * y, HEIGHT * z])


def outline(side: int, along: np.ndarray) -> np.ndarray:
    """Points (n, 2) [mm] of the section's upper (1) or lower (-1) side at parts of the chord: NACA's y_c ± y_t.

    The thickness is set off along y, not along the normal of the camber line.
    """
    camber = _camber(along)
    root = 0.2969 * np.sqrt(along)
    polynomial = -0.1260 * along - 0.3516 * along**2 + 0.2843 * along**3 - 0.1015 * along**4
    return CHORD * np.column_stack([along, camber + side * 5 * _THICKNESS * (root + polynomial)])


def _camber(along: np.ndarray) -> np.ndarray:
    front = _CAMBER / _CAMBER_AT**2 * (2 * _CAMBER_AT * along - along**2)
    rear = _CAMBER / (1 - _CAMBER_AT) ** 2 * (1 - 2 * _CAMBER_AT + 2 * _CAMBER_AT * along - along**2)
    return np.where(along < _CAMBER_AT, front, rear)


def mesh_section(size: float) -> Section:
    """Mesh the section with quadrilaterals whose edges are near `size` [mm]; the same mesh every time.

    Raises:
        ValueError: Gmsh is missing; the text says how to get it.
    """
    with gmsh_model() as gmsh:
        curves = _draw(gmsh.model.geo, size)
        gmsh.option.setNumber("Mesh.MeshSizeMin", size)
        gmsh.option.setNumber("Mesh.MeshSizeMax", 2 * size)
        # Triangles of twice the size are paired (blossom), then every cell is split: no triangle is left over.
        for option, value in _GMSH_OPTIONS.items():
            gmsh.option.setNumber(option, value)
        gmsh.model.mesh.generate(2)
        tags, points, _ = gmsh.model.mesh.getNodes()
        types, _, corners = gmsh.model.mesh.getElements(2)
        if list(types) != [3]:
            raise ValueError(
                f"Gmsh left cells of types {list(types)} in the section at size = {size}: try another size"
            )
        edges = {name: [gmsh.model.mesh.getElements(1, c)[2][0] for c in tagged] for name, tagged in curves.items()}
    number = np.zeros(int(tags.max()) + 1, dtype=np.int64)
    used = np.unique(corners[0])
    number[used] = np.arange(len(used))
    position = np.zeros((len(number), 2))
    position[tags] = points.reshape(-1, 3)[:, :2]
    quadrilaterals = _counter_clockwise(position, corners[0].reshape(-1, 4))
    return Section(
        position[used],
        number[quadrilaterals],
        {name: number[np.concatenate(found).reshape(-1, 2)] for name, found in edges.items()},
    )


def _draw(geo: Any, size: float) -> dict[str, list[int]]:
    """The section's surface; the curves of every part of its outline."""
    along = _TRAILING_EDGE * (1 - np.cos(np.linspace(0.0, 0.5 * np.pi, _OUTLINE)))
    nose = geo.addPoint(0.0, 0.0, 0.0, 2 * size)
    add = functools.partial(_add_points, geo, size)
    upper, lower = add(outline(1, along[1:])), add(outline(-1, along[1:]))
    middle = add(0.5 * (outline(1, along[-1:]) + outline(-1, along[-1:])))[0]
    suction = [geo.addSpline([nose, *upper]), geo.addLine(upper[-1], middle)]
    pressure = [geo.addLine(middle, lower[-1]), geo.addSpline([*reversed(lower), nose])]
    holes = [_circle(geo, at, radius, size) for at, radius in HOLES]
    loops = [geo.addCurveLoop([*suction, *pressure]), *(geo.addCurveLoop(arcs) for arcs in holes)]
    geo.addPlaneSurface(loops)
    geo.synchronize()
    return {"suction_side": suction, "pressure_side": pressure, "holes": [arc for arcs in holes for arc in arcs]}


def _add_points(geo: Any, size: float, points: np.ndarray) -> list[int]:
    return [geo.addPoint(x, y, 0.0, 2 * size) for x, y in points]


def _circle(geo: Any, at: float, radius: float, size: float) -> list[int]:
    """Four arcs about a point of the camber line."""
    centre = CHORD * np.array([at, _camber(np.array([at]))[0]])
    middle = _add_points(geo, size, centre[None])[0]
    quarters = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    points = _add_points(geo, size, centre + CHORD * radius * quarters)
    return [geo.addCircleArc(points[k], middle, points[(k + 1) % 4]) for k in range(4)]


def _counter_clockwise(position: np.ndarray, corners: np.ndarray) -> np.ndarray:
    first, second = (position[corners[:, b]] - position[corners[:, a]] for a, b in ((0, 2), (1, 3)))
    clockwise = first[:, 0] * second[:, 1] < first[:, 1] * second[:, 0]
    return np.asarray(np.where(clockwise[:, None], corners[:, ::-1], corners))


@contextlib.contextmanager
def gmsh_model() -> Iterator[Any]:
    """The Gmsh module with an empty model, silent, on one thread; closed afterwards unless it was open before.

    Raises:
        ValueError: Gmsh, or a library of the system that it needs, is missing.
    """
    try:
        gmsh = importlib.import_module("gmsh")
    except (ImportError, OSError) as error:
        raise ValueError(
            f"Gmsh cannot be loaded ({type(error).__name__}: {error}); run `pip install gmsh`, and on Debian or Ubuntu "
            f"`apt install libglu1-mesa libxcursor1 libxft2 libxinerama1`"
        ) from error
    ours = not gmsh.isInitialized()
    if ours:
        gmsh.initialize(readConfigFiles=False, interruptible=False)
        gmsh.option.setNumber("General.Terminal", 0)
        gmsh.option.setNumber("General.NumThreads", 1)
    gmsh.model.add("forebay")
    try:
        yield gmsh
    finally:
        if ours:
            gmsh.finalize()
        else:
            gmsh.model.remove()


def save_section(section: Section, path: Path) -> None:
    """Keep a section in a compressed NumPy archive."""
    edges = {f"edges_{name}": found.astype(np.int32) for name, found in section.edges.items()}
    np.savez_compressed(
        path, nodes=section.nodes, quadrilaterals=section.quadrilaterals.astype(np.int32), allow_pickle=False, **edges
    )


def load_section(path: Path) -> Section:
    """What `save_section` has kept."""
    with np.load(path, allow_pickle=False) as kept:
        edges = {name.removeprefix("edges_"): kept[name].astype(np.int64) for name in kept if name.startswith("edges_")}
        return Section(kept["nodes"], kept["quadrilaterals"].astype(np.int64), edges)


if __name__ == "__main__":
    save_section(mesh_section(SECTION_SIZE), _FILE)

"""Meshes of solids as plain arrays, before any process owns a part of them; numpy only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Shape = Literal["hexahedron", "tetrahedron"]
CORNERS: Mapping[Shape, int] = {"hexahedron": 8, "tetrahedron": 4}

_BLOCK_FACES = ("x_min", "x_max", "y_min", "y_max", "z_min", "z_max")


@dataclass(frozen=True, slots=True, eq=False)
class MeshArrays:
    """Cells of one shape and the named parts of their boundary, in the numbering of the input.

    Nodes of a cell stand in DOLFINx's order: its corners first, those of a hexahedron in tensor order, (0, 0, 0),
    (1, 0, 0), (0, 1, 0), (1, 1, 0), (0, 0, 1), ...; the order within a facet is free.
    """

    nodes: np.ndarray
    """Positions (n, 3), [mm]."""
    cells: np.ndarray
    """Node numbers (c, k), int64."""
    shape: Shape
    degree: int
    """Of the geometry: 2 for curved cells with nodes on their edges."""
    facets: Mapping[str, np.ndarray]
    """Node numbers (f, j) of the facets of every named boundary part."""


def block(cells: Sequence[int], place: Callable[[np.ndarray], np.ndarray]) -> MeshArrays:
    """A structured block of hexahedra; `place` maps the nodes of the unit cube (n, 3) into space, right-handed.

    Parts: the images of the six faces, "x_min", "x_max", ... in the cube's coordinates.

    Raises:
        ValueError: other than three positive numbers of cells.
    """
    if len(cells) != 3 or min(cells) < 1:
        raise ValueError(f"cells {tuple(cells)} must be three positive numbers, along x, y and z")
    axes = [np.linspace(0.0, 1.0, count + 1) for count in cells]
    z, y, x = np.meshgrid(*reversed(axes), indexing="ij")
    number = np.arange(x.size, dtype=np.int64).reshape(x.shape)
    corners = [number[k : k + cells[2], j : j + cells[1], i : i + cells[0]] for k, j, i in np.ndindex(2, 2, 2)]
    faces = [np.asarray(number.take(end, axis=2 - axis)) for axis in range(3) for end in (0, -1)]
    return MeshArrays(
        nodes=np.ascontiguousarray(place(np.column_stack([x.ravel(), y.ravel(), z.ravel()]))),
        cells=np.stack(corners, axis=-1).reshape(-1, 8),
        shape="hexahedron",
        degree=1,
        facets={name: _quadrilaterals(face) for name, face in zip(_BLOCK_FACES, faces, strict=True)},
    )


def _quadrilaterals(face: np.ndarray) -> np.ndarray:
    return np.stack([face[:-1, :-1], face[:-1, 1:], face[1:, :-1], face[1:, 1:]], axis=-1).reshape(-1, 4)


@dataclass(frozen=True, slots=True, eq=False)
class Section:
    """A plane section in quadrilaterals, to be drawn out into a solid."""

    nodes: np.ndarray
    """Positions (n, 2), [mm]."""
    quadrilaterals: np.ndarray
    """Node numbers (q, 4), counter-clockwise around each."""
    edges: Mapping[str, np.ndarray]
    """Node numbers (e, 2) of the edges of every named part of its outline."""


def extrude(
    section: Section, layers: int, place: Callable[[np.ndarray], np.ndarray], ends: tuple[str, str]
) -> MeshArrays:
    """Draw a section out along z over [0, 1] in equal layers; `place` maps these nodes (n, 3) into space.

    Parts: what the outline's parts sweep, and the two ends, named `ends`.

    Raises:
        ValueError: no layer.
    """
    if layers < 1:
        raise ValueError(f"layers = {layers} must be positive")
    count = len(section.nodes)
    levels = np.repeat(np.linspace(0.0, 1.0, layers + 1), count)
    nodes = np.column_stack([np.tile(section.nodes, (layers + 1, 1)), levels])
    offsets = (count * np.arange(layers))[:, None, None]
    tensor = section.quadrilaterals[:, [0, 1, 3, 2]].astype(np.int64)
    sweep = {
        name: (np.hstack([edges, edges + count])[None] + offsets).reshape(-1, 4)
        for name, edges in section.edges.items()
    }
    return MeshArrays(
        nodes=np.ascontiguousarray(place(nodes)),
        cells=(np.hstack([tensor, tensor + count])[None] + offsets).reshape(-1, 8),
        shape="hexahedron",
        degree=1,
        facets={**sweep, ends[0]: tensor, ends[1]: tensor + count * layers},
    )

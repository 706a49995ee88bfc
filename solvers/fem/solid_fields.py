"""How a solid's solution is kept: displacements of nodes and plastic strains of cells, both numbered as the input."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from forebay.pipeline.records import Coordinate, Field
from forebay.solvers.fem.mesh_arrays import MeshArrays
from forebay.solvers.fem.solid_types import AXES, COMPONENTS

_CORNERS = np.indices((2, 2, 2)).reshape(3, 8)[::-1].T
"""Of the unit cube (8, 3), in the order of a cell's nodes: x runs fastest."""
_GAUSS = 0.5 + (np.indices((2, 2, 2)).reshape(3, 8).T - 0.5) / np.sqrt(3)
"""Two points along each axis (8, 3) in the order of `SolidModel.point_ids`: z runs fastest.  All weigh 1/8."""


@dataclass(frozen=True, eq=False)
class HexahedralFields:
    """Output fields u (node, component) and p (cell,) of linear hexahedra with 2³ Gauss points.

    Needs no DOLFINx: what a reduced model reconstructs is kept in the same way as what the full model solved.

    Raises:
        ValueError: cells of another shape or degree.
    """

    mesh: MeshArrays

    def __post_init__(self) -> None:
        if (self.mesh.shape, self.mesh.degree) != ("hexahedron", 1):
            raise ValueError(
                f"fields of cells of shape {self.mesh.shape!r} and degree {self.mesh.degree} are not known; "
                f"give linear hexahedra"
            )

    @property
    def outputs(self) -> tuple[Field, Field]:
        """Of u and p, for the schema."""
        nodes, cells = len(self.mesh.nodes), len(self.mesh.cells)
        return (
            Field("u", ("node", "component"), (nodes, COMPONENTS), "mm", "displacement along x, y, z"),
            Field("p", ("cell",), (cells,), "1", "accumulated plastic strain, mean over the cell's volume"),
        )

    @property
    def coordinates(self) -> tuple[Coordinate, ...]:
        """Positions of the nodes, and the corners of every hexahedron in tensor order."""
        nodes = self.mesh.nodes
        positions = tuple(Coordinate(f"node_{name}", ("node",), nodes[:, k], "mm") for k, name in enumerate(AXES))
        return (*positions, Coordinate("hexahedra", ("cell", "corner"), self.mesh.cells))

    @functools.cached_property
    def weights(self) -> np.ndarray:
        """Volumes that the quadrature points stand for (c, 8), [mm³]: |∂x/∂X| / 8 of the trilinear map."""
        jacobian = np.einsum("qkd,cki->cqid", _gradients(_GAUSS), self.mesh.nodes[self.mesh.cells])
        return np.asarray(np.abs(np.linalg.det(jacobian)) / len(_GAUSS))

    def fields(self, displacement: np.ndarray, p: np.ndarray) -> Mapping[str, np.ndarray]:
        """Fields u (t, n, 3) and p (t, c) from displacements (t, 3 n) and plastic strains at the points (t, 8 c).

        Raises:
            ValueError: arrays of other shapes.
        """
        nodes, cells = len(self.mesh.nodes), len(self.mesh.cells)
        times = len(displacement)
        for name, array, columns in (
            ("displacement", displacement, nodes * COMPONENTS),
            ("p", p, cells * len(_GAUSS)),
        ):
            if array.shape != (times, columns):
                raise ValueError(f"{name} of shape {array.shape} for {times} times of {columns} values each")
        mean = self.weights / self.weights.sum(axis=1, keepdims=True)
        return {
            "u": displacement.reshape(times, nodes, COMPONENTS),
            "p": np.einsum("tcq,cq->tc", p.reshape(times, cells, -1), mean),
        }


def _gradients(points: np.ndarray) -> np.ndarray:
    """∂N_k/∂X_d of the trilinear shape functions at points of the unit cube (q, 3), shape (q, 8, 3)."""
    factors = np.where(_CORNERS == 1, points[:, None], 1 - points[:, None])
    slopes = np.where(_CORNERS == 1, 1.0, -1.0)
    others = [np.delete(factors, axis, axis=2).prod(axis=2) for axis in range(3)]
    return slopes * np.stack(others, axis=2)

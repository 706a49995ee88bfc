"""Displacements, strains and quadrature points of a solid mesh: the discretisation, without law, loads or supports."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from forebay.solvers.fem.mesh_arrays import CORNERS
from forebay.solvers.fem.solid_mesh import SolidMesh
from forebay.solvers.fem.solid_types import COMPONENTS
from forebay.solvers.materials.law import TENSOR
from forebay.solvers.petsc import petsc

_DEGREES = {("hexahedron", 1): 2, ("tetrahedron", 1): 1, ("hexahedron", 2): 4, ("tetrahedron", 2): 2}
"""Quadrature degrees: 2³ and 3³ Gauss points for hexahedra, 1 and 4 points for tetrahedra."""


class SolidSpace:
    """Lagrange displacements on a mesh and tensors at its quadrature points.

    Stress and tangent live in quadrature spaces, whose memory a material law writes directly: `stress` (points, 6) and
    `tangent` (points, 6, 6), cell by cell.  Cells of other processes are never integrated over here, so points are
    those of owned cells and nothing is exchanged but nodal values.

    `points`, `positions`, `weights`, `point_ids`, `dofs` and `dof_ids` are as `SolidModel` has them.
    """

    def __init__(self, mesh: SolidMesh, order: int, quadrature: int | None) -> None:
        petsc()
        basix, fem = importlib.import_module("basix"), importlib.import_module("dolfinx.fem")
        self.mesh, self.order = mesh, order
        self.domain = domain = mesh.domain
        self.shape = domain.topology.cell_name()
        self.degree = _quadrature_degree(self.shape, order, quadrature)
        self.space = fem.functionspace(domain, ("Lagrange", order, (COMPONENTS,)))
        self.displacement = fem.Function(self.space)
        self._cells = np.arange(domain.topology.index_map(3).size_local, dtype=np.int32)
        reference, self._reference_weights = basix.make_quadrature(domain.basix_cell(), self.degree)
        self.points = len(self._cells) * len(reference)
        self._strain = fem.Expression(mandel(self.displacement), reference)
        self._strains = np.empty((len(self._cells), len(reference), TENSOR))
        self.stress_function, self.stress = self._at_points((TENSOR,))
        self.tangent_function, self.tangent = self._at_points((TENSOR, TENSOR))
        self._measure_points(fem, reference)
        self.point_ids = self._point_ids(len(reference))
        self.dofs = self.space.dofmap.index_map.size_local * COMPONENTS
        self.dof_ids = self._dof_ids()

    @property
    def dx(self) -> Any:
        """The volume measure whose points are those of the law."""
        metadata = {"quadrature_degree": self.degree, "quadrature_scheme": "default"}
        return importlib.import_module("ufl").Measure("dx", self.domain, metadata=metadata)

    def set_displacement(self, values: np.ndarray) -> None:
        """Take owned values (dofs,); collective."""
        self.displacement.x.array[: self.dofs] = values
        self.displacement.x.scatter_forward()

    def strains(self) -> np.ndarray:
        """Of the current displacement, (points, 6); the memory is used again by the next call."""
        self._strain.eval(self.domain, self._cells, self._strains)
        return self._strains.reshape(-1, TENSOR)

    def norm(self, values: np.ndarray) -> float:
        """Euclidean norm of a vector with owned rows; NaN where any entry is; collective."""
        return float(np.sqrt(self.dot(values, values)))

    def dot(self, left: np.ndarray, right: np.ndarray) -> float:
        """Product of two vectors with owned rows; collective."""
        return float(self.mesh.comm.allreduce(float(left @ right)))

    def _at_points(self, value_shape: tuple[int, ...]) -> tuple[Any, np.ndarray]:
        """A function in a quadrature space and its memory for owned cells, (points, *value_shape)."""
        basix_ufl, fem = importlib.import_module("basix.ufl"), importlib.import_module("dolfinx.fem")
        cell = self.domain.basix_cell()
        element = basix_ufl.quadrature_element(cell, value_shape=value_shape, degree=self.degree)
        function = fem.Function(fem.functionspace(self.domain, element))
        numbers = function.function_space.dofmap.list[: len(self._cells)].ravel()
        if not np.array_equal(numbers, np.arange(self.points)):
            raise RuntimeError("this DOLFINx does not number quadrature points cell by cell; 0.11 does")
        memory = function.x.array[: self.points * int(np.prod(value_shape))]
        return function, memory.reshape(self.points, *value_shape)

    def _measure_points(self, fem: Any, reference: np.ndarray) -> None:
        ufl = importlib.import_module("ufl")
        place = fem.Expression(ufl.SpatialCoordinate(self.domain), reference)
        self.positions = place.eval(self.domain, self._cells).reshape(-1, COMPONENTS)
        stretch = fem.Expression(abs(ufl.JacobianDeterminant(self.domain)), reference)
        volumes = stretch.eval(self.domain, self._cells).reshape(len(self._cells), -1)
        self.weights = (volumes * self._reference_weights).ravel()

    def _point_ids(self, per_cell: int) -> np.ndarray:
        cells = self.domain.topology.original_cell_index[: len(self._cells)]
        return (cells[:, None] * per_cell + np.arange(per_cell)).ravel()

    def _dof_ids(self) -> np.ndarray:
        """Input node * 3 + component, or for quadratic displacements the same in an order of vertices, edges, ..."""
        keys = self._node_keys()
        if self.order == 1:
            nodes = keys[:, 1]
        else:
            everyone = np.concatenate(self.mesh.comm.allgather(keys))
            order = np.lexsort(everyone.T[::-1])
            first = sum(self.mesh.comm.allgather(len(keys))[: self.mesh.comm.rank])
            rank = np.empty(len(order), dtype=np.int64)
            rank[order] = np.arange(len(order))
            nodes = rank[first : first + len(keys)]
        return (nodes[:, None] * COMPONENTS + np.arange(COMPONENTS)).ravel()

    def _node_keys(self) -> np.ndarray:
        """What a node sits on, (owned nodes, 4): dimension and up to three of its entity's vertices, the smallest.

        Two faces share two vertices at most, so three tell them apart; a cell is named by its number.
        """
        topology = importlib.import_module("basix").topology(self.domain.basix_cell())
        layout, dofs = self.space.dofmap.dof_layout, self.space.dofmap.list
        geometry = self.domain.geometry
        corners = geometry.input_global_indices[geometry.dofmaps[0][:, : CORNERS[self.shape]]]
        keys = np.full((self.space.dofmap.index_map.size_local + self.space.dofmap.index_map.num_ghosts, 4), -1)
        for dimension in range(1 if self.order == 1 else 4):
            for number, vertices in enumerate(topology[dimension]):
                for dof in layout.entity_dofs(dimension, number):
                    keys[dofs[:, dof], 0] = dimension
                    if dimension == 3:
                        keys[dofs[:, dof], 1] = self.domain.topology.original_cell_index
                    else:
                        named = np.sort(corners[:, vertices], axis=1)[:, :3]
                        keys[dofs[:, dof], 1 : 1 + named.shape[1]] = named
        return keys[: self.space.dofmap.index_map.size_local]


def mandel(displacement: Any) -> Any:
    """ε = (∇u + ∇uᵀ)/2 as (xx, yy, zz, √2 xy, √2 xz, √2 yz)."""
    ufl = importlib.import_module("ufl")
    strain = ufl.sym(ufl.grad(displacement))
    normal = [strain[i, i] for i in range(COMPONENTS)]
    shear = [np.sqrt(2.0) * strain[i, j] for i, j in ((0, 1), (0, 2), (1, 2))]
    return ufl.as_vector([*normal, *shear])


def _quadrature_degree(shape: str, order: int, degree: int | None) -> int:
    if (shape, order) not in _DEGREES:
        raise ValueError(
            f"displacements of order {order} on a {shape} mesh: orders 1 and 2 on hexahedra and tetrahedra"
        )
    least = _DEGREES[shape, order]
    if degree is None:
        return least
    if degree < least:
        raise ValueError(
            f"quadrature degree {degree} leaves deformations of a {shape} of order {order} without stress; "
            f"at least {least} is needed"
        )
    return degree

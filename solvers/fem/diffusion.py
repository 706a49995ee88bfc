"""-∇·(a ∇u) = f with linear finite elements, assembled by DOLFINx into arrays that PETSc shares."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from forebay.pipeline.stages import Draw
from forebay.solvers.assemble import CsrSystem
from forebay.solvers.fem.mesh import TriangleMesh
from forebay.solvers.petsc import petsc


class DiffusionForms:
    """a(u, v) = ∫ a ∇u·∇v dx and L(v) = ∫ f v dx on continuous P1 elements, u = g on the whole boundary.

    `a`, `f`, `g` and solutions are nodal values (n,) in the mesh's node order.  The forms are compiled once (FFCx keeps
    them on disk), and every sample is assembled into the same arrays.  Constrained rows and columns are those of the
    identity, so the matrix is symmetric positive definite for a > 0.  Serial: the mesh lives on COMM_SELF.
    """

    def __init__(self, mesh: TriangleMesh, source: np.ndarray, dirichlet: np.ndarray) -> None:
        petsc()
        MPI = importlib.import_module("mpi4py.MPI")
        basix_ufl, ufl = importlib.import_module("basix.ufl"), importlib.import_module("ufl")
        self._fem = fem = importlib.import_module("dolfinx.fem")
        dolfinx_mesh = importlib.import_module("dolfinx.mesh")
        domain = dolfinx_mesh.create_mesh(
            MPI.COMM_SELF, mesh.triangles, basix_ufl.element("P", "triangle", 1, shape=(2,)), mesh.nodes
        )
        space = fem.functionspace(domain, ("P", 1))
        self.dof_of_node = _dof_of_node(domain, space)
        self._coefficient, load, fixed = (fem.Function(space) for _ in range(3))
        load.x.array[self.dof_of_node] = source
        fixed.x.array[self.dof_of_node] = dirichlet
        self._conditions = [fem.dirichletbc(fixed, np.sort(self.dof_of_node[mesh.boundary]).astype(np.int32))]
        trial, test = ufl.TrialFunction(space), ufl.TestFunction(space)
        self._bilinear = fem.form(self._coefficient * ufl.inner(ufl.grad(trial), ufl.grad(test)) * ufl.dx)
        self._linear = fem.form(load * test * ufl.dx)
        self._matrix = fem.create_matrix(self._bilinear)
        # The load does not depend on the sample; only what the boundary values lift does.
        self._load = fem.assemble_vector(self._linear).array.copy()
        self._lifts = bool(np.any(dirichlet[mesh.boundary]))

    @property
    def values(self) -> np.ndarray:
        """Entries of the matrix (nnz,), the memory that `assemble` writes."""
        return self._matrix.data

    def pattern(self) -> tuple[np.ndarray, np.ndarray]:
        """CSR row pointers and column numbers, in the order of DOLFINx's degrees of freedom."""
        return self._matrix.indptr, self._matrix.indices

    def assemble(self, coefficient: np.ndarray, rhs: np.ndarray) -> None:
        """Write `values` and `rhs` (n,) for the nodal coefficient a."""
        self._coefficient.x.array[self.dof_of_node] = coefficient
        self._matrix.set_value(0.0)
        self._fem.assemble_matrix(self._matrix, self._bilinear, bcs=self._conditions)
        rhs[:] = self._load
        if self._lifts:
            self._fem.apply_lifting(rhs, [self._bilinear], [self._conditions])
        for condition in self._conditions:
            condition.set(rhs)

    def system(self, coefficient: str) -> CsrSystem:
        """A PETSc system in these arrays; `coefficient` names the input field with a."""

        def assemble(draw: Draw, values: np.ndarray, rhs: np.ndarray) -> None:
            self.assemble(draw[coefficient], rhs)

        indptr, indices = self.pattern()
        return CsrSystem(indptr, indices, assemble, symmetry="spd", values=self.values)


def _dof_of_node(domain: Any, space: Any) -> np.ndarray:
    """Degree of freedom of every node of the mesh that `domain` was made from; P1 dofs sit at the cells' corners."""
    node_of_point = domain.geometry.input_global_indices
    numbering = np.empty(len(node_of_point), dtype=np.int64)
    numbering[node_of_point[domain.geometry.dofmaps[0]]] = space.dofmap.list
    return numbering

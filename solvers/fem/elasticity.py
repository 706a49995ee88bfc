"""Linear elasticity on a block of bricks that does not lock, assembled by DOLFINx into arrays that PETSc shares."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from forebay.pipeline.stages import Draw
from forebay.solvers.assemble import CsrSystem
from forebay.solvers.petsc import petsc

COMPONENTS = 3
"""Of a displacement: x, y, z; unknown 3 n + c is component c of node n in DOLFINx's numbering."""
_FULL, _ONE_POINT = 3, 1
"""Quadrature degrees: 2 x 2 x 2 Gauss points integrate E ε(u):ε(v) of trilinear E, u, v exactly; 1 is the centre."""


@dataclass(frozen=True, slots=True)
class BoxMesh:
    """[0, lengths₀] × [0, lengths₁] × [0, lengths₂] in equal bricks; nodes are numbered x fastest, then y, then z."""

    lengths: tuple[float, float, float]
    """[m]"""
    cells: tuple[int, int, int]
    """Bricks along x, y, z."""

    @property
    def nodes(self) -> np.ndarray:
        """Positions (n, 3), [m]."""
        axes = [np.linspace(0.0, length, count + 1) for length, count in zip(self.lengths, self.cells, strict=True)]
        z, y, x = np.meshgrid(*reversed(axes), indexing="ij")
        return np.column_stack([x.ravel(), y.ravel(), z.ravel()])

    @property
    def hexahedra(self) -> np.ndarray:
        """Node numbers of every brick (b, 8), int64: around its bottom, then around its top, as VTK orders them."""
        along_x, along_y, along_z = self.cells
        row, layer = along_x + 1, (along_x + 1) * (along_y + 1)
        k, j, i = np.indices((along_z, along_y, along_x)).reshape(3, -1)
        bottom = np.array([0, 1, 1 + row, row])
        return (i + row * j + layer * k)[:, None] + np.concatenate([bottom, bottom + layer])

    def face(self, axis: int, end: int) -> np.ndarray:
        """Sorted numbers of the nodes on the face at the start (end = 0) or the end (1) of an axis."""
        indices = np.arange(len(self.nodes)).reshape(*(count + 1 for count in reversed(self.cells)))
        return np.sort(indices.take(-end, axis=2 - axis), axis=None)

    def numbers_of(self, points: np.ndarray) -> np.ndarray:
        """Node numbers of points (k, 3) that are nodes."""
        i, j, k = np.rint(points * self.cells / self.lengths).astype(np.int64).T
        return i + (self.cells[0] + 1) * (j + (self.cells[1] + 1) * k)


class ElasticityForms:
    """a(u, v) = ∫ 2μ ε(u):ε(v) dx + ∫₁ λ ∇·u ∇·v dx, L(v) = ∫ f·v dx + ∫ t·v ds, u = g at fixed nodes.

    ε(u) = (∇u + ∇uᵀ)/2, μ = E / (2 (1 + ν)), λ = E ν / ((1 + ν)(1 - 2ν)); E is trilinear between its nodal values, ν
    is one number.  `displacement` g, `body_force` f and `traction` t are nodal, (n, 3), in the mesh's node order; g
    counts at the nodes `fixed`, t on the face where x is largest; None is zero.  The rest of the boundary is free.

    Trilinear elements; ∫₁ takes one point a brick (selective reduced integration).  Integrated exactly, λ → ∞ would
    force ∇·u = 0 at eight points a brick, more than its unknowns can meet: locking.  Measured on a cantilever with
    eight bricks through its depth, error of the bending compliance against the limit of refinement: 16 % at ν = 0.49
    and 44 % at 0.499 with full integration, 2 % at both with one point; 4 % and 5 % for quadratic tetrahedra with as
    many unknowns.  The 2μ term alone is coercive (Korn), so that no spurious mode appears.  The method equals the mixed
    element of trilinear displacements with one pressure a brick; its pressures may oscillate, its displacements do not.
    Source: Malkus and Hughes, Comput. Methods Appl. Mech. Eng. 15 (1978), doi 10.1016/0045-7825(78)90005-1.

    The forms are compiled once (FFCx keeps them on disk), and every sample is assembled into the same arrays.
    Constrained rows and columns are those of the identity, so the matrix is symmetric positive definite for E > 0 and
    -1 < ν < 1/2 if fixed nodes prevent rigid motions.  Serial: the mesh lives on COMM_SELF.
    """

    def __init__(
        self,
        mesh: BoxMesh,
        *,
        fixed: np.ndarray,
        displacement: np.ndarray | None = None,
        body_force: np.ndarray | None = None,
        traction: np.ndarray | None = None,
    ) -> None:
        petsc()
        self._fem = fem = importlib.import_module("dolfinx.fem")
        la, ufl = importlib.import_module("dolfinx.la"), importlib.import_module("ufl")
        domain = _domain(mesh)
        space = fem.functionspace(domain, ("P", 1, (COMPONENTS,)))
        scalars = fem.functionspace(domain, ("P", 1))
        self._points = space.tabulate_dof_coordinates()
        node_of_dof = mesh.numbers_of(self._points)
        self.dof_of_node = np.argsort(node_of_dof)
        self._node_of_scalar = mesh.numbers_of(scalars.tabulate_dof_coordinates())
        self._fixed = np.sort(self.dof_of_node[fixed]).astype(np.int32)
        g, f, t = (_nodal(fem, space, node_of_dof, values) for values in (displacement, body_force, traction))
        self._conditions = [fem.dirichletbc(g, self._fixed)]
        self._modulus = fem.Function(scalars)
        self._mu, self._lambda = fem.Constant(domain, 0.5), fem.Constant(domain, 0.0)
        self._bilinear = fem.form(_stiffness(ufl, space, self._modulus, self._mu, self._lambda))
        test = ufl.TestFunction(space)
        load = fem.form(ufl.inner(f, test) * ufl.dx + ufl.inner(t, test) * _far_end(ufl, domain, mesh.lengths[0]))
        # Not in blocks: PETSc gets AIJ, which every factorisation and preconditioner takes.
        self._matrix = fem.create_matrix(self._bilinear, la.BlockMode.expanded)
        self._load = fem.assemble_vector(load).array.copy()
        self._lifts = bool(np.any(g.x.array))

    @property
    def values(self) -> np.ndarray:
        """Entries of the matrix (nnz,), the memory that `assemble` writes."""
        return self._matrix.data

    def pattern(self) -> tuple[np.ndarray, np.ndarray]:
        """CSR row pointers and column numbers, in the order of DOLFINx's degrees of freedom."""
        return self._matrix.indptr, self._matrix.indices

    def assemble(self, modulus: np.ndarray, poisson: float, rhs: np.ndarray) -> None:
        """Write `values` and `rhs` (3 n,) for Young's modulus at the nodes (n,) and Poisson's ratio.

        Raises:
            ValueError: a ratio for which the material is not stable or not compressible.
        """
        if not -1 < poisson < 0.5:
            raise ValueError(f"Poisson's ratio {poisson} must lie between -1 and 0.5; 0.5 needs a mixed formulation")
        self._modulus.x.array[:] = modulus[self._node_of_scalar]
        self._mu.value = 0.5 / (1 + poisson)
        self._lambda.value = poisson / ((1 + poisson) * (1 - 2 * poisson))
        self._matrix.set_value(0.0)
        self._fem.assemble_matrix(self._matrix, self._bilinear, bcs=self._conditions)
        rhs[:] = self._load
        if self._lifts:
            self._fem.apply_lifting(rhs, [self._bilinear], [self._conditions])
        for condition in self._conditions:
            condition.set(rhs)

    def displacement(self, solution: np.ndarray) -> np.ndarray:
        """A solution vector (3 n,) as displacements of the nodes (n, 3)."""
        return solution.reshape(-1, COMPONENTS)[self.dof_of_node]

    @property
    def near_null_space(self) -> np.ndarray:
        """Orthonormal rigid motions (3 n, 6), zero at the fixed nodes.

        Their rows are decoupled from all others, so a coarse space has nothing to correct there: 69 iterations of
        CG + GAMG instead of 72 where the modes go on into the clamped face (4,131 unknowns, ν = 0.49, rtol 1e-8).
        """
        modes = rigid_motions(self._points)
        modes.reshape(-1, COMPONENTS, 6)[self._fixed] = 0.0
        orthonormal = np.linalg.qr(modes)[0]
        orthonormal.reshape(-1, COMPONENTS, 6)[self._fixed] = 0.0  # QR leaves 1e-17 there
        return orthonormal

    def system(self, modulus: str, poisson: int) -> CsrSystem:
        """A PETSc system in these arrays with blocks of three and the near-null space, which GAMG picks up.

        `modulus` names the input field with E, `poisson` is the position of ν among the parameters.
        """

        def assemble(draw: Draw, values: np.ndarray, rhs: np.ndarray) -> None:
            self.assemble(draw[modulus], float(draw["parameters"][poisson]), rhs)

        indptr, indices = self.pattern()
        system = CsrSystem(indptr, indices, assemble, symmetry="spd", values=self.values)
        system.matrix.setBlockSize(COMPONENTS)
        attach_near_null_space(system.matrix, self.near_null_space)
        return system


def rigid_motions(points: np.ndarray) -> np.ndarray:
    """The six motions without strain at points (n, 3), shape (3 n, 6): translations, rotations about the centroid."""
    motions = np.zeros((len(points), COMPONENTS, 6))
    motions[:, :, :3] = np.eye(3)
    arms = points - points.mean(axis=0)
    for axis in range(3):
        motions[:, :, 3 + axis] = np.cross(np.eye(3)[axis], arms)
    return motions.reshape(-1, 6)


def attach_near_null_space(matrix: Any, modes: np.ndarray) -> None:
    """Give a PETSc matrix its near-null space, orthonormal columns (n, k); the matrix keeps copies."""
    PETSc = petsc()
    vectors = []
    for column in modes.T:
        vector = matrix.createVecRight()
        vector.array[:] = column
        vectors.append(vector)
    space = PETSc.NullSpace().create(vectors=vectors, comm=matrix.comm)
    matrix.setNearNullSpace(space)
    for item in (space, *vectors):
        item.destroy()  # the matrix holds references


def _domain(mesh: BoxMesh) -> Any:
    dolfinx_mesh = importlib.import_module("dolfinx.mesh")
    comm = importlib.import_module("mpi4py.MPI").COMM_SELF
    corners = [np.zeros(3), np.asarray(mesh.lengths)]
    return dolfinx_mesh.create_box(comm, corners, mesh.cells, dolfinx_mesh.CellType.hexahedron)


def _stiffness(ufl: Any, space: Any, modulus: Any, mu: Any, lambda_: Any) -> Any:
    """The bilinear form; μ and λ are those of E = 1."""
    trial, test = ufl.TrialFunction(space), ufl.TestFunction(space)
    full, one_point = (ufl.dx(metadata={"quadrature_degree": degree}) for degree in (_FULL, _ONE_POINT))
    shear = 2 * mu * modulus * ufl.inner(ufl.sym(ufl.grad(trial)), ufl.sym(ufl.grad(test)))
    return shear * full + lambda_ * modulus * ufl.div(trial) * ufl.div(test) * one_point


def _far_end(ufl: Any, domain: Any, length: float) -> Any:
    """The measure of the face x = length."""
    dolfinx_mesh = importlib.import_module("dolfinx.mesh")
    facets = np.sort(dolfinx_mesh.locate_entities_boundary(domain, 2, lambda x: np.isclose(x[0], length)))
    tags = dolfinx_mesh.meshtags(domain, 2, facets, np.ones(len(facets), dtype=np.int32))
    return ufl.Measure("ds", domain=domain, subdomain_data=tags, subdomain_id=1)


def _nodal(fem: Any, space: Any, node_of_dof: np.ndarray, values: np.ndarray | None) -> Any:
    """A function with nodal values (n, 3); None is zero."""
    function = fem.Function(space)
    if values is not None:
        function.x.array[:] = values[node_of_dof].ravel()
    return function

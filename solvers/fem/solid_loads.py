"""Supports and unit loads of a solid: which displacements are prescribed, and the vectors that amplitudes scale."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from forebay.solvers.fem.elasticity import rigid_motions
from forebay.solvers.fem.solid_space import SolidSpace
from forebay.solvers.fem.solid_types import AXES, COMPONENTS, Support, UnitLoad
from forebay.solvers.petsc import fem_petsc

_FREE, _ZERO = -2, -1
_RESTRAINED = 1e-8
"""Least eigenvalue, relative to the largest, of the rigid motions' Gram matrix on the supports."""


class Constraints:
    """Which degrees of freedom are prescribed, and by which amplitude.

    Raises:
        ValueError: an unknown or empty boundary part, two supports that disagree, or supports that let the body move.
    """

    def __init__(self, space: SolidSpace, supports: Sequence[Support]) -> None:
        self._comm = space.mesh.comm
        self.names = tuple(dict.fromkeys(s.displacement for s in supports if s.displacement is not None))
        target = self._targets(space, supports)
        self._target = target[: space.dofs]
        self.fixed = self._target != _FREE
        """(dofs,), of owned degrees of freedom."""
        self._refuse_free_motions(space)
        self.conditions, self._values = self._dirichlet(space, target)

    def prescribe(self, amplitudes: np.ndarray) -> np.ndarray:
        """Give the Dirichlet conditions their values; returns those of the fixed degrees of freedom, in order."""
        for value, amplitude in self._values:
            value.value = amplitudes[amplitude]
        return np.append(amplitudes, 0.0)[self._target[self.fixed]]

    def _targets(self, space: SolidSpace, supports: Sequence[Support]) -> np.ndarray:
        """Number of the amplitude of every local degree of freedom, or `_ZERO` or `_FREE`."""
        index_map = space.space.dofmap.index_map
        target = np.full((index_map.size_local + index_map.num_ghosts, COMPONENTS), _FREE)
        for support in supports:
            wanted = _ZERO if support.displacement is None else self.names.index(support.displacement)
            nodes = self._nodes(space, support)
            axes = [AXES.index(letter) for letter in support.components]
            present = target[np.ix_(nodes, axes)]
            clashes = self._comm.allreduce(int(np.sum((present != _FREE) & (present != wanted))))
            if clashes:
                raise ValueError(
                    f"the support on {support.where!r} prescribes {support.components!r} otherwise than an earlier "
                    f"support at {clashes} degrees of freedom that both hold: leave those components to one of them"
                )
            target[np.ix_(nodes, axes)] = wanted
        return target.ravel()

    def _nodes(self, space: SolidSpace, support: Support) -> np.ndarray:
        """Local numbers of the nodes that lie on all parts of a support."""
        fem = importlib.import_module("dolfinx.fem")
        on_parts = [fem.locate_dofs_topological(space.space, 2, space.mesh.part(part)) for part in support.parts]
        nodes = on_parts[0]
        for others in on_parts[1:]:
            nodes = np.intersect1d(nodes, others)
        if self._comm.allreduce(len(nodes)) == 0:
            raise ValueError(f"no node lies on {support.where!r}: the parts do not meet, or have no facet")
        return np.asarray(nodes)

    def _refuse_free_motions(self, space: SolidSpace) -> None:
        nodes = space.space.tabulate_dof_coordinates()[: space.dofs // COMPONENTS]
        count = self._comm.allreduce(len(nodes))
        centre = self._comm.allreduce(nodes.sum(axis=0)) / count
        spread = np.sqrt(self._comm.allreduce(float(((nodes - centre) ** 2).sum())) / count)
        held = motions_about((nodes - centre) / spread, np.zeros(3))[self.fixed]
        eigenvalues = np.linalg.eigvalsh(self._comm.allreduce(held.T @ held))
        free = int(np.sum(eigenvalues <= _RESTRAINED * max(eigenvalues[-1], np.finfo(float).tiny)))
        if free:
            raise ValueError(f"the supports leave {free} of the 6 rigid motions free: hold more components or parts")

    def _dirichlet(self, space: SolidSpace, target: np.ndarray) -> tuple[list[Any], list[tuple[Any, int]]]:
        """DOLFINx's conditions, one a component and amplitude, and the constants of those that are not zero."""
        fem = importlib.import_module("dolfinx.fem")
        conditions, values = [], []
        component = np.arange(len(target)) % COMPONENTS
        for amplitude in range(_ZERO, len(self.names)):
            for axis in range(COMPONENTS):
                dofs = np.flatnonzero((target == amplitude) & (component == axis)).astype(np.int32)
                value = fem.Constant(space.domain, 0.0)
                conditions.append(fem.dirichletbc(value, dofs, space.space.sub(axis)))
                if amplitude != _ZERO:
                    values.append((value, amplitude))
        return conditions, values


def motions_about(points: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """`rigid_motions` (3 n, 6) with rotations about a given point, so that processes with parts of a body agree."""
    if len(points) == 0:
        return np.zeros((0, 6))
    motions = rigid_motions(points)
    shift = points.mean(axis=0) - centre
    for axis in range(COMPONENTS):
        motions[:, 3 + axis] += motions[:, :3] @ np.cross(np.eye(3)[axis], shift)
    return motions


def assemble_loads(space: SolidSpace, loads: Sequence[UnitLoad]) -> np.ndarray:
    """The vectors of nodal forces (dofs, L) of amplitude one, constrained rows included.

    Raises:
        ValueError: two loads of one name, an unknown boundary part, or a load that exerts no force.
    """
    names = [load.name for load in loads]
    if len(set(names)) != len(names):
        raise ValueError(f"loads {names} must have different names")
    vectors = np.zeros((space.dofs, len(loads)))
    for column, load in enumerate(loads):
        vectors[:, column] = assemble(space, _virtual_work(space, load))
        if space.norm(vectors[:, column]) == 0:
            raise ValueError(f"load {load.name!r} exerts no force: {load.where!r} has no facet on the outside")
    return vectors


def assemble(space: SolidSpace, work: Any) -> np.ndarray:
    """A linear form in `ufl.TestFunction(space.space)` as owned values (dofs,)."""
    fem, la = importlib.import_module("dolfinx.fem"), importlib.import_module("dolfinx.la")
    vector = fem.assemble_vector(fem.form(work))
    vector.scatter_reverse(la.InsertMode.add)
    return np.array(vector.array[: space.dofs])


def _virtual_work(space: SolidSpace, load: UnitLoad) -> Any:
    """∫ t·v ds, -∫ n·v ds, ∫ b·v dx or ∫ r·v dx."""
    ufl, fem = importlib.import_module("ufl"), importlib.import_module("dolfinx.fem")
    test, domain = ufl.TestFunction(space.space), space.domain
    vector = np.array((0.0, 0.0, 0.0) if load.vector is None else load.vector, dtype=float)
    if load.where is not None:
        space.mesh.part(load.where)
        tag = space.mesh.names[load.where]
        ds = ufl.Measure("ds", domain=domain, subdomain_data=space.mesh.facets, subdomain_id=tag)
        force = -ufl.FacetNormal(domain) if load.kind == "pressure" else fem.Constant(domain, vector)
        return ufl.inner(force, test) * ds
    if load.kind == "body":
        return ufl.inner(fem.Constant(domain, vector), test) * space.dx
    axis = fem.Constant(domain, vector / np.linalg.norm(vector))
    from_point = ufl.SpatialCoordinate(domain) - fem.Constant(domain, np.array(load.point, dtype=float))
    arm = from_point - ufl.inner(from_point, axis) * axis
    # One degree above the stress's: arm and test function are each of the element's order.
    return ufl.inner(arm, test) * ufl.dx(metadata={"quadrature_degree": 2 * space.order + 2})


def lumped_mass(space: SolidSpace) -> np.ndarray:
    """Positive lumped mass of density one (dofs,), [mm³]; every component's sum is the volume.

    Row sums for linear displacements; for quadratic ones, where row sums can be negative, the diagonal of the mass
    matrix scaled to the volume.  Source of the latter: E. Hinton, T. Rock and O. C. Zienkiewicz, Earthquake Engng.
    Struct. Dyn. 4 (1976), 245-249; here it is scaled once for the body, not cell by cell.
    """
    ufl, fem = importlib.import_module("ufl"), importlib.import_module("dolfinx.fem")
    ones = fem.Constant(space.domain, np.ones(COMPONENTS))
    if space.order == 1:
        return assemble(space, ufl.inner(ones, ufl.TestFunction(space.space)) * ufl.dx)
    mass = ufl.inner(ufl.TrialFunction(space.space), ufl.TestFunction(space.space)) * ufl.dx
    matrix = fem_petsc().assemble_matrix(fem.form(mass))
    matrix.assemble()
    diagonal = np.array(matrix.getDiagonal().array)
    matrix.destroy()
    comm = space.mesh.comm
    volume = comm.allreduce(float(space.weights.sum()))
    return diagonal * (COMPONENTS * volume / comm.allreduce(float(diagonal.sum())))

"""Darcy flow on an unstructured mesh of a plate with a hole, through DOLFINx."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field as Limit

from forebay.pipeline.records import Coordinate, Field, Parameter, Schema
from forebay.pipeline.stages import Draw, Symmetry
from forebay.solvers.assemble import CsrSystem
from forebay.solvers.fem.diffusion import DiffusionForms
from forebay.solvers.fem.mesh import TriangleMesh, circle, difference, generate_mesh, rectangle
from forebay.solvers.problems.options import InverseLength, Smoothness

HOLE = (0.62, 0.42, 0.18)
"""Centre and radius of the hole, [m]: off the centre, so that no symmetry halves what has to be learned."""


@dataclass(frozen=True, kw_only=True)
class DarcyFem:
    r"""-∇·(a(x; ξ) ∇u) = 1 in Ω = (0, 1)² without a disc, u = 0 on the whole boundary.

    a = exp(Σₖ √λₖ ξₖ φₖ(x)),  ξₖ ~ N(0, 1),  φ_ij = c_ij cos(iπx) cos(jπy),  λ_ij ∝ (π²(i² + j²) + τ²)^(-α):
    the `modes` largest terms of the Karhunen-Loève expansion of a Matérn-type Gaussian field on the unit square
    with no-flux ends (the constant left out), scaled to the standard deviation `sigma` of log a.

    Linear elements on triangles with edges of about `element_size`; the error in L² falls as element_size².
    Units: metres, all else dimensionless.  Source of the field: Lord, Powell, Shardlow, "An Introduction to
    Computational Stochastic PDEs" (2014), section 9; doi 10.1017/CBO9781139017329.

    Raises:
        ProblemError: an element size that does not resolve the hole (above about 0.15).
    """

    element_size: Annotated[float, Limit(ge=0.005, le=0.5)] = 0.04
    """Length of an edge, [m]; 0.02 gives 2,636 nodes, 0.04 gives 670."""
    modes: Annotated[int, Limit(ge=1, le=1024)] = 16
    """Number of parameters ξₖ; 8 ... 64 is usual."""
    alpha: Smoothness = 2.0
    """α of the spectrum."""
    tau: InverseLength = 3.0
    """τ of the spectrum, [1/m]; the correlation length is about 1/τ."""
    sigma: Annotated[float, Limit(gt=0, le=4)] = 1.0
    """Standard deviation of log a, as an average over the unit square."""

    @property
    def mesh(self) -> TriangleMesh:
        """Nodes and triangles; made once per process and element size."""
        return _plate_with_hole(self.element_size)

    @property
    def schema(self) -> Schema:
        """Coefficient and solution at the nodes; `triangles` are kept with them."""
        mesh = self.mesh
        node = ("node",)
        shape = (len(mesh.nodes),)
        parameters = tuple(
            Parameter(f"xi_{k + 1}", -1.0, 1.0, distribution="normal", description=f"mode (i, j) = ({i}, {j}) of log a")
            for k, (i, j) in enumerate(_wavenumbers(self.modes))
        )
        return Schema(
            parameters=parameters,
            inputs=(Field("a", node, shape, description="coefficient"),),
            outputs=(Field("u", node, shape, description="solution"),),
            coordinates=(
                Coordinate("node_x", node, mesh.nodes[:, 0], "m"),
                Coordinate("node_y", node, mesh.nodes[:, 1], "m"),
                Coordinate("triangles", ("triangle", "corner"), mesh.triangles),
            ),
            boundary_conditions="u = 0 on the outer boundary and on the hole's",
        )

    @property
    def symmetry(self) -> Symmetry:
        """Symmetric positive definite, since a > 0."""
        return "spd"

    def draw(self, parameters: np.ndarray, rng: np.random.Generator) -> Mapping[str, np.ndarray]:
        """The coefficient at the nodes (n,); fixed by the parameters alone."""
        return {"a": np.exp(self._basis @ parameters)}

    def pattern(self) -> tuple[np.ndarray, np.ndarray]:
        """CSR sparsity in DOLFINx's numbering."""
        return self._forms.pattern()

    def assemble(self, draw: Draw, values: np.ndarray, rhs: np.ndarray) -> None:
        """Assemble in DOLFINx's own arrays and copy; `system` avoids the copy."""
        self._forms.assemble(draw["a"], rhs)
        values[:] = self._forms.values

    def fields(self, draw: Draw, solution: np.ndarray) -> Mapping[str, np.ndarray]:
        """The solution at the nodes."""
        return {"u": solution[self._forms.dof_of_node]}

    def system(self) -> CsrSystem:
        """A system in DOLFINx's arrays, separate from those of `assemble`."""
        return self._new_forms().system("a")

    def __getstate__(self) -> dict[str, float]:
        # Compiled forms cannot travel to another process; they are made anew there.
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @functools.cached_property
    def _basis(self) -> np.ndarray:
        return modes_at(self.mesh.nodes, self.modes, alpha=self.alpha, tau=self.tau, sigma=self.sigma)

    @functools.cached_property
    def _forms(self) -> DiffusionForms:
        return self._new_forms()

    def _new_forms(self) -> DiffusionForms:
        nodes = len(self.mesh.nodes)
        return DiffusionForms(self.mesh, source=np.ones(nodes), dirichlet=np.zeros(nodes))


def modes_at(points: np.ndarray, count: int, *, alpha: float, tau: float, sigma: float) -> np.ndarray:
    """√λₖ φₖ at points (n, 2), shape (n, count), with Σₖ λₖ = sigma²: the mean variance of log a over (0, 1)²."""
    i, j = np.array(_wavenumbers(count)).T
    spectrum = (np.pi**2 * (i**2 + j**2) + tau**2) ** -alpha
    scale = sigma * np.sqrt(spectrum / spectrum.sum())
    norms = np.sqrt(np.where(i > 0, 2.0, 1.0) * np.where(j > 0, 2.0, 1.0))
    x, y = points.T
    return scale * norms * np.cos(np.pi * np.outer(x, i)) * np.cos(np.pi * np.outer(y, j))


def _wavenumbers(count: int) -> list[tuple[int, int]]:
    """The `count` pairs (i, j) ≠ (0, 0) with the smallest i² + j², ties by i."""
    side = int(np.ceil(np.sqrt(count))) + 2
    pairs = [(i, j) for i in range(2 * side) for j in range(2 * side) if i or j]
    return sorted(pairs, key=lambda pair: (pair[0] ** 2 + pair[1] ** 2, pair[0]))[:count]


@functools.lru_cache(maxsize=4)
def _plate_with_hole(element_size: float) -> TriangleMesh:
    plate = difference(rectangle(1.0, 1.0), circle(*HOLE))
    return generate_mesh(plate, element_size, box=(1.0, 1.0), corners=[(0, 0), (1, 0), (1, 1), (0, 1)])

"""A cantilever of random stiffness, nearly incompressible, through DOLFINx."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field as Limit

from forebay.pipeline.errors import StudyError
from forebay.pipeline.records import Coordinate, Field, Parameter, Schema
from forebay.pipeline.stages import Draw, Symmetry
from forebay.solvers.assemble import CsrSystem
from forebay.solvers.fem.elasticity import COMPONENTS, BoxMesh, ElasticityForms
from forebay.solvers.problems.options import InverseLength, Smoothness, check_range

LENGTHS = (2.0, 1.0, 1.0)
"""Of the block, [m]: a stocky beam, so that its width and its end effects matter."""

Ratio = Annotated[float, Limit(ge=0, le=0.4999, allow_inf_nan=False)]
Component = Annotated[float, Limit(allow_inf_nan=False)]


@dataclass(frozen=True, kw_only=True)
class Elasticity:
    r"""-∇·σ(u) = 0 in Ω = (0, 2) × (0, 1)², u = 0 at x = 0, σ n = t at x = 2, σ n = 0 on the other sides.

    σ = 2μ ε(u) + λ (∇·u) I, ε(u) = (∇u + ∇uᵀ)/2, μ = E / (2 (1 + ν)), λ = E ν / ((1 + ν)(1 - 2ν)): small strains.
    E = exp(Σₖ √λₖ ξₖ φₖ(x)),  ξₖ ~ N(0, 1),  φ = c cos(iπx/2) cos(jπy) cos(kπz),  λₖ ∝ (|κ|² + τ²)^(-α) for the
    wavevector κ = π (i/2, j, k): the `modes` largest terms of the Karhunen-Loève expansion of a Matérn-type Gaussian
    field with no-flux ends (the constant left out), scaled to the standard deviation `sigma` of log E.
    ν is uniform in [`poisson_low`, `poisson_high`].

    Trilinear bricks in the displacement formulation, the λ term integrated at one point a brick: exactly integrated
    elements lock as ν → 1/2, these do not (`fem.elasticity.ElasticityForms` has the figures and the source).  The error
    in L² falls as the square of a brick's edge, more slowly near the clamped edges, where the stress is singular.
    What does suffer as ν → 1/2 is the conditioning, as λ/μ = 2ν / (1 - 2ν).
    Parameters ξ (modes,) and ν.  Input E (node), output u (node, component); only models that need no grid (`mlp`)
    take them.  Units: metres; stresses in units of the median of E.

    The matrix carries its rigid motions as near-null space and has blocks of three: with the blocks alone CG + GAMG
    takes 1.6 to 2.1 times as many iterations, with neither 2 to 5 times.  Good values: `method = "cg"`,
    `preconditioner = "gamg"`, 20 to 70 iterations for ν = 0.4 to 0.49, nearly the same at 4,000 and 92,000 unknowns; or
    "direct" with `factor = "mumps"` up to some 10,000 unknowns.  Not `icc`: faster where it works, but of 200 samples
    all 23 with ν above 0.477 broke down.

    Raises:
        StudyError: `poisson_low` not below `poisson_high`, or no traction at all.
    """

    size: Annotated[int, Limit(ge=2, le=32)] = 8
    """Bricks along an edge of 1 m, twice as many along x; 8 gives 4,131 unknowns, 16 gives 28,611."""
    modes: Annotated[int, Limit(ge=1, le=512)] = 8
    """Number of parameters ξₖ; 4 ... 32 is usual."""
    alpha: Smoothness = 2.0
    """α of the spectrum."""
    tau: InverseLength = 3.0
    """τ of the spectrum, [1/m]; the correlation length is about 1/τ."""
    sigma: Annotated[float, Limit(gt=0, le=2, allow_inf_nan=False)] = 0.5
    """Standard deviation of log E, as an average over the block."""
    poisson_low: Ratio = 0.40
    """Smallest ν."""
    poisson_high: Ratio = 0.49
    """Largest ν; rubber has 0.49 to 0.4999."""
    traction: tuple[Component, Component, Component] = (0.0, 0.0, -0.01)
    """t, constant over the free end, in units of the median of E."""

    def __post_init__(self) -> None:
        check_range("poisson", self.poisson_low, self.poisson_high)
        if not any(self.traction):
            raise StudyError(
                f"problem.traction = {list(self.traction)} leaves every sample at rest; at least one component must "
                f"differ from 0, the default is [0, 0, -0.01]"
            )

    @property
    def mesh(self) -> BoxMesh:
        """Nodes and bricks."""
        return BoxMesh(LENGTHS, (2 * self.size, self.size, self.size))

    @property
    def schema(self) -> Schema:
        """Young's modulus and displacement at the nodes; the bricks are kept with them."""
        nodes = self.mesh.nodes
        n = len(nodes)
        positions = tuple(Coordinate(f"node_{name}", ("node",), nodes[:, k], "m") for k, name in enumerate("xyz"))
        return Schema(
            parameters=self._parameters,
            inputs=(Field("E", ("node",), (n,), "1", "Young's modulus over its median"),),
            outputs=(Field("u", ("node", "component"), (n, COMPONENTS), "m", "displacement along x, y, z"),),
            coordinates=(*positions, Coordinate("hexahedra", ("hexahedron", "corner"), self.mesh.hexahedra)),
            boundary_conditions="u = 0 at x = 0, traction t at x = 2, no traction on the other sides",
        )

    @property
    def symmetry(self) -> Symmetry:
        """Symmetric positive definite, since E > 0, ν < 1/2 and a face is clamped."""
        return "spd"

    def draw(self, parameters: np.ndarray, rng: np.random.Generator) -> Mapping[str, np.ndarray]:
        """Young's modulus at the nodes (n,); fixed by the parameters alone."""
        return {"E": np.exp(self._basis @ parameters[: self.modes])}

    def pattern(self) -> tuple[np.ndarray, np.ndarray]:
        """CSR sparsity in DOLFINx's numbering, three rows a node."""
        return self._forms.pattern()

    def assemble(self, draw: Draw, values: np.ndarray, rhs: np.ndarray) -> None:
        """Assemble in DOLFINx's own arrays and copy; `system` avoids the copy."""
        self._forms.assemble(draw["E"], float(draw["parameters"][self.modes]), rhs)
        values[:] = self._forms.values

    def fields(self, draw: Draw, solution: np.ndarray) -> Mapping[str, np.ndarray]:
        """Displacements of the nodes."""
        return {"u": self._forms.displacement(solution)}

    def system(self) -> CsrSystem:
        """A system in DOLFINx's arrays, separate from those of `assemble`, with the rigid motions for GAMG."""
        return self._new_forms().system("E", self.modes)

    def __getstate__(self) -> dict[str, object]:
        # Compiled forms cannot travel to another process; they are made anew there.
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @property
    def _parameters(self) -> tuple[Parameter, ...]:
        waves = tuple(
            Parameter(f"xi_{k + 1}", -1.0, 1.0, distribution="normal", description=f"mode (i, j, k) = {wave} of log E")
            for k, wave in enumerate(_wavenumbers(self.modes))
        )
        return (*waves, Parameter("nu", self.poisson_low, self.poisson_high, description="Poisson's ratio"))

    @functools.cached_property
    def _basis(self) -> np.ndarray:
        return modes_at(self.mesh.nodes, self.modes, alpha=self.alpha, tau=self.tau, sigma=self.sigma)

    @functools.cached_property
    def _forms(self) -> ElasticityForms:
        return self._new_forms()

    def _new_forms(self) -> ElasticityForms:
        mesh = self.mesh
        load = np.tile(self.traction, (len(mesh.nodes), 1))
        return ElasticityForms(mesh, fixed=mesh.face(0, 0), traction=load)


def modes_at(points: np.ndarray, count: int, *, alpha: float, tau: float, sigma: float) -> np.ndarray:
    """√λₖ φₖ at points (n, 3), shape (n, count), with Σₖ λₖ = sigma²: the mean variance of log E over the block."""
    waves = np.array(_wavenumbers(count)) * np.pi / LENGTHS
    spectrum = ((waves**2).sum(axis=1) + tau**2) ** -alpha
    scale = sigma * np.sqrt(spectrum / spectrum.sum()) * np.sqrt(2.0 ** (waves > 0).sum(axis=1))
    return scale * np.prod([np.cos(np.outer(points[:, axis], waves[:, axis])) for axis in range(3)], axis=0)


def _wavenumbers(count: int) -> list[tuple[int, int, int]]:
    """The `count` triples (i, j, k) ≠ (0, 0, 0) with the smallest (i/2)² + j² + k², ties by (i, j, k)."""
    # All triples with (i/2)² + j² + k² <= r² are among these; there are more than π r³ / 3 of them, hence than `count`.
    radius = int(np.ceil(np.cbrt(count))) + 1
    triples = itertools.product(range(2 * radius + 1), range(radius + 1), range(radius + 1))

    return sorted(triples, key=lambda wave: (wave[0] ** 2 + 4 * (wave[1] ** 2 + wave[2] ** 2), wave))[1 : count + 1]

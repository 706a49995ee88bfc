"""Darcy flow with a random permeability in three dimensions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from forebay.pipeline.records import Field, Schema
from forebay.pipeline.stages import Draw, Symmetry
from forebay.solvers.grid3 import Grid3
from forebay.solvers.problems.darcy import Coefficient, Deviation, permeability
from forebay.solvers.problems.options import InverseLength, Positive, Size3, Smoothness3
from forebay.solvers.random_fields import NeumannField


@dataclass(frozen=True, kw_only=True)
class Darcy3D:
    """-∇·(a ∇u) = f on the unit cube, u = 0 on its boundary; a is a random field.

    `log_normal`: a = exp(g); `two_valued`: a = 12 where g > 0, else 3, as in `darcy`.  g is Gaussian, see
    `random_fields.NeumannField`; the default α is as smooth as 2 is in two dimensions.
    No scalar parameters.  Input a (z, y, x) and output u (z, y, x) at the cell centres, f the same constant everywhere.
    Cell-centred finite volumes with harmonic averages of a between cells, second order for smooth a.
    Good values: `method = "cg"`, `preconditioner = "icc"`; at size 16 it already took a sixth of the time of a
    factorisation, whose fill grows as size⁴.
    """

    size: Size3 = 32
    """Cells a side; size³ unknowns."""
    coefficient: Coefficient = "log_normal"
    alpha: Smoothness3 = 2.5
    """Smoothness of g."""
    tau: InverseLength = 3.0
    """Inverse correlation length of g, [1/m]."""
    sigma: Deviation = 1.0
    """Deviation of log a when log_normal; ±2 deviations span a contrast of exp(4 sigma)."""
    forcing: Positive = 1.0
    """f, dimensionless."""

    @property
    def schema(self) -> Schema:
        """Permeability a in, pressure u out."""
        dims = ("z", "y", "x")
        return Schema(
            parameters=(),
            inputs=(Field("a", dims, self._grid.shape, "1", "permeability"),),
            outputs=(Field("u", dims, self._grid.shape, "m2", "pressure"),),
            coordinates=self._grid.coordinates,
            boundary_conditions="u = 0 on the whole boundary",
        )

    @property
    def symmetry(self) -> Symmetry:
        """Symmetric positive definite, since a > 0."""
        return "spd"

    @property
    def grid_shape(self) -> tuple[int, ...]:
        """Cells along z, y and x; an unknown is a cell, numbered row by row and layer by layer."""
        return self._grid.shape

    def draw(self, parameters: np.ndarray, rng: np.random.Generator) -> Mapping[str, np.ndarray]:
        """The permeability."""
        return {"a": permeability(self._field.draw(rng), self.coefficient)}

    def pattern(self) -> tuple[np.ndarray, np.ndarray]:
        """Seven-point stencil."""
        return self._grid.stencil.pattern

    def assemble(self, draw: Draw, values: np.ndarray, rhs: np.ndarray) -> None:
        """Fluxes between cells balance f h³ in each cell."""
        self._grid.stencil.fill_diffusion(values, draw["a"])
        rhs[:] = self.forcing * self._grid.h**3

    def fields(self, draw: Draw, solution: np.ndarray) -> Mapping[str, np.ndarray]:
        """Pressure at the cell centres."""
        return {"u": solution.reshape(self._grid.shape)}

    @cached_property
    def _grid(self) -> Grid3:
        return Grid3(self.size)

    @cached_property
    def _field(self) -> NeumannField:
        return NeumannField(self.size, self.alpha, self.tau, self.sigma, dim=3)

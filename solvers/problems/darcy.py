"""Darcy flow with a random permeability."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal

import numpy as np
from pydantic import Field as Limit

from forebay.pipeline.records import Field, Schema
from forebay.pipeline.stages import Draw, Symmetry
from forebay.solvers.grid import Grid
from forebay.solvers.problems.options import InverseLength, Positive, Size, Smoothness
from forebay.solvers.random_fields import NeumannField

Coefficient = Literal["two_valued", "log_normal"]
Deviation = Annotated[float, Limit(gt=0, le=4, allow_inf_nan=False)]


@dataclass(frozen=True, kw_only=True)
class Darcy:
    """-∇·(a ∇u) = f on the unit square, u = 0 on its boundary; a is a random field.

    `two_valued`: a = 12 where g > 0, else 3, the set-up of the Fourier neural operator's benchmark (Li et al.,
    arXiv 2010.08895, appendix A.3.2).  `log_normal`: a = exp(g).  g is Gaussian, see `random_fields.NeumannField`.
    No scalar parameters.  Input a (y, x) and output u (y, x) at the cell centres, f the same constant everywhere.
    Cell-centred finite volumes with harmonic averages of a between cells, second order for smooth a.  Differs from
    the benchmark: cells instead of vertices, and harmonic averages where it interpolates a.
    """

    size: Size = 64
    """Cells a side."""
    coefficient: Coefficient = "two_valued"
    alpha: Smoothness = 2.0
    """Smoothness of g; the benchmark has 2."""
    tau: InverseLength = 3.0
    """Inverse correlation length of g, [1/m]; the benchmark has 3."""
    sigma: Deviation = 1.0
    """Deviation of log a when log_normal; ±2 deviations span a contrast of exp(4 sigma)."""
    forcing: Positive = 1.0
    """f, dimensionless."""

    @property
    def schema(self) -> Schema:
        """Permeability a in, pressure u out."""
        dims = ("y", "x")
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
        """Cells along y and x; an unknown is a cell, numbered row by row."""
        return self._grid.shape

    def draw(self, parameters: np.ndarray, rng: np.random.Generator) -> Mapping[str, np.ndarray]:
        """The permeability."""
        return {"a": permeability(self._field.draw(rng), self.coefficient)}

    def pattern(self) -> tuple[np.ndarray, np.ndarray]:
        """Five-point stencil."""
        return self._grid.stencil.pattern

    def assemble(self, draw: Draw, values: np.ndarray, rhs: np.ndarray) -> None:
        """Fluxes between cells balance f h² in each cell."""
        self._grid.stencil.fill_diffusion(values, draw["a"])
        rhs[:] = self.forcing * self._grid.h**2

    def fields(self, draw: Draw, solution: np.ndarray) -> Mapping[str, np.ndarray]:
        """Pressure at the cell centres."""
        return {"u": solution.reshape(self._grid.shape)}

    @cached_property
    def _grid(self) -> Grid:
        return Grid(self.size)

    @cached_property
    def _field(self) -> NeumannField:
        return NeumannField(self.size, self.alpha, self.tau, self.sigma)


def permeability(g: np.ndarray, coefficient: Coefficient) -> np.ndarray:
    """The permeability of a Gaussian field g of any shape: 12 where g > 0 and else 3, or exp(g)."""
    return np.where(g > 0, 12.0, 3.0) if coefficient == "two_valued" else np.exp(g)

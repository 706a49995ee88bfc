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
from forebay.solvers.grid import FivePoint, Grid, transmissibilities
from forebay.solvers.random_fields import NeumannField


@dataclass(frozen=True, kw_only=True)
class Darcy:
    """-∇·(a ∇u) = f on the unit square, u = 0 on its boundary; a is a random field.

    `two_valued`: a = 12 where g > 0, else 3, the set-up of the Fourier neural operator's benchmark (Li et al.,
    arXiv 2010.08895).  `log_normal`: a = exp(g) with deviation `sigma`.  g is Gaussian, see `NeumannField`.
    Cell-centred finite volumes with harmonic averages of a between cells, second order for smooth a.
    """

    size: Annotated[int, Limit(ge=32, le=512)] = 64
    coefficient: Literal["two_valued", "log_normal"] = "two_valued"
    alpha: Annotated[float, Limit(gt=1, le=8)] = 2.0
    tau: Annotated[float, Limit(ge=0, le=100)] = 3.0
    sigma: Annotated[float, Limit(gt=0, le=4)] = 1.0
    forcing: Annotated[float, Limit(gt=0)] = 1.0

    @property
    def schema(self) -> Schema:
        """Permeability a in, pressure u out."""
        shape = (self.size, self.size)
        return Schema(
            parameters=(),
            inputs=(Field("a", ("y", "x"), shape, "1", "permeability"),),
            outputs=(Field("u", ("y", "x"), shape, "m2", "pressure"),),
            coordinates=self._grid.coordinates,
            boundary_conditions="u = 0 on the whole boundary",
        )

    @property
    def symmetry(self) -> Symmetry:
        """Symmetric positive definite."""
        return "spd"

    def draw(self, parameters: np.ndarray, rng: np.random.Generator) -> Mapping[str, np.ndarray]:
        """The permeability."""
        g = self._field.draw(rng)
        return {"a": np.where(g > 0, 12.0, 3.0) if self.coefficient == "two_valued" else np.exp(g)}

    def pattern(self) -> tuple[np.ndarray, np.ndarray]:
        """Five-point stencil."""
        return self._stencil.pattern

    def assemble(self, draw: Draw, values: np.ndarray, rhs: np.ndarray) -> None:
        """Fluxes between cells balance f h² in each cell."""
        fill_diffusion(self._stencil, draw["a"], values)
        rhs[:] = self.forcing * self._grid.h**2

    def fields(self, draw: Draw, solution: np.ndarray) -> Mapping[str, np.ndarray]:
        """Pressure at the cell centres."""
        return {"u": solution.reshape(self.size, self.size)}

    @cached_property
    def _grid(self) -> Grid:
        return Grid(self.size)

    @cached_property
    def _stencil(self) -> FivePoint:
        return FivePoint(self.size)

    @cached_property
    def _field(self) -> NeumannField:
        return NeumannField(self.size, self.alpha, self.tau, self.sigma)


def fill_diffusion(stencil: FivePoint, a: np.ndarray, values: np.ndarray) -> None:
    """CSR values of -∇·(a ∇·) h² with zero walls, for cell-wise a (n, n)."""
    ty, tx = transmissibilities(a)
    south, north, west, east = ty[:-1], ty[1:], tx[:, :-1], tx[:, 1:]
    stencil.fill(values, south + north + west + east, -south, -north, -west, -east)

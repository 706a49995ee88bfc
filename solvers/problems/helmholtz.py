"""Indefinite Helmholtz equation in a random medium."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import numpy as np
from pydantic import Field as Limit

from forebay.pipeline.records import Field, Parameter, Schema
from forebay.pipeline.stages import Draw, Symmetry
from forebay.solvers.grid import FivePoint, Grid
from forebay.solvers.problems.darcy import fill_diffusion
from forebay.solvers.random_fields import NeumannField


@dataclass(frozen=True, kw_only=True)
class Helmholtz:
    """-Δu - k² c u = f on the unit square, u = 0 on its boundary; k and the medium c are random.

    c = 1 + `variation` · g with a Gaussian field g of deviation 1; f is a Gaussian bump of width 0.05 at (0.3, 0.4).
    Eigenvalues of -Δ start at 2π² ≈ 19.7, so every k above 4.45 makes the operator indefinite (c = 1); the default range
    keeps 9 to 30 negative eigenvalues.  Without absorption a sample may lie near a resonance: its solution is then
    large, its solve still certified by the true residual.  Cell-centred finite volumes, second order; ten cells a
    wavelength need `size` >= 1.6 k.
    """

    size: Annotated[int, Limit(ge=32, le=512)] = 64
    wavenumber_low: Annotated[float, Limit(gt=0, le=200)] = 12.0
    wavenumber_high: Annotated[float, Limit(gt=0, le=200)] = 20.0
    variation: Annotated[float, Limit(ge=0, le=0.3)] = 0.1
    alpha: Annotated[float, Limit(gt=1, le=8)] = 2.5
    tau: Annotated[float, Limit(ge=0, le=100)] = 7.0

    @property
    def schema(self) -> Schema:
        """Wavenumber and medium in, wave out."""
        shape, dims = (self.size, self.size), ("y", "x")
        return Schema(
            parameters=(Parameter("k", self.wavenumber_low, self.wavenumber_high, "m-1", description="wavenumber"),),
            inputs=(Field("c", dims, shape, "1", "squared slowness relative to its mean"),),
            outputs=(Field("u", dims, shape, "1", "wave"),),
            coordinates=self._grid.coordinates,
            boundary_conditions="u = 0 on the whole boundary",
        )

    @property
    def symmetry(self) -> Symmetry:
        """Symmetric, indefinite."""
        return "symmetric"

    def draw(self, parameters: np.ndarray, rng: np.random.Generator) -> Mapping[str, np.ndarray]:
        """The medium."""
        return {"c": 1 + self.variation * self._field.draw(rng)}

    def pattern(self) -> tuple[np.ndarray, np.ndarray]:
        """Five-point stencil."""
        return self._stencil.pattern

    def assemble(self, draw: Draw, values: np.ndarray, rhs: np.ndarray) -> None:
        """Laplacian times h², less k² c h² on the diagonal."""
        values[:] = self._laplacian
        values[self._diagonal] -= (float(draw["parameters"][0]) * self._grid.h) ** 2 * draw["c"].ravel()
        rhs[:] = self._source

    def fields(self, draw: Draw, solution: np.ndarray) -> Mapping[str, np.ndarray]:
        """Wave at the cell centres."""
        return {"u": solution.reshape(self.size, self.size)}

    @cached_property
    def _grid(self) -> Grid:
        return Grid(self.size)

    @cached_property
    def _stencil(self) -> FivePoint:
        return FivePoint(self.size)

    @cached_property
    def _laplacian(self) -> np.ndarray:
        values = np.empty(len(self._stencil.indices))
        fill_diffusion(self._stencil, np.ones((self.size, self.size)), values)
        return values

    @cached_property
    def _diagonal(self) -> np.ndarray:
        """Places of the diagonal in the CSR values, by row."""
        rows = np.repeat(np.arange(self.size**2), np.diff(self._stencil.indptr))
        return np.flatnonzero(self._stencil.indices == rows)

    @cached_property
    def _source(self) -> np.ndarray:
        y, x = np.meshgrid(self._grid.centres, self._grid.centres, indexing="ij")
        bump = np.exp(-((x - 0.3) ** 2 + (y - 0.4) ** 2) / (2 * 0.05**2))
        return bump.ravel() / (2 * np.pi * 0.05**2) * self._grid.h**2

    @cached_property
    def _field(self) -> NeumannField:
        return NeumannField(self.size, self.alpha, self.tau)

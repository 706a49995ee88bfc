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
from forebay.solvers.grid import Grid
from forebay.solvers.problems.options import InverseLength, Size, Smoothness, check_range
from forebay.solvers.random_fields import NeumannField

Wavenumber = Annotated[float, Limit(gt=0, le=200, allow_inf_nan=False)]
WIDTH = 0.05
"""Of the source, [m]."""


@dataclass(frozen=True, kw_only=True)
class Helmholtz:
    """-Δu - k² c u = f on the unit square, u = 0 on its boundary; the wavenumber k and the medium c are random.

    k is uniform; c = 1 + `variation` · g with a Gaussian field g of deviation 1 (`random_fields.NeumannField`);
    f is a Gaussian bump of integral 1 at (x, y) = (0.3, 0.4).  Cell-centred finite volumes, second order; ten cells a
    wavelength need size >= 1.6 k.

    -Δ has the eigenvalues π²(i² + j²), i, j >= 1: every k above π√2 = 4.45 makes the operator indefinite.  Nothing
    absorbs, so a sample whose k² c meets an eigenvalue (a resonance) has a solution that grows like 1/distance: its
    solve is still certified by the true residual, but one such sample outweighs hundreds in a mean.  The default range
    lies in the gap between 20π² and 25π² (14.05 < k < 15.71; 13 negative eigenvalues), with room for the shifts that c
    and the grid bring.  Of 1,000 solutions at size 32, one in a hundred had a norm above 1.8 medians, and the largest
    had 14; k in 14.4 ... 15.4: 5.6 and 720; k in 12 ... 20, across ten resonances of c = 1: 70 and 1,000.
    No gap below k = 20 is wider; the next is 13π² ... 17π² (11.33 < k < 12.95).

    Raises:
        StudyError: wavenumber_low >= wavenumber_high.
    """

    size: Size = 64
    """Cells a side."""
    wavenumber_low: Wavenumber = 14.5
    """Smallest k, [1/m]."""
    wavenumber_high: Wavenumber = 15.2
    """Largest k, [1/m]."""
    variation: Annotated[float, Limit(ge=0, le=0.3, allow_inf_nan=False)] = 0.1
    """Deviation of c; up to 0.2 it stays positive in practice, at 0.3 a rare cell is negative."""
    alpha: Smoothness = 2.5
    """Smoothness of c."""
    tau: InverseLength = 7.0
    """Inverse correlation length of c, [1/m]."""

    def __post_init__(self) -> None:
        check_range("wavenumber", self.wavenumber_low, self.wavenumber_high)

    @property
    def schema(self) -> Schema:
        """Wavenumber and medium in, wave out."""
        dims, shape = ("y", "x"), self._grid.shape
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

    @property
    def grid_shape(self) -> tuple[int, ...]:
        """Cells along y and x; an unknown is a cell, numbered row by row."""
        return self._grid.shape

    def draw(self, parameters: np.ndarray, rng: np.random.Generator) -> Mapping[str, np.ndarray]:
        """The medium."""
        return {"c": 1 + self.variation * self._field.draw(rng)}

    def pattern(self) -> tuple[np.ndarray, np.ndarray]:
        """Five-point stencil."""
        return self._grid.stencil.pattern

    def assemble(self, draw: Draw, values: np.ndarray, rhs: np.ndarray) -> None:
        """Laplacian times h², less k² c h² on the diagonal."""
        stencil = self._grid.stencil
        values[:] = stencil.laplacian
        values[stencil.diagonal] -= (float(draw["parameters"][0]) * self._grid.h) ** 2 * draw["c"].ravel()
        rhs[:] = self._source

    def fields(self, draw: Draw, solution: np.ndarray) -> Mapping[str, np.ndarray]:
        """Wave at the cell centres."""
        return {"u": solution.reshape(self._grid.shape)}

    @cached_property
    def _grid(self) -> Grid:
        return Grid(self.size)

    @cached_property
    def _source(self) -> np.ndarray:
        y, x = np.meshgrid(self._grid.centres, self._grid.centres, indexing="ij")
        bump = np.exp(-((x - 0.3) ** 2 + (y - 0.4) ** 2) / (2 * WIDTH**2))
        return bump.ravel() / (2 * np.pi * WIDTH**2) * self._grid.h**2

    @cached_property
    def _field(self) -> NeumannField:
        return NeumannField(self.size, self.alpha, self.tau)

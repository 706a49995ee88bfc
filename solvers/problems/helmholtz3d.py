"""Indefinite Helmholtz equation in a random medium in three dimensions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Annotated

import numpy as np
from pydantic import Field as Limit

from forebay.pipeline.records import Field, Parameter, Schema
from forebay.pipeline.stages import Draw, Symmetry
from forebay.solvers.grid3 import Grid3
from forebay.solvers.problems.options import InverseLength, Size3, Smoothness3, check_range
from forebay.solvers.random_fields import NeumannField

Wavenumber = Annotated[float, Limit(gt=0, le=100, allow_inf_nan=False)]
WIDTH = 0.08
"""Of the source, [m]."""
SOURCE = (0.45, 0.4, 0.3)
"""Its centre (z, y, x), [m]: no axis of symmetry, so that it excites all modes."""


@dataclass(frozen=True, kw_only=True)
class Helmholtz3D:
    """-Δu - k² c u = f on the unit cube, u = 0 on its boundary; the wavenumber k and the medium c are random.

    k is uniform; c = 1 + `variation` · g with a Gaussian field g of deviation 1 (`random_fields.NeumannField`);
    f is a Gaussian bump of integral 1 at (x, y, z) = (0.3, 0.4, 0.45).  Cell-centred finite volumes, second order; ten
    cells a wavelength need size >= 1.6 k.

    -Δ has the eigenvalues π²(i² + j² + l²), i, j, l >= 1: every k above π√3 = 5.44 makes the operator indefinite.
    What `helmholtz` says of resonances holds here, where eigenvalues are denser.  The default range lies in the gap
    between 14π² and 17π² (11.75 < k < 12.95; 17 negative eigenvalues), with room for the shifts that c and the grid
    bring.  Of 1,000 solutions at size 32, one in a hundred had a norm above 1.5 medians, and the largest had 3.7; at
    size 16, 2.4 and 8.2; with k in 12 ... 12.7: 6.8 and 400; in 10 ... 15, across eight resonances of c = 1: 68 and
    2,800.  Below size 12 the grid lowers the eigenvalue 17π² into the range: a resonance.
    Good values: `method = "direct"`, `factor = "mumps"` up to size 16, `method = "gcrodr"` beyond.

    Raises:
        StudyError: wavenumber_low >= wavenumber_high.
    """

    size: Size3 = 32
    """Cells a side; size³ unknowns."""
    wavenumber_low: Wavenumber = 12.2
    """Smallest k, [1/m]."""
    wavenumber_high: Wavenumber = 12.5
    """Largest k, [1/m]."""
    variation: Annotated[float, Limit(ge=0, le=0.2, allow_inf_nan=False)] = 0.1
    """Deviation of c, a mean over the cube: near corners it is larger.  Of 1,000 media at size 32 the smallest c was
    0.19 at 0.1; at 0.2 one medium in 16 had cells with c < 0."""
    alpha: Smoothness3 = 3.0
    """Smoothness of c."""
    tau: InverseLength = 7.0
    """Inverse correlation length of c, [1/m]."""

    def __post_init__(self) -> None:
        check_range("wavenumber", self.wavenumber_low, self.wavenumber_high)

    @property
    def schema(self) -> Schema:
        """Wavenumber and medium in, wave out."""
        dims, shape = ("z", "y", "x"), self._grid.shape
        return Schema(
            parameters=(Parameter("k", self.wavenumber_low, self.wavenumber_high, "m-1", description="wavenumber"),),
            inputs=(Field("c", dims, shape, "1", "squared slowness relative to its mean"),),
            outputs=(Field("u", dims, shape, "m-1", "wave"),),
            coordinates=self._grid.coordinates,
            boundary_conditions="u = 0 on the whole boundary",
        )

    @property
    def symmetry(self) -> Symmetry:
        """Symmetric, indefinite."""
        return "symmetric"

    @property
    def grid_shape(self) -> tuple[int, ...]:
        """Cells along z, y and x; an unknown is a cell, numbered row by row and layer by layer."""
        return self._grid.shape

    def draw(self, parameters: np.ndarray, rng: np.random.Generator) -> Mapping[str, np.ndarray]:
        """The medium."""
        return {"c": 1 + self.variation * self._field.draw(rng)}

    def pattern(self) -> tuple[np.ndarray, np.ndarray]:
        """Seven-point stencil."""
        return self._grid.stencil.pattern

    def assemble(self, draw: Draw, values: np.ndarray, rhs: np.ndarray) -> None:
        """Laplacian times h³, less k² c h³ on the diagonal."""
        stencil = self._grid.stencil
        values[:] = stencil.laplacian
        values[stencil.diagonal] -= float(draw["parameters"][0]) ** 2 * self._grid.h**3 * draw["c"].ravel()
        rhs[:] = self._source

    def fields(self, draw: Draw, solution: np.ndarray) -> Mapping[str, np.ndarray]:
        """Wave at the cell centres."""
        return {"u": solution.reshape(self._grid.shape)}

    @cached_property
    def _grid(self) -> Grid3:
        return Grid3(self.size)

    @cached_property
    def _source(self) -> np.ndarray:
        """Integral of f over each cell: a product of one bump a direction."""
        h, at = self._grid.h, self._grid.centres
        bumps = [np.exp(-((at - centre) ** 2) / (2 * WIDTH**2)) * h / (np.sqrt(2 * np.pi) * WIDTH) for centre in SOURCE]
        return reduce(np.multiply.outer, bumps).ravel()

    @cached_property
    def _field(self) -> NeumannField:
        return NeumannField(self.size, self.alpha, self.tau, dim=3)

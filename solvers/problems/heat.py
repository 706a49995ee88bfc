"""Transient heat conduction with random wall temperatures."""

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
from forebay.solvers.problems.poisson import walls

SIDES = ("initial", "bottom", "top", "left", "right")


@dataclass(frozen=True, kw_only=True)
class Heat:
    """∂u/∂t = κ Δu on the unit square; five random temperatures: at the start, and on the four sides.

    The case of Meyer et al. (SC 2023, arXiv 2309.16743): all five are uniform in [100, 500] K.  Implicit Euler with
    cell-centred finite volumes, (I - Δt κ Δ) uᵐ⁺¹ = uᵐ + walls: the matrix is the same for all steps and all samples,
    and symmetric positive definite.  First order in time, second in space.  Every step is a frame.
    """

    size: Annotated[int, Limit(ge=16, le=512)] = 32
    steps: Annotated[int, Limit(ge=1, le=10_000)] = 100
    dt: Annotated[float, Limit(gt=0)] = 0.01
    conductivity: Annotated[float, Limit(gt=0)] = 0.1
    low: Annotated[float, Limit(gt=0)] = 100.0
    high: Annotated[float, Limit(gt=0)] = 500.0

    @property
    def schema(self) -> Schema:
        """Five temperatures in, temperature field at every step out."""
        shape = (self.size, self.size)
        return Schema(
            parameters=tuple(
                Parameter(f"T_{side}", self.low, self.high, "K", description=f"{side} temperature") for side in SIDES
            ),
            inputs=(),
            outputs=(Field("u", ("y", "x"), shape, "K", "temperature"),),
            coordinates=self._grid.coordinates,
            times=tuple(float(t) for t in self.dt * np.arange(1, self.steps + 1)),
            boundary_conditions="u = T_bottom at y = 0, T_top at y = 1, T_left at x = 0, T_right at x = 1",
        )

    @property
    def symmetry(self) -> Symmetry:
        """Symmetric positive definite."""
        return "spd"

    @property
    def fixed_matrix(self) -> bool:
        """One factorisation serves everything."""
        return True

    def draw(self, parameters: np.ndarray, rng: np.random.Generator) -> Mapping[str, np.ndarray]:
        """Nothing but the parameters is random."""
        return {}

    def pattern(self) -> tuple[np.ndarray, np.ndarray]:
        """Five-point stencil."""
        return self._stencil.pattern

    def assemble(self, draw: Draw, values: np.ndarray, rhs: np.ndarray) -> None:
        """I - Δt κ Δ; the right-hand side belongs to the steps."""
        fill_diffusion(self._stencil, np.full((self.size, self.size), self._number), values)
        rows = np.repeat(np.arange(self.size**2), np.diff(self._stencil.indptr))
        values[self._stencil.indices == rows] += 1.0

    def initial(self, draw: Draw) -> np.ndarray:
        """Uniform temperature."""
        return np.full(self.size**2, draw["parameters"][0])

    def advance(self, draw: Draw, step: int, state: np.ndarray, rhs: np.ndarray) -> None:
        """Previous state plus the walls' heat: a wall is half a cell away, so it counts twice."""
        rhs[:] = state
        for cells, temperature in zip(walls(rhs.reshape(self.size, self.size)), draw["parameters"][1:], strict=True):
            cells += 2 * self._number * temperature

    def fields(self, draw: Draw, solution: np.ndarray) -> Mapping[str, np.ndarray]:
        """Temperature at the cell centres."""
        return {"u": solution.reshape(self.size, self.size)}

    @property
    def _number(self) -> float:
        """Δt κ / h²."""
        return self.dt * self.conductivity / self._grid.h**2

    @cached_property
    def _grid(self) -> Grid:
        return Grid(self.size)

    @cached_property
    def _stencil(self) -> FivePoint:
        return FivePoint(self.size)

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
from forebay.solvers.grid import Grid, walls
from forebay.solvers.problems.options import NotNegative, Positive, check_range

PLACES = ("initial", "bottom", "top", "left", "right")


@dataclass(frozen=True, kw_only=True)
class Heat:
    """∂u/∂t = κ Δu on the unit square; five random temperatures: at the start, and on the four sides.

    The case of Meyer et al. (SC 2023, arXiv 2309.16743): all five are uniform in [100, 500] K.  Implicit Euler with
    cell-centred finite volumes, (I - Δt κ Δ) uᵐ⁺¹ = uᵐ + walls: the matrix is the same for all steps and all samples,
    and symmetric positive definite.  First order in time, second in space.  Every step is a frame: output u
    (time, y, x) at t = Δt, 2Δt, ..., without the initial state.  Differs from the source: κ = 0.1 instead of 1, so
    that the transient (slowest rate 2π²κ ≈ 2 per second) fills the default 100 steps of 0.01 s.

    Raises:
        StudyError: temperature_low >= temperature_high.
    """

    size: Annotated[int, Limit(ge=16, le=512)] = 32
    """Cells a side."""
    steps: Annotated[int, Limit(ge=1, le=10_000)] = 100
    dt: Positive = 0.01
    """Δt, [s]."""
    diffusivity: Positive = 0.1
    """κ, [m²/s]."""
    temperature_low: NotNegative = 100.0
    temperature_high: NotNegative = 500.0

    def __post_init__(self) -> None:
        check_range("temperature", self.temperature_low, self.temperature_high)

    @property
    def schema(self) -> Schema:
        """Five temperatures in, temperature field at every step out."""
        low, high = self.temperature_low, self.temperature_high
        return Schema(
            parameters=tuple(Parameter(f"T_{at}", low, high, "K", description=f"{at} temperature") for at in PLACES),
            inputs=(),
            outputs=(Field("u", ("y", "x"), self._grid.shape, "K", "temperature"),),
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

    @property
    def grid_shape(self) -> tuple[int, ...]:
        """Cells along y and x; an unknown is a cell, numbered row by row."""
        return self._grid.shape

    def draw(self, parameters: np.ndarray, rng: np.random.Generator) -> Mapping[str, np.ndarray]:
        """Nothing but the parameters is random."""
        return {}

    def pattern(self) -> tuple[np.ndarray, np.ndarray]:
        """Five-point stencil."""
        return self._grid.stencil.pattern

    def assemble(self, draw: Draw, values: np.ndarray, rhs: np.ndarray) -> None:
        """I - Δt κ Δ, and the right-hand side of the first step."""
        stencil = self._grid.stencil
        np.multiply(stencil.laplacian, self._number, out=values)
        values[stencil.diagonal] += 1.0
        self.advance(draw, 1, self.initial(draw), rhs)

    def initial(self, draw: Draw) -> np.ndarray:
        """Uniform temperature."""
        return np.full(self.size**2, draw["parameters"][0])

    def advance(self, draw: Draw, step: int, state: np.ndarray, rhs: np.ndarray) -> None:
        """Previous state plus the walls' heat: a wall is half a cell away, so it counts twice."""
        rhs[:] = state
        for cells, temperature in zip(walls(rhs.reshape(self._grid.shape)), draw["parameters"][1:], strict=True):
            cells += 2 * self._number * temperature

    def fields(self, draw: Draw, solution: np.ndarray) -> Mapping[str, np.ndarray]:
        """Temperature at the cell centres."""
        return {"u": solution.reshape(self._grid.shape)}

    @property
    def _number(self) -> float:
        """Δt κ / h²."""
        return self.dt * self.diffusivity / self._grid.h**2

    @cached_property
    def _grid(self) -> Grid:
        return Grid(self.size)

"""Poisson's equation with random forcing and random boundary data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import numpy as np
from pydantic import Field as Limit

from forebay.pipeline.records import Field, Schema
from forebay.pipeline.stages import Draw, Symmetry
from forebay.solvers.grid import FivePoint, Grid
from forebay.solvers.problems.darcy import fill_diffusion
from forebay.solvers.random_fields import NeumannField, PeriodicTrace


@dataclass(frozen=True, kw_only=True)
class Poisson:
    """-Δu = f on the unit square, u = g on its boundary; f and g are random.

    f is a Gaussian field of deviation `forcing`, g a smooth periodic function along the boundary of deviation
    `boundary`.  g is stored as a field that holds the trace in the cells next to the wall and zero inside; a corner
    cell, which touches two faces, holds the mean of both.  The matrix is the same for all samples.
    Cell-centred finite volumes, second order.
    """

    size: Annotated[int, Limit(ge=32, le=512)] = 64
    alpha: Annotated[float, Limit(gt=1, le=8)] = 2.5
    tau: Annotated[float, Limit(ge=0, le=100)] = 7.0
    forcing: Annotated[float, Limit(gt=0)] = 50.0
    boundary: Annotated[float, Limit(ge=0)] = 1.0
    boundary_modes: Annotated[int, Limit(ge=1, le=32)] = 8

    @property
    def schema(self) -> Schema:
        """Forcing f and boundary trace g in, solution u out."""
        shape, dims = (self.size, self.size), ("y", "x")
        return Schema(
            parameters=(),
            inputs=(
                Field("f", dims, shape, "m-2", "forcing"),
                Field("g", dims, shape, "1", "boundary values in the cells next to the wall, zero inside"),
            ),
            outputs=(Field("u", dims, shape, "1", "solution"),),
            coordinates=self._grid.coordinates,
            boundary_conditions="u = g on the whole boundary",
        )

    @property
    def symmetry(self) -> Symmetry:
        """Symmetric positive definite."""
        return "spd"

    def draw(self, parameters: np.ndarray, rng: np.random.Generator) -> Mapping[str, np.ndarray]:
        """Forcing, and the boundary values as a field."""
        f = self._field.draw(rng)
        g = np.zeros((self.size, self.size))
        g.reshape(-1)[self._wall_cells] = self._trace.draw(rng)
        return {"f": f, "g": g}

    def pattern(self) -> tuple[np.ndarray, np.ndarray]:
        """Five-point stencil."""
        return self._stencil.pattern

    def assemble(self, draw: Draw, values: np.ndarray, rhs: np.ndarray) -> None:
        """Laplacian times h²; a wall face at distance h/2 adds 2 g to its cell."""
        values[:] = self._laplacian
        source = rhs.reshape(self.size, self.size)
        np.multiply(draw["f"], self._grid.h**2, out=source)
        g = draw["g"]
        for cells, wall in zip(walls(source), walls(g), strict=True):
            cells += 2 * wall

    def fields(self, draw: Draw, solution: np.ndarray) -> Mapping[str, np.ndarray]:
        """Solution at the cell centres."""
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
    def _field(self) -> NeumannField:
        return NeumannField(self.size, self.alpha, self.tau, self.forcing)

    @cached_property
    def _wall_cells(self) -> np.ndarray:
        """Flat numbers of the cells along the wall, once around."""
        cells = np.arange(self.size**2).reshape(self.size, self.size)
        return np.concatenate([cells[0, :-1], cells[:-1, -1], cells[-1, :0:-1], cells[:0:-1, 0]])

    @cached_property
    def _trace(self) -> PeriodicTrace:
        return PeriodicTrace(4 * self.size - 4, self.boundary_modes, self.boundary)


def walls(cells: np.ndarray) -> tuple[np.ndarray, ...]:
    """Views of the cells at y = 0, y = 1, x = 0 and x = 1 of a field (n, n); corners belong to two walls."""
    return cells[0], cells[-1], cells[:, 0], cells[:, -1]

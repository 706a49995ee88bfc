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
from forebay.solvers.grid import Grid, walls
from forebay.solvers.problems.options import InverseLength, NotNegative, Positive, Size, Smoothness
from forebay.solvers.random_fields import NeumannField, PeriodicTrace


@dataclass(frozen=True, kw_only=True)
class Poisson:
    """-Δu = f on the unit square, u = g on its boundary; f and g are random.

    f is a Gaussian field (`random_fields.NeumannField`), g a smooth periodic function along the boundary
    (`random_fields.PeriodicTrace`).  g is stored as a field (y, x) that holds the trace in the cells next to a wall and
    zero inside; a corner cell touches two faces, and its one value serves both.  With the default deviations f and g
    contribute about equally to u.  No scalar parameters; the matrix is the same for all samples.
    Cell-centred finite volumes, second order.
    """

    size: Size = 64
    """Cells a side."""
    alpha: Smoothness = 2.5
    """Smoothness of f."""
    tau: InverseLength = 7.0
    """Inverse correlation length of f, [1/m]."""
    forcing: Positive = 50.0
    """Deviation of f, [1/m²]."""
    boundary: NotNegative = 1.0
    """Deviation of g."""
    boundary_modes: Annotated[int, Limit(ge=1, le=32)] = 8
    """Fourier modes of g along the boundary."""

    @property
    def schema(self) -> Schema:
        """Forcing f and boundary trace g in, solution u out."""
        dims, shape = ("y", "x"), self._grid.shape
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

    @property
    def grid_shape(self) -> tuple[int, ...]:
        """Cells along y and x; an unknown is a cell, numbered row by row."""
        return self._grid.shape

    def draw(self, parameters: np.ndarray, rng: np.random.Generator) -> Mapping[str, np.ndarray]:
        """Forcing, and the boundary values as a field."""
        f = self._field.draw(rng)
        g = np.zeros(self._grid.shape)
        g.reshape(-1)[self._wall_cells] = self._trace.draw(rng)
        return {"f": f, "g": g}

    def pattern(self) -> tuple[np.ndarray, np.ndarray]:
        """Five-point stencil."""
        return self._grid.stencil.pattern

    def assemble(self, draw: Draw, values: np.ndarray, rhs: np.ndarray) -> None:
        """Laplacian times h²; a wall face at distance h/2 adds 2 g to its cell."""
        values[:] = self._grid.stencil.laplacian
        source = rhs.reshape(self._grid.shape)
        np.multiply(draw["f"], self._grid.h**2, out=source)
        for cells, wall in zip(walls(source), walls(draw["g"]), strict=True):
            cells += 2 * wall

    def fields(self, draw: Draw, solution: np.ndarray) -> Mapping[str, np.ndarray]:
        """Solution at the cell centres."""
        return {"u": solution.reshape(self._grid.shape)}

    @cached_property
    def _grid(self) -> Grid:
        return Grid(self.size)

    @cached_property
    def _field(self) -> NeumannField:
        return NeumannField(self.size, self.alpha, self.tau, self.forcing)

    @cached_property
    def _wall_cells(self) -> np.ndarray:
        """Flat numbers of the 4n - 4 cells along the wall, once around."""
        cells = np.arange(self.size**2).reshape(self._grid.shape)
        return np.concatenate([cells[0, :-1], cells[:-1, -1], cells[-1, :0:-1], cells[:0:-1, 0]])

    @cached_property
    def _trace(self) -> PeriodicTrace:
        return PeriodicTrace(len(self._wall_cells), self.boundary_modes, self.boundary)

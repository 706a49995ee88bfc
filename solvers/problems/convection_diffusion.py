"""Stationary transport in a random divergence-free flow."""

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
from forebay.solvers.problems.options import InverseLength, Size, check_range
from forebay.solvers.random_fields import NeumannField

Peclet = Annotated[float, Limit(gt=0, le=1e5, allow_inf_nan=False)]


@dataclass(frozen=True, kw_only=True)
class ConvectionDiffusion:
    """-Δu + Pe v·∇u = 1 on the unit square, u = 0 on its boundary; the Péclet number Pe and the flow v are random.

    Pe is log-uniform.  v = (∂ψ/∂y, -∂ψ/∂x) with a Gaussian stream function ψ (`random_fields.NeumannField`), scaled so
    that the fastest component is 1; ψ is given at the cells' corners, so the fluxes through the faces of each cell
    cancel to round-off.  Inputs vx, vy (y, x) are means over the two faces of a cell, output u (y, x) at its centre.
    Finite volumes with upwind convection: an M-matrix at any Péclet number, first order in the convective part.
    Where Pe > 2 size the cells do not resolve boundary layers, and upwinding smears them over a cell.

    Raises:
        StudyError: peclet_low >= peclet_high.
    """

    size: Size = 64
    """Cells a side."""
    peclet_low: Peclet = 10.0
    peclet_high: Peclet = 1000.0
    alpha: Annotated[float, Limit(gt=2, le=8, allow_inf_nan=False)] = 3.0
    """Smoothness of ψ; v is one order rougher, and needs more than 2 to have a finite variance."""
    tau: InverseLength = 5.0
    """Inverse correlation length of ψ, [1/m]."""

    def __post_init__(self) -> None:
        check_range("peclet", self.peclet_low, self.peclet_high)

    @property
    def schema(self) -> Schema:
        """Péclet number and velocity in, concentration out."""
        dims, shape = ("y", "x"), self._grid.shape
        return Schema(
            parameters=(
                Parameter(
                    "Pe", self.peclet_low, self.peclet_high, "1", "log_uniform", "Péclet number of the unit square"
                ),
            ),
            inputs=(
                Field("vx", dims, shape, "1", "velocity along x at the cell centres"),
                Field("vy", dims, shape, "1", "velocity along y at the cell centres"),
            ),
            outputs=(Field("u", dims, shape, "1", "concentration"),),
            coordinates=self._grid.coordinates,
            boundary_conditions="u = 0 on the whole boundary",
        )

    @property
    def symmetry(self) -> Symmetry:
        """Not symmetric."""
        return "general"

    @property
    def grid_shape(self) -> tuple[int, ...]:
        """Cells along y and x; an unknown is a cell, numbered row by row."""
        return self._grid.shape

    def draw(self, parameters: np.ndarray, rng: np.random.Generator) -> Mapping[str, np.ndarray]:
        """Velocity at the centres, and (not stored) the velocities at the faces."""
        faces_y, faces_x = face_velocities(self._field.draw(rng))
        scale = 1 / max(np.abs(faces_x).max(), np.abs(faces_y).max())
        faces_x *= scale
        faces_y *= scale
        vx, vy = faces_x[:, 1:] + faces_x[:, :-1], faces_y[1:] + faces_y[:-1]
        return {"vx": 0.5 * vx, "vy": 0.5 * vy, "faces_x": faces_x, "faces_y": faces_y}

    def pattern(self) -> tuple[np.ndarray, np.ndarray]:
        """Five-point stencil."""
        return self._grid.stencil.pattern

    def assemble(self, draw: Draw, values: np.ndarray, rhs: np.ndarray) -> None:
        """Diffusive and upwind convective fluxes balance h² in each cell."""
        speed = float(draw["parameters"][0]) * self._grid.h
        self._grid.stencil.fill_transport(values, speed * draw["faces_y"], speed * draw["faces_x"])
        rhs[:] = self._grid.h**2

    def fields(self, draw: Draw, solution: np.ndarray) -> Mapping[str, np.ndarray]:
        """Concentration at the cell centres."""
        return {"u": solution.reshape(self._grid.shape)}

    @cached_property
    def _grid(self) -> Grid:
        return Grid(self.size)

    @cached_property
    def _field(self) -> NeumannField:
        return NeumannField(self.size + 1, self.alpha, self.tau)


def face_velocities(psi: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean velocities through the y-faces (n + 1, n) and x-faces (n, n + 1) from ψ at the corners (n + 1, n + 1)."""
    n = psi.shape[0] - 1
    return np.diff(psi, axis=1) * -n, np.diff(psi, axis=0) * n

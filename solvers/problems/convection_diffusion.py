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
from forebay.solvers.grid import FivePoint, Grid
from forebay.solvers.random_fields import NeumannField


@dataclass(frozen=True, kw_only=True)
class ConvectionDiffusion:
    """-Δu + Pe v·∇u = 1 on the unit square, u = 0 on its boundary; the Péclet number Pe and the flow v are random.

    v = (∂ψ/∂y, -∂ψ/∂x) with a Gaussian stream function ψ, scaled so that the fastest velocity is 1; ψ is given at the
    cells' corners, so the fluxes through the faces of each cell cancel to round-off.  Finite volumes with upwind
    convection: an M-matrix at any Péclet number, first order in the convective part.
    """

    size: Annotated[int, Limit(ge=32, le=512)] = 64
    peclet_low: Annotated[float, Limit(gt=0, le=1e5)] = 10.0
    peclet_high: Annotated[float, Limit(gt=0, le=1e5)] = 1000.0
    alpha: Annotated[float, Limit(gt=1, le=8)] = 3.0
    tau: Annotated[float, Limit(ge=0, le=100)] = 5.0

    @property
    def schema(self) -> Schema:
        """Péclet number and velocity in, concentration out."""
        shape, dims = (self.size, self.size), ("y", "x")
        return Schema(
            parameters=(
                Parameter("Pe", self.peclet_low, self.peclet_high, "1", "log_uniform", "Péclet number of the unit square"),
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

    def draw(self, parameters: np.ndarray, rng: np.random.Generator) -> Mapping[str, np.ndarray]:
        """Velocity at the centres, and (not stored) the velocities at the faces."""
        psi = self._field.draw(rng)
        vx, vy = face_velocities(psi)
        scale = 1 / max(np.abs(vx).max(), np.abs(vy).max())
        vx *= scale
        vy *= scale
        return {"vx": (vx[:, 1:] + vx[:, :-1]) / 2, "vy": (vy[1:] + vy[:-1]) / 2, "faces_x": vx, "faces_y": vy}

    def pattern(self) -> tuple[np.ndarray, np.ndarray]:
        """Five-point stencil."""
        return self._stencil.pattern

    def assemble(self, draw: Draw, values: np.ndarray, rhs: np.ndarray) -> None:
        """Diffusive and upwind convective fluxes balance h² in each cell."""
        fill_transport(self._stencil, float(draw["parameters"][0]), draw["faces_x"], draw["faces_y"], values)
        rhs[:] = self._grid.h**2

    def fields(self, draw: Draw, solution: np.ndarray) -> Mapping[str, np.ndarray]:
        """Concentration at the cell centres."""
        return {"u": solution.reshape(self.size, self.size)}

    @cached_property
    def _grid(self) -> Grid:
        return Grid(self.size)

    @cached_property
    def _stencil(self) -> FivePoint:
        return FivePoint(self.size)

    @cached_property
    def _field(self) -> NeumannField:
        return NeumannField(self.size + 1, self.alpha, self.tau)


def face_velocities(psi: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean velocities through the x-faces (n, n + 1) and y-faces (n + 1, n) from ψ at the corners (n + 1, n + 1)."""
    n = psi.shape[0] - 1
    return np.diff(psi, axis=0) * n, -np.diff(psi, axis=1) * n


def fill_transport(stencil: FivePoint, peclet: float, vx: np.ndarray, vy: np.ndarray, values: np.ndarray) -> None:
    """CSR values of (-Δ + Pe v·∇) h² with zero walls and upwind convection; vx (n, n + 1), vy (n + 1, n) at faces."""
    n = vy.shape[1]
    speed = peclet / n  # Pe v h, the flux through a face
    diffusion_x, diffusion_y = np.ones((n, n + 1)), np.ones((n + 1, n))
    diffusion_x[:, [0, -1]] = diffusion_y[[0, -1]] = 2.0
    inflow_low_x, inflow_high_x = speed * np.maximum(vx, 0), speed * np.maximum(-vx, 0)
    inflow_low_y, inflow_high_y = speed * np.maximum(vy, 0), speed * np.maximum(-vy, 0)
    west = diffusion_x[:, :-1] + inflow_low_x[:, :-1]
    east = diffusion_x[:, 1:] + inflow_high_x[:, 1:]
    south = diffusion_y[:-1] + inflow_low_y[:-1]
    north = diffusion_y[1:] + inflow_high_y[1:]
    # The flow is divergence-free, so what leaves a cell equals what enters it: the diagonal is the sum of the inflows.
    stencil.fill(values, west + east + south + north, -south, -north, -west, -east)

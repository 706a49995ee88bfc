"""What a solve on the CPU reports, and the names of its preconditioners."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from forebay.kernels.grid_weights import GridWeights
from forebay.kernels.records import Outcome

Preconditioner = Literal["multigrid", "jacobi", "none"] | GridWeights
"""Classical black-box multigrid, the diagonal, nothing, or multigrid by a learned rule."""


@dataclass(frozen=True, slots=True)
class CpuResult:
    """How one solve ended."""

    outcome: Outcome
    iterations: int
    refinements: int
    """Float64 corrections; here every iteration makes one, see `GridSolver`."""
    residual: float
    """‖b - A u‖₂ / ‖b‖₂ in float64; NaN where there is no field."""
    label: str = "multigrid"
    """The preconditioner in the end: "multigrid", "jacobi", "none", "learned", or "multigrid(guard)"."""

"""The deep conjugate direction method: search directions from a network, made conjugate, with exact line searches."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

from forebay.kernels.dcdm.loss import Operator, inner, line_search
from forebay.kernels.records import Outcome, SystemRecord
from forebay.kernels.stencil import Stencil, apply

Directions = Callable[[Tensor], Tensor]
"""f: unit residuals (b, *shape) → directions (b, *shape) of any length; float32 in `solve`'s use of a network."""

CONJUGATE_TO = 2


def solve_dcdm(
    stencil: Stencil, rhs: Tensor, network: Directions, *, rtol: float = 1e-4, max_iterations: int = 500
) -> tuple[Tensor, SystemRecord]:
    """A u = b by the deep conjugate direction method; one system.

    Each iteration: d = f(r/‖r‖), in float32 and 0 in cells that are not active; d made A-orthogonal to the last two
    directions; u += α d with α = d·r / d·A d; r = b - A u anew, in float64, so the residual is the true one.  With
    f = identity these are conjugate gradients.  The error's A-norm never grows, whatever the network returns, but
    nothing makes the method converge if the network does not fit: then it ends with MAX_ITERATIONS.

    Args:
        stencil: of batch 1.
        rhs: (*shape); entries in cells that are not active are ignored.
        network: f, for example a `DirectionNetwork`.
        rtol: for ‖b - A u‖ / ‖b‖.  The paper uses 1e-4; below 1e-6 expect little from directions in float32.
        max_iterations: applications of the network.

    Returns:
        u (*shape) float64, and what certifies it.

    Raises:
        ValueError: a stencil of several systems, or a right-hand side of another shape.

    Source: Kaneda et al., ICML 2023, arXiv 2205.10763.
    """
    _check(stencil, rhs)
    stencil = stencil.to(dtype=torch.float64)
    b = rhs.double()[None] if stencil.active is None else torch.where(stencil.active, rhs.double(), 0.0)
    norm = float(torch.linalg.vector_norm(b))
    if not (math.isfinite(norm) and bool(stencil.finite().all())):
        return torch.full_like(b[0], math.nan), _record(Outcome.NONFINITE_INPUT, 0, math.nan)
    u = torch.zeros_like(b)
    if norm == 0:
        return u[0], _record(Outcome.CONVERGED, 0, 0.0)
    search, residual, relative = _Search(lambda v: apply(stencil, v)), b, 1.0
    for iteration in range(1, max_iterations + 1):
        if not (found := search.step(_direction(network, residual, stencil.active), residual)):
            return u[0], _record(Outcome.DIVERGED, iteration, relative)
        alpha, direction = found
        u += alpha * direction
        residual = b - apply(stencil, u)
        relative = float(torch.linalg.vector_norm(residual)) / norm
        if relative <= rtol:
            return u[0], _record(Outcome.CONVERGED, iteration, relative)
    return u[0], _record(Outcome.MAX_ITERATIONS, max_iterations, relative)


class DirectionPreconditioner:
    """z = ± ‖r‖ f(r/‖r‖): the network as a preconditioner (b, *shape) → (b, *shape), in the type of r.

    The sign is that for which z·r > 0: training leaves the sign of f open, as it leaves its length, but conjugate
    gradients take z·r ≤ 0 for a breakdown.  Homogeneous, but neither linear nor symmetric: for flexible conjugate
    gradients only.
    """

    def __init__(self, network: Directions, active: Tensor | None = None) -> None:
        self._network, self._active = network, active

    def __call__(self, residuals: Tensor) -> Tensor:
        """z, one a residual; zero for a residual of zeros."""
        directions = _direction(self._network, residuals, self._active)
        uphill = (inner(directions, residuals) < 0).view(-1, *[1] * (residuals.ndim - 1))
        return torch.where(uphill, -directions, directions) * _norms(residuals)


class _Search:
    """The last directions, with their images under A."""

    def __init__(self, operator: Operator) -> None:
        self._operator = operator
        self._past: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=CONJUGATE_TO)

    def step(self, direction: Tensor, residual: Tensor) -> tuple[Tensor, Tensor] | None:
        """Length and direction of the next step; None where the direction is not finite or lies in A's null space."""
        for earlier, image, curvature in reversed(self._past):
            direction = direction - inner(direction, image) / curvature * earlier
        image = self._operator(direction)
        curvature = inner(direction, image)
        if not (bool(torch.isfinite(curvature)) and bool(curvature > 0)):
            return None
        self._past.append((direction, image, curvature))
        return line_search(residual, direction, image), direction


def _direction(network: Directions, residuals: Tensor, active: Tensor | None) -> Tensor:
    norms = _norms(residuals)
    units = residuals / torch.where(norms > 0, norms, 1.0)
    with torch.no_grad():
        directions = network(units.float()).to(residuals.dtype)
    return directions if active is None else torch.where(active, directions, 0.0)


def _norms(fields: Tensor) -> Tensor:
    return torch.linalg.vector_norm(fields, dim=tuple(range(1, fields.ndim)), keepdim=True)


def _check(stencil: Stencil, rhs: Tensor) -> None:
    if stencil.batch != 1 or tuple(rhs.shape) != stencil.shape:
        raise ValueError(
            f"{stencil.batch} systems on cells {stencil.shape} and a right-hand side of shape {tuple(rhs.shape)}; this "
            f"method solves one system at a time: pass `stencil.select(...)` of one and a field of its shape"
        )


def _record(outcome: Outcome, iterations: int, residual: float) -> SystemRecord:
    return SystemRecord(outcome, iterations, 0, residual, "dcdm", "torch", outcome.advice)

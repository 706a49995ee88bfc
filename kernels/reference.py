"""What every backend is tested against: plain torch in float64, one line for each line of the textbook."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from forebay.kernels.stencil import Stencil

Operator = Callable[[Tensor], Tensor]
"""Maps fields [batch, *shape] to fields, each system by itself."""


@dataclass(frozen=True, slots=True, eq=False)
class ReferenceResult:
    """What `cg` and `flexible_cg` return."""

    fields: Tensor
    """[batch, *shape], float64."""
    iterations: Tensor
    """Of each system, int64 [batch]."""
    residual: Tensor
    """True relative residual ‖b - A u‖₂ / ‖b‖₂, [batch]; 0 where b = 0."""
    converged: Tensor
    """Did the recursive residual reach the tolerance, bool [batch]."""


def dense(stencil: Stencil) -> Tensor:
    """The matrices A, float64 [batch, N, N], cells numbered row-major."""
    cells = torch.arange(stencil.reaction[0].numel()).reshape(stencil.shape)
    matrix = torch.diag_embed(stencil.reaction.double().flatten(1))
    for axis, face in enumerate(stencil.faces):
        count = stencil.shape[axis] - 1
        low, high = cells.narrow(axis, 0, count).flatten(), cells.narrow(axis, 1, count).flatten()
        values = face.double().flatten(1)
        matrix[:, low, low] += values
        matrix[:, high, high] += values
        matrix[:, low, high] -= values
        matrix[:, high, low] -= values
    return matrix


def cg(
    operator: Operator,
    rhs: Tensor,
    *,
    preconditioner: Operator | None = None,
    guess: Tensor | None = None,
    rtol: float = 1e-8,
    max_iterations: int = 1000,
) -> ReferenceResult:
    """Preconditioned conjugate gradients for symmetric positive definite A and M⁻¹, each system stopped by itself.

    Source: Saad, Iterative Methods for Sparse Linear Systems, 2nd ed., algorithm 9.1.  Differs from it: a system stops
    when its recursive residual is at most rtol ‖b‖₂, or before a step with pᵀA p ≤ 0 or rᵀz ≤ 0.
    """
    return _iterate(operator, rhs, preconditioner, guess, rtol, max_iterations, flexible=False)


def flexible_cg(
    operator: Operator,
    rhs: Tensor,
    *,
    preconditioner: Operator | None = None,
    guess: Tensor | None = None,
    rtol: float = 1e-8,
    max_iterations: int = 1000,
) -> ReferenceResult:
    """The same with β = zₖ₊₁ᵀ(rₖ₊₁ - rₖ) / zₖᵀrₖ (Polak-Ribière), for preconditioners that are not linear or symmetric.

    Source: Notay, Flexible conjugate gradients, SIAM J. Sci. Comput. 22 (2000), with truncation to one direction.
    """
    return _iterate(operator, rhs, preconditioner, guess, rtol, max_iterations, flexible=True)


def _iterate(
    operator: Operator,
    rhs: Tensor,
    preconditioner: Operator | None,
    guess: Tensor | None,
    rtol: float,
    max_iterations: int,
    *,
    flexible: bool,
) -> ReferenceResult:
    precondition = preconditioner or (lambda residual: residual)
    rhs = rhs.double()
    u = torch.zeros_like(rhs) if guess is None else guess.double().clone()
    target = rtol * _norm(rhs)
    residual = rhs - operator(u)
    z = precondition(residual)
    p = z
    rz = _dot(residual, z)
    live = _norm(residual) > target
    iterations = torch.zeros(len(rhs), dtype=torch.int64, device=rhs.device)
    for _ in range(max_iterations):
        q = operator(p)
        curvature = _dot(p, q)
        live = live & (curvature > 0) & (rz > 0)
        if not live.any():
            break
        alpha = torch.where(live, rz / curvature, 0.0)
        u = u + _times(alpha, p)
        previous, residual = residual, residual - _times(alpha, q)
        iterations += live
        live = live & (_norm(residual) > target)
        z = precondition(residual)
        change = residual - previous if flexible else residual
        beta = torch.where(live, _dot(z, change) / rz, 0.0)
        rz = torch.where(live, _dot(residual, z), rz)
        p = z + _times(beta, p)
    true = _norm(rhs - operator(u))
    relative = torch.where(true > 0, true / _norm(rhs), 0.0)
    return ReferenceResult(u, iterations, relative, _norm(residual) <= target)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)


def _norm(a: Tensor) -> Tensor:
    return _dot(a, a).sqrt()


def _times(factors: Tensor, fields: Tensor) -> Tensor:
    """One factor a system."""
    return factors.reshape(-1, *[1] * (fields.ndim - 1)) * fields

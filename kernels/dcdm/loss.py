"""How good a search direction is, whatever its length."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Operator = Callable[[Tensor], Tensor]
"""u (b, *shape) → A u (b, *shape), symmetric positive definite."""


def inner(first: Tensor, second: Tensor) -> Tensor:
    """Σ over the cells, (b, *shape) twice → (b,)."""
    return (first * second).flatten(1).sum(1)


def line_search(residual: Tensor, direction: Tensor, image: Tensor) -> Tensor:
    """α = d·r / d·A d (b,), which minimises the A-norm of the error of u + α d; 0 for a direction of zeros.

    `image` is A d.
    """
    curvature = inner(direction, image)
    return inner(direction, residual) / curvature.clamp_min(torch.finfo(curvature.dtype).tiny)


def direction_loss(apply: Operator, residuals: Tensor, directions: Tensor) -> Tensor:
    """‖r - α A d‖² (b,) for unit residuals r, with α = d·r / d·A d: what is left of r after the exact line search.

    Does not depend on the length (nor the sign) of d, so the network need not learn a scale.  0: d is a multiple of
    A⁻¹ r; 1: d is orthogonal to r.  May exceed 1, because α minimises the error in the A-norm, not this residual.

    Source: Kaneda et al., ICML 2023, arXiv 2205.10763.
    """
    images = apply(directions)
    alpha = line_search(residuals, directions, images)
    return (residuals - _spread(alpha, images) * images).square().flatten(1).sum(1)


def _spread(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.ndim - 1))

"""Losses and error measures per sample.

Legend: b batch, X grid axes.  Every loss maps a prediction and a target of shape (b, *X), both in physical units, and
the target's standard deviation (a 0-d tensor, same units) to dimensionless values of shape (b,); the mean over the
batch is the caller's, because loss-driven sampling needs the single values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from forebay.pipeline.errors import StudyError

if TYPE_CHECKING:
    from forebay.learners.surrogate import IOSpec

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]

_FLOOR = 1e-6
"""Share of the deviation below which a target counts as zero: a relative error against it would be noise."""


def relative_l2(prediction: Tensor, target: Tensor, scale: Tensor) -> Tensor:
    """‖û - u‖₂ / ‖u‖₂ of every sample, over all its points.

    ‖u‖₂ is at least 1e-6 σ √points, so a sample that is zero everywhere gives a large finite value.
    Source: Li et al., arXiv 2010.08895.
    """
    floor = _FLOOR * scale * math.sqrt(target[0].numel())
    return _norm(prediction - target) / _norm(target).clamp(min=floor)


def mean_square(prediction: Tensor, target: Tensor, scale: Tensor) -> Tensor:
    """mean((û - u)²) / σ² of every sample: 1 for whoever predicts the mean."""
    return ((prediction - target) / scale).flatten(1).square().mean(1)


def relative_h1(spacing: tuple[float, ...]) -> Loss:
    """√(‖e‖² + ‖∇e‖²) / √(‖u‖² + ‖∇u‖²) with e = û - u, for a uniform grid of that spacing.

    The gradient is the forward difference between neighbours along every axis, without assumptions at the boundary;
    each point and each edge has the volume Π h, which cancels.  On the unit square ‖∇·‖ outweighs ‖·‖ by about the
    wavenumber, so small scales weigh more than in `relative_l2`.
    """

    def loss(prediction: Tensor, target: Tensor, scale: Tensor) -> Tensor:
        floor = _FLOOR * scale * math.sqrt(target[0].numel())
        return _h1_norm(prediction - target, spacing) / _h1_norm(target, spacing).clamp(min=floor)

    return loss


def _make_relative_h1(io: IOSpec) -> Loss:
    if io.spacing is None:
        raise StudyError(
            'learner.loss = "relative_h1" needs a grid of uniform spacing, which the coordinates of this problem do '
            'not give; use "relative_l2", or give the schema a uniform coordinate for every axis'
        )
    return relative_h1(io.spacing)


LOSSES: Mapping[str, Callable[[IOSpec], Loss]] = {
    "relative_l2": lambda io: relative_l2,
    "relative_h1": _make_relative_h1,
    "mse": lambda io: mean_square,
}
"""What `learner.loss` may name."""


def make_loss(name: str, io: IOSpec) -> Loss:
    """The loss of that name for a problem.

    Raises:
        StudyError: an unknown name, or a loss that the problem's grid cannot have.
    """
    if name not in LOSSES:
        raise StudyError(f"learner.loss = {name!r} is not a known loss; choose one of {', '.join(LOSSES)}")
    return LOSSES[name](io)


def _norm(values: Tensor) -> Tensor:
    # vector_norm has the subgradient 0 at zero; sqrt of a sum would give NaN for a perfect prediction.
    return values.flatten(1).norm(dim=1)


def _h1_norm(values: Tensor, spacing: tuple[float, ...]) -> Tensor:
    parts = [_norm(values)]
    parts += [
        _norm(values.diff(dim=axis + 1)) / step for axis, step in enumerate(spacing) if values.shape[axis + 1] > 1
    ]
    return torch.stack(parts, 1).norm(dim=1)

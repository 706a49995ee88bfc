"""The guard of learned weights in torch: probes a few systems of a batch and builds the faster hierarchy."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from forebay.kernels.guard import PROBE_STEPS, ROUNDING, Costs, Decision, contraction, decide
from forebay.kernels.hierarchy import Hierarchy
from forebay.kernels.multigrid import CLASSICAL, GridRule, apply_level, build_hierarchy, v_cycle
from forebay.kernels.stencil import Stencil

_EVERY = 16
_SEED = 2026
_FREE = Costs(0.0, 0.0)


@torch.no_grad()
def guarded_hierarchy(
    stencil: Stencil, rule: GridRule, *, costs: Costs = _FREE, solves: float = 1, every: int = _EVERY
) -> tuple[Hierarchy, Decision]:
    """The hierarchy that a probe preferred, for all systems of the batch, and the verdict.

    One system in `every`, spread over the batch and at least one, is probed with both cycles, which costs them
    2 · `PROBE_STEPS` iterations and a second set-up; the contraction of the batch is the geometric mean of theirs.
    Systems with NaN are not probed.

    Args:
        stencil: finite or not; a batch of one is probed as well.
        rule: a `GridNetwork`.
        costs: of both set-ups, see `set_up_costs`; free by default.
        solves: right-hand sides that each system is going to have, inf for no end of them.
        every: 1 probes every system.

    Raises:
        ValueError: `every` below 1.
    """
    if every < 1:
        raise ValueError(f"every = {every}; at least one system of a batch is probed, so it is 1 or more, 16 is good")
    usable = stencil.finite().nonzero()[:, 0]
    if len(usable) == 0:
        return build_hierarchy(stencil), Decision(False, math.inf, "no finite system to probe the learned cycle on")
    sample = stencil.select(usable[::every])
    learned, classical = _mean_contraction(sample, rule), _mean_contraction(sample, CLASSICAL)
    decision = decide(learned, classical, cost_ratio=costs.ratio(classical, solves=solves))
    return build_hierarchy(stencil, rule if decision.learned else CLASSICAL), decision


def _mean_contraction(stencil: Stencil, rule: GridRule) -> float:
    """Geometric mean over the systems; NaN if one of them has no usable contraction."""
    factors = probe(build_hierarchy(stencil, rule, dtype=torch.float64), stencil.active)
    if not all(0 <= factor < 1 for factor in factors):
        return math.nan
    return math.exp(sum(math.log(max(factor, 1e-16)) for factor in factors) / len(factors))


@torch.no_grad()
def probe(hierarchy: Hierarchy, active: Tensor | None = None) -> list[float]:
    """Contraction of every system, see `kernels/guard.py`; the same random x each time."""
    finest = hierarchy.levels[0]
    generator = torch.Generator().manual_seed(_SEED)
    error = torch.randn(finest.shape, generator=generator, dtype=torch.float64).expand_as(finest.diagonal)
    error = error.to(finest.diagonal.device)
    if active is not None:
        error = error * active
    residual = apply_level(finest, error)
    energies = [_dot(error, residual)]
    direction, product = torch.zeros_like(error), torch.ones_like(energies[0])
    for step in range(PROBE_STEPS):
        z = v_cycle(hierarchy, residual)
        previous, product = product, _dot(residual, z)
        if step == 0:
            least = ROUNDING * product
        # A solved system stays as it is: directions made of rounding may lead anywhere.
        going = ~(product <= least)
        direction = z + _by_system(torch.where(going, product / previous, 0.0), z) * direction
        image = apply_level(finest, direction)
        length = _by_system(torch.where(going, product / _dot(direction, image), 0.0), image)
        error, residual = error - length * direction, residual - length * image
        energies.append(_dot(error, apply_level(finest, error)))
    return [contraction(column) for column in torch.stack(energies, 1).tolist()]


def _dot(left: Tensor, right: Tensor) -> Tensor:
    return (left * right).flatten(1).sum(1)


def _by_system(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.ndim - 1))

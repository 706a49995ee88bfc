r"""Training learned smoothed aggregation from matrices that stream by: no right-hand sides, no solutions.

For a matrix A, errors e₀ = B ξ of a random right-hand side ξ and the present cycle B, left by up to `warm` steps of
preconditioned conjugate gradients towards the solution 0, are followed over k = `iterations` more of them, and

    loss = -ln(-ln(‖e_k‖_A / ‖e₀‖_A) / k),          exp(loss): iterations that reduce the error by the factor e,

is minimised by Adam in the network's parameters, averaged over a batch of matrices of any sizes.  It is the logarithm
of iterations, not that of the reduction, which matrices that are easy anyway would rule; and errors of right-hand
sides are smooth, where those drawn at random are rough, which no solve ever sees.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from forebay.kernels.amg.network import AmgNetwork, TensorCycle, TensorPlan, multiply
from forebay.kernels.amg.symbolic import Symbolic
from forebay.kernels.amg.weights import HIDDEN, AmgWeights
from forebay.learners.options import option
from forebay.pipeline.errors import RunError

logger = logging.getLogger(__name__)

_SLOWEST = 1e-4
"""Rates below this count as this one: an error at rounding may grow, and a logarithm would be none."""


@dataclass(frozen=True, slots=True)
class AmgOptions:
    """How the weights are trained."""

    steps: int = option(400, "length of the schedule; the last learning rate holds after it", low=1)
    iterations: int = option(8, "steps of conjugate gradients that the loss follows; good: 5 to 10", low=1)
    warm: int = option(24, "largest number of steps before; good: as many as a solve takes", low=0)
    errors: int = option(2, "random errors a matrix", low=1)
    lr: float = option(2e-2, "largest learning rate, of Adam", above=0)
    clip: float = option(1.0, "largest gradient norm", above=0)
    hidden: int = option(HIDDEN, "hidden units of a new network; 0 trains two scalars", low=0)
    bad_batches: int = option(10, "non-finite batches in a row that stop the training", low=1)


@dataclass(frozen=True, slots=True, eq=False)
class AmgMesh:
    """A mesh's symbolic set-up and its index tensors, made once."""

    symbolic: Symbolic
    plans: list[TensorPlan]

    @classmethod
    def of(cls, symbolic: Symbolic) -> AmgMesh:
        """Needs one candidate and one unknown a node, and a level above the coarsest.

        Raises:
            ValueError: several candidates, or a matrix that is inverted as a whole.
        """
        if not symbolic.levels:
            raise ValueError(f"a matrix of {symbolic.unknowns} unknowns is inverted as a whole; train on larger ones")
        return cls(symbolic, [TensorPlan.of(plan) for plan in symbolic.levels])


@dataclass(frozen=True, slots=True, eq=False)
class AmgState:
    """All that training changes; the network and Adam's moments are updated in place."""

    network: AmgNetwork
    optimiser: torch.optim.Adam
    generator: torch.Generator
    options: AmgOptions
    steps: int = 0
    """Batches seen, skipped ones included."""
    skipped_in_a_row: int = 0


@dataclass(frozen=True, slots=True)
class AmgMetrics:
    """What one step tells."""

    step: int
    loss: float
    """Mean over the batch of ln(iterations that reduce the error by the factor e)."""
    gradient_norm: float
    """Before clipping."""
    skipped: bool


def make_amg_state(options: AmgOptions, *, seed: int, start: AmgWeights | None = None) -> AmgState:
    """A state at step 0: the classical cycle, or the weights `start`."""
    generator = torch.Generator().manual_seed(seed)
    network = AmgNetwork.restore(start) if start else AmgNetwork(options.hidden, generator=generator)
    return AmgState(network, torch.optim.Adam(network.parameters(), lr=options.lr), generator, options)


def amg_step(state: AmgState, batch: Sequence[tuple[AmgMesh, np.ndarray]]) -> tuple[AmgState, AmgMetrics]:
    """Loss, gradient, clipping, Adam update on meshes and the entries (nnz,) of a matrix on each.

    A batch whose loss or gradient is not finite leaves the weights untouched; it is counted and told in the metrics.

    Raises:
        RunError: `options.bad_batches` such batches in a row.
    """
    options = state.options
    for group in state.optimiser.param_groups:
        group["lr"] = _learning_rate(options, state.steps)
    state.optimiser.zero_grad(set_to_none=True)
    total = 0.0
    for mesh, values in batch:
        loss = convergence_loss(state.network, mesh, torch.from_numpy(values), state.generator, options) / len(batch)
        loss.backward()
        total += float(loss.detach())
    norm = float(nn.utils.clip_grad_norm_(list(state.network.parameters()), options.clip))
    usable = math.isfinite(total) and math.isfinite(norm)
    if usable:
        state.optimiser.step()
    metrics = AmgMetrics(state.steps, total, norm, not usable)
    return _advance(state, metrics), metrics


def convergence_loss(
    network: AmgNetwork, mesh: AmgMesh, values: Tensor, generator: torch.Generator, options: AmgOptions
) -> Tensor:
    """The loss of this module for one matrix, a scalar."""
    cycle = TensorCycle(mesh.symbolic, mesh.plans, network, values)
    finest = mesh.plans[0]
    error = _start(cycle, finest, values, generator, options)
    before = (error * multiply(finest, values, error)).sum(0)
    error, residual = _iterated(cycle, finest, values, error, options.iterations)
    rate = -0.5 * (-(error * residual).sum(0) / before).log() / options.iterations
    return -rate.clamp_min(_SLOWEST).log().mean()


@torch.no_grad()
def _start(
    cycle: TensorCycle, finest: TensorPlan, values: Tensor, generator: torch.Generator, options: AmgOptions
) -> Tensor:
    rhs = torch.randn(finest.plan.unknowns, options.errors, generator=generator, dtype=torch.float64)
    steps = int(torch.randint(0, options.warm + 1, (1,), generator=generator))
    error, _ = _iterated(cycle, finest, values, cycle(rhs), steps)
    return error / error.norm(dim=0)


def _iterated(
    cycle: TensorCycle, finest: TensorPlan, values: Tensor, error: Tensor, iterations: int
) -> tuple[Tensor, Tensor]:
    """Error of every column after these steps, and the residual -A e."""
    residual = -multiply(finest, values, error)
    direction, product = torch.zeros_like(error), torch.ones_like(error[0])
    for _ in range(iterations):
        z, previous = cycle(residual), product
        product = (residual * z).sum(0)
        direction = z + (product / previous) * direction
        image = multiply(finest, values, direction)
        length = product / (direction * image).sum(0)
        error, residual = error + length * direction, residual - length * image
    return error, residual


def _learning_rate(options: AmgOptions, step: int) -> float:
    """Cosine from lr to a hundredth of it."""
    share = min(step / options.steps, 1.0)
    return options.lr * (0.01 + 0.99 * (1 + math.cos(math.pi * share)) / 2)


def _advance(state: AmgState, metrics: AmgMetrics) -> AmgState:
    if not metrics.skipped:
        return replace(state, steps=state.steps + 1, skipped_in_a_row=0)
    in_a_row = state.skipped_in_a_row + 1
    logger.warning("batch %d skipped: loss %g, gradient norm %g", metrics.step, metrics.loss, metrics.gradient_norm)
    if in_a_row >= state.options.bad_batches:
        raise RunError(
            f"{in_a_row} batches in a row up to batch {metrics.step} had a loss of {metrics.loss:g} and a gradient "
            f"norm of {metrics.gradient_norm:g}: the training of the preconditioner has diverged; lower its lr = "
            f"{state.options.lr:g}, or look for matrices with NaN"
        )
    return replace(state, steps=state.steps + 1, skipped_in_a_row=in_a_row)

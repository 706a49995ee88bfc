r"""Training the learned multigrid preconditioner from the operators that stream by: no right-hand sides, no solutions.

For every operator A a random field x is the solution, b = A x.  k steps of conjugate gradients, preconditioned by the
network's cycle, are unrolled from a zero guess, and the mean logarithm of the A-norm's reduction by iteration is
minimised,

    loss = ln(‖x − x_k‖_A / ‖x‖_A) / k,          exp(loss): the convergence factor of one iteration.

Half-converged starts: x has gone through a random number of steps x ← x − M A x with the present cycle M, so that what
is left is what the cycle is bad at, as in the later iterations of a solve.  Source: `NUMERICS` of this project; the
A-norm of the error is what conjugate gradients minimise (Hestenes and Stiefel 1952), hence no other scale is needed.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from forebay.kernels.grid_network import GridNetwork
from forebay.kernels.grid_weights import GridWeights
from forebay.kernels.hierarchy import Hierarchy
from forebay.kernels.multigrid import apply_level, build_hierarchy, v_cycle
from forebay.kernels.stencil import Stencil
from forebay.kernels.weight_file import latest_version, version_path
from forebay.learners.options import option
from forebay.pipeline.errors import RunError

logger = logging.getLogger(__name__)

_TINY = 1e-30


@dataclass(frozen=True, slots=True)
class PreconditionerOptions:
    """How a preconditioner is trained; everything is counted in steps, one batch of operators each."""

    steps: int = option(2000, "length of the schedule; the last learning rate holds after it", low=1)
    iterations: int = option(6, "unrolled steps of conjugate gradients; good: 5 to 8", low=1)
    warm: int = option(8, "largest number of stationary steps before", low=0)
    lr: float = option(1e-2, "largest learning rate, of Adam", above=0)
    clip: float = option(1.0, "largest gradient norm", above=0)
    units: int = option(8, "hidden units of a new network", low=1)
    bad_batches: int = option(10, "non-finite batches in a row that stop the training", low=1)


@dataclass(frozen=True, slots=True, eq=False)
class PreconditionerState:
    """All that training changes; the network and Adam's moments are updated in place."""

    network: GridNetwork
    optimiser: torch.optim.Adam
    generator: torch.Generator
    options: PreconditionerOptions
    steps: int = 0
    """Batches seen, skipped ones included."""
    skipped: int = 0
    skipped_in_a_row: int = 0
    version: int = 0
    """Of what was published last; 0: nothing yet."""


@dataclass(frozen=True, slots=True)
class PreconditionerMetrics:
    """What one step tells."""

    step: int
    loss: float
    """Mean of ln(convergence factor) over the batch; NaN when the batch was skipped for that."""
    lr: float
    gradient_norm: float
    """Before clipping."""
    skipped: bool

    @property
    def factor(self) -> float:
        """Geometric mean of the A-norm's reduction by one iteration, in (0, 1)."""
        return math.exp(self.loss)


def make_state(
    dimension: int,
    options: PreconditionerOptions | None = None,
    *,
    seed: int,
    start: GridWeights | None = None,
    device: str | torch.device = "cpu",
) -> PreconditionerState:
    """A state at step 0: the classical cycle, or the weights `start`, whose version is counted on from.

    Raises:
        WeightsError: `start` is for another dimension.
    """
    options = options or PreconditionerOptions()
    generator = torch.Generator().manual_seed(seed)
    if start is None:
        network = GridNetwork(dimension, units=options.units, generator=generator)
    else:
        start.require_dimension(dimension)
        network = GridNetwork.from_weights(start)
    network = network.to(device)
    optimiser = torch.optim.Adam(network.parameters(), lr=options.lr)
    return PreconditionerState(network, optimiser, generator, options, version=start.version if start else 0)


def train_step(state: PreconditionerState, stencil: Stencil) -> tuple[PreconditionerState, PreconditionerMetrics]:
    """Loss, gradient, clipping, Adam update on one batch of operators of any shape.

    A batch whose loss or gradient is not finite leaves the weights untouched; it is counted and told in the metrics.

    Raises:
        RunError: `options.bad_batches` such batches in a row.
    """
    options = state.options
    rate = _learning_rate(options, state.steps)
    for group in state.optimiser.param_groups:
        group["lr"] = rate
    state.optimiser.zero_grad(set_to_none=True)
    loss = convergence_loss(state.network, stencil, state.generator, options)
    loss.backward()
    norm = float(nn.utils.clip_grad_norm_(list(state.network.parameters()), options.clip))
    value = float(loss.detach())
    usable = math.isfinite(value) and math.isfinite(norm)
    if usable:
        state.optimiser.step()
    metrics = PreconditionerMetrics(state.steps, value, rate, norm, not usable)
    return _advance(state, metrics), metrics


def train(state: PreconditionerState, stencils: Iterable[Stencil]) -> PreconditionerState:
    """`train_step` on one batch after the other until `stencils` end or the schedule does."""
    for stencil in stencils:
        if state.steps >= state.options.steps:
            break
        state, _ = train_step(state, stencil)
    return state


def publish(state: PreconditionerState, folder: Path) -> tuple[PreconditionerState, Path]:
    """Put the weights as the next version into a folder, `v0001.safetensors` first; whole or not at all.

    Versions of an earlier run in the same folder are counted on from, never overwritten.

    Raises:
        OSError: the file system refuses.
    """
    newest = latest_version(folder)
    version = max(state.version, newest[0] if newest else 0) + 1
    path = version_path(folder, version)
    state.network.weights(version).save(path)
    return replace(state, version=version), path


def convergence_loss(
    network: GridNetwork, stencil: Stencil, generator: torch.Generator, options: PreconditionerOptions
) -> Tensor:
    """The loss of this module on a batch, a scalar.  Float64 throughout: at contrast 1e6 energies need it."""
    hierarchy = build_hierarchy(stencil, network, dtype=torch.float64)
    solution = _start(hierarchy, stencil, generator, options.warm)
    reached = _unrolled(hierarchy, solution, options.iterations)
    before, after = _energy(hierarchy, solution), _energy(hierarchy, solution - reached)
    return 0.5 * (after / before.clamp_min(_TINY)).clamp_min(_TINY).log().mean() / options.iterations


@torch.no_grad()
def _start(hierarchy: Hierarchy, stencil: Stencil, generator: torch.Generator, warm: int) -> Tensor:
    """Random fields after a random number of stationary steps, of unit energy, 0 in cells that are not active."""
    field = torch.randn(hierarchy.batch, *hierarchy.shape, generator=generator, dtype=torch.float64)
    field = field.to(stencil.device)
    if stencil.active is not None:
        field = field * stencil.active
    for _ in range(int(torch.randint(0, warm + 1, (1,), generator=generator))):
        field = field - v_cycle(hierarchy, apply_level(hierarchy.levels[0], field))
        field = field * _by_system(_energy(hierarchy, field).clamp_min(_TINY).rsqrt(), field)
    return field


def _unrolled(hierarchy: Hierarchy, solution: Tensor, iterations: int) -> Tensor:
    """The iterate of preconditioned conjugate gradients from 0 for b = A solution."""
    level = hierarchy.levels[0]
    residual = apply_level(level, solution)
    z = v_cycle(hierarchy, residual)
    direction, iterate = z, torch.zeros_like(solution)
    product = _dot(residual, z)
    for step in range(iterations):
        image = apply_level(level, direction)
        length = _by_system(product / _dot(direction, image).clamp_min(_TINY), solution)
        iterate, residual = iterate + length * direction, residual - length * image
        if step + 1 < iterations:
            z = v_cycle(hierarchy, residual)
            previous, product = product, _dot(residual, z)
            direction = z + _by_system(product / previous.clamp_min(_TINY), z) * direction
    return iterate


def _energy(hierarchy: Hierarchy, field: Tensor) -> Tensor:
    return _dot(field, apply_level(hierarchy.levels[0], field))


def _dot(left: Tensor, right: Tensor) -> Tensor:
    return (left * right).flatten(1).sum(1)


def _by_system(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.ndim - 1))


def _learning_rate(options: PreconditionerOptions, step: int) -> float:
    """Cosine from lr to a hundredth of it."""
    share = min(step / options.steps, 1.0)
    return options.lr * (0.01 + 0.99 * (1 + math.cos(math.pi * share)) / 2)


def _advance(state: PreconditionerState, metrics: PreconditionerMetrics) -> PreconditionerState:
    if not metrics.skipped:
        return replace(state, steps=state.steps + 1, skipped_in_a_row=0)
    in_a_row = state.skipped_in_a_row + 1
    logger.warning("batch %d skipped: loss %g, gradient norm %g", metrics.step, metrics.loss, metrics.gradient_norm)
    if in_a_row >= state.options.bad_batches:
        raise RunError(
            f"{in_a_row} batches in a row up to batch {metrics.step} had a loss of {metrics.loss:g} and a gradient "
            f"norm of {metrics.gradient_norm:g}: the training of the preconditioner has diverged; lower its lr = "
            f"{state.options.lr:g}, or look for operators with NaN"
        )
    return replace(state, steps=state.steps + 1, skipped=state.skipped + 1, skipped_in_a_row=in_a_row)

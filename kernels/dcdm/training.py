"""The training recipe: unit vectors from the Ritz vectors of the plain box, the scale-free loss, Adam."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from forebay.kernels.dcdm.fluid import fluid_poisson
from forebay.kernels.dcdm.loss import Operator, direction_loss
from forebay.kernels.dcdm.network import DirectionNetwork
from forebay.kernels.dcdm.ritz import draw, lanczos
from forebay.kernels.stencil import Stencil, apply

WARM_UP = 1 / 8
"""Share of a stage's steps."""
CLIP = 1.0


@dataclass(frozen=True, slots=True)
class Stage:
    """Training on one matrix: the Poisson matrix of a plain cube of cells with p = 0 around it."""

    cells: int
    """Along each axis."""
    ritz: int
    """Ritz vectors that the training vectors are summed from."""
    batch: int
    steps: int
    peak: float = 1e-3
    """Learning rate after the warm-up; from there to 0 by half a cosine.  Good values: 2e-3 at first, 5e-4 once an
    earlier stage has learned something (a run with 2e-3 on 32³ cells lost it: 0.014 rose to 0.06 on the way)."""


RECIPE = (Stage(16, 500, 8, 400, 2e-3), Stage(32, 600, 4, 200, 5e-4))
"""Of the weights that are shipped: 4,000 vectors, three minutes on one core; the mean loss ended at 0.002.

The paper trains on ONE matrix with 20,000 vectors from 10,000 Ritz vectors.  Ours are two matrices of the same box,
because what is local can be learned on 16³ cells, where a vector costs 1/64 of one on 64³; no vector is seen twice.
The network is convolutional throughout, so it serves larger boxes; `benchmarks/dcdm.py` uses it on 64³ and 128³ cells.
"""


@dataclass(slots=True)
class DirectionTraining:
    """A network and its optimiser's state."""

    network: DirectionNetwork
    optimiser: torch.optim.Adam = field(init=False)

    def __post_init__(self) -> None:
        self.optimiser = torch.optim.Adam(self.network.parameters())


def train_step(state: DirectionTraining, operator: Operator, residuals: Tensor, rate: float) -> float:
    """One update on unit vectors (b, z, y, x); the mean loss before it.

    Raises:
        FloatingPointError: the loss is not finite; the weights are as they were.
    """
    for group in state.optimiser.param_groups:
        group["lr"] = rate
    loss = direction_loss(operator, residuals, state.network(residuals)).mean()
    if not math.isfinite(value := loss.item()):
        raise FloatingPointError(f"the loss is {value:g} at a learning rate of {rate:g}; lower the stage's `peak`")
    state.optimiser.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(state.network.parameters(), CLIP)
    state.optimiser.step()
    return value


def learning_rate(stage: Stage, step: int) -> float:
    """Linear over the first eighth of the steps, times half a cosine over all."""
    return (
        stage.peak * min(1.0, (step + 1) / (WARM_UP * stage.steps)) * (1 + math.cos(math.pi * step / stage.steps)) / 2
    )


def train(
    stages: Iterable[Stage] = RECIPE, *, seed: int = 2026, watch: Callable[[Stage, int, float], None] | None = None
) -> DirectionNetwork:
    """A trained network; the same bits for the same seed, machine and number of threads.

    `watch(stage, step, loss)` is called after every step.
    """
    generator = torch.Generator().manual_seed(seed)
    network = DirectionNetwork(generator)
    for stage in stages:
        state = DirectionTraining(network)
        box = fluid_poisson((stage.cells,) * 3).to(dtype=torch.float32)

        def operator(u: Tensor, box: Stencil = box) -> Tensor:
            return apply(box, u)

        basis = lanczos(operator, torch.randn(box.shape, generator=generator), stage.ritz)
        for step in range(stage.steps):
            loss = train_step(state, operator, draw(basis, stage.batch, generator), learning_rate(stage, step))
            if watch is not None:
                watch(stage, step, loss)
    return network

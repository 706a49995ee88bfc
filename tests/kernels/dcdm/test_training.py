from __future__ import annotations

import functools

import pytest
import torch

from forebay.kernels.dcdm.fluid import fluid_poisson
from forebay.kernels.dcdm.loss import direction_loss
from forebay.kernels.dcdm.network import DirectionNetwork
from forebay.kernels.dcdm.ritz import draw, lanczos
from forebay.kernels.dcdm.training import DirectionTraining, Stage, learning_rate, train, train_step
from forebay.kernels.stencil import apply

SHORT = Stage(cells=6, ritz=30, batch=4, steps=60, peak=2e-3)


def operator(cells: int):
    return functools.partial(apply, fluid_poisson((cells,) * 3).to(dtype=torch.float32))


def test_sixty_steps_learn_directions_for_vectors_that_were_not_seen():
    """The loss of the residual itself as direction, which is conjugate gradients' first step, is far above."""
    network = train([SHORT], seed=7)
    basis = lanczos(operator(6), torch.randn(6, 6, 6, generator=torch.Generator().manual_seed(13)), 30)
    unseen = draw(basis, 16, torch.Generator().manual_seed(11))
    with torch.no_grad():
        learned = direction_loss(operator(6), unseen, network(unseen)).mean()
    plain = direction_loss(operator(6), unseen, unseen).mean()
    assert learned < 0.15
    assert plain > 0.2


def test_the_same_seed_gives_the_same_bits_and_the_watcher_sees_every_step():
    stages = [Stage(4, 5, 2, 3), Stage(6, 8, 1, 2)]
    seen = []
    first = train(stages, seed=7, watch=lambda stage, step, loss: seen.append((stage.cells, step, loss)))
    again, other = train(stages, seed=7), train(stages, seed=11)
    assert [entry[:2] for entry in seen] == [(4, 0), (4, 1), (4, 2), (6, 0), (6, 1)]
    assert all(loss > 0 for *_, loss in seen)
    assert all(torch.equal(values, again.state_dict()[name]) for name, values in first.state_dict().items())
    assert not torch.equal(first.head.weight, other.head.weight)


def test_the_learning_rate_warms_up_and_falls_to_nothing():
    stage = Stage(8, 40, 4, 1000, peak=1e-3)
    rates = [learning_rate(stage, step) for step in range(1000)]
    assert rates[0] == pytest.approx(1e-3 / 125)
    assert max(rates) == pytest.approx(1e-3, rel=0.05)
    assert rates.index(max(rates)) == 124
    assert rates[-1] < 1e-8


def test_a_step_moves_the_weights_and_tells_the_loss_before_it():
    state = DirectionTraining(DirectionNetwork(torch.Generator().manual_seed(7)))
    residuals = torch.randn(2, 6, 6, 6, generator=torch.Generator().manual_seed(11))
    residuals /= residuals.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    before = direction_loss(operator(6), residuals, state.network(residuals)).mean().item()
    assert train_step(state, operator(6), residuals, 1e-3) == pytest.approx(before, rel=1e-5)
    assert train_step(state, operator(6), residuals, 1e-3) < before


def test_a_loss_that_is_not_finite_leaves_the_weights_alone():
    state = DirectionTraining(DirectionNetwork(torch.Generator().manual_seed(7)))
    before = {name: values.clone() for name, values in state.network.state_dict().items()}
    with pytest.raises(
        FloatingPointError, match=r"the loss is nan at a learning rate of 0.002; lower the stage's `peak`"
    ):
        train_step(state, operator(6), torch.full((1, 6, 6, 6), torch.nan), 2e-3)
    assert all(torch.equal(values, before[name]) for name, values in state.network.state_dict().items())


def test_gradients_of_an_earlier_step_do_not_add_up():
    fresh, used = (DirectionTraining(DirectionNetwork(torch.Generator().manual_seed(7))) for _ in range(2))
    for parameter in used.network.parameters():
        parameter.grad = torch.ones_like(parameter)
    residuals = torch.full((1, 6, 6, 6), 6**-1.5)
    for state in (fresh, used):
        train_step(state, operator(6), residuals, 1e-3)
    assert torch.equal(fresh.network.first.weight, used.network.first.weight)

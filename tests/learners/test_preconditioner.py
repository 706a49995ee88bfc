from dataclasses import replace
from itertools import islice

import pytest
import torch

from forebay.kernels.grid_weights import GridWeights
from forebay.kernels.multigrid import build_hierarchy, v_cycle
from forebay.kernels.stencil import apply, diffusion
from forebay.kernels.weight_file import WeightsError
from forebay.learners import preconditioner
from forebay.learners.media import FAMILIES, log_normal, stream, white
from forebay.learners.preconditioner import (
    PreconditionerOptions,
    convergence_loss,
    make_state,
    publish,
    train,
    train_step,
)
from forebay.pipeline.errors import RunError


def media(count=1, shape=(20, 20), seed=7):
    return list(islice(stream([shape], batch=2, seed=seed), count))


def digest(state):
    return state.network.weights().digest


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", [(24, 17), (7, 8, 9)])
def test_media_are_positive_repeatable_and_of_the_contrast(family, shape):
    draw = FAMILIES[family]
    field = draw(3, shape, 1e4, torch.Generator().manual_seed(7))
    again = draw(3, shape, 1e4, torch.Generator().manual_seed(7))
    assert field.shape == (3, *shape)
    assert torch.equal(field, again)
    assert field.min() > 0
    ratio = field.flatten(1).amax(1) / field.flatten(1).amin(1)
    assert torch.all(ratio > 10)
    assert torch.all(ratio < 1e4**2.2)
    assert torch.all(FAMILIES[family](2, shape, 1.0, torch.Generator().manual_seed(7)) == 1)


def test_smooth_media_are_smooth_and_white_ones_are_not():
    def roughness(draw):
        field = draw(2, (64, 64), 1e4, torch.Generator().manual_seed(7)).log()
        return float(field.diff(dim=2).std() / field.std())

    assert roughness(log_normal) < 0.3
    assert roughness(white) > 1.2


def test_the_stream_has_every_family_and_shape():
    shapes = [(9, 8), (12, 5)]
    seen = [system.shape for system in islice(stream(shapes, batch=1, seed=11), 8)]
    assert seen == [shapes[0]] * 4 + [shapes[1]] * 4


def test_training_lowers_the_loss_on_its_medium():
    stencil = diffusion(white(4, (24, 24), 1e4, torch.Generator().manual_seed(11)))
    options = PreconditionerOptions(steps=15, lr=3e-2, iterations=4, warm=4)
    state = make_state(2, options, seed=7)
    with torch.no_grad():
        before = [
            convergence_loss(state.network, stencil, torch.Generator().manual_seed(s), options) for s in (3, 5, 9)
        ]
    state = train(state, [stencil] * 15)
    with torch.no_grad():
        after = [convergence_loss(state.network, stencil, torch.Generator().manual_seed(s), options) for s in (3, 5, 9)]
    assert state.steps == 15
    assert sum(after) < sum(before) - 0.05


@torch.no_grad()
def test_the_loss_is_the_logarithm_of_the_mean_reduction_of_the_energy_norm():
    """One step from 0 towards x: ‖error‖²_A / ‖x‖²_A = 1 − (r·z)² / (z·A z · x·A x) with r = A x and z = M r."""
    stencil, network = media()[0], make_state(2, seed=7).network
    options = PreconditionerOptions(iterations=1, warm=0)
    loss = convergence_loss(network, stencil, torch.Generator().manual_seed(3), options)
    x = torch.randn(2, 20, 20, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    hierarchy = build_hierarchy(stencil, network, dtype=torch.float64)
    r = apply(stencil, x)
    z = v_cycle(hierarchy, r)
    products = [(left * right).sum((1, 2)) for left, right in ((r, z), (z, apply(stencil, z)), (x, r))]
    share = 1 - products[0] ** 2 / (products[1] * products[2])
    assert float(loss) == pytest.approx(float(share.sqrt().log().mean()), rel=1e-8)


def test_the_loss_does_not_depend_on_units():
    network, options = make_state(2, seed=7).network, PreconditionerOptions()
    a = white(2, (20, 20), 100.0, torch.Generator().manual_seed(11))
    values = [
        float(convergence_loss(network, diffusion(a * unit), torch.Generator().manual_seed(3), options).detach())
        for unit in (1e-20, 1.0, 1e20)
    ]
    assert values == pytest.approx([values[1]] * 3, rel=1e-6)
    assert -5 < values[0] < -0.5


def test_equal_seeds_train_equal_weights_and_others_do_not():
    first, second, other = (
        train(make_state(2, PreconditionerOptions(steps=3), seed=seed), media(3)) for seed in (7, 7, 11)
    )
    assert digest(first) == digest(second)
    assert digest(first) != digest(other)


def test_training_ends_with_the_schedule():
    state = train(make_state(2, PreconditionerOptions(steps=2), seed=7), media(4))
    assert state.steps == 2


def test_the_learning_rate_comes_down():
    state = make_state(2, PreconditionerOptions(steps=2, lr=1e-2), seed=7)
    rates = []
    for stencil in media(3):
        state, metrics = train_step(state, stencil)
        rates.append(metrics.lr)
    assert rates == pytest.approx([1e-2, 0.505e-2, 1e-4])


def test_a_batch_with_nan_is_skipped_and_counted():
    a = torch.ones(2, 20, 20, dtype=torch.float64)
    a[1, 3, 3] = torch.nan
    state = make_state(2, PreconditionerOptions(bad_batches=3), seed=7)
    before = digest(state)
    state, metrics = train_step(state, diffusion(a))
    assert metrics.skipped
    assert (state.skipped, state.skipped_in_a_row, state.steps) == (1, 1, 1)
    assert digest(state) == before
    state, _ = train_step(state, media()[0])
    assert state.skipped_in_a_row == 0
    with pytest.raises(RunError, match="3 batches in a row up to batch 4"):
        train(state, [diffusion(a)] * 3)


def test_masked_and_singular_systems_can_be_trained_on():
    active = torch.ones(1, 20, 20, dtype=torch.bool)
    active[:, 4:9, 4:9] = False
    a = white(2, (20, 20), 100.0, torch.Generator().manual_seed(11))
    _, metrics = train_step(make_state(2, seed=7), diffusion(a, "neumann", active=active))
    assert not metrics.skipped
    assert 0.01 < metrics.factor < 0.6


def test_the_start_is_zero_in_cells_that_are_not_active():
    active = torch.ones(1, 20, 20, dtype=torch.bool)
    active[:, 4:9, 4:9] = False
    stencil = diffusion(white(2, (20, 20), 100.0, torch.Generator().manual_seed(11)), active=active)
    hierarchy = build_hierarchy(stencil, dtype=torch.float64)
    start = preconditioner._start(hierarchy, stencil, torch.Generator().manual_seed(3), warm=3)
    assert start[:, 4:9, 4:9].abs().max() < 1e-12
    assert start[:, :4].abs().max() > 0.01


def test_versions_are_published_in_order_and_never_overwritten(tmp_path):
    state = make_state(2, PreconditionerOptions(steps=1), seed=7)
    state, first = publish(state, tmp_path)
    state, second = publish(state, tmp_path)
    assert (first.name, second.name) == ("v0001.safetensors", "v0002.safetensors")
    assert GridWeights.load(second).version == 2
    _, third = publish(make_state(2, seed=11), tmp_path)
    assert third.name == "v0003.safetensors"


def test_training_goes_on_from_published_weights(tmp_path):
    state = train(make_state(2, PreconditionerOptions(steps=1), seed=7), media(1))
    _, path = publish(state, tmp_path)
    again = make_state(2, seed=11, start=GridWeights.load(path))
    assert digest(again) == digest(state)
    assert again.version == 1
    with pytest.raises(WeightsError, match="2-dimensional grids, this one has 3 axes"):
        make_state(3, seed=11, start=GridWeights.load(path))


def test_a_step_in_three_dimensions_changes_all_weights():
    state = make_state(3, PreconditionerOptions(units=3), seed=7)
    before = state.network.weights().arrays
    for stencil in islice(stream([(8, 9, 7)], batch=1, seed=7), 2):
        state, metrics = train_step(state, stencil)
        assert not metrics.skipped
    changed = [name for name, array in state.network.weights().arrays.items() if (array != before[name]).any()]
    assert sorted(changed) == sorted(before)


def test_unusual_options_are_kept():
    options = replace(PreconditionerOptions(), units=3)
    assert make_state(2, options, seed=7).network.hidden.shape == (2, 3, 8)

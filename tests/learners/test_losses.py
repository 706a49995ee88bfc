"""Losses: exact values, gradients by Taylor remainders, behaviour at zero."""

import math

import numpy as np
import pytest
import torch

from forebay.learners.losses import LOSSES, make_loss, mean_square, relative_h1, relative_l2
from forebay.learners.surrogate import IOSpec, TensorSpec
from forebay.pipeline.errors import StudyError

ONE = torch.ones((), dtype=torch.float64)


def io(spacing=(0.25, 0.5)):
    return IOSpec((), (TensorSpec("u", ("y", "x"), (6, 5)),), ("k",), spacing=spacing)


def pair(seed, shape=(3, 6, 5)):
    generator = torch.Generator().manual_seed(seed)
    target = 2 + torch.randn(shape, generator=generator, dtype=torch.float64)
    return target + 0.1 * torch.randn(shape, generator=generator, dtype=torch.float64), target


def test_relative_l2_has_its_exact_value_for_every_sample():
    target = torch.tensor([[[3.0, 4.0]], [[0.0, 2.0]]], dtype=torch.float64)
    prediction = torch.tensor([[[3.0, 5.0]], [[1.0, 2.0]]], dtype=torch.float64)
    assert relative_l2(prediction, target, ONE).tolist() == pytest.approx([0.2, 0.5], rel=1e-14)


def test_mean_square_is_one_for_whoever_predicts_the_mean():
    _, target = pair(7, (1, 60, 50))
    scale = target.std(correction=0)
    assert mean_square(target.mean().expand_as(target), target, scale).tolist() == pytest.approx([1.0], rel=1e-12)
    assert mean_square(target + 2 * scale, target, scale).tolist() == pytest.approx([4.0], rel=1e-12)


def test_relative_h1_has_its_exact_value_on_a_linear_field():
    """u = x on 5 points of spacing h: Σu² = 30 h², Σ(∂u)² = 4; e = c: Σe² = 5 c², no gradient."""
    h, c = 0.5, 0.3
    target = (h * torch.arange(5, dtype=torch.float64))[None]
    expected = math.sqrt(5 * c**2) / math.sqrt(30 * h**2 + 4)
    assert relative_h1((h,))(target + c, target, ONE).tolist() == pytest.approx([expected], rel=1e-14)


def test_relative_h1_converges_to_the_continuous_norm_at_second_order():
    """u = cos 2πx cos 2πy, e = cos 4πx cos 2πy at cell centres: the squares are ‖·‖² (1 + |k|²) with equal ‖·‖.

    Differences live on the n - 1 inner edges of an axis; the missing outer halves would cost an order if the normal
    derivative did not vanish at the boundary.
    """
    exact = math.sqrt((1 + 20 * math.pi**2) / (1 + 8 * math.pi**2))
    steps, errors = [], []
    for n in (32, 64, 128):
        line = (torch.arange(n, dtype=torch.float64) + 0.5) / n
        y, x = torch.meshgrid(line, line, indexing="ij")
        target = torch.cos(2 * math.pi * x) * torch.cos(2 * math.pi * y)
        error = torch.cos(4 * math.pi * x) * torch.cos(2 * math.pi * y)
        value = relative_h1((1 / n, 1 / n))((target + error)[None], target[None], ONE)
        steps.append(1 / n)
        errors.append(abs(float(value) - exact) / exact)
    slope = np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert abs(slope - 2) < 0.2, f"observed order {slope:.2f} from errors {errors}"
    assert errors[-1] < 2e-3


def test_relative_h1_weighs_axes_by_their_own_spacing():
    rough = torch.zeros(1, 6, 5, dtype=torch.float64)
    rough[0, ::2] = 1.0
    target = torch.ones_like(rough)
    fine_along_y = relative_h1((0.01, 1.0))(target + rough, target, ONE)
    fine_along_x = relative_h1((1.0, 0.01))(target + rough, target, ONE)
    assert float(fine_along_y) == pytest.approx(100 * math.sqrt(25 / 30), rel=1e-3)
    assert float(fine_along_x) == pytest.approx(math.sqrt((15 + 25) / 30), rel=1e-12)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_gradients_leave_a_taylor_remainder_of_second_order(name):
    prediction, target = pair(31)
    direction = torch.randn(prediction.shape, generator=torch.Generator().manual_seed(37), dtype=torch.float64)
    loss = make_loss(name, io())
    at = prediction.clone().requires_grad_()
    value = loss(at, target, ONE).sum()
    slope = (torch.autograd.grad(value, at)[0] * direction).sum()
    value = value.detach()
    steps = [1e-2, 5e-3, 2.5e-3, 1.25e-3]
    remainders = [float((loss(prediction + t * direction, target, ONE).sum() - value - t * slope).abs()) for t in steps]
    order = np.polyfit(np.log(steps), np.log(remainders), 1)[0]
    assert abs(order - 2) < 0.2, f"observed order {order:.2f} from remainders {remainders}"


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_a_perfect_prediction_has_loss_zero_and_a_finite_gradient(name):
    _, target = pair(31)
    at = target.clone().requires_grad_()
    value = make_loss(name, io())(at, target, ONE)
    assert value.tolist() == [0, 0, 0]
    assert torch.isfinite(torch.autograd.grad(value.sum(), at)[0]).all()


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_scaling_the_units_leaves_every_loss_unchanged(name):
    prediction, target = pair(41)
    loss = make_loss(name, io())
    assert torch.allclose(loss(1e6 * prediction, 1e6 * target, 1e6 * ONE), loss(prediction, target, ONE), rtol=1e-12)


@pytest.mark.parametrize("name", ["relative_l2", "relative_h1"])
def test_a_target_of_zeros_gives_a_large_finite_loss(name):
    target = torch.zeros(1, 6, 5, dtype=torch.float64)
    value = make_loss(name, io())(target + 1, target, ONE)
    assert float(value) == pytest.approx(1e6, rel=1e-9)


def test_an_unknown_loss_and_h1_without_a_spacing_are_refused():
    with pytest.raises(StudyError, match=r"learner\.loss = 'l1' is not a known loss; choose one of relative_l2"):
        make_loss("l1", io())
    with pytest.raises(StudyError, match=r'"relative_h1" needs a grid of uniform spacing.*use "relative_l2"'):
        make_loss("relative_h1", io(spacing=None))

from __future__ import annotations

import functools

import pytest
import torch

from forebay.kernels.dcdm.fluid import fluid_poisson
from forebay.kernels.dcdm.loss import direction_loss, inner, line_search
from forebay.kernels.reference import dense
from forebay.kernels.stencil import apply

BOX = fluid_poisson((3, 4, 5))
OPERATOR = functools.partial(apply, BOX)


@pytest.fixture
def residuals():
    noise = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    return noise / noise.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


@pytest.fixture
def directions():
    return torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(11), dtype=torch.float64)


@pytest.mark.parametrize("scale", [1e-100, 1e-3, 7.0, -13.0])
def test_the_loss_does_not_depend_on_the_length_or_sign_of_a_direction(residuals, directions, scale):
    loss = direction_loss(OPERATOR, residuals, directions)
    torch.testing.assert_close(direction_loss(OPERATOR, residuals, scale * directions), loss, rtol=1e-12, atol=0)
    assert loss.shape == (2,)


def test_the_loss_is_what_is_left_of_the_residual(residuals, directions):
    matrix = dense(BOX)[0]
    r, d = residuals[1].flatten(), directions[1].flatten()
    alpha = (d @ r) / (d @ matrix @ d)
    expected = (r - alpha * matrix @ d).square().sum()
    torch.testing.assert_close(direction_loss(OPERATOR, residuals, directions)[1], expected, rtol=1e-12, atol=0)


def test_the_solution_itself_has_no_loss(residuals):
    solution = torch.linalg.solve(dense(BOX), residuals.flatten(1)[..., None]).reshape(residuals.shape)
    assert direction_loss(OPERATOR, residuals, -3.0 * solution).max() < 1e-24


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_direction_of_zeros_loses_everything_and_is_no_nan(residuals, dtype):
    directions = torch.zeros_like(residuals, dtype=dtype, requires_grad=True)
    loss = direction_loss(functools.partial(apply, BOX.to(dtype=dtype)), residuals.to(dtype), directions)
    torch.testing.assert_close(loss, torch.ones(2, dtype=dtype))
    loss.sum().backward()
    assert torch.isfinite(directions.grad).all()


def test_the_line_search_minimises_the_error_in_the_norm_of_the_matrix(residuals, directions):
    matrix = dense(BOX)[0]
    solution = torch.linalg.solve(matrix, residuals[0].flatten())
    d = directions[0].flatten()
    alpha = line_search(residuals, directions, OPERATOR(directions))[0]

    def error(length):
        difference = solution - length * d
        return difference @ matrix @ difference

    assert error(alpha) < min(error(alpha * 1.001), error(alpha * 0.999), error(torch.tensor(0.0)))


def test_the_line_search_does_not_minimise_the_residual(residuals, directions):
    """The loss may exceed 1: the paper's α is that of conjugate gradients, not of least squares."""
    images = OPERATOR(directions)
    alpha = line_search(residuals, directions, images)
    best = inner(images, residuals) / inner(images, images)
    left = (residuals - best.view(-1, 1, 1, 1) * images).square().flatten(1).sum(1)
    assert (left < direction_loss(OPERATOR, residuals, directions)).all()
    assert not torch.allclose(best, alpha, rtol=1e-3)


def test_the_gradient_has_no_part_along_the_direction(residuals, directions):
    directions.requires_grad_()
    direction_loss(OPERATOR, residuals, directions).sum().backward()
    gradient = directions.grad
    along = inner(gradient, directions.detach()).abs()
    assert (along < 1e-12 * gradient.flatten(1).norm(dim=1) * directions.detach().flatten(1).norm(dim=1)).all()
    assert gradient.abs().max() > 1e-3

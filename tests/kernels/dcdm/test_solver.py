from __future__ import annotations

import functools
import itertools
import math

import pytest
import torch

from forebay.kernels.dcdm.fluid import fluid_poisson
from forebay.kernels.dcdm.network import DirectionNetwork
from forebay.kernels.dcdm.solver import DirectionPreconditioner, solve_dcdm
from forebay.kernels.records import Outcome
from forebay.kernels.reference import cg, dense, flexible_cg
from forebay.kernels.stencil import apply

SHAPE = (6, 7, 8)


def noise(seed: int = 7, shape=SHAPE) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def identity(units):
    return units


def wobbling(stencil, amount: float = 0.3):
    """Nearly A⁻¹ r, spoilt differently on every call."""
    inverse = torch.linalg.inv(dense(stencil)[0])
    seeds = itertools.count(11)

    def directions(units):
        exact = (inverse @ units.double().flatten()).reshape(units.shape)
        spoilt = exact + amount * exact.norm() / units.numel() ** 0.5 * noise(next(seeds), units.shape)
        return spoilt.float()

    return directions


@pytest.fixture
def obstacle():
    solid = torch.zeros(SHAPE, dtype=torch.bool)
    solid[2:4, 2:5, 3:6] = True
    return fluid_poisson(SHAPE, solid=solid)


class Recorder:
    """What the solver asked for, and its iterates as seen by the residuals it hands over."""

    def __init__(self, directions):
        self.units, self._directions = [], directions

    def __call__(self, units):
        self.units.append(units)
        return self._directions(units)


def test_with_the_identity_it_is_the_method_of_conjugate_gradients(obstacle):
    b = torch.where(obstacle.active[0], noise(), 0.0)
    for iterations in (1, 2, 3, 9):
        u, record = solve_dcdm(obstacle, b, identity, rtol=1e-12, max_iterations=iterations)
        expected = cg(functools.partial(apply, obstacle), b[None], rtol=1e-12, max_iterations=iterations)
        torch.testing.assert_close(u, expected.fields[0], rtol=1e-5, atol=1e-7)
        assert record.iterations == iterations
        assert record.residual == pytest.approx(expected.residual.item(), rel=1e-5)


def test_directions_are_conjugate_to_the_last_two_and_the_steps_exact(obstacle):
    b = torch.where(obstacle.active[0], noise(), 0.0)
    fields = [
        solve_dcdm(obstacle, b, wobbling(obstacle), rtol=0, max_iterations=iterations)[0] for iterations in range(7)
    ]
    steps = [after - before for before, after in itertools.pairwise(fields)]
    images = [apply(obstacle, step[None])[0] for step in steps]
    lengths = [math.sqrt(float((step * image).sum())) for step, image in zip(steps, images, strict=True)]

    def cosine(i, j):
        return abs(float((steps[i] * images[j]).sum())) / (lengths[i] * lengths[j])

    assert max(cosine(i, i - 1) for i in range(1, 6)) < 1e-10
    assert max(cosine(i, i - 2) for i in range(2, 6)) < 1e-10
    assert max(cosine(i, i - 3) for i in range(3, 6)) > 1e-4
    for i, field in enumerate(fields[1:]):
        residual = b - apply(obstacle, field[None])[0]
        assert abs(float((residual * steps[i]).sum())) < 1e-12 * residual.norm() * steps[i].norm() + 1e-16


def test_the_network_sees_unit_residuals_in_single_precision(obstacle):
    recorder = Recorder(identity)
    solve_dcdm(obstacle, 1e-9 * noise(), recorder, max_iterations=5)
    assert len(recorder.units) == 5
    assert all(units.dtype == torch.float32 and units.shape == (1, *SHAPE) for units in recorder.units)
    assert all(units.norm().item() == pytest.approx(1, abs=1e-5) for units in recorder.units)


def test_the_error_never_grows_whatever_the_network_says(obstacle):
    matrix, b = dense(obstacle)[0], torch.where(obstacle.active[0], noise(), 0.0)
    exact = torch.linalg.solve(matrix, b.flatten())

    def noisy():
        seeds = itertools.count(13)
        return lambda units: noise(next(seeds), units.shape)

    errors = []
    for iterations in range(1, 8):
        u, _ = solve_dcdm(obstacle, b, noisy(), max_iterations=iterations)
        difference = exact - u.flatten()
        errors.append(float(difference @ matrix @ difference))
    assert all(later <= earlier * (1 + 1e-12) for earlier, later in itertools.pairwise(errors))
    assert errors[0] <= float(exact @ matrix @ exact)


def test_what_is_certified_is_the_true_residual(obstacle):
    b = torch.where(obstacle.active[0], noise(), 0.0)
    u, record = solve_dcdm(obstacle, b, wobbling(obstacle), rtol=1e-6)
    true = (b - apply(obstacle, u[None])[0]).norm() / b.norm()
    assert record.outcome is Outcome.CONVERGED
    assert record.residual == pytest.approx(true.item(), rel=1e-9)
    assert true <= 1e-6
    assert (record.preconditioner, record.backend, record.message) == ("dcdm", "torch", "")


def test_cells_that_are_not_fluid_stay_zero_and_their_right_hand_side_does_not_count(obstacle):
    inside = ~obstacle.active[0]
    b = noise()
    u, record = solve_dcdm(obstacle, b, DirectionNetwork(torch.Generator().manual_seed(7)), max_iterations=4)
    other, _ = solve_dcdm(
        obstacle,
        torch.where(inside, 1e6, b),
        DirectionNetwork(torch.Generator().manual_seed(7)),
        max_iterations=4,
    )
    assert (u[inside] == 0).all()
    assert torch.equal(u, other)
    assert record.residual < 1


def test_a_right_hand_side_of_zero_costs_nothing(obstacle):
    recorder = Recorder(identity)
    u, record = solve_dcdm(obstacle, torch.zeros(SHAPE), recorder)
    assert (record.outcome, record.iterations, record.residual) == (Outcome.CONVERGED, 0, 0.0)
    assert not u.any()
    assert not recorder.units


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_right_hand_side_that_is_not_finite_is_reported(obstacle, value):
    b = noise()
    b[0, 0, 0] = value
    u, record = solve_dcdm(obstacle, b, identity)
    assert record.outcome is Outcome.NONFINITE_INPUT
    assert torch.isnan(u).all()


def test_a_coefficient_that_is_not_finite_is_reported():
    box = fluid_poisson(SHAPE)
    box.reaction[0, 2, 2, 2] = math.nan
    assert solve_dcdm(box, noise(), identity)[1].outcome is Outcome.NONFINITE_INPUT


def test_too_few_iterations_are_reported_with_the_residual(obstacle):
    _, record = solve_dcdm(obstacle, noise(), identity, rtol=1e-10, max_iterations=3)
    assert (record.outcome, record.iterations) == (Outcome.MAX_ITERATIONS, 3)
    assert 1e-10 < record.residual < 10
    assert "max_iterations" in record.message


@pytest.mark.parametrize("value", [0.0, math.nan])
def test_a_network_without_a_direction_ends_the_solve(obstacle, value):
    u, record = solve_dcdm(obstacle, noise(), lambda units: torch.full_like(units, value))
    assert (record.outcome, record.iterations) == (Outcome.DIVERGED, 1)
    assert not u.any()


def test_a_closed_box_is_solved_up_to_a_constant():
    box = fluid_poisson(SHAPE, closed=[True] * 6)
    b = noise() - noise().mean()
    u, record = solve_dcdm(box, b, identity, rtol=1e-6)
    assert record.outcome is Outcome.CONVERGED
    assert (b - apply(box, u[None])[0]).norm() <= 1e-6 * b.norm()


@pytest.mark.parametrize("sign", [1, -1])
def test_as_a_preconditioner_it_is_homogeneous_and_serves_flexible_conjugate_gradients(obstacle, sign):
    directions = wobbling(obstacle, 0.1)
    preconditioner = DirectionPreconditioner(lambda units: sign * directions(units), obstacle.active)
    b = torch.where(obstacle.active[0], noise(), 0.0)[None]
    found = flexible_cg(functools.partial(apply, obstacle), b, preconditioner=preconditioner, rtol=1e-6)
    assert found.converged.all()
    assert found.iterations.item() <= 10
    steady = DirectionPreconditioner(DirectionNetwork(torch.Generator().manual_seed(7)), obstacle.active)
    torch.testing.assert_close(steady(1e3 * b), 1e3 * steady(b), rtol=1e-4, atol=1e-3)
    assert steady(b).dtype == torch.float64
    assert not steady(torch.zeros_like(b))[obstacle.active.logical_not()].any()


def test_several_systems_at_once_are_refused():
    box = fluid_poisson((3, 3, 3)).select(torch.tensor([0, 0]))
    with pytest.raises(ValueError, match=r"2 systems on cells \(3, 3, 3\) and a right-hand side of shape \(3, 3, 3\)"):
        solve_dcdm(box, torch.ones(3, 3, 3), identity)


def test_a_right_hand_side_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"right-hand side of shape \(3, 3, 4\); this method solves one system"):
        solve_dcdm(fluid_poisson((3, 3, 3)), torch.ones(3, 3, 4), identity)

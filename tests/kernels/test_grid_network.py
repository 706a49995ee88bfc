import math

import numpy as np
import pytest
import torch
from grid_levels import dense_cycle, dense_operator, dense_prolongation, iterations, rough, rough_stencil

from forebay.kernels.grid_network import GridNetwork, features
from forebay.kernels.grid_weights import GATE, SMOOTHING
from forebay.kernels.hierarchy import half_offsets
from forebay.kernels.level_rows import level_rows
from forebay.kernels.multigrid import build_hierarchy
from forebay.kernels.stencil import diffusion
from forebay.kernels.weight_file import WeightsError


def network(dimension, *, scale=1.0, seed=13):
    """Weights that mean nothing."""
    result = GridNetwork(dimension, units=5)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in result.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return result.requires_grad_(False)


def rows_of(level):
    return level_rows(level.diagonal, level.off, level.offsets)


def feature_by_definition(matrix, shape, cell, axis, side):
    """The eight features of one cell and direction from the dense matrix, as `grid_weights` words them."""
    cells = np.arange(math.prod(shape)).reshape(shape)
    own = cells[cell]
    entries = {}
    for offset in np.ndindex(*[3] * len(shape)):
        step = tuple(at - 1 for at in offset)
        other = tuple(np.add(cell, step))
        if all(0 <= at < count for at, count in zip(other, shape, strict=True)):
            entries[step] = matrix[own, cells[other]]
    diagonal, absolute = matrix[own, own], np.abs(matrix[own]).sum()

    def arm(d, s):
        return np.clip(-sum(value for step, value in entries.items() if step[d] == s) / diagonal, 0, 1)

    def ratio(s):
        other = list(cell)
        other[axis] += s
        if not 0 <= other[axis] < shape[axis]:
            return 0.5
        return diagonal / (diagonal + matrix[cells[tuple(other)], cells[tuple(other)]])

    across = np.mean([arm(d, s) for d in range(len(shape)) if d != axis for s in (-1, 1)])
    corners = sum(abs(value) for step, value in entries.items() if np.abs(step).sum() > 1)
    positive = sum(max(value, 0) for step, value in entries.items() if any(step))
    return [
        math.sqrt(arm(axis, side)),
        math.sqrt(arm(axis, -side)),
        ratio(side),
        ratio(-side),
        math.sqrt(across),
        np.clip(matrix[own].sum() / diagonal, 0, 1),
        corners / absolute,
        positive / absolute,
    ]


@pytest.mark.parametrize("shape", [(17, 10), (9, 7, 6)])
@pytest.mark.parametrize("depth", [0, 1])
def test_features_smoothing_and_gates_are_the_documented_formula(shape, depth):
    hierarchy = build_hierarchy(rough_stencil(shape), dtype=torch.float64)
    level = hierarchy.levels[depth]
    rows, matrix = rows_of(level), dense_operator(level)
    net, index = network(len(shape)), min(depth, 1)
    weights = net.weights()
    s, gates = net(rows, finest=depth == 0)
    found = features(rows)
    for cell in [(0,) * len(shape), tuple(n - 1 for n in level.shape), tuple(n // 2 for n in level.shape)]:
        hidden = {}
        for axis in range(len(shape)):
            for side in (-1, 1):
                expected = feature_by_definition(matrix, level.shape, cell, axis, side)
                at = (0, slice(None), axis, (side + 1) // 2, *cell)
                np.testing.assert_allclose(found[at].numpy(), expected, rtol=1e-6, atol=1e-6)
                hidden[axis, side] = np.maximum(weights.hidden[index] @ expected + weights.hidden_bias[index], 0)
        u = weights.smoother_bias[index] + weights.smoother[index] @ np.mean(list(hidden.values()), 0)
        assert float(s[(0, *cell)]) == pytest.approx(1 + SMOOTHING * u / (1 + abs(u)), rel=1e-5)
        for axis in range(len(shape)):
            v = weights.gate[index] @ (hidden[axis, 1] - hidden[axis, -1])
            gamma = GATE * v / (1 + abs(v))
            assert float(gates[(0, axis, *cell)]) == pytest.approx((1 + gamma) / (1 - gamma), rel=1e-5)


@pytest.mark.parametrize("dimension", [2, 3])
def test_a_new_network_is_the_classical_cycle(dimension):
    stencil = rough_stencil((17, 12, 9)[:dimension])
    classical, learned = build_hierarchy(stencil), build_hierarchy(stencil, GridNetwork(dimension))
    for left, right in zip(classical.levels[:-1], learned.levels[:-1], strict=True):
        torch.testing.assert_close(left.smoother, right.smoother, rtol=1e-6, atol=0)
        torch.testing.assert_close(left.prolong, right.prolong, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("scale", [1.0, 100.0])
@pytest.mark.parametrize("shape", [(14, 13), (6, 5, 7), (1, 80)])
def test_the_cycle_is_symmetric_positive_definite_for_any_weights(shape, scale):
    net = network(len(shape), scale=scale)
    hierarchy = build_hierarchy(rough_stencil(shape, contrast=1e6), net, dtype=torch.float64)
    cycle = dense_cycle(hierarchy)
    assert np.abs(cycle - cycle.T).max() <= 1e-12 * np.abs(cycle).max()
    root = np.linalg.cholesky(dense_operator(hierarchy.levels[0]))
    spectrum = np.linalg.eigvalsh(root.T @ cycle @ root)
    assert spectrum.min() > 0
    assert spectrum.max() <= 1 + 1e-9


@pytest.mark.parametrize("shape", [(18, 13), (7, 6, 8)])
def test_gates_keep_the_sums_of_the_weights_and_change_the_weights(shape):
    stencil = rough_stencil(shape, "neumann")
    net = network(len(shape))
    learned = build_hierarchy(stencil, net, dtype=torch.float64).levels[0]
    classical = build_hierarchy(stencil, dtype=torch.float64).levels[0]
    left, right = dense_prolongation(learned), dense_prolongation(classical)
    assert np.abs(left - right).max() > 0.05
    np.testing.assert_allclose(left.sum(1), right.sum(1), rtol=1e-10)
    assert left.min() >= 0


@pytest.mark.parametrize("shape", [(13, 9), (5, 7, 9)])
def test_the_cycle_has_the_symmetries_of_the_grid(shape):
    """Odd sizes: a reflection then maps coarse cells onto coarse cells."""
    net, a = network(len(shape)), rough(shape)
    residual = rough(shape, seed=2026)
    axes = (1, len(shape))

    def cycle(field, rhs):
        from forebay.kernels.multigrid import v_cycle

        return v_cycle(build_hierarchy(diffusion(field), net, dtype=torch.float64), rhs)

    plain = cycle(a, residual)
    turned = cycle(a.flip(axes), residual.flip(axes)).flip(axes)
    torch.testing.assert_close(turned, plain, rtol=1e-10, atol=1e-12)
    swapped = cycle(a.transpose(*axes), residual.transpose(*axes)).transpose(*axes)
    torch.testing.assert_close(swapped, plain, rtol=1e-10, atol=1e-12)


def test_units_of_the_coefficient_do_not_change_what_the_network_sees():
    net, a = network(2), rough((20, 15))
    small, large = (build_hierarchy(diffusion(a * factor), net) for factor in (1e-20, 1e20))
    torch.testing.assert_close(small.levels[0].smoother, large.levels[0].smoother)
    torch.testing.assert_close(small.levels[1].prolong, large.levels[1].prolong)


def test_weights_go_to_arrays_and_back_without_change():
    net = network(3)
    again = GridNetwork.from_weights(net.weights(version=4))
    assert net.weights(4).version == 4
    for left, right in zip(net.parameters(), again.parameters(), strict=True):
        assert torch.equal(left, right)


def test_exported_arrays_do_not_follow_the_training():
    net = network(2)
    arrays = net.weights()
    before = arrays.gate.copy()
    net.gate.add_(1)
    np.testing.assert_array_equal(arrays.gate, before)


def test_a_network_of_another_dimension_is_refused():
    with pytest.raises(WeightsError, match="3-dimensional grids, this one has 2 axes"):
        build_hierarchy(rough_stencil((12, 12)), network(3))


def test_cells_without_any_coupling_get_finite_numbers():
    active = torch.ones(1, 12, 11, dtype=torch.bool)
    active[:, 3:6, 4:9] = False
    active[:, 4, 6] = True
    stencil = diffusion(rough((12, 11)), "neumann", active=active)
    for level in build_hierarchy(stencil, network(2)).levels:
        arrays = (level.diagonal, level.off, level.smoother, level.prolong, level.inverse)
        assert all(torch.isfinite(array).all() for array in arrays if array is not None)


def test_derivatives_reach_all_weights():
    net = GridNetwork(2, units=4)
    with torch.no_grad():
        net.smoother.fill_(0.1)
        net.gate.fill_(0.1)
    hierarchy = build_hierarchy(rough_stencil((20, 20)), net, dtype=torch.float64)
    sum(level.prolong.square().sum() + level.smoother.sum() for level in hierarchy.levels[:-1]).backward()
    for name, parameter in net.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
        assert (parameter.grad.flatten(1) if parameter.ndim > 1 else parameter.grad[:, None]).abs().amax(1).min() > 0, (
            name
        )


def test_the_finest_star_has_no_corners():
    level = build_hierarchy(rough_stencil((12, 12)), dtype=torch.float64).levels[0]
    assert level.offsets == half_offsets(2, finest=True)
    assert torch.all(features(rows_of(level))[:, 6:] == 0)


@pytest.mark.parametrize("dimension", [2, 3])
def test_shipped_weights_do_no_harm_on_held_out_media(dimension):
    from forebay.kernels.grid_weights import GridWeights

    stencil = rough_stencil((40, 45) if dimension == 2 else (13, 12, 14), contrast=1e4, seed=2026)
    net = GridNetwork.from_weights(GridWeights.shipped(dimension)).requires_grad_(False)
    learned = iterations(stencil, build_hierarchy(stencil, net))
    classical = iterations(stencil, build_hierarchy(stencil))
    assert learned <= classical + 1

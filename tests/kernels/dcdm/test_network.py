from __future__ import annotations

import pytest
import torch
from torch import nn

from forebay.kernels.dcdm.network import DirectionNetwork, bytes_per_cell


@pytest.fixture
def network():
    return DirectionNetwork(torch.Generator().manual_seed(7))


def test_it_has_the_published_kind_of_layers(network):
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv3d)]
    assert sum(c.kernel_size == (3, 3, 3) for c in convolutions) == 23
    assert {c.out_channels for c in convolutions} == {16, 1}
    assert sum(p.numel() for p in network.parameters()) == 152_881


@pytest.mark.parametrize("shape", [(8, 8, 8), (5, 6, 7), (2, 3, 9), (1, 1, 4)])
def test_every_cell_gets_a_direction_whatever_the_size(network, shape):
    assert network(torch.randn(3, *shape)).shape == (3, *shape)


def test_an_odd_size_is_padded_with_zeros(network):
    r = torch.randn(1, 6, 6, 5, generator=torch.Generator().manual_seed(7))
    wider = nn.functional.pad(r, (0, 1))
    torch.testing.assert_close(network(r), network(wider)[..., :5])


def test_systems_of_a_batch_do_not_mix(network):
    r = torch.randn(2, 6, 6, 6, generator=torch.Generator().manual_seed(7))
    torch.testing.assert_close(network(r)[1:], network(r[1:]), rtol=1e-4, atol=1e-5)


def test_an_output_depends_on_the_cells_within_reach_alone(network):
    """9 convolutions on the grid, 14 on pairs of cells, and what averaging adds."""
    r = torch.zeros(1, 2, 2, 120, requires_grad=True)
    with torch.no_grad():
        for p in network.parameters():
            if p.ndim > 1:
                p.abs_()
    network(r + 0.01)[0, 0, 0, 60].backward()
    reached = r.grad[0].abs().sum((0, 1)).nonzero().flatten()
    assert (60 - reached.min().item(), reached.max().item() - 60) == (37, 38)


def test_initial_weights_come_from_the_generator(network):
    same = DirectionNetwork(torch.Generator().manual_seed(7)).state_dict()
    other = DirectionNetwork(torch.Generator().manual_seed(11)).state_dict()
    assert all(torch.equal(values, same[name]) for name, values in network.state_dict().items())
    assert not torch.equal(network.state_dict()["first.weight"], other["first.weight"])


def test_one_application_moves_so_many_bytes():
    assert bytes_per_cell(4) == 1248
    assert bytes_per_cell(2) == 624

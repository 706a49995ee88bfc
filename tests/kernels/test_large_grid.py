"""The launches for large grids, run on the host: whole solves against torch and dense linear algebra."""

import pytest
import torch

from forebay.kernels.hierarchy import Hierarchy, Level
from forebay.kernels.host.launcher import HostLauncher
from forebay.kernels.large_grid import FLAGS, LargeGrid, _tiles, true_residual
from forebay.kernels.multigrid import build_hierarchy, v_cycle
from forebay.kernels.reference import dense
from forebay.kernels.stencil import apply, diffusion

BLOCK = 64
SHAPES = [(21, 70), (9, 11, 37), (5, 3), (1, 90)]


def launcher_of(shape, seed=0):
    return HostLauncher("large_grid", {"DIM": str(len(shape)), "REAL": "float", "BLOCK": str(BLOCK)}, seed=seed)


def problem(shape, batch, deviation=2.0, **options):
    generator = torch.Generator().manual_seed(2026)
    normal = torch.randn(2, batch, *shape, generator=generator, dtype=torch.float64)
    return diffusion(torch.exp(deviation * normal[0]), **options), normal[1]


def reaction_of(stencil, hierarchy):
    return stencil.scaled(hierarchy.scale).reaction.float()


def solve(stencil, rhs, *, rtol=1e-5, seed=0, most=60, active=None, jacobi=False, hierarchy=None):
    hierarchy = hierarchy or build_hierarchy(stencil)
    diagonal = 1 / hierarchy.levels[0].diagonal if jacobi else None
    launcher, reaction = launcher_of(rhs.shape[1:], seed), reaction_of(stencil, hierarchy)
    grid = LargeGrid(launcher, hierarchy, reaction, rhs.shape[0], diagonal=diagonal, block=BLOCK)
    norms = torch.linalg.vector_norm(rhs.flatten(1), dim=1)
    by = (1 / norms).reshape(-1, *[1] * (rhs.dim() - 1))
    target = torch.full((rhs.shape[0],), rtol**2, dtype=torch.float64)
    grid.start((rhs * by).float(), target, most_iterations=most, active=active)
    rounds = 0
    while grid.flags[:, 0].any() and rounds < most + 5:
        grid.iterate()
        rounds += 1
    scale = (hierarchy.scale * norms).reshape(-1, *[1] * (rhs.dim() - 1))
    return grid, grid.x.double() * scale


def flag(grid, name):
    return grid.flags[:, FLAGS.index(name)].tolist()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_systems_are_solved_and_the_order_of_threads_does_not_matter(host_kernels, shape):
    stencil, rhs = problem(shape, 2)
    grid, x = solve(stencil, rhs)
    assert flag(grid, "outcome") == [0, 0]
    assert max(flag(grid, "iterations")) <= 14
    left = rhs - apply(stencil, x)
    assert (left.flatten(1).norm(dim=1) / rhs.flatten(1).norm(dim=1)).max() < 1.1e-5
    for seed in (7, 8):
        again, _ = solve(stencil, rhs, seed=seed)
        assert torch.equal(again.x, grid.x)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_first_direction_is_one_cycle_of_the_reference(host_kernels, shape):
    stencil, rhs = problem(shape, 2)
    hierarchy = build_hierarchy(stencil)
    grid, _ = solve(stencil, rhs, hierarchy=hierarchy, most=0, active=torch.tensor([True, True]))
    residual = (rhs / rhs.flatten(1).norm(dim=1).reshape(-1, *[1] * len(shape))).float()
    # No iteration has run, so that x, p and r are those of the start.
    grid.start(residual, torch.zeros(2, dtype=torch.float64), most_iterations=1)
    wanted = v_cycle(hierarchy, residual)
    assert ((grid._direction - wanted).abs().max() / wanted.abs().max()).item() < 2e-6


def test_the_solution_is_that_of_dense_linear_algebra(host_kernels):
    stencil, rhs = problem((9, 13), 2, 1.0)
    _, x = solve(stencil, rhs, rtol=3e-7)
    wanted = torch.linalg.solve(dense(stencil), rhs.flatten(1).unsqueeze(-1)).reshape(rhs.shape)
    assert ((x - wanted).norm() / wanted.norm()).item() < 1e-5


def test_a_system_alone_and_in_a_batch_has_the_same_bits(host_kernels):
    stencil, rhs = problem((21, 70), 3)
    grid, _ = solve(stencil, rhs)
    alone, _ = solve(stencil.select(slice(1, 2)), rhs[1:2])
    assert torch.equal(alone.x[0], grid.x[1])
    assert flag(alone, "iterations")[0] == flag(grid, "iterations")[1]


def test_one_matrix_serves_many_right_hand_sides(host_kernels):
    stencil, _ = problem((9, 11, 37), 1)
    _, rhs = problem((9, 11, 37), 3)
    grid, x = solve(stencil, rhs)
    repeated = stencil.select(torch.zeros(3, dtype=torch.int64))
    each, _ = solve(repeated, rhs)
    assert torch.equal(grid.x, each.x)
    left = rhs - apply(repeated, x)
    assert (left.flatten(1).norm(dim=1) / rhs.flatten(1).norm(dim=1)).max() < 1.1e-5


def test_systems_stop_alone(host_kernels):
    stencil, rhs = problem((12, 33), 3)
    grid, _ = solve(stencil, rhs, most=4, active=torch.tensor([True, False, True]), rtol=1e-9)
    assert flag(grid, "outcome") == [1, 0, 1]
    assert flag(grid, "iterations") == [4, 0, 4]
    assert not grid.x[1].any()
    spoilt = rhs.clone()
    spoilt[2, 3, 4] = torch.nan
    grid, _ = solve(stencil, spoilt)
    assert flag(grid, "outcome") == [0, 0, 4]
    assert torch.equal(grid.x[:2], solve(stencil, rhs)[0].x[:2])


def test_a_diagonal_takes_the_place_of_the_cycle(host_kernels):
    stencil, rhs = problem((7, 9), 2, 0.5)
    grid, x = solve(stencil, rhs, jacobi=True, most=200)
    assert flag(grid, "outcome") == [0, 0]
    assert min(flag(grid, "iterations")) > 14
    left = rhs - apply(stencil, x)
    assert (left.flatten(1).norm(dim=1) / rhs.flatten(1).norm(dim=1)).max() < 1.1e-5


@pytest.mark.parametrize("contrast", [1e3, 1e6])
def test_two_valued_coefficients_of_high_contrast(host_kernels, contrast):
    generator = torch.Generator().manual_seed(11)
    blocks = (
        torch.rand(1, 6, 9, generator=generator, dtype=torch.float64).repeat_interleave(5, 1).repeat_interleave(8, 2)
    )
    stencil = diffusion(torch.where(blocks > 0.5, contrast, 1.0))
    grid, _ = solve(stencil, torch.ones(1, 30, 72, dtype=torch.float64))
    assert flag(grid, "outcome") == [0]
    assert flag(grid, "iterations")[0] <= 16


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_certificate_is_the_residual_of_the_stencil(host_kernels, shape):
    stencil, rhs = problem(shape, 3)
    x, residual = torch.randn_like(rhs), torch.full_like(rhs, torch.nan)
    norm2 = true_residual(launcher_of(shape), stencil, x, rhs, residual, block=BLOCK)
    wanted = rhs - apply(stencil, x)
    assert ((residual - wanted).abs().max() / wanted.abs().max()).item() < 1e-14
    assert torch.allclose(norm2, wanted.flatten(1).square().sum(1), rtol=1e-13)


def test_blocks_cover_the_grid_with_few_or_many_systems():
    for shape in ((4096, 4096), (256, 256, 256), (64, 64), (5, 3), (33, 70, 9)):
        for batch in (1, 7, 3000):
            (tiles, chunks, systems), chunk = _tiles(shape, batch, 256)
            assert systems == batch
            assert (chunks - 1) * chunk < shape[0] <= chunks * chunk
            wide, tall = (32, 8) if len(shape) == 3 else (256, 1)
            down, rest = divmod(tiles, -(-shape[-1] // wide))
            assert rest == 0
            assert (down - 1) * tall < (shape[1] if len(shape) == 3 else 1) <= down * tall
    assert _tiles((4096, 4096), 1, 256)[0][:2] == (16, 64)


def test_batches_that_do_not_fit_are_refused(host_kernels):
    stencil, _ = problem((9, 5), 2)
    with pytest.raises(ValueError, match="a hierarchy of 2 systems for a batch of 3; it must be 1 or 3"):
        LargeGrid(launcher_of((9, 5)), build_hierarchy(stencil), stencil.reaction.float(), 3, block=BLOCK)


def test_more_systems_than_a_launch_takes_are_refused():
    stencil, _ = problem((9, 5), 1)
    with pytest.raises(MemoryError, match="a batch of 65536 systems on a large grid; solve at most 65535 at once"):
        LargeGrid(None, build_hierarchy(stencil), stencil.reaction.float(), 65536, block=BLOCK)


def test_grids_beyond_32_bit_indices_are_refused():
    shape, coarse = (864, 864, 864), (432, 432, 432)
    number = torch.zeros(1, dtype=torch.float32)
    finest = Level(number.expand(1, *shape), number.expand(1, 3, *shape), None, number.expand(1, 27, *coarse), None)
    with pytest.raises(ValueError, match=r"\(864, 864, 864\) cells has too many for 32-bit indices; use fewer than"):
        LargeGrid(None, Hierarchy((finest,), number), finest.diagonal, 1)

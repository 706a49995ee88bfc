import numpy as np
import pytest
import scipy.sparse as sp
import torch
from suites.sell_kernel_checks import dense

from forebay.kernels.host.launcher import HostLauncher
from forebay.kernels.sell import from_bfloat16, length_order, sell, soft_matrix, soft_transfer, to_bfloat16
from forebay.kernels.sell_pcg import CycleLevel, SellPcg, macros

BLOCK = 64


@pytest.fixture
def rng():
    return np.random.default_rng(2026)


def random_matrix(rng, rows, columns, density=0.05):
    chance = density * rng.uniform(0, 3, (rows, 1))
    return sp.csr_array(np.where(rng.random((rows, columns)) < chance, rng.standard_normal((rows, columns)), 0))


def grid_laplacian(rng, n, deviation):
    """Five-point, harmonic means of a log-normal coefficient, a little reaction."""
    k = np.exp(deviation * rng.standard_normal((n, n)))
    number = np.arange(n * n).reshape(n, n)
    pairs = [(number[:-1], number[1:]), (number[:, :-1], number[:, 1:])]
    low, high = (np.concatenate([pair[side].ravel() for pair in pairs]) for side in (0, 1))
    weight = 2 / (1 / k.ravel()[low] + 1 / k.ravel()[high])
    links = sp.coo_array((-weight, (low, high)), shape=(n * n, n * n))
    links = (links + links.T).tocsr()
    return (links + sp.diags_array(0.01 * k.ravel() - links.sum(1))).tocsr()


def aggregation(matrix, n):
    """Smoothed aggregation by squares of four cells: levels and the last one's inverse."""
    levels = []
    while matrix.shape[0] > 30:
        m = (n + 1) // 2
        y, x = np.divmod(np.arange(n * n), n)
        tentative = sp.csr_array((np.ones(n * n), (np.arange(n * n), y // 2 * m + x // 2)), shape=(n * n, m * m))
        prolong = (tentative - sp.diags_array(0.66 / matrix.diagonal()) @ matrix @ tentative).tocsr()
        levels.append(CycleLevel(matrix, 1.33 / abs(matrix).sum(1), prolong))
        matrix, n = (prolong.T @ matrix @ prolong).tocsr(), m
    return levels, np.linalg.inv(matrix.toarray())


@pytest.mark.parametrize(
    ("rows", "columns", "window"), [(100, 100, 32), (64, 64, 1), (7, 40, 512), (97, 20, 64), (1, 1, 8)]
)
def test_a_stored_matrix_is_the_matrix(rng, rows, columns, window):
    matrix = random_matrix(rng, rows, columns)
    order, column_order = length_order(matrix.indptr, window), rng.permutation(columns)
    stored = sell(matrix, order, column_order)
    assert (dense(stored, matrix.shape, column_order) == matrix.toarray()).all()
    assert stored.fill == len(stored.values) / max(1, matrix.nnz)


def test_a_square_matrix_acts_on_vectors_in_the_order_of_its_rows(rng):
    matrix = random_matrix(rng, 70, 70)
    stored = sell(matrix)
    assert (dense(stored, matrix.shape, stored.order) == matrix.toarray()).all()


def test_sorting_saves_padding_and_stays_within_windows(rng):
    matrix = random_matrix(rng, 2000, 2000, 0.01)
    fills = {window: sell(matrix, length_order(matrix.indptr, window)).fill for window in (1, 64, 512)}
    assert fills[1] > 1.3 * fills[512]
    assert fills[1] > fills[64] > fills[512]
    assert fills[512] < 1.1
    assert (length_order(matrix.indptr, 64) // 64 == np.arange(2000) // 64).all()
    assert (length_order(matrix.indptr, 1) == np.arange(2000)).all()


def test_bfloat16_is_that_of_torch(rng):
    bits = rng.integers(0, 2**32, 20000, dtype=np.uint32)
    halves = (np.arange(100, dtype=np.uint32) << 16) + np.uint32(0x3F808000)
    values = np.concatenate([bits, halves]).view(np.float32)
    wanted = torch.from_numpy(values).to(torch.bfloat16)
    got = from_bfloat16(to_bfloat16(values))
    assert np.isnan(got).sum() == np.isnan(values).sum() > 0
    assert ((got == wanted.float().numpy()) | np.isnan(values)).all()


@pytest.mark.parametrize("bits", [16, 32])
def test_rounding_keeps_the_sums_of_rows(rng, bits):
    matrix = grid_laplacian(rng, 12, 2.0)
    order = length_order(matrix.indptr)
    soft = soft_matrix(matrix, order, bits=bits)
    off = dense(soft.off, matrix.shape, order)
    assert (np.diag(off) == 0).all()
    diagonal = np.empty(144)
    diagonal[order] = soft.diagonal
    assert np.abs(off.sum(1) + diagonal - matrix.sum(1)).max() < 3e-7 * abs(matrix).max()
    error = np.abs(off + np.diag(matrix.diagonal()) - matrix.toarray()).max() / abs(matrix).max()
    assert (error > 1e-4) == (bits == 16)


def test_spread_restores_the_sums_of_prolongation(rng):
    prolong = aggregation(grid_laplacian(rng, 12, 2.0), 12)[0][0].prolong
    order, coarse_order = rng.permutation(144), rng.permutation(36)
    stored, restriction, spread = soft_transfer(prolong, order, coarse_order, bits=16)
    p = dense(stored, prolong.shape, coarse_order)
    assert (dense(restriction, prolong.T.shape, order) == p.T).all()
    sums = prolong.sum(1)[order]
    steady = np.abs(sums) > 0.1 * abs(prolong).sum(1)[order]
    assert np.abs(spread * p.sum(1)[order] / sums - 1)[steady].max() < 1e-6
    assert np.abs(p.sum(1)[order] / sums - 1)[steady].max() > 1e-4
    assert (spread[~steady] == 1).all()
    assert soft_transfer(prolong, order, coarse_order, bits=32)[2] is None


def test_bad_orders_and_windows_are_refused(rng):
    matrix = random_matrix(rng, 10, 8)
    with pytest.raises(ValueError, match="a window of 0 rows; it must be at least 1"):
        length_order(matrix.indptr, 0)
    with pytest.raises(ValueError, match="orders of 9 rows and 8 columns for a matrix of 10 x 8"):
        sell(matrix, np.arange(9))


@pytest.fixture
def problem(rng):
    matrix = grid_laplacian(rng, 15, 1.5)
    levels, inverse = aggregation(matrix, 15)
    rhs = rng.standard_normal((225, 3))
    return matrix, levels, inverse, torch.from_numpy(rhs / np.linalg.norm(rhs, axis=0))


def solve(problem, *, bits=32, seed=0, small=False, columns=(0, 1, 2), rtol=1e-10, levels=None):
    matrix, own_levels, inverse, rhs = problem
    source = macros(len(columns), bits=bits, block=BLOCK)
    launcher, persistent = (HostLauncher(name, source, seed=seed) for name in ("sell", "sell_small"))
    pcg = SellPcg(
        launcher,
        matrix,
        own_levels if levels is None else levels,
        inverse,
        len(columns),
        bits=bits,
        window=64,
        device="cpu",
        block=BLOCK,
    )
    target = torch.full((len(columns),), rtol**2, dtype=torch.float64)
    pcg.begin(rhs[:, list(columns)], target, most_iterations=100)
    if small:
        pcg.solve_small(persistent, 3)
    else:
        while pcg.flags[:, 0].any():
            pcg.iterate()
    return pcg


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("small", [False, True])
def test_columns_are_solved_to_the_tolerance(host_kernels, problem, bits, small):
    matrix, _, _, rhs = problem
    first = solve(problem, bits=bits, small=small)
    x = first.solution().numpy()
    assert np.linalg.norm(rhs.numpy() - matrix @ x, axis=0).max() < 1.01e-10
    assert first.flags[:, 2].tolist() == [0, 0, 0]
    assert first.flags[:, 1].max() <= 16
    for seed in (7, 8):
        again = solve(problem, bits=bits, small=small, seed=seed)
        assert (again.solution().numpy() == x).all()


def test_16_bits_cost_at_most_two_iterations(host_kernels, rng):
    matrix = grid_laplacian(rng, 15, 3.5)
    assert matrix.diagonal().max() / matrix.diagonal().min() > 1e6
    levels, inverse = aggregation(matrix, 15)
    rhs = torch.from_numpy(matrix @ rng.standard_normal((225, 3)))
    problem = matrix, levels, inverse, rhs / torch.linalg.vector_norm(rhs, dim=0)
    counts = [solve(problem, bits=bits).flags[:, 1].max().item() for bits in (32, 16)]
    assert counts[1] <= counts[0] + 2 < 60


def test_a_column_of_zeros_is_done_at_once(host_kernels, problem):
    matrix, levels, inverse, rhs = problem
    rhs = rhs.clone()
    rhs[:, 1] = 0
    for small in (False, True):
        pcg = solve((matrix, levels, inverse, rhs), small=small)
        assert pcg.flags[1, :3].tolist() == [0, 0, 0]
        assert not pcg.solution()[:, 1].any()
        assert np.linalg.norm(rhs.numpy() - matrix @ pcg.solution().numpy(), axis=0).max() < 1.01e-10


def test_nan_in_one_column_costs_that_column_only(host_kernels, problem):
    matrix, levels, inverse, rhs = problem
    spoilt = rhs.clone()
    spoilt[3, 2] = torch.nan
    whole = solve(problem).solution()
    for small in (False, True):
        pcg = solve((matrix, levels, inverse, spoilt), small=small)
        assert pcg.flags[:, 2].tolist() == [0, 0, 4]
        assert torch.allclose(pcg.solution()[:, :2], whole[:, :2], rtol=0, atol=1e-9)


def test_a_matrix_without_levels_is_solved_by_its_inverse(host_kernels, rng):
    matrix = grid_laplacian(rng, 5, 1.0)
    rhs = torch.from_numpy(rng.standard_normal((25, 3)))
    problem = matrix, [], np.linalg.inv(matrix.toarray()), rhs / torch.linalg.vector_norm(rhs, dim=0)
    for small in (False, True):
        pcg = solve(problem, small=small)
        assert pcg.flags[:, 1].max() <= 3
        assert np.linalg.norm(problem[3].numpy() - matrix @ pcg.solution().numpy(), axis=0).max() < 1.01e-10

"""The levels that the compiled set-up makes, against matrices put together entry by entry."""

import itertools

import numpy as np
import pytest
import scipy.sparse as sp
from cpu_systems import grid_system

from forebay.kernels.cpu import GridSolver, layout
from forebay.kernels.cpu.plan import plan_of
from forebay.kernels.hierarchy import box_offsets, half_offsets, levels_of

SHAPES = [(21, 18), (9, 33), (1, 90), (70, 1), (7, 5, 6), (9, 1, 11), (1, 9, 11), (9, 13, 1), (10, 9, 8)]


def operator(level):
    shape = level["diagonal"].shape
    cells = np.arange(level["diagonal"].size).reshape(shape)
    matrix = np.diag(level["diagonal"].ravel().astype(float))
    finest = len(level["off"]) == len(shape)
    for values, offset in zip(level["off"], half_offsets(len(shape), finest=finest), strict=True):
        for cell in np.ndindex(*shape):
            other = tuple(map(sum, zip(cell, offset, strict=True)))
            if all(0 <= i < n for i, n in zip(other, shape, strict=True)):
                matrix[cells[cell], cells[other]] = matrix[cells[other], cells[cell]] = values[cell]
            else:
                assert values[cell] == 0
    return matrix


def interpolation(level, coarse_shape):
    shape = level["diagonal"].shape
    fine = np.arange(level["diagonal"].size).reshape(shape)
    coarse = np.arange(np.prod(coarse_shape)).reshape(coarse_shape)
    matrix = np.zeros((fine.size, coarse.size))
    for values, offset in zip(level["prolong"], box_offsets(len(shape)), strict=True):
        for cell in np.ndindex(*coarse_shape):
            child = tuple(2 * i + o for i, o in zip(cell, offset, strict=True))
            if all(0 <= i < n for i, n in zip(child, shape, strict=True)):
                matrix[fine[child], coarse[cell]] = values[cell]
            else:
                assert values[cell] == 0
    return matrix


def levels(shape, contrast, **options):
    system = grid_system(shape, contrast=contrast, seed=7)
    solver = GridSolver(shape, **options)
    solver.setup(system.faces, system.reaction)
    return system, solver, solver.hierarchy()


@pytest.mark.parametrize("contrast", [10.0, 1e5])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_level_is_the_galerkin_product_of_the_one_above(shape, contrast):
    system, _, found = levels(shape, contrast)
    assert [level["diagonal"].shape for level in found] == list(levels_of(shape))
    finest = system.matrix / system.matrix.diagonal().mean()
    np.testing.assert_allclose(operator(found[0]), finest.toarray(), rtol=1e-6, atol=1e-12)
    for level, below in itertools.pairwise(found):
        matrix, transfer = operator(level), interpolation(level, below["diagonal"].shape)
        largest = abs(matrix).max()
        np.testing.assert_allclose(operator(below), transfer.T @ matrix @ transfer, atol=1e-6 * largest)
        np.testing.assert_allclose(level["smoother"].ravel(), 1.6 / abs(matrix).sum(1), rtol=1e-5)
    last = operator(found[-1])
    np.testing.assert_allclose(found[-1]["inverse"] @ last, np.eye(len(last)), atol=1e-4)


@pytest.mark.parametrize("shape", [(12, 11), (5, 6, 7)])
def test_a_cell_between_coarse_ones_takes_the_value_its_collapsed_equation_gives(shape):
    _, _, found = levels(shape, 50.0)
    matrix = operator(found[0])
    transfer = interpolation(found[0], found[1]["diagonal"].shape)
    cells = np.arange(matrix.shape[0]).reshape(shape)
    cell = (1,) + (2,) * (len(shape) - 1)
    low, high = (cells[(i, *cell[1:])] for i in (0, 2))
    across = sum(matrix[cells[cell], j] for j in range(len(matrix)) if j not in (low, high))
    expected = [-matrix[cells[cell], j] / across for j in (low, high)]
    np.testing.assert_allclose(sorted(transfer[cells[cell]][transfer[cells[cell]] != 0]), sorted(expected), rtol=1e-5)


@pytest.mark.parametrize("sweeps", [1, 2])
@pytest.mark.parametrize("shape", [(21, 18), (1, 90), (9, 7, 8)])
def test_the_cycle_is_smoothing_and_coarse_correction_on_every_level(shape, sweeps):
    system, solver, found = levels(shape, 100.0, sweeps=sweeps)
    root = 0.6 * np.sqrt(0.5)
    steps = {1: [1.0], 2: [1 / (1 + root), 1 / (1 - root)]}[sweeps]

    def cycle(residual, depth=0):
        level = found[depth]
        if "inverse" in level:
            return level["inverse"] @ residual
        matrix, m = operator(level), level["smoother"].ravel()
        z = np.zeros_like(residual)
        for step in steps:
            z = z + step * m * (residual - matrix @ z)
        transfer = interpolation(level, found[depth + 1]["diagonal"].shape)
        z = z + transfer @ cycle(transfer.T @ (residual - matrix @ z), depth + 1)
        for step in reversed(steps):
            z = z + step * m * (residual - matrix @ z)
        return z

    residual, z = np.random.default_rng(11).standard_normal(shape), np.empty(shape)
    solver.cycle(residual, z)
    expected = cycle(residual.ravel()).reshape(shape) / system.matrix.diagonal().mean()
    assert abs(z - expected).max() < 1e-6 * abs(expected).max()


@pytest.mark.parametrize("sweeps", [1, 2])
@pytest.mark.parametrize("shape", [(13, 10), (5, 6, 7)])
def test_the_cycle_is_symmetric_positive_definite(shape, sweeps):
    system, solver, _ = levels(shape, 1e6, sweeps=sweeps)
    dense = np.empty((system.rhs.size,) * 2)
    for row, unit in zip(dense, np.eye(len(dense)), strict=True):
        z = np.empty(shape)
        solver.cycle(unit.reshape(shape), z)
        row[:] = z.ravel()
    root = np.sqrt(system.matrix.diagonal())
    scaled = root[:, None] * dense * root
    assert abs(scaled - scaled.T).max() < 1e-4 * abs(scaled).max()
    eigenvalues = np.linalg.eigvalsh((scaled + scaled.T) / 2)
    assert eigenvalues[0] > 0.2


@pytest.mark.parametrize("shape", [(40, 37), (12, 11, 13)])
def test_chunks_and_slabs_of_any_length_give_the_same_numbers(shape, monkeypatch):
    found = []
    for chunk in (10**6, 64):
        monkeypatch.setattr(layout, "CHUNK", chunk)
        plan_of.cache_clear()
        _, solver, made = levels(shape, 100.0)
        z = np.empty(shape)
        solver.cycle(np.random.default_rng(7).standard_normal(shape), z)
        found.append((made, z))
    plan_of.cache_clear()
    (one, first), (many, second) = found
    assert all((a[key] == b[key]).all() for a, b in zip(one, many, strict=True) for key in a)
    np.testing.assert_allclose(first, second, rtol=0, atol=1e-6 * abs(first).max())


def test_a_second_setup_leaves_nothing_of_the_first():
    shape = (37, 22)
    _, solver, expected = levels(shape, 100.0)
    other = grid_system(shape, contrast=1e5, seed=13)
    solver.setup(other.faces, other.reaction)
    again = grid_system(shape, contrast=100.0, seed=7)
    solver.setup(again.faces, again.reaction)
    for a, b in zip(solver.hierarchy(), expected, strict=True):
        assert all((a[key] == b[key]).all() for key in a)


@pytest.mark.parametrize("shape", [(200, 90), (26, 40, 42)])
def test_products_that_are_made_slab_by_slab_are_exact_at_the_seams(shape):
    system, _, (finest, coarse, *_) = levels(shape, 100.0)
    row = plan_of(shape).layout.table[1]
    assert row[layout.FLAT] > 3 * layout.SLAB
    matrix = system.matrix / system.matrix.diagonal().mean()
    transfer = sparse_interpolation(finest, coarse["diagonal"].shape)
    product = (transfer.T @ matrix @ transfer).tocsr()
    cells = np.arange(coarse["diagonal"].size).reshape(coarse["diagonal"].shape)
    np.testing.assert_allclose(product.diagonal(), coarse["diagonal"].ravel(), rtol=1e-4, atol=1e-6)
    for values, offset in zip(coarse["off"], half_offsets(len(shape), finest=False), strict=True):
        here = tuple(slice(max(0, -o), n - max(0, o)) for o, n in zip(offset, cells.shape, strict=True))
        there = tuple(slice(max(0, o), n + min(0, o)) for o, n in zip(offset, cells.shape, strict=True))
        wanted = np.asarray(product[cells[here].ravel(), cells[there].ravel()]).ravel()
        np.testing.assert_allclose(values[here].ravel(), wanted, atol=1e-5)


def sparse_interpolation(level, coarse_shape):
    shape = level["diagonal"].shape
    fine, coarse = (
        np.arange(level["diagonal"].size).reshape(shape),
        np.arange(np.prod(coarse_shape)).reshape(coarse_shape),
    )
    entries = [[], [], []]
    for values, offset in zip(level["prolong"], box_offsets(len(shape)), strict=True):
        children = [2 * i + o for i, o in zip(np.indices(coarse_shape), offset, strict=True)]
        inside = np.logical_and.reduce([(c >= 0) & (c < n) for c, n in zip(children, shape, strict=True)])
        for found, part in zip(
            entries, (values[inside], fine[tuple(c[inside] for c in children)], coarse[inside]), strict=True
        ):
            found.append(part)
    data, rows, columns = map(np.concatenate, entries)
    return sp.csr_matrix((data.astype(float), (rows, columns)), shape=(fine.size, coarse.size))

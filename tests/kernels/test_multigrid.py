import itertools

import numpy as np
import pytest
import torch
from grid_levels import dense_cycle, dense_operator, dense_prolongation, iterations, rough, rough_stencil

from forebay.kernels.multigrid import ClassicalRule, apply_level, build_hierarchy, prolongate, restrict, v_cycle
from forebay.kernels.stencil import Stencil, apply, diffusion

SHAPES = [(16, 16), (17, 13), (9, 40), (1, 100), (130, 1), (9, 8, 7), (5, 1, 30), (7, 7, 7)]


def build(stencil, **options):
    return build_hierarchy(stencil, dtype=torch.float64, **options)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_coarse_operator_is_the_exact_galerkin_product(shape):
    levels = build(rough_stencil(shape)).levels
    assert len(levels) > 1
    for fine, coarse in itertools.pairwise(levels):
        prolongation = dense_prolongation(fine)
        expected = prolongation.T @ dense_operator(fine) @ prolongation
        assert np.abs(dense_operator(coarse) - expected).max() <= 1e-13 * np.abs(expected).max()


@pytest.mark.parametrize("shape", [(6, 7), (3, 4, 3)])
def test_the_finest_level_is_the_scaled_stencil(shape):
    stencil = rough_stencil(shape, batch=2)
    hierarchy = build(stencil)
    x = rough(shape, batch=2, seed=13)
    scaled = apply(stencil, x) * hierarchy.scale.view(2, *[1] * len(shape))
    torch.testing.assert_close(apply_level(hierarchy.levels[0], x), scaled, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(hierarchy.levels[0].diagonal.flatten(1).mean(1), torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(9, 10), (5, 6, 4)])
def test_level_operators_agree_with_their_matrices(shape):
    for depth, level in enumerate(build(rough_stencil(shape)).levels[:-1]):
        x = rough(level.shape, seed=11 + depth)
        flat = x.flatten().numpy()
        np.testing.assert_allclose(apply_level(level, x).flatten().numpy(), dense_operator(level) @ flat, rtol=1e-10)
        down = dense_prolongation(level).T @ flat
        np.testing.assert_allclose(restrict(level, x).flatten().numpy(), down, rtol=1e-10)
        coarse = restrict(level, x)
        up = dense_prolongation(level) @ coarse.flatten().numpy()
        np.testing.assert_allclose(prolongate(level, coarse).flatten().numpy(), up, rtol=1e-10)


def test_interpolation_in_one_dimension_solves_the_homogeneous_equation():
    """A P e_I vanishes in fine cells between coarse ones: the definition of operator-dependent interpolation."""
    level = build(rough_stencil((1, 101))).levels[0]
    between = (dense_operator(level) @ dense_prolongation(level))[1::2]
    assert np.abs(between).max() < 1e-14


@pytest.mark.parametrize("shape", [(16, 17), (8, 9, 7)])
def test_interpolation_keeps_constants_where_row_sums_vanish(shape):
    level = build(rough_stencil(shape, "neumann")).levels[0]
    np.testing.assert_allclose(dense_prolongation(level).sum(1)[level_cells(shape)], 1, rtol=1e-12)


def level_cells(shape):
    """Fine cells that have coarse cells on both sides along every axis."""
    inside = np.ones(shape, bool)
    for axis, count in enumerate(shape):
        if count % 2 == 0:
            np.moveaxis(inside, axis, 0)[-1] = True
    return inside.ravel()


@pytest.mark.parametrize("smoothing", [0.3, 1.6, 1.99])
@pytest.mark.parametrize("shape", [(15, 12), (6, 5, 7)])
def test_the_cycle_is_symmetric_positive_definite_and_below_the_inverse(shape, smoothing):
    hierarchy = build(rough_stencil(shape, contrast=1e6), rule=ClassicalRule(smoothing))
    cycle = dense_cycle(hierarchy)
    assert np.abs(cycle - cycle.T).max() <= 1e-12 * np.abs(cycle).max()
    assert np.linalg.eigvalsh(cycle).min() > 0
    root = np.linalg.cholesky(dense_operator(hierarchy.levels[0]))
    spectrum = np.linalg.eigvalsh(root.T @ cycle @ root)
    assert spectrum.max() <= 1 + 1e-9
    assert spectrum.min() > 0


@pytest.mark.parametrize("smoothing", [0.0, 2.0, -1.0])
def test_smoothing_that_makes_the_cycle_indefinite_is_refused(smoothing):
    with pytest.raises(ValueError, match=r"between 0 and 2, 1\.6 is good"):
        ClassicalRule(smoothing)


def blobs(count, dimension, contrast, seed=5):
    """Two values by the sign of a few random waves."""
    rng = np.random.default_rng(seed)
    at = np.stack(np.meshgrid(*[np.arange(count) / count] * dimension, indexing="ij"))
    waves = [
        np.cos(2 * np.pi * (np.tensordot(rng.integers(-4, 5, dimension), at, 1) + rng.random())) for _ in range(12)
    ]
    return torch.from_numpy(np.where(sum(waves) > 0, contrast, 1.0))[None]


@pytest.mark.parametrize(
    ("count", "dimension", "contrast", "most"),
    [(64, 2, 4.0, 12), (128, 2, 1e3, 14), (128, 2, 1e6, 18), (129, 2, 1e6, 18), (16, 3, 1e6, 18)],
)
def test_iterations_hardly_depend_on_size_and_contrast(count, dimension, contrast, most):
    stencil = diffusion(blobs(count, dimension, contrast))
    taken = iterations(stencil, build_hierarchy(stencil))
    assert 7 <= taken <= most


def test_weak_reaction_on_neumann_walls_is_no_difficulty():
    stencil = rough_stencil((40, 40), "neumann", reaction=1e-6, contrast=10.0)
    assert iterations(stencil, build_hierarchy(stencil)) <= 14


@pytest.mark.parametrize("shape", [(20, 13), (6, 7, 8), (3, 4)])
def test_a_singular_system_gets_a_semidefinite_cycle(shape):
    hierarchy = build(rough_stencil(shape, "neumann"))
    matrix, cycle = dense_operator(hierarchy.levels[0]), dense_cycle(hierarchy)
    assert np.linalg.eigvalsh(cycle).min() > -1e-12 * np.abs(cycle).max()
    spectrum = np.sort(np.linalg.eigvals(cycle @ matrix).real)
    assert abs(spectrum[0]) < 1e-9
    assert spectrum[1] > 0.1
    last = hierarchy.levels[-1]
    dense = dense_operator(last)
    np.testing.assert_allclose(last.inverse[0].numpy(), np.linalg.pinv(dense, rcond=1e-12), atol=1e-8 * 1 / dense.max())


def test_two_separate_basins_without_walls_have_two_null_vectors():
    active = torch.ones(1, 6, 7, dtype=torch.bool)
    active[:, :, 3] = False
    last = build(diffusion(rough((6, 7)), "neumann", active=active)).levels[-1]
    np.testing.assert_allclose(last.inverse[0].numpy(), np.linalg.pinv(dense_operator(last), rcond=1e-12), atol=1e-7)


@pytest.mark.parametrize(
    ("shape", "share", "least"), [((18, 21), 0.2, 0.1), ((40, 37), 0.45, 5e-4), ((8, 9, 10), 0.3, 0.1)]
)
def test_masked_cells_stay_apart(shape, share, least):
    generator = torch.Generator().manual_seed(13)
    active = torch.rand(1, *shape, generator=generator) > share
    hierarchy = build(diffusion(rough(shape), active=active))
    cycle, matrix = dense_cycle(hierarchy), dense_operator(hierarchy.levels[0])
    inactive = ~active.flatten().numpy()
    assert np.abs(cycle[inactive][:, ~inactive]).max() < 1e-12
    assert np.linalg.eigvalsh(cycle).min() > -1e-12
    # Patches that inactive cells cut off from all walls are singular, each by itself.
    patches = int((np.linalg.eigvalsh(matrix) < 1e-12).sum())
    spectrum = np.sort(np.linalg.eigvals(cycle @ matrix).real)
    assert np.abs(spectrum[:patches]).max(initial=0) < 1e-9
    assert least < spectrum[patches]
    assert spectrum[-1] < 1 + 1e-9


def test_interpolation_beside_masked_cells_keeps_constants_on_all_levels():
    """Nothing is drawn from a masked cell, and what is not drawn from it is drawn from the others."""
    shape = (33, 33)
    active = torch.ones(1, *shape, dtype=torch.bool)
    active[:, 8:13, 8:17] = False
    for level in build(diffusion(rough(shape, contrast=3.0), "neumann", active=active)).levels[:-1]:
        prolongation = dense_prolongation(level)
        matrix = dense_operator(level)
        coupled = np.abs(matrix).sum(1) > np.abs(matrix.diagonal()) * (1 + 1e-14)
        np.testing.assert_allclose(prolongation[coupled].sum(1), 1, rtol=1e-9)
        coarse = coupled.reshape(level.shape)[::2, ::2].ravel()
        assert np.all(prolongation[coupled][:, ~coarse] == 0)


def test_one_system_with_nan_leaves_the_others_alone():
    a = rough((20, 20), batch=3)
    clean = build_hierarchy(diffusion(a))
    a[1, 4, 5] = torch.nan
    spoilt = build_hierarchy(diffusion(a))
    for good, bad in zip(clean.levels, spoilt.levels, strict=True):
        assert torch.equal(good.diagonal[[0, 2]], bad.diagonal[[0, 2]])
    assert torch.equal(clean.levels[-1].inverse[[0, 2]], spoilt.levels[-1].inverse[[0, 2]])
    assert spoilt.levels[-1].inverse[1].isnan().all()


def test_systems_in_a_batch_are_what_they_are_alone():
    a = rough((19, 22), batch=3)
    together, alone = build(diffusion(a)), build(diffusion(a[1:2]))
    for level, single in zip(together.levels, alone.levels, strict=True):
        torch.testing.assert_close(level.off[1:2], single.off, rtol=1e-13, atol=0)
    residual = rough((19, 22), batch=3, seed=11)
    torch.testing.assert_close(v_cycle(together, residual)[1:2], v_cycle(alone, residual[1:2]), rtol=1e-12, atol=1e-14)


def test_one_hierarchy_serves_many_right_hand_sides():
    hierarchy = build(rough_stencil((19, 22)))
    residuals = rough((19, 22), batch=4, seed=11)
    together = v_cycle(hierarchy, residuals)
    torch.testing.assert_close(together[2:3], v_cycle(hierarchy, residuals[2:3]), rtol=1e-12, atol=1e-14)


def test_units_of_the_coefficient_do_not_matter():
    a = rough((30, 30))
    small, large = build_hierarchy(diffusion(a * 1e-40)), build_hierarchy(diffusion(a * 1e40))
    for left, right in zip(small.levels, large.levels, strict=True):
        torch.testing.assert_close(left.diagonal, right.diagonal)


@pytest.mark.parametrize("shape", [(12, 11), (6, 5, 4)])
def test_derivatives_with_respect_to_the_coefficients_are_right(shape):
    stencil = rough_stencil(shape, contrast=10.0)
    residual = rough(shape, seed=11)

    def energy(*faces):
        hierarchy = build(Stencil(faces, stencil.reaction))
        return (residual * v_cycle(hierarchy, residual)).sum()

    faces = [face.clone().requires_grad_() for face in stencil.faces]
    gradient = torch.autograd.grad(energy(*faces), faces)
    change = [rough(face.shape[1:], seed=2026) for face in stencil.faces]
    ahead = energy(*(face + 1e-5 * step for face, step in zip(stencil.faces, change, strict=True)))
    behind = energy(*(face - 1e-5 * step for face, step in zip(stencil.faces, change, strict=True)))
    expected = sum((slope * step).sum() for slope, step in zip(gradient, change, strict=True))
    torch.testing.assert_close((ahead - behind) / 2e-5, expected, rtol=1e-5, atol=1e-9)

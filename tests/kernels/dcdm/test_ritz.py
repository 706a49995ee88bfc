from __future__ import annotations

import functools

import pytest
import torch

from forebay.kernels.dcdm.fluid import fluid_poisson
from forebay.kernels.dcdm.ritz import RitzBasis, draw, lanczos
from forebay.kernels.reference import dense
from forebay.kernels.stencil import Stencil, apply

SHAPE = (3, 4, 5)


def generator(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def uneven() -> Stencil:
    """An operator without repeated eigenvalues."""
    faces = tuple(
        1 + torch.rand(1, *(n - (i == axis) for i, n in enumerate(SHAPE)), generator=generator(axis + 11)).double()
        for axis in range(3)
    )
    return Stencil(faces, torch.rand(1, *SHAPE, generator=generator(13)).double())


def single(stencil: Stencil):
    return functools.partial(apply, stencil.to(dtype=torch.float32))


def ritz_vectors(basis: RitzBasis) -> torch.Tensor:
    return basis.combine(torch.eye(len(basis.values))).flatten(1).double()


def test_all_ritz_pairs_of_a_small_matrix_are_its_eigenpairs():
    stencil = uneven()
    values, vectors = torch.linalg.eigh(dense(stencil)[0])
    basis = lanczos(single(stencil), torch.randn(SHAPE, generator=generator()), 60)
    torch.testing.assert_close(basis.values, values, rtol=1e-5, atol=1e-5)
    overlap = (ritz_vectors(basis) * vectors.T).sum(1).abs()
    assert overlap.min() > 1 - 1e-3


def test_few_steps_find_the_ends_of_the_spectrum_first():
    box = fluid_poisson((8, 9, 10))
    values = torch.linalg.eigvalsh(dense(box)[0])
    basis = lanczos(single(box), torch.randn(8, 9, 10, generator=generator()), 60)
    assert basis.values[0].item() == pytest.approx(values[0].item(), rel=1e-4)
    assert basis.values[-1].item() == pytest.approx(values[-1].item(), rel=1e-5)
    w = ritz_vectors(basis)[0].view(1, 8, 9, 10)
    torch.testing.assert_close(apply(box, w), basis.values[0] * w, rtol=0, atol=1e-4)


def test_the_lanczos_vectors_stay_orthonormal_in_single_precision():
    box = fluid_poisson((12, 12, 12))
    basis = lanczos(single(box), torch.randn(12, 12, 12, generator=generator()), 200)
    flat = basis.lanczos.flatten(1).double()
    assert (flat @ flat.T - torch.eye(len(flat))).abs().max() < 1e-5


def test_the_process_ends_when_every_distinct_eigenvalue_is_found():
    """A cube of 3 x 3 x 3 has 27 eigenvalues λ_i + λ_j + λ_k, of which 7 are distinct: 2 √2 steps and sums of them."""
    cube = fluid_poisson((3, 3, 3))
    distinct = torch.linalg.eigvalsh(dense(cube)[0]).mul(1e6).round().unique().numel()
    basis = lanczos(single(cube), torch.randn(3, 3, 3, generator=generator()), 27)
    assert len(basis.values) == distinct == 7


def test_training_vectors_have_unit_length_and_repeat_with_the_generator():
    basis = lanczos(single(uneven()), torch.randn(SHAPE, generator=generator()), 20)
    vectors = draw(basis, 5, generator(2026))
    assert vectors.shape == (5, *SHAPE)
    assert vectors.dtype == torch.float32
    torch.testing.assert_close(vectors.flatten(1).norm(dim=1), torch.ones(5))
    assert torch.equal(vectors, draw(basis, 5, generator(2026)))
    assert not torch.equal(vectors, draw(basis, 5, generator(13)))


def test_low_modes_weigh_nine_times_as_much():
    basis = lanczos(single(uneven()), torch.randn(SHAPE, generator=generator()), 40)
    shares = draw(basis, 3000, generator()).flatten(1).double() @ ritz_vectors(basis).T
    deviation = shares.std(0)
    assert deviation[:22].mean() / deviation[22:].mean() == pytest.approx(9, rel=0.05)
    assert deviation[:22].max() / deviation[:22].min() < 1.1


@pytest.mark.parametrize("count", [0, 61])
def test_a_number_of_ritz_vectors_that_the_matrix_cannot_have_is_refused(count):
    with pytest.raises(ValueError, match=rf"{count} Ritz vectors of a matrix of 60 rows; ask for 1 ... 60"):
        lanczos(single(uneven()), torch.randn(SHAPE), count)


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_a_start_vector_without_direction_is_refused(value):
    with pytest.raises(ValueError, match=f"has norm {value:g}; give finite noise"):
        lanczos(single(uneven()), torch.full(SHAPE, value), 5)

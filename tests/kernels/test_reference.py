import numpy as np
import pytest
import torch
from suites.stencil_cases import SHAPES, field, fields, stencils

from forebay.kernels.reference import cg, dense, flexible_cg
from forebay.kernels.stencil import apply, diffusion

KINDS = ("dirichlet", "mixed", "reaction", "masked")


def jacobi(stencil):
    return lambda residual: residual / stencil.diagonal()


@pytest.mark.parametrize("method", [cg, flexible_cg])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_both_agree_with_a_dense_solve(shape, kind, method):
    stencil, rhs = stencils(shape)[kind], fields(shape)
    result = method(lambda u: apply(stencil, u), rhs, preconditioner=jacobi(stencil), rtol=1e-11)
    expected = np.linalg.solve(dense(stencil).numpy(), rhs.flatten(1).numpy()[..., None])[..., 0]
    np.testing.assert_allclose(result.fields.flatten(1), expected, rtol=0, atol=1e-8 * np.abs(expected).max())
    assert result.converged.all()
    assert (result.residual < 2e-11).all()


def test_each_system_stops_by_itself_as_if_it_were_alone():
    stencil, rhs = (
        diffusion(torch.cat([field((12, 11), contrast=c, batch=1) for c in (1.0001, 1e2, 1e4)])),
        fields((12, 11)),
    )
    together = cg(lambda u: apply(stencil, u), rhs)
    for row in range(3):
        one = stencil.select(slice(row, row + 1))
        alone = cg(lambda u, one=one: apply(one, u), rhs[row : row + 1])
        assert alone.iterations.item() == together.iterations[row].item()
        torch.testing.assert_close(alone.fields[0], together.fields[row], rtol=1e-10, atol=1e-12)
    assert together.iterations[0] < together.iterations[1] < together.iterations[2]


def test_it_takes_as_many_steps_as_there_are_distinct_eigenvalues():
    a = torch.ones(1, 1, 6, dtype=torch.float64)
    stencil = diffusion(a, ["neumann", "dirichlet"])
    result = cg(lambda u: apply(stencil, u), fields((1, 6), batch=1), rtol=1e-12)
    assert result.iterations.item() == 6


def test_the_exact_inverse_as_preconditioner_takes_one_step():
    stencil, rhs = diffusion(field((5, 6))), fields((5, 6))
    inverse = torch.linalg.inv(dense(stencil))
    result = cg(
        lambda u: apply(stencil, u),
        rhs,
        preconditioner=lambda r: (inverse @ r.flatten(1)[..., None]).reshape(r.shape),
    )
    assert result.iterations.tolist() == [1, 1, 1]


def test_only_the_flexible_one_bears_a_preconditioner_that_changes():
    stencil, rhs = diffusion(field((10, 10), contrast=1e3)), fields((10, 10))
    inverse = torch.linalg.inv(dense(stencil))

    def run(method):
        generator = torch.Generator().manual_seed(7)

        def changing(residual):
            weights = 0.7 + 0.6 * torch.rand(100, 1, generator=generator, dtype=torch.float64)
            return (weights * (inverse @ (weights * residual.flatten(1)[..., None]))).reshape(residual.shape)

        return method(lambda u: apply(stencil, u), rhs, preconditioner=changing, max_iterations=60).residual

    assert (run(flexible_cg) < 1e-8).all()
    assert (run(cg) > 1e-5).all()


def test_a_guess_of_the_solution_takes_no_step_and_zero_stays_zero():
    stencil, u = diffusion(field((7, 7))), fields((7, 7))
    rhs = apply(stencil, u)
    rhs[1] = 0
    guess = u.clone()
    guess[1] = 0
    result = cg(lambda v: apply(stencil, v), rhs, guess=guess)
    assert result.iterations.tolist() == [0, 0, 0]
    assert torch.equal(result.fields, guess)
    assert result.residual[1] == 0


def test_too_few_iterations_are_owned_up_to():
    stencil, rhs = diffusion(field((16, 16), contrast=1e3)), fields((16, 16))
    result = cg(lambda u: apply(stencil, u), rhs, max_iterations=5)
    assert not result.converged.any()
    assert result.iterations.tolist() == [5, 5, 5]
    assert (result.residual > 1e-3).all()


def test_nan_in_one_system_stays_there():
    stencil, rhs = diffusion(field((7, 7))), fields((7, 7))
    rhs[1, 3, 3] = torch.nan
    result = cg(lambda u: apply(stencil, u), rhs)
    assert result.converged.tolist() == [True, False, True]

import pytest
import torch
from suites.backend_suite import BackendSuite
from suites.stencil_cases import field, fields

from forebay.kernels import GridNetwork, Outcome, diffusion, prepare, solve
from forebay.kernels.guard import Decision
from forebay.kernels.stencil import apply

NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


class TestTorch(BackendSuite):
    @pytest.fixture
    def backend(self):
        return "torch"

    @pytest.fixture
    def device(self):
        return "cpu"

    def test_a_refinement_that_stalls_is_given_up(self):
        stencil, rhs = diffusion(field((12, 12))), fields((12, 12))
        _, records = solve(stencil, rhs, rtol=1e-18, backend="torch", max_iterations=1000)
        assert {r.outcome for r in records} == {Outcome.RESIDUAL_ABOVE_TOLERANCE}
        assert all(r.iterations < 500 and r.residual < 1e-14 and "loosen `rtol`" in r.message for r in records)


class TestCpu(BackendSuite):
    better = "multigrid(guard)"  # its classical cycle smooths twice, and a learned set-up takes longer

    @pytest.fixture
    def backend(self):
        return "cpu"

    @pytest.fixture
    def device(self):
        return "cpu"

    def test_learned_weights_serve_where_the_guard_lets_them(self, monkeypatch):
        monkeypatch.setattr("forebay.kernels.cpu_backend.decide", lambda *_, **__: Decision(True, 0.5, "better"))
        stencil, rhs = diffusion(field((20, 19))), fields((20, 19))
        prepared = prepare(stencil, preconditioner=GridNetwork(2), backend="cpu")
        found, records = prepared.solve(rhs)
        assert [(r.preconditioner, r.message) for r in records] == [("learned", "")] * 3
        assert float((rhs - apply(stencil, found)).norm()) < 1e-7 * float(rhs.norm())

    @pytest.mark.parametrize("batch", [1, 5])
    def test_threads_change_no_bit(self, batch):
        stencil, rhs = diffusion(field((20, 19), batch=batch)), fields((20, 19), batch=5)
        one, alone = solve(stencil, rhs, backend="cpu", threads=1)
        prepared, others = prepare(stencil, backend="cpu", threads=3).solve(rhs)
        three, many = solve(stencil, rhs, backend="cpu", threads=3)
        assert torch.equal(one, three)
        assert torch.equal(one, prepared)
        assert alone == many == others

    def test_torch_and_cpu_find_the_same_fields(self):
        stencil, rhs = diffusion(field((20, 19), contrast=1e4)), fields((20, 19))
        (one, _), (other, _) = (solve(stencil, rhs, backend=backend, rtol=1e-11) for backend in ("cpu", "torch"))
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6 * float(one.abs().max()))


@pytest.mark.gpu
@NEEDS_GPU
class TestTorchOnGpu(BackendSuite):
    @pytest.fixture
    def backend(self):
        return "torch"

    @pytest.fixture
    def device(self):
        return "cuda"


@pytest.mark.gpu
@NEEDS_GPU
class TestCuda(BackendSuite):
    @pytest.fixture
    def backend(self):
        return "cuda"

    @pytest.fixture
    def device(self):
        return "cuda"

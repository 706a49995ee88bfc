"""Broken arguments and exhausted memory; what bad numbers in one system do is part of the suite of the backends."""

import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from suites.stencil_cases import field, fields

from forebay import kernels
from forebay.kernels import GridNetwork, Outcome, backends, diffusion, memory, prepare, solve
from forebay.kernels.screening import screen

NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
BACKENDS = ("torch", "cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NEEDS_GPU]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rhs": torch.ones(2, 6, 7)}, r"shape \(2, 6, 7\); they must have shape \[3, 6, 7\] for 3 systems"),
        ({"rhs": torch.ones(3, 7, 6)}, r"shape \(3, 7, 6\); they must have shape \[3, 6, 7\]"),
        ({"rhs": torch.ones(3, 6, 7, dtype=torch.int64)}, "the right-hand side is torch.int64 on"),
        ({"guess": torch.ones(3, 6, 7).long()}, "the guess is torch.int64 on"),
        ({"guess": torch.ones(1, 6, 7)}, r"a guess of shape \(1, 6, 7\) for right-hand sides of shape \(3, 6, 7\)"),
        ({"rtol": 0.0}, "rtol=0; it must lie between 0 and 1"),
        ({"rtol": float("nan")}, "rtol=nan"),
        ({"max_iterations": 0}, "max_iterations=0; it must be at least 1"),
        ({"threads": 0}, "threads=0; it must be at least 1"),
        (
            {"preconditioner": "ilu"},
            "preconditioner='ilu'; it must be one of 'multigrid', 'jacobi', 'none', or learned",
        ),
        ({"preconditioner": GridNetwork(3)}, "3-dimensional grids, this one has 2 axes"),
        ({"preconditioner": GridNetwork(3).weights()}, "3-dimensional grids, this one has 2 axes"),
    ],
)
def test_solve_refuses(backend, settings, message):
    device = "cuda" if backend == "cuda" else "cpu"
    on_device = {name: value.to(device) if torch.is_tensor(value) else value for name, value in settings.items()}
    arguments = {"rhs": torch.ones(3, 6, 7, device=device), **on_device}
    with pytest.raises(ValueError, match=message):
        solve(diffusion(field((6, 7)).to(device)), backend=backend, **arguments)


@pytest.mark.parametrize("value", [0.0, -3.0])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_coefficient_that_is_not_positive_is_named(backend, value):
    a = field((6, 7)).to("cuda" if backend == "cuda" else "cpu")
    a[2, 1, 5] = value
    with pytest.raises(ValueError, match=rf"coefficient is {value:g} at \[system, cell\] \[2, 1, 5\]; it must be pos"):
        solve(a, torch.ones_like(a), backend=backend)


@pytest.mark.parametrize("work", [solve, lambda stencil, rhs, **settings: prepare(stencil, **settings)])
def test_a_negative_face_is_refused(work):
    stencil = diffusion(field((6, 7)))
    stencil.faces[0][1, 2, 3] = -1.0
    with pytest.raises(ValueError, match=r"faces\[0\] is -1 at \[system, cell\] \[1, 2, 3\]"):
        work(stencil, fields((6, 7)), backend="torch")


def test_an_unknown_backend_lists_the_known_ones():
    with pytest.raises(ValueError, match='backend=\'gpu\'; it must be "auto", "cuda", "torch" or "cpu"'):
        solve(field((4, 4)), fields((4, 4)), backend="gpu")


def test_a_backend_must_fit_the_device():
    with pytest.raises(ValueError, match=r'backend="cuda" with arrays on cpu; move them by `.to\("cuda"\)`'):
        solve(field((4, 4)), fields((4, 4)), backend="cuda")
    with pytest.raises(ValueError, match='backend="cpu" with arrays on meta'):
        backends.choose("cpu", torch.device("meta"))


def test_auto_takes_what_fits_the_device(monkeypatch):
    assert backends.choose("auto", torch.device("cpu")) == "cpu"
    assert backends.choose("auto", torch.device("mps")) == "torch"
    for has, chosen in ((True, "cuda"), (False, "torch")):
        monkeypatch.setattr(backends, "_has_cuda_core", lambda has=has: has)
        assert backends.choose("auto", torch.device("cuda")) == chosen
    with pytest.raises(ValueError, match='needs cuda-core, which is not installed: pip install "forebay\\[gpu\\]"'):
        backends.choose("cuda", torch.device("cuda"))


class ErrorOfCudaCore(Exception):
    """Theirs is no RuntimeError either."""


class Crowded:
    """Stands for the function that sets a backend up; refuses more than `room` systems with this error."""

    def __init__(self, room, error):
        self.room, self.error, self.sizes, self.opened = room, error, [], backends.opened

    def __call__(self, name, stencil, *rest, **settings):
        self.sizes.append(stencil.batch)
        if stencil.batch > self.room:
            raise self.error
        return self.opened(name, stencil, *rest, **settings)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
        ErrorOfCudaCore(
            "CUDA_ERROR_OUT_OF_MEMORY: The API call failed because it was unable to allocate enough memory"
        ),
    ],
)
def test_a_batch_that_does_not_fit_is_solved_in_parts(monkeypatch, error):
    stencil, rhs = diffusion(field((9, 8), batch=7)), fields((9, 8), batch=7)
    guess = fields((9, 8), batch=7, seed=29)
    expected, records = solve(stencil, rhs, guess=guess, backend="torch")
    crowded = Crowded(2, error)
    monkeypatch.setattr("forebay.kernels.pcg.opened", crowded)
    found, parts = solve(stencil, rhs, guess=guess, backend="torch")
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    assert [r.iterations for r in parts] == [r.iterations for r in records]
    assert crowded.sizes == [7, 4, 2, 2, 2, 1]


def test_one_system_that_does_not_fit_is_one_clear_error(monkeypatch):
    monkeypatch.setattr("forebay.kernels.pcg.opened", Crowded(0, MemoryError()))
    stencil, rhs = diffusion(field((9, 8))), fields((9, 8))
    with pytest.raises(MemoryError, match=r"^9 x 8 cells do not fit into memory at once, and cannot be split: free"):
        solve(stencil, rhs, backend="torch")
    with pytest.raises(
        MemoryError, match=r"^9 x 8 cells times 3 \(`solve` keeps no set-up and splits the batch\) do not"
    ):
        prepare(stencil, backend="torch")


def test_right_hand_sides_of_one_system_that_do_not_fit_are_solved_in_parts(monkeypatch):
    stencil, rhs = diffusion(field((9, 8), batch=1)), fields((9, 8), batch=5)
    prepared = prepare(stencil, backend="torch")
    expected, _ = prepared.solve(rhs)
    screened = []

    def crowded(own, some, guess, *, rtol):
        screened.append(len(some))
        if len(some) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return screen(own, some, guess, rtol=rtol)

    monkeypatch.setattr("forebay.kernels.pcg.screen", crowded)
    found, records = prepared.solve(rhs)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    assert screened == [5, 3, 2, 2, 1]
    assert len(records) == 5


def test_other_errors_are_not_taken_for_exhausted_memory():
    def broken(part):
        raise RuntimeError("size mismatch")

    with pytest.raises(RuntimeError, match="size mismatch"):
        list(memory.in_parts(broken, 4, unit="nothing"))


def test_a_matrix_that_is_not_definite_ends_as_diverged():
    stencil, rhs = diffusion(field((8, 8))), fields((8, 8))
    prepared = prepare(stencil, backend="torch", preconditioner="none")
    prepared._solver.inner.stencil.reaction[1] -= 30.0
    _, records = prepared.solve(rhs)
    assert [r.outcome for r in records] == [Outcome.CONVERGED, Outcome.DIVERGED, Outcome.CONVERGED]
    assert "broke down" in records[1].message


def test_outcomes_are_those_of_the_pipeline():
    from forebay.pipeline import records

    for outcome in Outcome:
        assert records.Outcome[outcome.name] == outcome
        assert bool(outcome.advice) == (outcome is not Outcome.CONVERGED)


def test_gradients_are_not_recorded():
    a = field((6, 6)).requires_grad_()
    found, _ = solve(a, fields((6, 6)), backend="torch")
    assert not found.requires_grad


def test_numpy_arrays_are_not_copied_by_accident():
    rhs = np.random.default_rng(7).standard_normal((2, 6, 7))
    kept = rhs.copy()
    solve(diffusion(field((6, 7), batch=2)), torch.from_numpy(rhs), backend="torch")
    np.testing.assert_array_equal(rhs, kept)


@pytest.mark.parametrize("module", ["forebay.kernels", "forebay.kernels.cpu", "forebay.kernels.grid_weights"])
def test_what_a_process_of_petsc_imports_loads_no_torch(module):
    code = f"import {module}, sys; print(sorted({{'torch', 'numba'}} & set(sys.modules)))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=100
    ).stdout
    assert "torch" not in loaded
    if module == "forebay.kernels":
        assert loaded.strip() == "[]"


def test_the_package_offers_what_it_lists():
    for name in kernels.__all__:
        assert getattr(kernels, name).__module__.startswith("forebay.kernels.")
        assert name in dir(kernels)
    with pytest.raises(AttributeError, match=re.escape("has no attribute 'prepair'; it offers GridNetwork, ")):
        kernels.prepair  # noqa: B018

"""Backends: the same samples by torch, a GPU that is not there is said so, and the processor's own loads no torch."""

import subprocess
import sys

import numpy as np
import pytest
from grid_systems import drawn

from forebay.pipeline.errors import StudyError
from forebay.pipeline.records import ChunkPlan, Outcome
from forebay.solvers.assemble import system_of
from forebay.solvers.batched import engine
from forebay.solvers.batched.solver import StencilSolver
from forebay.solvers.block_solver import BlockSolver
from forebay.solvers.methods import Method
from forebay.solvers.problems.darcy import Darcy
from forebay.solvers.problems.darcy3d import Darcy3D
from forebay.solvers.problems.heat import Heat
from forebay.solvers.problems.poisson import Poisson

PROBLEMS = {
    "darcy": Darcy(size=32),
    "darcy3d": Darcy3D(size=8),
    "poisson": Poisson(size=32),
    "heat": Heat(size=16, steps=4),
}
PLAN = {"train": ChunkPlan("train", 3, 3)}


def solved(problem, backend):
    solver = BlockSolver(problem, Method("batched", backend=backend), run_seed=13, plans=PLAN)
    block = solver.solve_block("train", 0)
    solver.destroy()
    return block


@pytest.mark.parametrize("name", PROBLEMS)
def test_torch_solves_the_same_samples(name):
    by_torch, by_cpu = solved(PROBLEMS[name], "torch"), solved(PROBLEMS[name], "cpu")
    for record in by_torch.records:
        assert (record.outcome, record.method) == (Outcome.CONVERGED, "batched:multigrid")
        assert record.residual <= 1e-8
        assert record.iterations > 0
    scale = np.abs(by_cpu.arrays["u"]).max()
    np.testing.assert_allclose(by_torch.arrays["u"], by_cpu.arrays["u"], atol=1e-5 * scale, rtol=0)


def test_one_system_at_a_time_by_torch():
    problem = PROBLEMS["darcy"]
    system = system_of(problem)
    solver = StencilSolver(system, Method("batched", backend="torch"), grid=problem.grid_shape)
    block = solved(problem, "torch")
    for row in range(3):
        system.update(drawn(problem, sample_id=row, run_seed=13))
        solution = solver.solve()
        assert solution.outcome is Outcome.CONVERGED
        field = problem.fields({}, solution.x)["u"]
        np.testing.assert_allclose(block.arrays["u"][row], field, atol=1e-6 * np.abs(field).max(), rtol=0)
    system.destroy()


def test_a_gpu_that_is_not_there_is_said_so(monkeypatch):
    monkeypatch.setattr(engine, "gpu_visible", lambda: False)
    with pytest.raises(StudyError, match=r"solver.backend = 'cuda' needs an NVIDIA GPU, and this process sees none"):
        solved(PROBLEMS["darcy"], "cuda")
    assert engine.resolve_backend("auto") == "cpu"
    monkeypatch.setattr(engine, "gpu_visible", lambda: True)
    for installed, backend in ((True, "cuda"), (False, "torch")):
        monkeypatch.setattr(engine, "is_available", lambda installed=installed: installed)
        assert engine.resolve_backend("auto") == backend


@pytest.mark.parametrize(
    ("allowed", "visible"), [(None, True), ("0,1", True), ("", False), ("-1", False), (" ", False)]
)
def test_a_gpu_is_visible_unless_it_is_hidden(monkeypatch, allowed, visible):
    monkeypatch.setattr(engine.Path, "exists", lambda path: str(path) == "/dev/nvidiactl")
    if allowed is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", allowed)
    assert engine.gpu_visible() is visible


def test_a_process_that_solves_on_the_cpu_never_loads_torch():
    script = """
import sys
from forebay.pipeline.records import ChunkPlan
from forebay.solvers.block_solver import BlockSolver
from forebay.solvers.methods import Method
from forebay.solvers.problems.darcy import Darcy
plans = {"train": ChunkPlan("train", 2, 2)}
solver = BlockSolver(Darcy(size=32), Method("batched", backend="cpu"), run_seed=13, plans=plans)
assert all(record.valid for record in solver.solve_block("train", 0).records)
assert "torch" not in sys.modules, "torch was loaded"
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr

"""The device's conjugate gradients with a hierarchy of aggregates, on the host, against those of the processor."""

import amg_cases
import numpy as np
import pytest
import torch

from forebay.kernels.amg import AmgSolver
from forebay.kernels.amg.on_device import DeviceIteration, _level
from forebay.kernels.guard import Probation
from forebay.kernels.host.launcher import HostLauncher
from forebay.kernels.records import Outcome
from forebay.learners.amg_meshes import grid_mesh

BLOCK = 64
NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


class Launchers:
    """Of the host; remembers what was asked for."""

    def __init__(self):
        self.made = {}

    def __call__(self, name, macros):
        key = (name, *sorted(macros.items()))
        return self.made.setdefault(key, HostLauncher(name, macros, seed=7))


def on_host(**options):
    return DeviceIteration(Launchers(), device="cpu", window=64, block=BLOCK, **options)


def solver_of(matrix, iteration=None, **options):
    return AmgSolver(matrix.indptr, matrix.indices, matrix.data, iteration=iteration, **options)


def residuals(matrix, x, rhs):
    return np.linalg.norm(rhs - matrix @ x, axis=0) / np.linalg.norm(rhs, axis=0)


@pytest.fixture(scope="module")
def truss():
    matrix, motions = amg_cases.stiffness(130)
    return matrix, {"block_size": 2, "candidates": motions, "threshold": 0.0}


@pytest.fixture(scope="module")
def tetrahedra():
    return amg_cases.meshes()["tetrahedra"].draw("two_valued", 1e3, np.random.default_rng(7)), {}


@pytest.mark.parametrize("blocks", [0, 3], ids=["launches", "one kernel"])
@pytest.mark.parametrize("bits", [32, 16])
@pytest.mark.parametrize("name", ["truss", "tetrahedra"])
def test_solutions_and_iterations_are_those_of_the_processor(host_kernels, request, name, bits, blocks):
    matrix, options = request.getfixturevalue(name)
    rhs = np.random.default_rng(11).standard_normal((matrix.shape[0], 3))
    wanted, records = solver_of(matrix, **options).solve(rhs, rtol=1e-10)
    iteration = on_host(bits=bits, blocks=blocks)
    device = solver_of(matrix, iteration, **options)
    assert len(device.symbolic.levels) >= 1
    x, found = device.solve(rhs, rtol=1e-10)
    assert residuals(matrix, x, rhs).max() <= 1e-10
    np.testing.assert_allclose(x, wanted, atol=1e-7 * np.abs(wanted).max())
    for one, other in zip(found, records, strict=True):
        assert (one.outcome, one.backend, other.backend) == (Outcome.CONVERGED, "cuda", "cpu")
        assert abs(one.iterations - other.iterations) <= (1 if bits == 32 else 3)
        assert one.residual <= 1e-10
    assert ("sell_small" in {key[0] for key in iteration._launchers.made}) == (blocks > 0)


def test_a_level_is_handed_over_whole(truss):
    matrix, options = truss
    hierarchy = solver_of(matrix, **options).hierarchy
    level, transfer = _level(hierarchy.levels[0]), amg_cases.prolongators(hierarchy)[0]
    prolong = np.zeros(transfer.shape)
    rows = np.repeat(np.arange(transfer.shape[0]), np.diff(level.prolong.indptr))
    prolong[rows, level.prolong.indices] = level.prolong.data
    assert level.prolong.shape == transfer.shape
    np.testing.assert_allclose(prolong, transfer.toarray(), atol=1e-6)
    np.testing.assert_allclose(level.matrix.data * hierarchy.scale, matrix.data, rtol=1e-6, atol=1e-6)


def test_another_matrix_and_one_vector_after_several(host_kernels):
    mesh, rng = amg_cases.meshes()["triangles"], np.random.default_rng(13)
    solver = solver_of(mesh.reference, on_host())
    for columns in ((3,), (), ()):
        matrix = mesh.draw("log_normal", 1e3, rng)
        solver.setup(matrix.data)
        rhs = rng.standard_normal((matrix.shape[0], *columns))
        x, _ = solver.solve(rhs, guess=0.3 * rhs)
        assert x.shape == rhs.shape
        assert residuals(matrix, x, rhs).max() <= 1e-8


def test_columns_end_by_themselves(host_kernels):
    matrix = grid_mesh(15, 2).reference
    solver = solver_of(matrix, on_host())
    rhs = np.random.default_rng(7).standard_normal((matrix.shape[0], 3))
    rhs[:, 1] = 0
    rhs[4, 2] = np.nan
    x, records = solver.solve(rhs)
    assert [record.outcome.name for record in records] == ["CONVERGED", "CONVERGED", "NONFINITE_INPUT"]
    assert [record.iterations > 0 for record in records] == [True, False, False]
    assert not x[:, 1].any()
    assert residuals(matrix, x[:, :1], rhs[:, :1]).max() <= 1e-8
    _, (short,) = solver.solve(rhs[:, 0], max_iterations=2)
    assert (short.outcome, short.iterations) == (Outcome.MAX_ITERATIONS, 2)


@pytest.mark.parametrize("blocks", [0, 3], ids=["launches", "one kernel"])
def test_many_right_hand_sides_go_in_groups(host_kernels, monkeypatch, blocks):
    monkeypatch.setattr("forebay.kernels.amg.on_device.MOST_COLUMNS", 2)
    matrix, iteration = grid_mesh(15, 2).reference, on_host(blocks=blocks)
    rhs = np.random.default_rng(7).standard_normal((matrix.shape[0], 5)) * [1, 1e3, 0, 1e-3, 1]
    x, records = solver_of(matrix, iteration).solve(rhs, rtol=1e-9)
    assert residuals(matrix, x[:, [0, 1, 3, 4]], rhs[:, [0, 1, 3, 4]]).max() <= 1e-9
    assert [record.iterations > 0 for record in records] == [True, True, False, True, True]
    assert {dict(key[1:])["NRHS"] for key in iteration._launchers.made} == {"1", "2"}


def test_a_matrix_that_is_not_definite_is_told(host_kernels):
    matrix = grid_mesh(15, 2).reference.copy()
    solver = solver_of(matrix, on_host())
    off = matrix.indices != np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    solver.setup(np.where(off, 4 * matrix.data, matrix.data))
    _, (record,) = solver.solve(np.random.default_rng(7).standard_normal(matrix.shape[0]))
    assert record.outcome in (Outcome.DIVERGED, Outcome.MAX_ITERATIONS, Outcome.NONFINITE_SOLUTION)
    assert not record.valid


def test_a_system_of_one_level_is_solved_by_its_inverse(host_kernels):
    matrix = grid_mesh(8, 2).reference
    for blocks in (0, 3):
        rhs = np.random.default_rng(7).standard_normal((36, 2))
        x, records = solver_of(matrix, on_host(blocks=blocks)).solve(rhs, rtol=1e-9)
        assert residuals(matrix, x, rhs).max() <= 1e-9
        assert max(record.iterations for record in records) <= 4


def test_the_guard_counts_the_devices_iterations(host_kernels):
    matrix, guard = grid_mesh(15, 2).reference, Probation(1.0)
    solver = solver_of(matrix, on_host(), weights=amg_cases.random_weights(7, 0.1), guard=guard)
    _, (record,) = solver.solve(np.ones(matrix.shape[0]))
    assert guard.solved == record.iterations > 0
    assert record.preconditioner == "amg(guard)"


def test_more_sweeps_than_the_kernels_have_are_refused():
    matrix = grid_mesh(15, 2).reference
    with pytest.raises(ValueError, match=r"sweeps = 2; on a device the cycle is V\(1,1\), make the solver with 1"):
        solver_of(matrix, on_host(), sweeps=2)


@pytest.mark.gpu
@NEEDS_GPU
@pytest.mark.parametrize("side", [40, 300], ids=["one kernel", "launches"])
def test_a_gpu_solves_the_same_system(side):
    matrix = grid_mesh(side, 2).reference
    rhs = np.random.default_rng(7).standard_normal((matrix.shape[0], 4))
    _, records = solver_of(matrix).solve(rhs)
    x, found = solver_of(matrix, DeviceIteration.of(torch.device("cuda", 0))).solve(rhs)
    assert residuals(matrix, x, rhs).max() <= 1e-8
    assert max(abs(a.iterations - b.iterations) for a, b in zip(found, records, strict=True)) <= 1

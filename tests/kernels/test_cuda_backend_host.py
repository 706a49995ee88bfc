"""The host logic of the CUDA backend, run on the CPU: the same code with launches that go to the host shim."""

import math

import pytest
import torch

from forebay.kernels.cuda_backend import CudaSolver, Device
from forebay.kernels.grid_network import GridNetwork
from forebay.kernels.host.launcher import HostLauncher
from forebay.kernels.large_rounds import LargeRounds
from forebay.kernels.memory import in_parts
from forebay.kernels.on_chip_plan import STATIC_BYTES, Limits, plan_of
from forebay.kernels.records import Outcome
from forebay.kernels.reference import dense
from forebay.kernels.stencil import Stencil, apply, diffusion
from forebay.kernels.torch_backend import TorchSolver
from forebay.learners.media import inclusions

THREADS = 64
BLOCK, CLUSTER, CLUSTER4, OUTSIDE, LARGE = (1, True), (2, True), (4, True), (1, False), None
WAYS = {"block": BLOCK, "cluster of 2": CLUSTER, "cluster of 4": CLUSTER4, "direction outside": OUTSIDE, "large": LARGE}


def limits_for(shape, way, multigrid=True):
    """The smallest shared memory with which a system is arranged that way."""
    if way is LARGE:
        return Limits(STATIC_BYTES, 3, True)
    for floats in range(64, 8 * math.prod(shape) + 512, 8):
        limits = Limits(STATIC_BYTES + 4 * floats, 3, way[0] > 1)
        plan = plan_of(shape, limits, multigrid=multigrid, threads=THREADS)
        if plan is not None and (plan.cluster, plan.direction_on_chip) == way:
            return limits
    raise AssertionError(f"no shared memory arranges {shape} as {way}")


def device_for(shape, way, seed=7, multigrid=True):
    made = {}

    def launchers(name, macros):
        key = (name, *sorted(macros.items()))
        made.setdefault(key, HostLauncher(name, macros, seed=seed))
        return made[key]

    return Device(launchers, limits_for(shape, way, multigrid), THREADS)


def problem(shape, batch, *, seed=2026, contrast=None, **options):
    generator = torch.Generator().manual_seed(seed)
    normal, rhs = torch.randn(2, batch, *shape, generator=generator, dtype=torch.float64)
    a = torch.exp(normal) if contrast is None else torch.where(normal > 0, contrast, 1.0).double()
    return diffusion(a, **options), rhs


def solve(stencil, rhs, way, *, preconditioner="multigrid", guess=None, rtol=1e-8, most=200, seed=7):
    device = device_for(stencil.shape, way, seed, preconditioner not in ("jacobi", "none"))
    solver = CudaSolver.prepare(stencil, preconditioner, device)
    fields, endings = solver.solve(rhs, rtol=rtol, guess=guess, max_iterations=most)
    return fields, endings


def relative(stencil, fields, rhs):
    return (rhs - apply(stencil, fields)).flatten(1).norm(dim=1) / rhs.flatten(1).norm(dim=1)


def certified(stencil, fields, rhs, endings, rtol=1e-8):
    left = relative(stencil, fields, rhs)
    assert [end.outcome for end in endings] == [Outcome.CONVERGED] * len(rhs)
    assert left.max() <= rtol
    assert torch.allclose(left, torch.tensor([end.residual for end in endings], dtype=torch.float64), rtol=1e-3)


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("shape", [(17, 22), (9, 8, 10)], ids=str)
def test_fields_are_certified_and_iterations_are_those_of_torch(host_kernels, shape, way):
    stencil, rhs = problem(shape, 2)
    fields, endings = solve(stencil, rhs, WAYS[way])
    certified(stencil, fields, rhs, endings)
    _, wanted = TorchSolver.prepare(stencil, "multigrid").solve(rhs, rtol=1e-8, guess=None, max_iterations=200)
    for end, other in zip(endings, wanted, strict=True):
        assert abs(end.iterations - other.iterations) <= 2
        assert end.refinements >= 2


@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 9), (6, 7), (8, 9), (3, 40), (31, 5), (1, 5, 20), (5, 5, 5), (4, 3, 2)], ids=str
)
def test_any_shape_is_solved_like_dense_linear_algebra(host_kernels, shape):
    stencil, rhs = problem(shape, 2, seed=13)
    fields, endings = solve(stencil, rhs, BLOCK, rtol=1e-10)
    certified(stencil, fields, rhs, endings, 1e-10)
    wanted = torch.linalg.solve(dense(stencil), rhs.flatten(1)[..., None]).reshape(rhs.shape)
    assert ((fields - wanted).norm() / wanted.norm()) < 1e-8


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_two_values_of_contrast_a_million_are_certified(host_kernels, way):
    stencil, rhs = problem((18, 20), 2, contrast=1e6)
    fields, endings = solve(stencil, rhs, WAYS[way])
    certified(stencil, fields, rhs, endings)


def test_stiff_inclusions_take_as_many_iterations_on_large_grids_as_on_the_chip(host_kernels):
    stencil = diffusion(inclusions(2, (24, 24), 1e6, torch.Generator().manual_seed(7)))
    rhs = torch.ones(2, 24, 24, dtype=torch.float64)
    found = []
    for way in (BLOCK, LARGE):
        fields, endings = solve(stencil, rhs, way)
        certified(stencil, fields, rhs, endings)
        found.append([end.iterations for end in endings])
    assert max(abs(a - b) for a, b in zip(*found, strict=True)) <= 1
    assert max(found[1]) <= 16, "with the diagonal in place of differences it took 27"


@pytest.mark.parametrize("way", ["block", "cluster of 2", "large"])
def test_systems_of_a_batch_stop_by_themselves_and_do_not_touch_each_other(host_kernels, way):
    shape = (16, 12)
    easy, rhs = problem(shape, 4)
    hard, _ = problem(shape, 4, contrast=1e5, seed=11)
    mixed = Stencil(
        tuple(torch.cat([e[:2], h[2:]]) for e, h in zip(easy.faces, hard.faces, strict=True)),
        torch.cat([easy.reaction[:2], hard.reaction[2:]]),
    )
    fields, endings = solve(mixed, rhs, WAYS[way])
    certified(mixed, fields, rhs, endings)
    assert max(end.iterations for end in endings[:2]) < min(end.iterations for end in endings[2:])
    alone, _ = solve(mixed.select(slice(2, 3)), rhs[2:3], WAYS[way])
    assert torch.equal(alone[0], fields[2])


@pytest.mark.parametrize("way", ["block", "cluster of 4", "direction outside"])
def test_the_order_of_threads_and_blocks_does_not_change_a_bit(host_kernels, way):
    stencil, rhs = problem((19, 14), 3)
    fields, _ = solve(stencil, rhs, WAYS[way], seed=0)
    for seed in (8, 11):
        assert torch.equal(solve(stencil, rhs, WAYS[way], seed=seed)[0], fields)


@pytest.mark.parametrize("way", ["block", "cluster of 2", "large"])
@pytest.mark.parametrize("preconditioner", ["jacobi", "none"])
def test_plain_and_jacobi_iterations_work(host_kernels, way, preconditioner):
    stencil, rhs = problem((12, 11), 2)
    fields, endings = solve(stencil, rhs, WAYS[way], preconditioner=preconditioner)
    certified(stencil, fields, rhs, endings)
    assert min(end.iterations for end in endings) > 20
    assert endings[0].label == preconditioner


@pytest.mark.parametrize("way", ["block", "cluster of 2", "large"])
def test_one_matrix_serves_many_right_hand_sides(host_kernels, way):
    stencil, _ = problem((14, 13), 1)
    rhs = problem((14, 13), 5, seed=11)[1]
    fields, endings = solve(stencil, rhs, WAYS[way])
    certified(stencil, fields, rhs, endings)


@pytest.mark.parametrize("way", ["block", "cluster of 2", "large"])
def test_a_singular_system_gets_the_solution_of_zero_mean(host_kernels, way):
    stencil, rhs = problem((15, 12), 2, walls="neumann")
    rhs -= rhs.mean(dim=(1, 2), keepdim=True)
    fields, endings = solve(stencil, rhs, WAYS[way])
    certified(stencil, fields, rhs, endings)
    assert fields.mean(dim=(1, 2)).abs().max() < 1e-12


@pytest.mark.parametrize("way", ["block", "large"])
def test_cells_outside_of_the_domain_stay_zero(host_kernels, way):
    active = torch.ones(1, 16, 15, dtype=torch.bool)
    active[0, 4:9, 3:11] = False
    stencil, rhs = problem((16, 15), 2, active=active)
    rhs = torch.where(active, rhs, 0.0)
    fields, endings = solve(stencil, rhs, WAYS[way])
    certified(stencil, fields, rhs, endings)
    assert fields[:, ~active[0]].abs().max() == 0


def test_the_kernel_says_how_much_shared_memory_its_blocks_count_on(host_kernels, monkeypatch):
    asked, launch = [], HostLauncher.launch

    def told(self, kernel, *args, **options):
        asked.append((kernel, options.get("carveout", -1)))
        launch(self, kernel, *args, **options)

    monkeypatch.setattr(HostLauncher, "launch", told)
    stencil, rhs = problem((16, 12), 2)
    solver = CudaSolver.prepare(stencil, "multigrid", device_for((16, 12), CLUSTER))
    solver.solve(rhs, rtol=1e-8, guess=None, max_iterations=200)
    assert set(asked) == {("correct_and_measure", -1), ("pcg_on_chip", solver.plan().carveout)}


def test_learned_weights_run_in_the_same_kernel(host_kernels):
    torch.manual_seed(7)
    stencil, rhs = problem((16, 18), 2)
    fields, endings = solve(stencil, rhs, BLOCK, preconditioner=GridNetwork(2))
    certified(stencil, fields, rhs, endings)
    assert endings[0].label in ("learned", "multigrid(guard)")


def test_a_good_guess_needs_fewer_iterations_and_a_perfect_one_none(host_kernels):
    stencil, rhs = problem((16, 12), 2)
    fields, cold = solve(stencil, rhs, BLOCK)
    near, warm = solve(stencil, rhs, BLOCK, guess=fields + 1e-4 * fields.roll(1, 2))
    certified(stencil, near, rhs, warm)
    assert 0 < warm[0].iterations < cold[0].iterations
    same, none = solve(stencil, rhs, BLOCK, guess=fields)
    assert [end.iterations for end in none] == [0, 0]
    assert torch.equal(same, fields)


@pytest.mark.parametrize("way", ["block", "large"])
def test_too_few_iterations_are_owned_up_to(host_kernels, way):
    stencil, rhs = problem((16, 12), 2)
    fields, endings = solve(stencil, rhs, WAYS[way], most=5)
    assert [(end.outcome, end.iterations) for end in endings] == [(Outcome.MAX_ITERATIONS, 5)] * 2
    assert torch.allclose(
        relative(stencil, fields, rhs), torch.tensor([end.residual for end in endings]).double(), rtol=1e-3
    )


def test_systems_of_different_size_in_units_are_solved_alike(host_kernels):
    stencil, rhs = problem((13, 12), 3)
    factors = torch.tensor([1e-9, 1.0, 1e12], dtype=torch.float64)
    scaled = stencil.scaled(factors)
    fields, endings = solve(scaled, rhs, BLOCK)
    certified(scaled, fields, rhs, endings)
    _, plain = solve(stencil, rhs, BLOCK)
    assert [end.iterations for end in endings] == [end.iterations for end in plain]


@pytest.mark.parametrize("way", [BLOCK, LARGE], ids=["block", "large"])
def test_arrays_may_lie_in_memory_as_they_like(host_kernels, way):
    generator = torch.Generator().manual_seed(2026)
    a = torch.rand(2, 13, 11, generator=generator, dtype=torch.float64) + 0.1
    active = torch.ones(1, 13, 11, dtype=torch.bool)
    active[:, 3:5, 6:8] = False
    stencil = diffusion(a.mT, active=active.mT)
    assert not stencil.faces[0].is_contiguous()
    rhs = torch.where(stencil.active, torch.randn(2, 11, 13, generator=generator, dtype=torch.float64), 0.0)
    fields, endings = solve(stencil, rhs.mT.contiguous().mT, way)
    certified(stencil, fields, rhs, endings)


def test_selected_systems_are_solved_as_before(host_kernels):
    stencil, rhs = problem((10, 12), 4)
    solver = CudaSolver.prepare(stencil, "multigrid", device_for((10, 12), BLOCK))
    all_fields, _ = solver.solve(rhs, rtol=1e-8, guess=None, max_iterations=100)
    some = torch.tensor([1, 3])
    fields, _ = solver.select(some).solve(rhs[some], rtol=1e-8, guess=None, max_iterations=100)
    assert torch.equal(fields, all_fields[some])


def test_more_systems_than_a_launch_takes_are_solved_in_parts(host_kernels, monkeypatch):
    stencil, rhs = problem((14, 13), 5)
    whole, _ = solve(stencil, rhs, LARGE)
    monkeypatch.setattr("forebay.kernels.large_grid.MOST_SYSTEMS", 2)
    sizes = []

    def work(part):
        found, _ = solve(stencil.select(part), rhs[part], LARGE)
        sizes.append(len(found))
        return found

    assert torch.equal(torch.cat(list(in_parts(work, 5, unit="nothing"))), whole)
    assert sizes == [2, 2, 1]


class Recordings:
    """Stands for `recorded`; counts."""

    def __init__(self, monkeypatch):
        self.made = 0
        monkeypatch.setattr("forebay.kernels.large_rounds.recorded", self)

    def __call__(self, device, work):
        self.made += 1
        return work

    @staticmethod
    def exhausted(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize("preconditioner", ["multigrid", "jacobi"])
def test_large_grids_are_recorded_once_for_solves_of_as_many_right_hand_sides(
    host_kernels, monkeypatch, preconditioner
):
    recordings = Recordings(monkeypatch)
    stencil, rhs = problem((14, 13), 4)
    solver = CudaSolver.prepare(stencil, preconditioner, device_for((14, 13), LARGE, multigrid=False))
    for some in (rhs, 1e3 * rhs.flip(0), rhs.roll(1, 2)):
        fields, endings = solver.solve(some, rtol=1e-8, guess=None, max_iterations=200)
        certified(stencil, fields, some, endings)
        assert torch.equal(fields, solve(stencil, some, LARGE, preconditioner=preconditioner)[0])
    assert recordings.made == 1 + 3
    which = torch.tensor([1, 2, 3, 0])
    fields, endings = solver.select(which).solve(rhs, rtol=1e-8, guess=None, max_iterations=200)
    certified(stencil.select(which), fields, rhs, endings)
    assert recordings.made == 5


def test_of_large_grids_the_last_successful_recording_is_kept(host_kernels, monkeypatch):
    recordings = Recordings(monkeypatch)
    stencil, rhs = problem((14, 13), 1)[0], problem((14, 13), 3)[1]
    solver = CudaSolver.prepare(stencil, "multigrid", device_for((14, 13), LARGE))
    for count, made in ((3, 1), (2, 2), (2, 2), (3, 3)):
        solver.solve(rhs[:count], rtol=1e-8, guess=None, max_iterations=200)
        assert recordings.made == made
        assert list(solver._kept) == [count]
    monkeypatch.setattr(LargeRounds, "round", Recordings.exhausted)
    with pytest.raises(torch.OutOfMemoryError):
        solver.solve(rhs, rtol=1e-8, guess=None, max_iterations=200)
    assert not solver._kept


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(64, 64), (128, 128), (16, 16, 16), (32, 32, 32), (300, 280)], ids=str)
def test_a_gpu_certifies_what_the_host_does(shape):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    stencil, rhs = problem(shape, 3)
    there = stencil.to("cuda")
    solver = CudaSolver.prepare(there, "multigrid")
    fields, endings = solver.solve(rhs.cuda(), rtol=1e-8, guess=None, max_iterations=200)
    certified(stencil, fields.cpu(), rhs, endings)

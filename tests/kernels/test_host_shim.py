"""The host shim keeps the rules of CUDA's programming model, and finds kernels that do not."""

import numpy as np
import pytest
import torch
from suites.kernel_process import start_sanitised
from suites.shim_kernels import TEXT

from forebay.kernels.host import build as builder
from forebay.kernels.host.build import HostCompilerError, build
from forebay.kernels.host.launcher import HostLauncher, KernelFault

SEEDS = (0, 7, 8, 11, 26)


@pytest.fixture
def launcher(host_kernels):
    return HostLauncher.of_library(build("shim_kernels", {}, sanitise=False, text=TEXT))


def launch(launcher, kernel, *args, grid=(1,), block=(64,), shared=0, **options):
    launcher.launch(kernel, grid, block, shared, args, **options)


def ints(count):
    return np.full(count, -1, np.int32)


@pytest.mark.parametrize("seed", SEEDS)
def test_block_sums_are_right_and_do_not_depend_on_the_order(launcher, seed):
    x, out = np.random.default_rng(2026).standard_normal(700).astype(np.float32), np.zeros(6)
    launcher.seed = seed
    launch(launcher, "sum", x, out, np.int32(700), grid=(3,), block=(128,))
    assert out[1::2].sum() == 700
    assert abs(out[::2].sum() - x.sum(dtype=float)) < 1e-12
    again = np.zeros(6)
    launcher.seed = 13
    launch(launcher, "sum", x, again, np.int32(700), grid=(3,), block=(128,))
    assert (again == out).all()


def test_indices_run_through_the_grid(launcher):
    out = ints(3 * 2 * 2 * 64)
    launch(launcher, "indices", out, grid=(3, 2, 2), block=(4, 8, 2))
    by_block = out.reshape(2, 2, 3, 2, 8, 4)
    assert (by_block[1, 0, 2, 1, 5, 3] - 1000, by_block[0, 1, 1, 0, 7, 2]) == (351, 270)


@pytest.mark.parametrize("seed", SEEDS)
def test_shuffles_take_the_value_of_the_lane_that_they_name(launcher, seed):
    out, lane = ints(256), np.arange(64) % 32
    launcher.seed = seed
    launch(launcher, "shuffles", out)
    wanted = [np.where(lane + 4 > 31, lane, lane + 4), np.where(lane < 3, lane, lane - 3), lane ^ 5, np.full(64, 7)]
    assert (out.reshape(4, 64) == wanted).all()


def test_a_shuffle_from_nowhere_is_a_fault(launcher):
    with pytest.raises(KernelFault, match="shuffle from lane 40, which is not there"):
        launch(launcher, "shuffle_from_nowhere", ints(64))


def test_the_seed_decides_the_order_of_threads_and_blocks(launcher):
    def order(seed):
        launcher.seed = seed
        out = ints(192)
        launch(launcher, "order", out, np.zeros(1, np.int32), grid=(3,))
        assert sorted(out) == list(range(192))
        return out.tolist()

    assert order(0) == list(range(192))
    assert order(7) == order(7)
    assert len({tuple(order(seed)) for seed in SEEDS}) == len(SEEDS)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kernel", ["divergent", "early_return"])
def test_a_barrier_that_not_all_threads_reach_is_a_fault(launcher, kernel, seed):
    launcher.seed = seed
    with pytest.raises(
        KernelFault, match=r"divergent barrier: of \d+ threads that have not left, \d+ wait in __syncthreads"
    ):
        launch(launcher, kernel, ints(64))
    launch(launcher, "order", ints(64), np.zeros(1, np.int32))  # the next launch is as good as new


@pytest.mark.parametrize("seed", SEEDS)
def test_barriers_of_two_branches_are_not_one(launcher, seed):
    launcher.seed = seed
    with pytest.raises(KernelFault, match=r"__syncthreads of line \d+ while others wait in the one of line \d+"):
        launch(launcher, "two_barriers", ints(64))


def test_shared_memory_starts_as_nan(launcher):
    out = np.zeros(64, np.float32)
    launch(launcher, "unwritten", out, shared=256)
    assert np.isnan(out).all()


def test_more_shared_memory_than_a_source_may_declare_is_a_fault(launcher):
    out = np.zeros(64, np.float32)
    launch(launcher, "declares", out, np.int32(0))
    assert (out == 1).all()
    with pytest.raises(KernelFault, match=r"49153 bytes of shared memory declared; a source may declare 49152, take"):
        launch(launcher, "declares", out, np.int32(1))


def test_more_shared_memory_than_a_block_has_is_a_fault(launcher):
    args = np.zeros(64, np.float32), np.int32(0)
    launch(launcher, "declares", *args, shared=(227 - 48) * 1024)
    with pytest.raises(KernelFault, match="232449 bytes of shared memory; a block has 232448"):
        launch(launcher, "declares", *args, shared=(227 - 48) * 1024 + 1)


@pytest.mark.parametrize(
    ("launched", "message"),
    [
        ({"grid": (1, 65536)}, r"unwritten: \(1, 65536, 1\) blocks; CUDA takes at most \(2147483647, 65535, 65535\)"),
        ({"grid": (1, 1, 65536)}, r"unwritten: \(1, 1, 65536\) blocks; CUDA takes at most"),
        ({"grid": (2**31,)}, r"unwritten: \(2147483648, 1, 1\) blocks; CUDA takes at most"),
        ({"block": (1, 1, 65)}, r"unwritten: \(1, 1, 65\) threads of a block; CUDA takes at most \(1024, 1024, 64\)"),
        ({"block": (1025,)}, r"unwritten: \(1025, 1, 1\) threads of a block; CUDA takes"),
        ({"block": (32, 33)}, "unwritten: blocks of 1056 threads; CUDA takes at most 1024"),
        ({"shared": 232449}, "unwritten: 232449 bytes of shared memory; a block has 232448"),
    ],
)
def test_launches_beyond_what_a_device_takes_are_refused(launcher, launched, message):
    with pytest.raises(ValueError, match=message):
        launch(launcher, "unwritten", np.zeros(64, np.float32), **launched)


def test_launches_as_large_as_a_device_takes_run(launcher):
    out, counted = ints(65535), np.zeros(1, np.int32)
    launch(launcher, "order", out, counted, grid=(1, 65535), block=(1,))
    assert counted == 65535
    launch(launcher, "unwritten", np.zeros(1024, np.float32), block=(1024,), shared=232448)


@pytest.mark.parametrize("seed", SEEDS)
def test_blocks_of_a_cluster_read_each_other(launcher, seed):
    launcher.seed = seed
    out = ints(256)
    launch(launcher, "neighbours", out, np.int32(0), grid=(4,), cluster=2)
    own = np.arange(64)
    assert (out.reshape(4, 64) == [1000 + own, own, 1000 + own, own]).all()
    launch(launcher, "neighbours", out, np.int32(0), grid=(4,))
    assert (out.reshape(4, 64) == own).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_reading_a_block_that_has_left_is_a_fault(launcher, seed):
    launcher.seed = seed
    with pytest.raises(KernelFault, match=r"the shared memory of block \d of the cluster, which has left"):
        launch(launcher, "neighbours", ints(256), np.int32(1), grid=(4,), cluster=4)


def test_only_shared_memory_has_neighbours(launcher):
    with pytest.raises(KernelFault, match="cluster_map of a pointer that is not into shared memory"):
        launch(launcher, "not_shared", ints(64))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_grid_barrier_holds_and_its_absence_shows(launcher, seed):
    launcher.seed = seed
    for skip in (0, 1):
        out = np.zeros(4, np.int32)
        args = out, np.zeros(1, np.uint32), np.int32(skip)
        launch(launcher, "rounds", *args, grid=(3,), cooperative=True)
        assert out.tolist() == [5, 5, 5, skip]


@pytest.mark.parametrize("seed", SEEDS)
def test_waiting_for_what_nobody_does_is_a_fault(launcher, seed):
    launcher.seed = seed
    with pytest.raises(KernelFault, match="spins on a value that nobody changes"):
        launch(launcher, "waits", np.zeros(1, np.uint32))


def test_blocks_that_are_not_cooperative_cannot_wait_for_each_other(launcher):
    with pytest.raises(KernelFault, match="spins"):
        launch(launcher, "rounds", np.zeros(4, np.int32), np.zeros(1, np.uint32), np.int32(0), grid=(3,))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            [np.zeros(4), np.zeros(2), np.int32(4)],
            "argument 0 of sum is an array of float64, it must be an array of float32",
        ),
        ([np.zeros(4, np.float32), np.zeros(2), 4], "argument 2 of sum is int, it must be int32; cast it"),
        ([np.zeros(4, np.float32), np.zeros(2), np.int64(4)], "argument 2 of sum is int64, it must be int32"),
        ([np.zeros(4, np.float32), np.zeros(2)], "sum takes 3 arguments, got 2"),
        ([np.zeros(8, np.float32)[::2], np.zeros(2), np.int32(4)], "argument 0 of sum is not contiguous"),
        ([torch.zeros(4, 4).T, torch.zeros(2).double(), np.int32(4)], "argument 0 of sum is not contiguous"),
        ([np.float32(4), np.zeros(2), np.int32(4)], "argument 0 of sum is float32, it must be an array of float32"),
    ],
)
def test_arguments_must_be_of_the_kernels_types(launcher, args, message):
    with pytest.raises(ValueError, match=message):
        launch(launcher, "sum", *args)


def test_launches_that_cannot_be_are_refused(launcher):
    with pytest.raises(ValueError, match=r"a grid of \(3,\) blocks of \(64,\) threads in clusters of 2"):
        launch(launcher, "unwritten", np.zeros(64, np.float32), grid=(3,), cluster=2)
    with pytest.raises(ValueError, match="a cooperative grid in clusters of 2"):
        launch(launcher, "unwritten", np.zeros(64, np.float32), grid=(2,), cluster=2, cooperative=True)
    with pytest.raises(ValueError, match="has no kernel 'nothing'"):
        launch(launcher, "nothing")


def test_arrays_of_torch_are_passed_as_they_are(launcher):
    x, out = torch.arange(5.0), torch.zeros(2, dtype=torch.float64)
    launch(launcher, "sum", x, out, np.int32(5))
    assert out.tolist() == [10, 5]


def test_a_source_with_an_error_or_a_warning_is_refused(host_kernels):
    with pytest.raises(HostCompilerError, match=r"(?s)refuses broken.cu.*nowhere"):
        build("broken", {}, sanitise=False, text="KERNEL(1) k(int* x) { *x = nowhere; }")
    with pytest.raises(HostCompilerError, match="unused parameter"):
        build("warned", {}, sanitise=False, text="KERNEL(1) k(int* x) {}")


def test_without_a_compiler_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(builder.shutil, "which", lambda name: None)
    with pytest.raises(HostCompilerError, match="install the package g"):
        build("large_grid", {}, sanitise=False)


SANITISED = """
import numpy as np
from forebay.kernels.host.build import build
from forebay.kernels.host.launcher import HostLauncher
from suites.shim_kernels import TEXT
launcher = HostLauncher.of_library(build("shim_kernels", {}, sanitise=True, text=TEXT))
launcher.launch(%s)
print("went on")
"""


@pytest.mark.parametrize(
    ("call", "finding"),
    [
        ("'beyond', (1,), (64,), 256, [np.zeros(64, np.float32), np.int32(0)]", None),
        ("'beyond', (1,), (64,), 256, [np.zeros(64, np.float32), np.int32(1)]", "heap-buffer-overflow"),
        ("'beyond', (1,), (64,), 256, [np.zeros(64, np.float32), np.int32(2)]", "heap-buffer-overflow"),
        ("'beyond', (1,), (64,), 256, [np.zeros(64, np.float32), np.int32(3)]", "heap-buffer-overflow"),
        ("'late_reader', (2,), (64,), 0, [np.zeros(128, np.int32)], cluster=2", "heap-use-after-free"),
        ("'overflow', (1,), (64,), 0, [np.ones(64, np.int32)]", "signed integer overflow"),
    ],
    ids=["within", "dynamic shared", "static shared", "global", "left cluster", "arithmetic"],
)
def test_sanitisers_see_what_kernels_do(kernel_cache, call, finding):
    output, errors = start_sanitised(kernel_cache, "-c", SANITISED % call).communicate()
    assert ("went on" in output) == (finding is None), errors[-2000:]
    assert finding is None or finding in errors

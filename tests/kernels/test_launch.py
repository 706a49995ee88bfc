"""What can be said about launches on a device where there is none."""

import contextlib
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from forebay.kernels import launch
from forebay.kernels.launch import CudaLauncher, recorded

NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


class FakeCore:
    """Takes the place of cuda-core and keeps what it was told."""

    def __init__(self):
        self.launches = []
        self.Stream = SimpleNamespace(from_handle=lambda handle: ("stream", handle))

    def Device(self, index):
        return SimpleNamespace(set_current=lambda: None)

    def LaunchConfig(self, **options):
        return options

    def launch(self, stream, config, kernel, *args):
        self.launches.append((stream, config, kernel, args))


@pytest.fixture
def launcher(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=77))
    asked = []
    monkeypatch.setattr(launch, "_allow_shared", lambda kernel, size, index: asked.append(size))
    made = CudaLauncher.__new__(CudaLauncher)
    made._device, made._core, made._kernels, made._shared = torch.device("cpu"), FakeCore(), {}, {}
    made._streams, made._carveouts = {}, {}
    made._code = SimpleNamespace(get_kernel=str.upper)
    made.asked = asked
    return made


def test_tensors_go_by_address_on_torchs_stream_and_a_grid_is_counted_in_clusters(launcher):
    array = torch.zeros(3)
    launcher.launch("solve", (12,), (64,), 1000, [array, None, np.int32(3)], cluster=4)
    ((stream, config, kernel, args),) = launcher._core.launches
    assert (stream, kernel) == (("stream", 77), "SOLVE")
    assert config == {
        "grid": (3,), "block": (64,), "shmem_size": 1000, "is_cooperative": False, "cluster": (4, 1, 1)
    }  # fmt: skip
    assert args == (array.data_ptr(), 0, np.int32(3))


def test_a_launch_without_clusters_says_nothing_of_them(launcher):
    launcher.launch("solve", (5, 2), (64,), 0, [], cooperative=True)
    assert launcher._core.launches[0][1] == {
        "grid": (5, 2), "block": (64,), "shmem_size": 0, "is_cooperative": True
    }  # fmt: skip


def test_shared_memory_is_asked_for_once(launcher):
    for size in (0, 1000, 48 * 1024, 200_000, 100_000, 200_000, 220_000):
        launcher.launch("solve", (1,), (64,), size, [])
    assert launcher.asked == [1000, 48 * 1024, 200_000, 220_000]


def test_a_carve_out_is_said_where_it_changes(launcher, monkeypatch):
    driver, said = pytest.importorskip("cuda.bindings.driver"), []
    monkeypatch.setattr(driver, "cuKernelSetAttribute", lambda *args: said.append(args) or (0,))
    launcher._code = SimpleNamespace(get_kernel=lambda name: SimpleNamespace(handle=name))
    launcher._device = SimpleNamespace(index=3)
    for kernel, percent in (("solve", -1), ("solve", 94), ("solve", 94), ("other", 94), ("solve", 22), ("solve", -1)):
        launcher.launch(kernel, (1,), (64,), 0, [], carveout=percent)
    attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT
    assert said == [(attribute, *rest, 3) for rest in ((94, "solve"), (94, "other"), (22, "solve"), (-1, "solve"))]


@pytest.mark.parametrize("handle", [0, 77], ids=["default", "other"])
def test_cuda_core_takes_torchs_stream_without_a_warning(launcher, monkeypatch, handle):
    core, streams = pytest.importorskip("cuda.core"), pytest.importorskip("cuda.core._stream")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=handle))
    launcher._core = core
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        taken = streams.Stream_accept(launcher._stream(), True)
    assert taken.__cuda_stream__() == (0, handle)
    assert launcher._stream() is taken


@pytest.mark.parametrize("wrong", [3, torch.zeros(4, 4).T, np.zeros(3)], ids=["number", "strided", "numpy"])
def test_arguments_that_a_kernel_cannot_take_are_refused(launcher, wrong):
    with pytest.raises(ValueError, match="must be a contiguous tensor on cpu"):
        launcher.launch("solve", (1,), (64,), 0, [wrong])


def test_a_recording_on_the_host_is_the_work_itself():
    assert recorded(torch.device("cpu"), test_a_recording_on_the_host_is_the_work_itself) is (
        test_a_recording_on_the_host_is_the_work_itself
    )


class FakeGraph:
    """Takes the place of a CUDA graph and keeps what is done to it, and on which stream."""

    def __init__(self, streams):
        self.said, self._streams = [], streams

    def capture_begin(self, capture_error_mode):
        self.said.append(("begin", self._streams[-1], capture_error_mode))

    def capture_end(self):
        self.said.append(("end", self._streams[-1]))

    def replay(self):
        self.said.append(("replay", self._streams[-1]))


@pytest.fixture
def graphs(monkeypatch):
    """Those that `recorded` makes, on a device that is not there; the caller's stream is called "own"."""
    made, streams = [], ["own"]

    @contextlib.contextmanager
    def on(stream):
        streams.append(stream)
        yield
        streams.pop()

    def forbidden(*_):
        raise AssertionError("a recording must not wait for the device nor empty the cache")

    for name in ("synchronize", "empty_cache", "graph"):
        monkeypatch.setattr(torch.cuda, name, forbidden)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: made.append(FakeGraph(streams)) or made[-1])
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(launch, "_side_stream", "side of {}".format)
    return made


def test_a_recording_is_made_beside_the_callers_stream_and_repeated_on_it(graphs):
    ran = []
    repeat = recorded(torch.device("cuda"), lambda: ran.append(graphs[0].said[-1]))
    assert ran == [("begin", "side of 3", "thread_local")]
    repeat()
    assert graphs[0].said == [*ran, ("end", "side of 3"), ("replay", "own")]


def test_a_recording_that_fails_is_ended(graphs):
    def broken():
        raise RuntimeError("no such kernel")

    for _ in range(2):
        with pytest.raises(RuntimeError, match="no such kernel"):
            recorded(torch.device("cuda"), broken)
    assert [[step for step, *_ in graph.said] for graph in graphs] == [["begin", "end"]] * 2


@pytest.mark.gpu
@NEEDS_GPU
def test_a_gpu_repeats_what_was_recorded_after_what_was_put_on_the_stream_before():
    device = torch.device("cuda", 0)
    x, y = torch.zeros(1 << 20, device=device), torch.zeros(1 << 20, device=device)

    def work():
        y.add_(x)

    work()
    repeat = recorded(device, work)
    assert float(y.sum()) == 0
    for stream in (torch.cuda.current_stream(device), torch.cuda.Stream(device)):
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for value in range(5):
                x.fill_(value)
                repeat()
        stream.synchronize()
    assert y.unique().tolist() == [20]


@pytest.mark.gpu
@NEEDS_GPU
def test_a_gpu_says_its_limits():
    limits = launch.limits_of(torch.device("cuda", 0))
    assert limits.shared_bytes >= 96 * 1024
    assert limits.multiprocessors > 10

"""Kernels on a CUDA device: compiled on first use, launched on torch's current stream and on its tensors, uncopied."""

from __future__ import annotations

import functools
import importlib
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forebay.kernels import compile as compiling
from forebay.kernels.launcher import Launcher
from forebay.kernels.on_chip_plan import Limits

Launchers = Callable[[str, Mapping[str, str]], Launcher]
"""Makes the launcher of a source with its macros, or finds the one that was made before."""


def limits_of(device: torch.device) -> Limits:
    """Of a CUDA device."""
    found = torch.cuda.get_device_properties(device)
    return Limits(found.shared_memory_per_block_optin, found.multi_processor_count, found.major >= 9)


def launchers_of(device: torch.device) -> Launchers:
    """Launchers for a CUDA device, each made once."""
    index = torch.cuda.current_device() if device.index is None else device.index
    return lambda name, macros: _launcher(name, tuple(sorted(macros.items())), index)


@functools.cache
def _launcher(name: str, macros: tuple[tuple[str, str], ...], index: int) -> CudaLauncher:
    return CudaLauncher(name, dict(macros), torch.device("cuda", index))


class CudaLauncher:
    """See `Launcher`: kernels of one source on one device."""

    def __init__(self, name: str, macros: Mapping[str, str], device: torch.device) -> None:
        """Compile, or take from the cache.

        Raises:
            CompileError: cuda-core or NVRTC is missing, or NVRTC refuses the source.
        """
        self._device = device
        major, minor = torch.cuda.get_device_capability(device)
        with torch.cuda.device(device):
            self._code = compiling.load(name, macros, arch=f"sm_{major}{minor}")
        self._core = importlib.import_module("cuda.core")
        self._kernels: dict[str, Any] = {}
        self._shared: dict[str, int] = {}
        self._carveouts: dict[str, int] = {}
        self._streams: dict[int, Any] = {}

    def launch(
        self,
        kernel: str,
        grid: Sequence[int],
        block: Sequence[int],
        shared_bytes: int,
        args: Sequence[Any],
        cluster: int = 1,
        cooperative: bool = False,
        carveout: int = -1,
    ) -> None:
        """See `Launcher.launch`."""
        # cuda-core counts a grid in clusters, everybody else in blocks.
        clusters = (grid[0] // cluster, *grid[1:])
        options: dict[str, Any] = {"cluster": (cluster, 1, 1)} if cluster > 1 else {}
        with torch.cuda.device(self._device):
            self._core.Device(self._device.index).set_current()
            config = self._core.LaunchConfig(
                grid=clusters, block=tuple(block), shmem_size=shared_bytes, is_cooperative=cooperative, **options
            )
            values = [_argument(value, self._device) for value in args]
            self._core.launch(self._stream(), config, self._kernel(kernel, shared_bytes, carveout), *values)

    def _stream(self) -> Any:
        """Torch's current stream as cuda-core's own; it warns of any other at every launch."""
        handle = torch.cuda.current_stream(self._device).cuda_stream
        if handle not in self._streams:
            self._streams[handle] = self._core.Stream.from_handle(handle)
        return self._streams[handle]

    def _kernel(self, name: str, shared_bytes: int, carveout: int) -> Any:
        if name not in self._kernels:
            self._kernels[name] = self._code.get_kernel(name)
        # Unasked a kernel has 48 KiB less what it declares itself, which only the driver knows.
        if shared_bytes > self._shared.get(name, 0):
            _allow_shared(self._kernels[name], shared_bytes, self._device.index)
            self._shared[name] = shared_bytes
        if carveout != self._carveouts.get(name, -1):
            _prefer_carveout(self._kernels[name], carveout, self._device.index)
            self._carveouts[name] = carveout
        return self._kernels[name]


def _allow_shared(kernel: Any, shared_bytes: int, index: int) -> None:
    driver = importlib.import_module("cuda.bindings.driver")
    attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    (status,) = driver.cuKernelSetAttribute(attribute, shared_bytes, kernel.handle, index)
    if int(status):
        raise RuntimeError(
            f"the device refuses {shared_bytes} bytes of shared memory a block ({status}); its limit is "
            f"{limits_of(torch.device('cuda', index)).shared_bytes}"
        )


def _prefer_carveout(kernel: Any, percent: int, index: int) -> None:
    """A driver that refuses the hint decides as without one."""
    driver = importlib.import_module("cuda.bindings.driver")
    attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT
    driver.cuKernelSetAttribute(attribute, percent, kernel.handle, index)


def _argument(value: Any, device: torch.device) -> Any:
    """What cuda-core takes: addresses as integers, numpy scalars as they are."""
    if value is None:
        return 0
    if isinstance(value, np.generic):
        return value
    if not isinstance(value, Tensor) or value.device != device or not value.is_contiguous():
        raise ValueError(
            f"a kernel's argument is {type(value).__name__}; it must be a contiguous tensor on {device}, a numpy "
            f"scalar or None"
        )
    return value.data_ptr()


_RECORDING = threading.Lock()
"""Torch's allocator and the side stream take one recording at a time."""


def recorded(device: torch.device, work: Callable[[], None]) -> Callable[[], None]:
    """`work`, which only launches, as one CUDA graph: repeating it costs one launch.  Itself on other devices.

    It must have run before, so that its kernels are compiled and loaded, and is not run by recording.  It is recorded
    on a stream of its own and repeated on the one that is then current, after what was put there before; the arrays
    that it works on must live as long.  Unlike `torch.cuda.graph` this neither waits for the device nor empties
    torch's cache, since `work` allocates nothing, and other threads may go on using the device.
    """
    if device.type != "cuda":
        return work
    graph = torch.cuda.CUDAGraph()
    with _RECORDING, torch.cuda.device(device), torch.cuda.stream(_side_stream(torch.cuda.current_device())):
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            work()
        finally:
            # Also after an error: a stream left recording refuses everything else.
            graph.capture_end()
    return graph.replay


@functools.cache
def _side_stream(index: int) -> torch.cuda.Stream:
    """One for all recordings: torch hands out a few in turn, so that more would soon be those of other work."""
    return torch.cuda.Stream(index)

"""Launches kernels on the host with the interface that launches on a device have."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from forebay.kernels.host.build import build

_SCALARS = {"i": ctypes.c_int, "I": ctypes.c_uint, "q": ctypes.c_longlong, "f": ctypes.c_float, "d": ctypes.c_double}
_CODES = {"int32": "i", "uint32": "I", "int64": "q", "float32": "f", "float64": "d", "uint16": "H", "bfloat16": "H"}
_CODES |= {"uint8": "B", "bool": "B"}

_MOST = {
    "blocks": (2**31 - 1, 65_535, 65_535),
    "threads of a block": (1024, 1024, 64),
}
"""Along x, y, z."""
_MOST_THREADS = 1024
_MOST_SHARED_BYTES = 227 * 1024


class KernelFault(RuntimeError):
    """A kernel did what no schedule allows: a divergent barrier, a wait without end, a shuffle from nowhere."""


class HostLauncher:
    """Kernels of one source on the host, one thread for all.

    `seed` chooses the order in which threads and blocks run: 0 as numbered, other even seeds let some warps run
    ahead as far as barriers allow, odd ones are uniformly random.  Set it between launches as you like.
    """

    def __init__(
        self, name: str, macros: Mapping[str, str] | None = None, *, seed: int = 0, sanitise: bool = False
    ) -> None:
        self.name = name
        self.seed = seed
        self._attach(build(name, macros or {}, sanitise=sanitise))

    @classmethod
    def of_library(cls, path: Path, *, seed: int = 0) -> HostLauncher:
        """For a library that `build` has made."""
        launcher = cls.__new__(cls)
        launcher.name, launcher.seed = path.stem, seed
        launcher._attach(path)
        return launcher

    def _attach(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        self._library.shim_message.restype = ctypes.c_char_p

    def choose_mutant(self, number: int) -> None:
        """Which planted fault of a library with mutants is active; 0: none."""
        self._library.shim_choose_mutant(number)

    def signature(self, kernel: str) -> tuple[str, ...]:
        """Codes of the kernel's arguments: i, I, q, f, d for numbers, P before the code of an array's elements.

        Raises:
            ValueError: the source has no such kernel.
        """
        try:
            function = self._library[f"shim_signature_{kernel}"]
        except AttributeError as error:
            raise ValueError(f"{self.name}.cu has no kernel {kernel!r}") from error
        function.restype = ctypes.c_char_p
        return tuple(function().decode().split())

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
        """Run a kernel to its end.

        `args` are arrays (numpy, or torch on the CPU), `None` for a null pointer, and numpy scalars of exactly the
        kernel's types.  `carveout` changes nothing here.

        Raises:
            ValueError: arguments that do not fit the kernel, blocks that do not fill the clusters, clusters of a
                cooperative grid, or more threads, blocks or shared memory than any device takes.
            KernelFault: the kernel broke a rule of the programming model.
        """
        shape = [*grid, *[1] * (3 - len(grid)), *block, *[1] * (3 - len(block))]
        blocks = shape[0] * shape[1] * shape[2]
        if min(shape) < 1 or blocks % cluster:
            raise ValueError(
                f"{kernel}: a grid of {tuple(grid)} blocks of {tuple(block)} threads in clusters of {cluster}"
            )
        _check_limits(kernel, shape, shared_bytes)
        if cooperative and cluster > 1:
            raise ValueError(
                f"{kernel}: a cooperative grid in clusters of {cluster}; the host has no such launch, use one of both"
            )
        codes = self.signature(kernel)
        if len(codes) != len(args):
            raise ValueError(f"{kernel} takes {len(codes)} arguments, got {len(args)}")
        values = [_value(kernel, i, code, value) for i, (code, value) in enumerate(zip(codes, args, strict=True))]
        pointers = (ctypes.c_void_p * len(values))(*[ctypes.addressof(value) for value in values])
        function = self._library[f"shim_launch_{kernel}"]
        status = function(
            (ctypes.c_uint * 6)(*shape),
            ctypes.c_ulonglong(shared_bytes),
            ctypes.c_int(cluster),
            ctypes.c_int(cooperative),
            ctypes.c_uint(self.seed),
            pointers,
        )
        if status:
            raise KernelFault(f"{kernel}: {self._library.shim_message().decode()}")


def _check_limits(kernel: str, shape: Sequence[int], shared_bytes: int) -> None:
    for (what, most), sizes in zip(_MOST.items(), (shape[:3], shape[3:]), strict=True):
        if any(size > limit for size, limit in zip(sizes, most, strict=True)):
            raise ValueError(f"{kernel}: {tuple(sizes)} {what}; CUDA takes at most {most} along x, y, z")
    if math.prod(shape[3:]) > _MOST_THREADS:
        raise ValueError(f"{kernel}: blocks of {math.prod(shape[3:])} threads; CUDA takes at most {_MOST_THREADS}")
    if shared_bytes > _MOST_SHARED_BYTES:
        raise ValueError(f"{kernel}: {shared_bytes} bytes of shared memory; a block has {_MOST_SHARED_BYTES}")


def _value(kernel: str, position: int, code: str, value: Any) -> Any:
    if code[0] == "P" and value is None:
        return ctypes.c_void_p(None)
    kind = str(getattr(value, "dtype", type(value).__name__)).removeprefix("torch.")
    given = _CODES.get(kind, "?")
    is_array = not isinstance(value, np.generic) and hasattr(value, "dtype")
    if ("P" if is_array else "") + given != code:
        what = f"an array of {kind}" if is_array else kind
        raise ValueError(
            f"argument {position} of {kernel} is {what}, it must be {_describe(code)}; cast it (numbers: numpy)"
        )
    if not is_array:
        return _SCALARS[code](value.item())
    contiguous = value.flags.c_contiguous if isinstance(value, np.ndarray) else value.is_contiguous()
    if not contiguous:
        raise ValueError(f"argument {position} of {kernel} is not contiguous; make a contiguous copy first")
    return ctypes.c_void_p(value.ctypes.data if isinstance(value, np.ndarray) else value.data_ptr())


def _describe(code: str) -> str:
    kinds = " or ".join(kind for kind, known in _CODES.items() if known == code[-1])
    return f"an array of {kinds}" if code[0] == "P" else kinds

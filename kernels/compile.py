"""CUDA sources to machine code by NVRTC, through cuda-core, and kept: no nvcc, no headers, and no GPU is needed."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import io
import json
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forebay.kernels.sources import cache_folder, source

_OPTIONS = ("-v",)


class CompileError(RuntimeError):
    """NVRTC is missing, or refuses a source."""


@dataclass(frozen=True, slots=True)
class Cubin:
    """Machine code of one source for one architecture."""

    code: bytes
    arch: str
    log: str
    """What ptxas -v says: see `resources`."""


@dataclass(frozen=True, slots=True)
class Resources:
    """What one kernel takes on the device."""

    registers: int
    """32-bit registers a thread, of at most 255; a multiprocessor has 65,536."""
    spill_bytes: int
    """Bytes a thread stored to or loaded from local memory for want of registers."""
    stack_bytes: int
    shared_bytes: int
    """Static shared memory of a block."""


def is_available() -> bool:
    """Whether cuda-core is installed; it brings no NVRTC of its own (see `compile_source`)."""
    return importlib.util.find_spec("cuda") is not None and importlib.util.find_spec("cuda.core") is not None


def compile_source(name: str, macros: Mapping[str, str] | None = None, *, arch: str) -> Cubin:
    """Machine code of csrc/`name`.cu for `arch` ("sm_90"), from the cache when source, macros and NVRTC are the same.

    Raises:
        CompileError: cuda-core or NVRTC is missing, or NVRTC refuses the source (its log follows).
        ValueError: there is no such source.
    """
    text, macros = source(name), dict(sorted((macros or {}).items()))
    version = nvrtc_version()
    key = hashlib.sha256(json.dumps([text, macros, arch, version, _OPTIONS]).encode()).hexdigest()[:32]
    path = cache_folder() / f"{name}-{arch}-{key}.cubin"
    kept = _read(path, arch)
    if kept is not None:
        return kept
    made = _compile(name, text, macros, arch)
    _write(path, made)
    return made


def load(name: str, macros: Mapping[str, str] | None = None, *, arch: str | None = None) -> Any:
    """The source as a cuda-core `ObjectCode` for `arch`, or for the current device: `.get_kernel(NAME)` gives kernels.

    Raises:
        CompileError: as `compile_source`.
    """
    core = _core()
    if arch is None:
        arch = f"sm_{core.Device().arch}"
    return core.ObjectCode.from_cubin(compile_source(name, macros, arch=arch).code, name=name)


def resources(log: str) -> dict[str, Resources]:
    """Registers, spills and shared memory of every kernel in the log of a `Cubin`."""
    found = {}
    for entry in re.split(r"Compiling entry function ", log)[1:]:
        name = re.match(r"'(\w+)'", entry)
        stack, stored, loaded = _numbers(entry, r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill")
        (registers,) = _numbers(entry, r"Used (\d+) registers")
        shared = re.search(r"(\d+) bytes smem", entry)
        if name is not None:
            found[name[1]] = Resources(registers, stored + loaded, stack, int(shared[1]) if shared else 0)
    return found


def nvrtc_version() -> str:
    """Version of NVRTC, "13.2".

    Raises:
        CompileError: cuda-core or NVRTC is missing.
    """
    _core()
    nvrtc = importlib.import_module("cuda.bindings.nvrtc")
    try:
        status, major, minor = nvrtc.nvrtcVersion()
    except RuntimeError as error:
        raise CompileError(
            f"NVRTC, CUDA's run-time compiler, cannot be loaded ({error}); install it: pip install nvidia-cuda-nvrtc"
        ) from error
    if int(status):
        raise CompileError(
            f"NVRTC does not tell its version ({status}); install it anew: pip install nvidia-cuda-nvrtc"
        )
    return f"{major}.{minor}"


def _core() -> Any:
    try:
        return importlib.import_module("cuda.core")
    except ImportError as error:
        raise CompileError(f"cuda-core is missing ({error}); install it: pip install 'forebay[gpu]'") from error


def _compile(name: str, text: str, macros: Mapping[str, str], arch: str) -> Cubin:
    core, log = _core(), io.StringIO()
    defines = [(key, str(value)) for key, value in macros.items()]
    options = core.ProgramOptions(
        name=f"{name}.cu", arch=arch, std="c++17", define_macro=defines or None, ptxas_options=list(_OPTIONS)
    )
    try:
        code = core.Program(text, "c++", options).compile("cubin", logs=log)
    except Exception as error:  # cuda-core raises its own types, by version; all of them say what NVRTC said
        raise CompileError(
            f"NVRTC refuses {name}.cu for {arch} with {dict(macros)}:\n{error}\n{log.getvalue()}"
        ) from error
    return Cubin(bytes(code.code), arch, log.getvalue())


def _numbers(entry: str, pattern: str) -> tuple[int, ...]:
    match = re.search(pattern, entry)
    if match is None:
        raise CompileError(f"the log of ptxas has no {pattern!r}; this version of NVRTC writes another form:\n{entry}")
    return tuple(int(number) for number in match.groups())


def _read(path: Path, arch: str) -> Cubin | None:
    """What `_write` kept; None where nothing is kept or the file is damaged."""
    try:
        header, code = path.read_bytes().split(b"\n", 1)
        said = json.loads(header)
        whole = said["sha256"] == hashlib.sha256(code).hexdigest()
        return Cubin(code, arch, said["log"]) if whole else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(path: Path, made: Cubin) -> None:
    header = json.dumps({"sha256": hashlib.sha256(made.code).hexdigest(), "log": made.log})
    unfinished = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_bytes(header.encode() + b"\n" + made.code)
        unfinished.replace(path)
    except OSError as error:
        warnings.warn(
            f"compiled kernels cannot be kept in {path.parent} ({error}), so that every process compiles them anew; "
            f"set FOREBAY_CACHE to a folder that can be written",
            stacklevel=3,
        )

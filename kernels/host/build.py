"""A CUDA source as a shared library for the host: the unmodified text behind shim.hpp, compiled by g++."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from forebay.kernels.sources import cache_folder, kernel_names, source

_HERE = Path(__file__).parent
_SANITISE = (
    "-fsanitize=address,undefined",
    "-fno-sanitize=vptr,null,pointer-overflow,object-size",  # AddressSanitizer sees what these see, and compiles faster
    "-fno-sanitize-recover=all",
    "-fno-omit-frame-pointer",
)
# Hidden and not unique: several libraries in one process have a scheduler each.
_APART = ("-fvisibility=hidden", "-fno-gnu-unique")
_FLAGS = ("-std=c++17", "-O1", "-g1", "-shared", "-fPIC", "-Wall", "-Wextra", "-Wno-unknown-pragmas", *_APART)


class HostCompilerError(RuntimeError):
    """There is no g++, or it refuses the source."""


def build(name: str, macros: Mapping[str, str], *, sanitise: bool, text: str | None = None) -> Path:
    """The shared library of csrc/`name`.cu (or of `text` in its place), compiled unless it is kept already.

    `sanitise`: with AddressSanitizer and UndefinedBehaviorSanitizer; the process that loads it must have been
    started with the libraries of `preload` in LD_PRELOAD.

    Raises:
        HostCompilerError: there is no g++, or it refuses the source (its messages follow).
    """
    compiler = find_compiler()
    text = source(name) if text is None else text
    exports = "\n".join(f"SHIM_EXPORT({kernel})" for kernel in kernel_names(text))
    unit = f'#include "shim.hpp"\n{text}\n{exports}\n'
    shim = "".join((_HERE / part).read_text() for part in ("fibres.hpp", "shim.hpp"))
    defines = [f"-D{key}={value}" for key, value in sorted(macros.items())]
    flags = [*_FLAGS, *(_SANITISE if sanitise else ()), *defines]
    key = hashlib.sha256("\0".join([unit, shim, compiler, *flags]).encode()).hexdigest()[:24]
    library = cache_folder() / "host" / f"{name}-{key}.so"
    if library.is_file():
        return library
    library.parent.mkdir(parents=True, exist_ok=True)
    unfinished = library.with_suffix(f".{os.getpid()}.tmp")
    command = [compiler, *flags, f"-I{_HERE}", "-x", "c++", "-", "-o", str(unfinished)]
    result = subprocess.run(command, input=unit, text=True, capture_output=True, check=False)
    if result.returncode or "warning:" in result.stderr:
        raise HostCompilerError(f"{compiler} refuses {name}.cu with {dict(macros)}:\n{result.stderr}")
    unfinished.replace(library)
    return library


def find_compiler() -> str:
    """Path of g++.

    Raises:
        HostCompilerError: there is none.
    """
    compiler = shutil.which("g++")
    if compiler is None:
        raise HostCompilerError("no g++ on the path; kernels run on the host only with it: install the package g++")
    return compiler


def preload() -> str:
    """What LD_PRELOAD must hold in a process that loads a library built with `sanitise`."""
    paths = [
        subprocess.run(
            [find_compiler(), f"-print-file-name={name}"], text=True, capture_output=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so", "libstdc++.so")
    ]
    return ":".join(os.path.realpath(path) for path in paths)

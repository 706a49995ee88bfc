"""The CUDA sources as text: what NVRTC compiles for a device and a C++ compiler for the host."""

from __future__ import annotations

import os
import re
from pathlib import Path

FOLDER = Path(__file__).parent / "csrc"

_INCLUDE = re.compile(r'^#include "(\w+\.cuh)"$')
_KERNEL = re.compile(r"^KERNEL\([^)]*\)\s+(\w+)\(", re.MULTILINE)


def source(name: str) -> str:
    """The text of csrc/`name`.cu with the shared parts that it includes put in place: it needs no header.

    Raises:
        ValueError: there is no such source.
    """
    path = FOLDER / f"{name}.cu"
    if not path.is_file():
        names = ", ".join(sorted(other.stem for other in FOLDER.glob("*.cu")))
        raise ValueError(f"no kernel source {name!r}; choose one of {names}")
    return _assemble(path, set())


def _assemble(path: Path, included: set[str]) -> str:
    """The text with its includes in place, each once, and the line numbers that compilers should report."""
    lines = [f'#line 1 "{path.name}"']
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        match = _INCLUDE.match(line)
        if match is None:
            lines.append(line)
        elif match[1] in included:
            lines.append("")
        else:
            included.add(match[1])
            lines += [_assemble(FOLDER / match[1], included), f'#line {number + 1} "{path.name}"']
    return "\n".join(lines) + "\n"


def kernel_names(text: str) -> tuple[str, ...]:
    """The kernels that a source defines, in its order: every line that begins with KERNEL(threads) name(."""
    return tuple(match[1] for match in _KERNEL.finditer(text))


def cache_folder() -> Path:
    """Where compiled kernels are kept: FOREBAY_CACHE, or forebay in XDG_CACHE_HOME, or in ~/.cache."""
    if chosen := os.environ.get("FOREBAY_CACHE"):
        return Path(chosen) / "kernels"
    parent = os.environ.get("XDG_CACHE_HOME")
    return (Path(parent) if parent else Path.home() / ".cache") / "forebay" / "kernels"

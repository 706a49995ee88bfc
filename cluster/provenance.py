"""Which versions, commit and machine made a run."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import forebay

PACKAGES = ("numpy", "scipy", "torch", "ray", "zarr", "dolfinx-solver-real", "fenics-dolfinx", "petsc4py", "mpi4py")


def provenance() -> dict[str, Any]:
    """Versions, commit and hardware as plain values."""
    return {
        "versions": {"forebay": forebay.__version__, "python": platform.python_version(), **_versions()},
        "commit": _commit(),
        "hardware": {"processor": _processor(), "cores": os.cpu_count(), "memory_gib": _memory_gib()},
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _commit() -> str:
    """The source tree's commit; empty for an installed wheel, also inside of somebody else's repository."""
    file = Path(__file__).resolve()
    known = _git(file.parent, "ls-files", "--error-unmatch", file.name)
    return _git(file.parent, "rev-parse", "--short=12", "HEAD") if known else ""


def _git(folder: Path, *words: str) -> str:
    try:
        result = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.strip()


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        return platform.processor()
    return platform.processor()


def _memory_gib() -> float:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)

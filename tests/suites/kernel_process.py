"""Starts Python with AddressSanitizer in front, for libraries of kernels that were built with it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from forebay.kernels.host.build import preload

TESTS = Path(__file__).parents[1]


def require_compiler():
    if shutil.which("g++") is None:
        pytest.skip("no g++ on the path: kernels cannot be run on the host")


def require_sanitiser():
    require_compiler()
    if missing := [path for path in preload().split(":") if not Path(path).is_file()]:
        pytest.skip(f"g++ has no sanitisers: {missing[0]} is missing")


def start_sanitised(cache, *arguments):
    """Start Python on `arguments` in an own process; libraries are kept in `cache`."""
    require_sanitiser()
    environment = {
        **os.environ,
        "LD_PRELOAD": preload(),
        "ASAN_OPTIONS": "detect_leaks=0",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")])),
        "FOREBAY_CACHE": str(cache),
        "OPENBLAS_NUM_THREADS": "1",
    }
    command = [sys.executable, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def start_findings(cache, what):
    """Start `run_kernel_checks.py`."""
    return start_sanitised(cache, TESTS / "suites" / "run_kernel_checks.py", what)


def findings(process):
    """What `run_kernel_checks.py` says in the end."""
    output, errors = process.communicate()
    assert process.returncode == 0, errors[-3000:]
    return json.loads(output)

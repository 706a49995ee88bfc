"""What set-ups cost beside iterations on a device, measured once and kept; the guard of learned weights counts them in.

On a CPU core (`torch`, tried by hand) the classical set-up took as long as 4 iterations in two dimensions and 17 in
three, the network's 6 to 26 and 20 to 33.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch

from forebay.kernels.backends import opened
from forebay.kernels.grid_network import GridNetwork
from forebay.kernels.guard import Costs
from forebay.kernels.multigrid import build_hierarchy
from forebay.kernels.sources import cache_folder
from forebay.kernels.stencil import diffusion

_SHAPES = {2: (4, 128, 128), 3: (4, 24, 24, 24)}
"""Of the systems that are timed: the ratio hardly depends on them."""
_REPEATS = 3
_FORMAT = 1


def costs_of(backend: str, device: torch.device, dimension: int) -> Costs:
    """Of that backend on that device.

    The first process on a machine measures, which takes a second, and leaves a file in the folder of compiled kernels,
    so that the guard decides the same way in all later ones.  Where the folder cannot be written, every process does.
    """
    return _costs_of(backend, _name(device), str(device), dimension, torch.get_num_threads())


@functools.cache
def _costs_of(backend: str, name: str, device: str, dimension: int, threads: int) -> Costs:
    facts = [_FORMAT, backend, name, dimension, threads, torch.__version__]
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
    path = cache_folder() / f"set-up-costs-{backend}-{dimension}d-{key}.json"
    kept = _read(path)
    if kept is None:
        kept = measured(backend, torch.device(device), dimension)
        _write(path, kept)
    return kept


@torch.no_grad()
def measured(backend: str, device: torch.device, dimension: int) -> Costs:
    """Time both set-ups and a solve of a small batch."""
    batch, *shape = _SHAPES[dimension]
    generator = torch.Generator().manual_seed(2026)
    normal, rhs = torch.randn(2, batch, *shape, generator=generator, dtype=torch.float64).to(device)
    stencil = diffusion(normal.exp())
    network = GridNetwork(dimension, generator=generator).to(device)
    solver = opened(backend, stencil, "multigrid", 1, reuse=True)
    most = max(end.iterations for end in solver.solve(rhs, rtol=1e-8, guess=None, max_iterations=200)[1])
    iteration = _seconds(lambda: solver.solve(rhs, rtol=1e-8, guess=None, max_iterations=200), device) / most
    classical = _seconds(lambda: build_hierarchy(stencil), device)
    learned = _seconds(lambda: build_hierarchy(stencil, network), device)
    return Costs(classical / iteration, learned / iteration)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """The shortest of some; what runs beside only makes them longer, and on a CPU does not count at all."""
    clock, found = time.perf_counter if device.type == "cuda" else time.process_time, []
    for _ in range(_REPEATS + 1):  # the first one is for caches and compilers
        start = clock()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(clock() - start)
    return min(found[1:])


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _read(path: Path) -> Costs | None:
    """What `_write` kept; None where nothing is kept or the file is damaged."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        return Costs(float(tree["classical"]), float(tree["learned"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(path: Path, costs: Costs) -> None:
    unfinished = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(json.dumps({"classical": costs.classical, "learned": costs.learned}), encoding="utf-8")
        unfinished.replace(path)
    except OSError:  # a convenience: the next process measures again
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)

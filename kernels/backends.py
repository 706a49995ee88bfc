"""Who solves: our CUDA kernels, torch, or numba on the CPU; all behind one small interface, loaded when chosen."""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from forebay.kernels.records import Outcome
from forebay.kernels.stencil import Stencil

Preconditioner = Any
"""A name of `forebay.kernels.arguments.PRECONDITIONERS`, or learned weights."""
Backend = Literal["auto", "cuda", "torch", "cpu"]


@dataclass(frozen=True, slots=True)
class Ending:
    """How one system ended."""

    outcome: Outcome
    iterations: int
    refinements: int
    residual: float
    label: str
    """The preconditioner that was used: its name, "learned", or "multigrid(guard)"."""
    note: str = ""
    """Why the guard replaced learned weights; "" where it did not."""


class Solver(Protocol):
    """Systems that were set up once, for any number of right-hand sides."""

    def select(self, which: Tensor) -> Solver:
        """The systems at these positions; itself where one serves all right-hand sides."""

    def solve(
        self, rhs: Tensor, *, rtol: float, guess: Tensor | None, max_iterations: int
    ) -> tuple[Tensor, list[Ending]]:
        """A u = b for finite b ≠ 0 that has a solution, float64 [k, *shape]; of zero mean where A is singular."""


def choose(backend: str, device: torch.device) -> str:
    """The backend that "auto" stands for on this device, or the one that was asked for.

    Raises:
        ValueError: an unknown name, or one that cannot work where the arrays are.
    """
    if backend not in ("auto", "cuda", "torch", "cpu"):
        raise ValueError(f'backend={backend!r}; it must be "auto", "cuda", "torch" or "cpu"')
    if backend == "auto":
        if device.type == "cpu":
            return "cpu"
        return "cuda" if device.type == "cuda" and _has_cuda_core() else "torch"
    if backend == "cpu" and device.type != "cpu":
        raise ValueError(f'backend="cpu" with arrays on {device}; move them by `.to("cpu")`, or use "auto"')
    if backend == "cuda" and device.type != "cuda":
        raise ValueError(f'backend="cuda" with arrays on {device}; move them by `.to("cuda")`, or use "auto"')
    if backend == "cuda" and not _has_cuda_core():
        raise ValueError('backend="cuda" needs cuda-core, which is not installed: pip install "forebay[gpu]"')
    return backend


def opened(
    name: str,
    stencil: Stencil,
    preconditioner: Preconditioner,
    threads: int,
    *,
    reuse: bool,
    solves: float = math.inf,
) -> Solver:
    """Set finite systems up by that backend; without `reuse` it may put that off, and share memory between systems.

    `solves` as in `pcg.prepare`.
    """
    home = import_module(f"forebay.kernels.{name}_backend")
    match name:
        case "cpu":
            return home.open_cpu(stencil, preconditioner, threads, reuse=reuse)
        case "cuda":
            return home.CudaSolver.prepare(stencil, preconditioner, solves=solves)
    return home.TorchSolver.prepare(stencil, preconditioner, solves=solves)


def _has_cuda_core() -> bool:
    try:
        return find_spec("cuda.core") is not None
    except ModuleNotFoundError:  # not even the namespace `cuda`
        return False

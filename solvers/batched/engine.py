"""What computes: the stencil solvers of `forebay.kernels` behind one interface of numpy arrays.

The CPU's never loads torch; that of a device (CUDA kernels, or torch anywhere) is imported only when it is wanted.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from forebay.kernels.compile import is_available
from forebay.pipeline.errors import StudyError
from forebay.pipeline.records import Outcome
from forebay.solvers.batched.stencil import Faces
from forebay.solvers.batched.weights import Weights
from forebay.solvers.method_names import Backend
from forebay.solvers.methods import Method

MARGIN = 0.9
"""Of `rtol`, asked of a kernel: its own residual is of the stencil, the certificate of the matrix, and they differ by
rounding."""


@dataclass(frozen=True, slots=True)
class Answer:
    """How the solve of one system ended, by the kernel's own account; its residual is computed anew elsewhere."""

    outcome: Outcome
    iterations: int
    preconditioner: str
    """"multigrid", "learned-v0003", or "multigrid(guard)" where the learned one was refused."""
    message: str = ""

    @property
    def label(self) -> str:
        """As records carry it."""
        return f"batched:{self.preconditioner}"


class Engine(Protocol):
    """Solves many systems of one shape; made once, for one thread of Python at a time."""

    @property
    def preconditioner(self) -> str:
        """What a sample is preconditioned by unless a guard objects."""
        ...

    @property
    def fields(self) -> Any:
        """The latest solutions on the device that computed them, a tensor (k, *shape); None: there is none."""
        ...

    def use(self, weights: Weights | None) -> None:
        """Weights for the next `setup`; None: the classical cycle."""
        ...

    def setup(self, faces: Faces, reaction: np.ndarray) -> None:
        """Take k stencils, or one for all right-hand sides; (k, *shape) float64, see `stencil.StencilReader`.

        The arrays must stay as they are until the last solve.
        """
        ...

    def solve(
        self, rhs: np.ndarray, x: np.ndarray, *, guess: np.ndarray | None = None, max_iterations: int | None = None
    ) -> Sequence[Answer]:
        """Fill x (k, n) from right-hand sides (k, n) and perhaps guesses (k, n), which may be x itself."""
        ...


def make_engine(method: Method, grid: tuple[int, ...], *, weights: Weights | None = None, threads: int = 1) -> Engine:
    """The engine that a study's backend means on this machine.

    Raises:
        StudyError: "cuda" without a GPU, or a backend that is not installed.
    """
    backend = resolve_backend(method.backend)
    if backend == "cpu":
        from forebay.solvers.batched.cpu_engine import CpuEngine

        return CpuEngine(method, grid, weights=weights, threads=threads)
    from forebay.solvers.batched.device_engine import DeviceEngine

    return DeviceEngine(method, backend=backend, weights=weights)


def resolve_backend(backend: Backend) -> Literal["cpu", "cuda", "torch"]:
    """What a study's word stands for: "cpu", "cuda" or "torch"; "auto" is a GPU if this process sees one.

    On a GPU "auto" is "cuda" where cuda-core is installed, and "torch" where it is not.

    Raises:
        StudyError: "cuda" without a GPU.
    """
    if backend == "auto":
        if not gpu_visible():
            return "cpu"
        return "cuda" if is_available() else "torch"
    if backend == "cuda" and not gpu_visible():
        raise StudyError(
            "solver.backend = 'cuda' needs an NVIDIA GPU, and this process sees none; use 'auto', which takes the "
            "processor then, or 'cpu'"
        )
    return backend


def gpu_visible() -> bool:
    """May this process use an NVIDIA GPU?  Asked of the system, since asking torch would load it."""
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    return Path("/dev/nvidiactl").exists() and (allowed is None or allowed.strip() not in ("", "-1"))

"""Numpy arrays to and from the devices: for callers that hold no tensors themselves."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from forebay.kernels.backends import choose
from forebay.kernels.cycles import Preconditioner
from forebay.kernels.grid_network import GridNetwork
from forebay.kernels.grid_weights import GridWeights
from forebay.kernels.pcg import Prepared, prepare
from forebay.kernels.records import SystemRecord
from forebay.kernels.stencil import Stencil


class ArraySolver:
    """Sets stencils up from numpy arrays, solves on a device, and leaves the fields on both sides.

    Raises:
        ValueError: the backend is unknown, not installed, or has no device.
    """

    def __init__(self, backend: Literal["cpu", "cuda", "torch"]) -> None:
        self._device = torch.device("cuda" if backend != "cpu" and torch.cuda.is_available() else "cpu")
        choose(backend, self._device)
        self._backend = backend
        self._preconditioner: Preconditioner = "multigrid"
        self._prepared: Prepared | None = None
        self.fields: Tensor | None = None
        """Of the latest solve, float64 [k, *shape], on the device."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._device

    def use(self, weights: GridWeights | None) -> None:
        """Precondition by learned weights, or by the classical cycle, from the next `setup` on."""
        self._preconditioner = "multigrid" if weights is None else GridNetwork.from_weights(weights)

    def setup(self, faces: tuple[np.ndarray, ...], reaction: np.ndarray) -> None:
        """Take one stencil for all right-hand sides, or one for each; (k, *shape) float64, faces as in `Stencil`.

        Several are taken to be solved once each, one again and again, which matters for learned weights.
        """
        stencil = Stencil(tuple(self._tensor(face) for face in faces), self._tensor(reaction))
        solves = 1 if stencil.batch > 1 else math.inf
        self._prepared = prepare(stencil, preconditioner=self._preconditioner, backend=self._backend, solves=solves)

    def solve(
        self, rhs: np.ndarray, x: np.ndarray, *, rtol: float, guess: np.ndarray | None, max_iterations: int
    ) -> tuple[SystemRecord, ...]:
        """Fill x (k, n) from right-hand sides (k, n) and perhaps guesses (k, n).

        Raises:
            RuntimeError: before `setup`.
        """
        if self._prepared is None:
            raise RuntimeError("solve() before setup(); give the stencils first")
        shape = (len(rhs), *self._prepared.stencil.shape)
        start = None if guess is None else self._tensor(guess.reshape(shape))
        self.fields, records = self._prepared.solve(
            self._tensor(rhs.reshape(shape)), rtol=rtol, guess=start, max_iterations=max_iterations
        )
        torch.from_numpy(x).copy_(self.fields.reshape(x.shape))
        return records

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device)

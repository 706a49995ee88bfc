"""Blocks by the kernels of a device: CUDA, or torch anywhere; the only one of the engines that loads torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from forebay.kernels.records import SystemRecord
from forebay.pipeline.errors import StudyError
from forebay.pipeline.records import Outcome
from forebay.solvers.batched.engine import MARGIN, Answer
from forebay.solvers.batched.stencil import Faces
from forebay.solvers.batched.weights import Weights
from forebay.solvers.methods import Method


class DeviceEngine:
    """`engine.Engine` over `kernels.arrays.ArraySolver`.

    Raises:
        StudyError: the backend cannot be had on this machine.
    """

    def __init__(self, method: Method, *, backend: Literal["cuda", "torch"], weights: Weights | None = None) -> None:
        from forebay.kernels.arrays import ArraySolver

        self._method = method
        try:
            self._solver = ArraySolver(backend)
        except (ValueError, RuntimeError) as error:
            raise StudyError(f"solver.backend = {method.backend!r} cannot be used: {error}") from error
        self.use(weights)

    @property
    def preconditioner(self) -> str:
        """What a sample is preconditioned by unless a guard objects."""
        return "multigrid" if self._weights is None else self._weights.name

    @property
    def fields(self) -> Any:
        """The latest solutions (k, *shape) where they were computed, a tensor; the next solve makes another."""
        return self._solver.fields

    def use(self, weights: Weights | None) -> None:
        """Weights for the next `setup`."""
        self._weights = weights
        self._solver.use(None if weights is None else weights.value)

    def setup(self, faces: Faces, reaction: np.ndarray) -> None:
        """See `engine.Engine`; here the arrays are copied to the device."""
        self._solver.setup(faces, reaction)

    def solve(
        self, rhs: np.ndarray, x: np.ndarray, *, guess: np.ndarray | None = None, max_iterations: int | None = None
    ) -> Sequence[Answer]:
        """See `engine.Engine`."""
        records = self._solver.solve(
            rhs,
            x,
            rtol=MARGIN * self._method.rtol,
            guess=guess,
            max_iterations=max_iterations or self._method.max_iterations,
        )
        return [self._answer(record) for record in records]

    def _answer(self, record: SystemRecord) -> Answer:
        name = self.preconditioner if record.preconditioner == "learned" else record.preconditioner
        return Answer(Outcome(int(record.outcome)), record.iterations, name, record.message)

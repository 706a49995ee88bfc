"""What trains the preconditioner of a run, chosen by its method: CSR entries in, versions out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from forebay.cluster.specs import RunSpec
from forebay.pipeline.sampling import sample_seed


class OnlineTraining(Protocol):
    """A trainer that publishes versions into the run folder."""

    @property
    def facts(self) -> Mapping[str, float]:
        """What the journal tells of a version: `steps` in this process, `factor` of the latest (mean reduction of the
        error by an iteration), and what else the trainer knows.
        """
        ...

    def learn(self, values: np.ndarray) -> int:
        """One step on the entries of k matrices, (k, nnz) float64; the number of the version it completed, or 0."""
        ...


class StencilTraining:
    """The trainer of learned multigrid, which takes the stencils of a grid."""

    def __init__(self, trainer: Any, reader: Any) -> None:
        self._trainer, self._reader = trainer, reader

    @property
    def facts(self) -> Mapping[str, float]:
        """Steps, and the convergence factor of the latest."""
        return {"steps": self._trainer.steps, "factor": float(self._trainer.metrics.factor)}

    def learn(self, values: np.ndarray) -> int:
        """One step on the stencils that the entries (k, nnz) are."""
        faces, reaction = self._reader.allocate(len(values))
        for k, row in enumerate(values):
            self._reader.read(row, tuple(face[k] for face in faces), reaction[k])
        return int(self._trainer.learn(faces, reaction))


def make_training(spec: RunSpec, problem: Any, pattern: tuple[np.ndarray, np.ndarray]) -> OnlineTraining:
    """The trainer for the study's method, from the run's latest version or the shipped weights on.

    Raises:
        WeightsError: the latest version is damaged.
    """
    from forebay.solvers.compose import PRECONDITIONER

    folder, seed = spec.folder / PRECONDITIONER, sample_seed(spec.study.seed, "preconditioner", 0) % 2**63
    if spec.study.solver.method == "batched":
        from forebay.learners.online_preconditioner import OnlinePreconditioner
        from forebay.solvers.batched.stencil import StencilReader

        grid = problem.grid_shape
        return StencilTraining(OnlinePreconditioner(folder, len(grid), seed=seed), StencilReader(*pattern, grid))
    from scipy.sparse import csr_array

    from forebay.learners.online_aggregation import OnlineAggregation
    from forebay.solvers.krylov.grid_pc import graph_laplacian

    indptr, indices = pattern
    _, reference = graph_laplacian(indptr, indices, block=1)
    return OnlineAggregation(folder, csr_array((reference, indices, indptr)), seed=seed)

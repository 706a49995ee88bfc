"""Learned smoothed aggregation of a running study: a few steps on the matrices of each block, versions in a folder."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order

from forebay.kernels.amg.symbolic import make_symbolic
from forebay.kernels.amg.weights import AmgWeights
from forebay.kernels.weight_file import latest_version, version_path
from forebay.learners.amg_training import AmgMesh, AmgOptions, amg_step, make_amg_state
from forebay.learners.online_preconditioner import STEPS_A_VERSION

PART, PARTS = 3_000, 4
"""Unknowns of each part that is cut out of larger matrices, and how many parts.  On one core a step on four of them
takes 0.4 s in two dimensions and 0.7 s on tetrahedra."""
OPTIONS = AmgOptions(lr=2e-3, steps=10**9)
"""A tenth of the rate for a start from nothing, constant: the schedule is longer than any run."""


@dataclass(frozen=True, slots=True, eq=False)
class MatrixPart:
    """A principal submatrix, positive definite as the whole is."""

    mesh: AmgMesh
    entries: np.ndarray
    """Places of its entries among those (nnz,) of the whole."""


class OnlineAggregation:
    """Starts from the folder's latest version, else from the weights that are shipped, and publishes new ones there.

    `reference` gives the aggregates, and should be the one that the solver has them from.

    Raises:
        WeightsError: the latest version is damaged.
        ValueError: a matrix that is inverted as a whole.
    """

    def __init__(self, folder: Path, reference: csr_array, *, seed: int) -> None:
        self._folder = folder
        latest = latest_version(folder)
        start = AmgWeights.load(latest[1]) if latest else AmgWeights.shipped()
        self._state = make_amg_state(OPTIONS, seed=seed, start=start)
        self._places = np.random.default_rng(seed)
        self._parts = parts_of(reference, self._places)
        self._published = 0
        self.factor = math.nan
        """Mean reduction of the error by an iteration, of the latest usable step."""

    @property
    def steps(self) -> int:
        """Trained in this process."""
        return self._state.steps

    def learn(self, values: np.ndarray) -> int:
        """One step on the entries of k matrices, (k, nnz) float64; the number of the version it completed, or 0.

        Raises:
            RunError: ten batches in a row that are not finite.
            OSError: the file system refuses a version.
        """
        chosen = [self._parts[k] for k in self._places.integers(len(self._parts), size=len(values))]
        batch = [(part.mesh, row[part.entries]) for part, row in zip(chosen, values, strict=True)]
        self._state, metrics = amg_step(self._state, batch)
        if not metrics.skipped:
            self.factor = math.exp(-math.exp(-metrics.loss))
        return 0 if self.steps - self._published < STEPS_A_VERSION else self._publish()

    def _publish(self) -> int:
        """The next version in the folder; none is overwritten."""
        self._published = self.steps
        newest = latest_version(self._folder)
        version = (newest[0] if newest else 0) + 1
        self._state.network.export(version).save(version_path(self._folder, version))
        return version


def parts_of(reference: csr_array, rng: np.random.Generator) -> list[MatrixPart]:
    """The whole matrix, or of a large one the unknowns around random places, each with its symbolic set-up."""
    n = reference.shape[0]
    if n <= PART:
        return [_part(reference, np.arange(n))]
    return [_part(reference, neighbourhood(reference, int(rng.integers(n)), PART)) for _ in range(PARTS)]


def neighbourhood(matrix: csr_array, start: int, count: int) -> np.ndarray:
    """The `count` unknowns nearest to one in the graph, ascending; where its component is smaller, the first others."""
    connected = breadth_first_order(matrix, start, directed=False, return_predecessors=False)
    others = np.setdiff1d(np.arange(matrix.shape[0]), connected)
    return np.sort(np.concatenate([connected, others])[:count])


def _part(reference: csr_array, unknowns: np.ndarray) -> MatrixPart:
    places = csr_array((np.arange(reference.nnz), reference.indices, reference.indptr), shape=reference.shape)
    part = places[unknowns][:, unknowns]
    symbolic = make_symbolic(part.indptr, part.indices, reference.data[part.data])
    return MatrixPart(AmgMesh.of(symbolic), part.data)

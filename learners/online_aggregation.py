"""Learned smoothed aggregation of a running study: a few steps on the matrices of each block, versions in a folder.

The first matrices are held back, and only weights that solve them in fewer iterations than the best so far become a
version: on media that the shipped weights know, training changes next to nothing.
"""

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
from forebay.learners.amg_trial import AmgTrial
from forebay.learners.online_preconditioner import STEPS_A_VERSION

PART, PARTS = 20_000, 4
"""Unknowns of each part that is cut out of larger matrices, and how many parts.  Parts of 3,000, cut out of 16,384
cells, trained the weights to take 5 % more iterations on the whole than those that are shipped."""
UNKNOWNS_A_STEP = 20_000
"""Of the matrices of a step together, but one at least: 0.25 s on one core."""
LEAST_GAIN = 0.01
"""Share of the iterations that a version must save: a new one begins with a probation."""
OPTIONS = AmgOptions(lr=1e-2, steps=10**9)
"""Half the rate for a start from nothing, constant: the schedule is longer than any run.  A tenth of this one gained
less in 160 steps on two streams of four and as much on the others; what a large rate spoils on the way is not
published."""


@dataclass(frozen=True, slots=True, eq=False)
class MatrixPart:
    """A principal submatrix, positive definite as the whole is."""

    mesh: AmgMesh
    entries: np.ndarray
    """Places of its entries among those (nnz,) of the whole."""


class OnlineAggregation:
    """Starts from the folder's latest version, else from the weights that are shipped, and publishes new ones there.

    `reference` gives the aggregates, and should be the one that the solver has them from.  The matrices of the first
    call of `learn` are held back for the `AmgTrial` of versions; it trains nothing.

    Raises:
        WeightsError: the latest version is damaged.
        ValueError: a matrix that is inverted as a whole.
    """

    def __init__(self, folder: Path, reference: csr_array, *, seed: int) -> None:
        self._folder = folder
        latest = latest_version(folder)
        self._start = AmgWeights.load(latest[1]) if latest else AmgWeights.shipped()
        self._reference, self._seed = reference, seed
        self._trial: AmgTrial | None = None
        self._state = make_amg_state(OPTIONS, seed=seed, start=self._start)
        self._places = np.random.default_rng(seed)
        self._parts = parts_of(reference, self._places)
        self._tried = 0
        self.factor = math.nan
        """Mean reduction of the error by an iteration, of the latest usable step."""
        self.before = self.best = math.nan
        """Iterations on the matrices that are held back: of the weights it began with, and of the best since."""

    @property
    def steps(self) -> int:
        """Trained in this process."""
        return self._state.steps

    @property
    def facts(self) -> dict[str, float]:
        """What the journal tells of a version."""
        return {"steps": self.steps, "factor": self.factor, "iterations": self.best, "iterations_before": self.before}

    def learn(self, values: np.ndarray) -> int:
        """One step on the entries of k matrices, (k, nnz) float64; the number of the version it completed, or 0.

        Raises:
            RunError: ten batches in a row that are not finite.
            OSError: the file system refuses a version.
        """
        if self._trial is None:
            self._trial = AmgTrial(self._reference, values, seed=self._seed)
            self.before = self.best = self._trial.iterations(self._start)
            return 0
        self._train(values)
        return 0 if self.steps - self._tried < STEPS_A_VERSION else self._offer(self._trial)

    def _train(self, values: np.ndarray) -> None:
        most = max(1, UNKNOWNS_A_STEP // self._parts[0].mesh.symbolic.unknowns)
        chosen = [self._parts[k] for k in self._places.integers(len(self._parts), size=min(most, len(values)))]
        batch = [(part.mesh, row[part.entries]) for part, row in zip(chosen, values, strict=False)]
        self._state, metrics = amg_step(self._state, batch)
        if not metrics.skipped:
            self.factor = math.exp(-math.exp(-metrics.loss))

    def _offer(self, trial: AmgTrial) -> int:
        """The next version in the folder if it is the best so far, else 0; none is overwritten."""
        self._tried = self.steps
        newest = latest_version(self._folder)
        version = (newest[0] if newest else 0) + 1
        weights = self._state.network.export(version)
        iterations = trial.iterations(weights)
        if not iterations < (1 - LEAST_GAIN) * self.best:
            return 0
        self.best = iterations
        weights.save(version_path(self._folder, version))
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

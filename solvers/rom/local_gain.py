"""What local bases would save, before any is used: projection errors of the global basis over local ones, held out.

Projection errors bound what a reduced model with these modes can reach, and cost no simulation.  Everything is computed
from `coordinates`, without rows and ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, get_args

import numpy as np

from forebay.solvers.rom.classifier import Classifier, classify, fit
from forebay.solvers.rom.dissimilarity import PRECISION, Dissimilarity, Solution, dissimilarities
from forebay.solvers.rom.medoids import Partition, k_medoids, merged, most_distinct, silhouettes

_MOST_CLUSTERS = 8
"""Where the number is chosen: more clusters want more simulations than one has."""


@dataclass(frozen=True, slots=True)
class LocalSettings:
    """How local bases are made and judged.

    Raises:
        ValueError: numbers that make no sense; the text says which.
    """

    modes: int
    """n of every basis, the global one and the local ones: gains are at equal n, the online cost."""
    clusters: int | None = None
    """K; None: of 2 ... 8 the one with the largest mean silhouette."""
    dissimilarity: Dissimilarity = "sine"
    solution: Solution = "trajectory"
    """What is compared, see `dissimilarities`."""
    dimension: int = 3
    """Of "subspace"."""
    smallest: int = 4
    """Simulations that a cluster needs; smaller ones are merged into others, see `medoids.merged`."""
    folds: int = 8
    """Of the cross-validation; as many as simulations or more: leave one out."""
    threshold: float = 1.2
    """Least gain that pays for several bases and a choice among them; 0 takes clusters whatever they gain."""
    first_steps: int = 0
    """Steps of the reduced model with the global basis whose coefficients help to choose the cluster; 0: none."""

    def __post_init__(self) -> None:
        for name, least in (("modes", 1), ("smallest", 2), ("folds", 2), ("first_steps", 0), ("dimension", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} = {getattr(self, name)}; at least {least} is needed")
        if not (self.threshold >= 1 or self.threshold == 0):
            raise ValueError(f"threshold = {self.threshold} must be at least 1, or 0 for none; 1.2 is good")
        if self.dissimilarity not in get_args(Dissimilarity) or self.solution not in get_args(Solution):
            raise ValueError(
                f"dissimilarity {self.dissimilarity!r} of solution {self.solution!r}; choose "
                f"{', '.join(get_args(Dissimilarity))}, and {' or '.join(get_args(Solution))}"
            )


@dataclass(frozen=True, slots=True)
class Gain:
    """Mean relative projection errors |u - Φ Φᵀ W u| / |u| over all times of simulations that were held out."""

    dissimilarity: Dissimilarity
    solution: Solution
    sizes: tuple[int, ...]
    """Simulations of each cluster, all simulations taken together."""
    silhouette: float
    """Mean; above 0.5 there are clusters, below 0.25 there are none to speak of."""
    classifier: str
    accuracy: float
    """Share of held-out simulations that the classifier puts where their solution belongs."""
    modes: int
    global_error: float
    local_error: float
    """In the cluster that the classifier chooses, as happens online."""
    assigned_error: float
    """In the cluster of the nearest medoid, which is known only after the simulation: a perfect classifier."""

    @property
    def clusters(self) -> int:
        """K."""
        return len(self.sizes)

    @property
    def gain(self) -> float:
        """Global over local error; errors below the precision of the coordinates count as that."""
        return max(self.global_error, PRECISION) / max(self.local_error, PRECISION)

    @property
    def assigned_gain(self) -> float:
        """As `gain`, if the classifier were perfect."""
        return max(self.global_error, PRECISION) / max(self.assigned_error, PRECISION)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, gains included."""
        return {**asdict(self), "sizes": list(self.sizes), "gain": self.gain, "assigned_gain": self.assigned_gain}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Gain:
        """From what `to_dict` made."""
        values = {name: content[name] for name in cls.__dataclass_fields__}
        return cls(**{**values, "sizes": tuple(content["sizes"])})


@dataclass(frozen=True, slots=True, eq=False)
class Clustering:
    """Clusters of all simulations under one dissimilarity, the choice among them, and their gain."""

    partition: Partition
    classifier: Classifier
    gain: Gain


@dataclass(frozen=True, slots=True, eq=False)
class Training:
    """Simulations that are the same on every rank."""

    coordinates: Sequence[np.ndarray]
    """C (r, sᵢ) of each, see `coordinates`."""
    parameters: np.ndarray
    """(N, p)."""
    settings: LocalSettings

    def __post_init__(self) -> None:
        count = len(self.coordinates)
        if self.parameters.ndim != 2 or len(self.parameters) != count or not self.parameters.shape[1]:
            raise ValueError(f"parameters of shape {self.parameters.shape} for {count} simulations; give ({count}, p)")
        if not np.isfinite(self.parameters).all():
            row = int(np.argmin(np.isfinite(self.parameters).all(axis=1)))
            raise ValueError(f"parameters of simulation {row} hold NaN or inf; leave it out")
        if count < 2:
            raise ValueError("one simulation has no clusters; give at least two, good are 30 or more")
        independent = self.rank(np.arange(count))
        if independent < self.settings.modes:
            raise ValueError(
                f"modes = {self.settings.modes}, but the simulations have {independent} independent snapshots; ask for "
                f"{independent} at most, or add simulations"
            )
        shortest = min(c.shape[1] for c in self.coordinates)
        if self.settings.first_steps > shortest:
            raise ValueError(f"first_steps = {self.settings.first_steps}, but a simulation has {shortest} snapshots")

    def modes(self, members: np.ndarray) -> np.ndarray:
        """POD modes (r, n) of some simulations."""
        left = np.linalg.svd(self._triangle(members), full_matrices=False)[0]
        return np.asarray(left[:, : self.settings.modes])

    def rank(self, members: np.ndarray) -> int:
        """Independent snapshots of some simulations."""
        values = np.linalg.svd(self._triangle(members), compute_uv=False)
        return int(np.count_nonzero(values > PRECISION * values.max(initial=0.0)))

    def error(self, number: int, modes: np.ndarray) -> float:
        """Relative projection error of one simulation."""
        snapshots = self.coordinates[number]
        return float(np.linalg.norm(snapshots - modes @ (modes.T @ snapshots)) / np.linalg.norm(snapshots))

    @property
    def together(self) -> int:
        """Features that are scaled by one number: coefficients, whose sizes tell how much they matter."""
        return self.settings.first_steps * self.settings.modes

    def features(self, modes: np.ndarray) -> np.ndarray:
        """What a classifier sees (N, f), see `features_of`; `modes` (r, n) are the global ones."""
        steps = self.settings.first_steps
        return np.stack(
            [
                features_of(values, (modes.T @ c[:, :steps]).T)
                for values, c in zip(self.parameters, self.coordinates, strict=True)
            ]
        )

    def usable(self, members: np.ndarray) -> bool:
        """Whether these simulations can make a basis."""
        return len(members) >= self.settings.smallest and self.rank(members) >= self.settings.modes

    def _triangle(self, members: np.ndarray) -> np.ndarray:
        """(r, min(r, s)) with the left singular vectors of all their snapshots (r, s); a QR of the transpose first."""
        snapshots = np.hstack([self.coordinates[i] for i in members])
        if snapshots.shape[1] <= snapshots.shape[0]:
            return snapshots
        return np.asarray(np.linalg.qr(snapshots.T, mode="r").T)


def features_of(parameters: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Features (p + steps · n,) of one sample: parameters (p,), then coefficients (steps, n) of its first steps."""
    return np.concatenate([parameters, start.ravel()])


def clustered(training: Training, kind: Dissimilarity) -> Clustering:
    """Clusters of all simulations, and their gain by cross-validation.

    For each fold medoids, bases and the classifier come from the other simulations alone; only the number of clusters
    and the kind of classifier were chosen on all.  Simulation i is in fold i mod folds.

    Raises:
        ValueError: more clusters than simulations, or solutions that cannot be compared.
    """
    settings = training.settings
    count = len(training.coordinates)
    matrix = dissimilarities(training.coordinates, kind, settings.solution, dimension=settings.dimension)
    partition = _partition(training, matrix, np.arange(count), settings.clusters)
    everything = training.modes(np.arange(count))
    features = training.features(everything)
    classifier = classify(features, partition.labels, partition.medoids, together=training.together)
    rows = []
    for fold in range(min(settings.folds, count)):
        outside = np.arange(count) % settings.folds == fold
        rows += _held_out(training, matrix, outside, partition.clusters, classifier.method)
    hits, global_error, local_error, assigned_error = np.mean(rows, axis=0).tolist()
    gain = Gain(
        dissimilarity=kind,
        solution=settings.solution,
        sizes=partition.sizes,
        silhouette=float(silhouettes(matrix, partition.labels).mean()),
        classifier=classifier.method,
        accuracy=hits,
        modes=settings.modes,
        global_error=global_error,
        local_error=local_error,
        assigned_error=assigned_error,
    )
    return Clustering(partition, classifier, gain)


def _partition(training: Training, matrix: np.ndarray, numbers: np.ndarray, clusters: int | None) -> Partition:
    """Of the simulations `numbers`; members are positions in it."""
    among = matrix[np.ix_(numbers, numbers)]
    most = min(_MOST_CLUSTERS, len(numbers) // training.settings.smallest)
    found = most_distinct(among, most) if clusters is None else k_medoids(among, clusters)
    return merged(among, found, lambda members: training.usable(numbers[members]))


def _held_out(
    training: Training, matrix: np.ndarray, outside: np.ndarray, clusters: int, method: str
) -> list[tuple[float, float, float, float]]:
    """For each simulation outside: whether the classifier is right; global, chosen and assigned cluster's errors."""
    inside = np.flatnonzero(~outside)
    partition = _partition(training, matrix, inside, clusters)
    everything = training.modes(inside)
    features = training.features(everything)
    classifier = fit(method, features[inside], partition.labels, partition.medoids, together=training.together)
    local = [training.modes(inside[partition.members(c)]) for c in range(partition.clusters)]
    medoids = inside[list(partition.medoids)]
    rows = []
    for i in np.flatnonzero(outside).tolist():
        chosen, belongs = classifier.choose(features[i]).cluster, int(np.argmin(matrix[i, medoids]))
        errors = [training.error(i, modes) for modes in (everything, local[chosen], local[belongs])]
        rows.append((float(chosen == belongs), errors[0], errors[1], errors[2]))
    return rows

"""Local reduced bases: one for each cluster of similar simulations, where that pays, and else a reason why not.

    simulations ─► coordinates ─► clusters, classifier, gain ─► decide ─┬─ gain >= 1.2 ─► LocalBases, Decision.choose
                                                                        └─ gain <  1.2 ─► Decision: keep the global one

A basis that serves similar solutions only needs fewer modes than one for all.  Source: Daniel, Casenave, Akkari,
Ryckelynck, arXiv 2103.13683 (dictionary of local reduced models).  Differs from it: the classifier sees the parameters
instead of a coarse simulation's fields, and nothing is used before its gain is measured on simulations held out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from forebay.solvers.rom.classifier import Choice, Classifier, fit
from forebay.solvers.rom.collective import from_root
from forebay.solvers.rom.dissimilarity import Dissimilarity, coordinates
from forebay.solvers.rom.local_gain import Clustering, Gain, LocalSettings, Training, clustered, features_of
from forebay.solvers.rom.pod import Pod, pod

__all__ = ["Decision", "LocalBases", "LocalSettings", "decide"]

FORMAT = 1
"""Of the dictionary."""
_COMPARED: tuple[Dissimilarity, ...] = ("sine", "l2")


@dataclass(frozen=True, slots=True, eq=False)
class Decision:
    """Local bases or the global one, and on what grounds; plain numbers, without modes."""

    local: bool
    reason: str
    """For a report: "local bases gain 1.08 at n = 6, below 1.2: the global basis is kept"."""
    threshold: float
    gains: tuple[Gain, ...]
    """Of the dissimilarity that decides first, then those of "sine" and "l2" for comparison."""
    medoids: tuple[int, ...]
    """Simulation number of each cluster's medoid, under the first dissimilarity."""
    labels: tuple[int, ...]
    """Cluster of every simulation."""
    classifier: Classifier
    first_steps: int
    """What the classifier sees besides parameters, see `LocalSettings`."""

    @property
    def gain(self) -> Gain:
        """The one that decided."""
        return self.gains[0]

    def choose(self, parameters: np.ndarray, start: np.ndarray | None = None) -> Choice:
        """The cluster of a sample; without ranks, so the online side needs nothing else.

        Args:
            parameters: (p,), those of `decide` in their order.
            start: coefficients (first_steps, n) of its first steps in the global basis, initial state not counted;
                None if `first_steps` is 0.

        Raises:
            ValueError: other parameters or steps than in training, NaN or inf.
        """
        count = 0 if start is None else len(start)
        if count != self.first_steps:
            raise ValueError(f"{count} first steps of the sample; the classifier was trained with {self.first_steps}")
        parameters = np.asarray(parameters, float)
        return self.classifier.choose(features_of(parameters, np.empty(0) if start is None else start))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `from_dict` makes the same decision from it."""
        return {
            "format": FORMAT,
            "local": self.local,
            "reason": self.reason,
            "threshold": self.threshold,
            "gains": [gain.to_dict() for gain in self.gains],
            "medoids": list(self.medoids),
            "labels": list(self.labels),
            "classifier": self.classifier.to_dict(),
            "first_steps": self.first_steps,
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Decision:
        """From what `to_dict` made.

        Raises:
            ValueError: the dictionary of another format.
        """
        if content.get("format") != FORMAT:
            raise ValueError(f"a decision of format {content.get('format')}; this version reads {FORMAT}: decide again")
        return cls(
            local=content["local"],
            reason=content["reason"],
            threshold=content["threshold"],
            gains=tuple(Gain.from_dict(gain) for gain in content["gains"]),
            medoids=tuple(content["medoids"]),
            labels=tuple(content["labels"]),
            classifier=Classifier.from_dict(content["classifier"]),
            first_steps=content["first_steps"],
        )


@dataclass(frozen=True, slots=True, eq=False)
class LocalBases:
    """One basis for each cluster, n modes each: the owned rows of one rank."""

    bases: tuple[Pod, ...]
    """By cluster."""
    basis: Pod
    """Of all simulations: for the first steps if these help to choose, and where a choice is not sure enough."""
    decision: Decision

    def choose(self, parameters: np.ndarray, start: np.ndarray | None = None) -> Choice:
        """As `Decision.choose`."""
        return self.decision.choose(parameters, start)


def decide(
    simulations: Sequence[np.ndarray],
    weights: np.ndarray,
    parameters: np.ndarray,
    comm: Any,
    settings: LocalSettings,
) -> LocalBases | Decision:
    """Cluster simulations, and make local bases if these have less error at equal n; collective.

    Clusters are those of `medoids.k_medoids` under `settings.dissimilarity`.  One with fewer than `settings.smallest`
    simulations, or fewer independent snapshots than modes, is dissolved into the others.  The gain is the mean
    projection error of the global basis over that of the local ones, both made without the simulation that is
    projected, in the cluster that the classifier chooses for its parameters.  The root decides for all ranks.

    Args:
        simulations: owned rows (rows, sᵢ) of the snapshots of each, without the zero initial state, lifts subtracted;
            good are 30 or more.
        weights: w (rows,), positive, of the inner product Σ w u v.
        parameters: (N, p) of the samples, the same on every rank; take logarithms of those that vary over decades.
        comm: mpi4py communicator over which the rows are spread.
        settings: how.

    Returns:
        `LocalBases` if the gain reaches the threshold, and else the `Decision` to keep the global basis.

    Raises:
        ValueError: on every rank: shapes that do not fit, NaN or inf, a solution that is zero, more clusters than
            simulations, more modes than independent snapshots.
    """
    small, parameters = coordinates(simulations, weights, comm), np.asarray(parameters, float)
    decision: Decision
    decision, _ = from_root(comm, lambda: (_decision(Training(small, parameters, settings)), [None] * comm.size))
    if not decision.local:
        return decision
    labels = np.array(decision.labels)

    def basis_of(members: np.ndarray) -> Pod:
        return pod(np.hstack([simulations[i] for i in members]), weights, comm, modes=settings.modes)

    bases = tuple(basis_of(np.flatnonzero(labels == cluster)) for cluster in range(len(decision.medoids)))
    basis = basis_of(np.arange(len(labels)))
    if settings.first_steps:
        starts = [basis.project(snapshots[:, : settings.first_steps], comm).T for snapshots in simulations]
        decision, _ = from_root(comm, lambda: (_refitted(decision, parameters, starts), [None] * comm.size))
    return LocalBases(bases, basis, decision)


def _decision(training: Training) -> Decision:
    settings = training.settings
    kinds = dict.fromkeys((settings.dissimilarity, *_COMPARED))
    found: list[Clustering] = [clustered(training, kind) for kind in kinds]
    first = found[0]
    local = first.partition.clusters > 1 and first.gain.gain >= settings.threshold
    return Decision(
        local=local,
        reason=_reason(first.gain, settings),
        threshold=settings.threshold,
        gains=tuple(clustering.gain for clustering in found),
        medoids=first.partition.medoids,
        labels=tuple(first.partition.labels.tolist()),
        classifier=first.classifier,
        first_steps=settings.first_steps,
    )


def _refitted(decision: Decision, parameters: np.ndarray, starts: Sequence[np.ndarray]) -> Decision:
    """The classifier for coefficients (steps, n) in the basis of `LocalBases`: modes have signs of their own."""
    features = np.stack([features_of(values, start) for values, start in zip(parameters, starts, strict=True)])
    before, labels = decision.classifier, np.array(decision.labels)
    classifier = fit(
        before.method,
        features,
        labels,
        decision.medoids,
        together=starts[0].size,
        accuracies=before.accuracies,
    )
    return replace(decision, classifier=classifier)


def _reason(gain: Gain, settings: LocalSettings) -> str:
    if gain.clusters == 1:
        return (
            f"no two clusters of at least {settings.smallest} simulations and {gain.modes} independent snapshots: "
            f"the global basis is kept"
        )
    outcome = f"local bases gain {gain.gain:.2f} at n = {gain.modes}"
    if gain.gain >= settings.threshold:
        return f"{outcome}, at least {settings.threshold:g}: {gain.clusters} local bases are used"
    reason = f"{outcome}, below {settings.threshold:g}: the global basis is kept"
    if gain.assigned_gain < settings.threshold:
        return reason
    return (
        f"{reason}; they would gain {gain.assigned_gain:.2f} if the parameters always told the cluster, which they do "
        f"for {gain.accuracy:.0%} of the simulations"
    )

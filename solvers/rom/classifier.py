"""Which cluster a new sample belongs to, from what is known before it is simulated: its parameters.

Three rules compete by their leave-one-out accuracy: nearest medoid, votes of nearest neighbours, multinomial logistic
regression.  Features are centred and scaled by their standard deviation.  A block of features may be scaled together,
by the root of its total variance, so that it counts as one and its small ones count little.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np
from scipy.optimize import minimize

_PENALTY = 1e-2
"""λ of the logistic regression: curbs weights where the clusters are separable, too little to move a boundary."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A cluster, and how sure its choice is."""

    cluster: int
    confidence: float
    """In (0, 1]: a probability or share of votes; 1 where there is only one cluster."""


class Rule(Protocol):
    """From scaled features (f,) to a cluster and a confidence; of equals the first cluster, unless said otherwise."""

    def choose(self, point: np.ndarray) -> Choice:
        """The cluster of one point."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class NearestMedoid:
    """The cluster of the nearest centre; confidence d₂ / (d₁ + d₂) from the two smallest distances, 0.5 at a tie."""

    centres: np.ndarray
    """(K, f)."""

    def choose(self, point: np.ndarray) -> Choice:
        """The cluster of one point."""
        distances = np.linalg.norm(self.centres - point, axis=1)
        nearest, *others = np.sort(distances)[:2].tolist()
        both = nearest + sum(others)
        confidence = 1.0 if not others else others[0] / both if both else 0.5
        return Choice(int(np.argmin(distances)), float(confidence))


@dataclass(frozen=True, slots=True, eq=False)
class Neighbours:
    """The cluster with most votes of the k nearest samples, at a tie the nearest one's; confidence: share of votes."""

    points: np.ndarray
    """(N, f)."""
    labels: np.ndarray
    """(N,)."""
    neighbours: int
    """k."""

    def choose(self, point: np.ndarray) -> Choice:
        """The cluster of one point."""
        distances = np.linalg.norm(self.points - point, axis=1)
        labels = self.labels[np.argsort(distances, kind="stable")[: self.neighbours]]
        votes = np.bincount(labels)
        most = int(votes.max())
        cluster = next(int(label) for label in labels if votes[label] == most)
        return Choice(cluster, most / len(labels))


@dataclass(frozen=True, slots=True, eq=False)
class Logistic:
    """The cluster of largest probability, softmax(B [1, x]); that is the confidence.  Boundaries are planes."""

    coefficients: np.ndarray
    """B (K, 1 + f)."""

    def choose(self, point: np.ndarray) -> Choice:
        """The cluster of one point."""
        logits = self.coefficients @ np.append(1.0, point)
        likelihoods = np.exp(logits - logits.max())
        return Choice(int(np.argmax(logits)), float(likelihoods.max() / likelihoods.sum()))


@dataclass(frozen=True, slots=True, eq=False)
class Classifier:
    """A rule for scaled features, and how good the rules were."""

    shift: np.ndarray
    scale: np.ndarray
    """(f,), positive."""
    method: str
    """Name of the rule in `RULES`."""
    rule: Rule
    accuracies: Mapping[str, float]
    """Leave-one-out accuracy of the rules that were compared."""

    def choose(self, features: np.ndarray) -> Choice:
        """Cluster of one sample, features (f,).

        Raises:
            ValueError: another number of features, NaN or inf.
        """
        features = np.asarray(features, float)
        if features.shape != self.shift.shape or not np.isfinite(features).all():
            raise ValueError(
                f"features {features} of a sample; the classifier was trained with {len(self.shift)} finite numbers"
            )
        return self.rule.choose((features - self.shift) / self.scale)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `from_dict` makes the same classifier from it."""
        rule: Any = self.rule
        return {
            "shift": self.shift.tolist(),
            "scale": self.scale.tolist(),
            "method": self.method,
            "rule": {field.name: np.asarray(getattr(rule, field.name)).tolist() for field in fields(rule)},
            "accuracies": dict(self.accuracies),
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Classifier:
        """From what `to_dict` made.

        Raises:
            ValueError: a method that does not exist.
        """
        kind = _KINDS[_known(content["method"])]
        rule = kind(
            **{name: value if name == "neighbours" else np.array(value) for name, value in content["rule"].items()}
        )
        shift, scale = np.array(content["shift"], float), np.array(content["scale"], float)
        return cls(shift, scale, content["method"], rule, dict(content["accuracies"]))


def classify(features: np.ndarray, labels: np.ndarray, medoids: tuple[int, ...], *, together: int = 0) -> Classifier:
    """The rule with the best leave-one-out accuracy, of equals the first of `RULES`, fitted to all samples.

    Where a medoid is left out, the member of its cluster with the nearest features stands in for it.

    Args:
        features: (N, f): parameters of the samples.
        labels: their clusters (N,), 0 ... K - 1.
        medoids: sample number of each cluster's medoid.
        together: so many features, the last ones, are scaled together.

    Raises:
        ValueError: shapes that do not fit, NaN or inf.
    """
    points, _, _ = _scaled(features, labels, together)
    accuracies = {method: _leave_one_out(method, points, labels, medoids) for method in RULES}
    best = max(RULES, key=accuracies.__getitem__)
    return fit(best, features, labels, medoids, together=together, accuracies=accuracies)


def fit(
    method: str,
    features: np.ndarray,
    labels: np.ndarray,
    medoids: tuple[int, ...],
    *,
    together: int = 0,
    accuracies: Mapping[str, float] | None = None,
) -> Classifier:
    """One of `RULES` fitted to all samples; arguments as those of `classify`.

    Raises:
        ValueError: as `classify`, or an unknown method.
    """
    points, shift, scale = _scaled(features, labels, together)
    rule = RULES[_known(method)](points, labels, points[list(medoids)])
    return Classifier(shift, scale, method, rule, accuracies or {})


def _scaled(features: np.ndarray, labels: np.ndarray, together: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scaled features, shift and scale."""
    if features.ndim != 2 or labels.shape != features.shape[:1] or not features.size:
        raise ValueError(f"features of shape {features.shape} for {labels.shape} labels; give (N, f) and (N,)")
    if not np.isfinite(features).all():
        row = int(np.argmin(np.isfinite(features).all(axis=1)))
        raise ValueError(f"features of sample {row} hold NaN or inf; leave it out")
    shift, scale = features.mean(axis=0), features.std(axis=0)
    if together:
        scale[-together:] = np.linalg.norm(scale[-together:])
    # Rounding in the mean of equal values must not be blown up to a feature.
    scale[scale <= 1e-12 * np.abs(shift)] = 1.0
    return (features - shift) / scale, shift, scale


def _known(method: str) -> str:
    if method not in RULES:
        raise ValueError(f"there is no classifier {method!r}; choose {', '.join(RULES)}")
    return method


def _leave_one_out(method: str, points: np.ndarray, labels: np.ndarray, medoids: tuple[int, ...]) -> float:
    """Share of samples that a rule without them puts into their cluster."""
    hits = 0
    for i, label in enumerate(labels):
        others = np.arange(len(labels)) != i
        centres = points[list(medoids)]
        mates = points[others & (labels == label)]
        if medoids[label] == i and len(mates):
            centres[label] = mates[np.argmin(np.linalg.norm(mates - points[i], axis=1))]
        hits += int(RULES[method](points[others], labels[others], centres).choose(points[i]).cluster == label)
    return hits / len(labels)


def _fit_logistic(points: np.ndarray, labels: np.ndarray, centres: np.ndarray) -> Logistic:
    """Least Σᵢ -log pᵢ(labelᵢ) + λ/2 |B|² without the constants: convex, from zero, hence deterministic."""
    inputs = np.hstack([np.ones((len(points), 1)), points])
    wanted = np.eye(len(centres))[labels]
    penalty = np.full(inputs.shape[1], _PENALTY)
    penalty[0] = 0.0

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = flat.reshape(len(centres), -1)
        logits = inputs @ weights.T
        logits -= logits.max(axis=1, keepdims=True)
        sums = np.exp(logits).sum(axis=1)
        excess = np.exp(logits) / sums[:, None] - wanted
        value = np.log(sums).sum() - np.sum(wanted * logits) + 0.5 * np.sum(penalty * weights**2)
        return float(value), (excess.T @ inputs + penalty * weights).ravel()

    found = minimize(loss, np.zeros(len(centres) * inputs.shape[1]), jac=True, method="L-BFGS-B")
    return Logistic(found.x.reshape(len(centres), -1))


def _neighbours(count: int) -> Callable[[np.ndarray, np.ndarray, np.ndarray], Neighbours]:
    return lambda points, labels, centres: Neighbours(points, labels, min(count, len(points)))


RULES: Mapping[str, Callable[[np.ndarray, np.ndarray, np.ndarray], Rule]] = {
    "nearest medoid": lambda points, labels, centres: NearestMedoid(centres),
    "logistic": _fit_logistic,
    "3 neighbours": _neighbours(3),
    "5 neighbours": _neighbours(5),
}
"""How each rule is fitted to points (N, f), labels (N,) and centres (K, f); the simplest first."""
_KINDS: Mapping[str, Callable[..., Rule]] = {
    "nearest medoid": NearestMedoid,
    "logistic": Logistic,
    "3 neighbours": Neighbours,
    "5 neighbours": Neighbours,
}

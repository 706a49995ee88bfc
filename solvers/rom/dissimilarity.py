"""How unlike simulations are, as seen by a basis: angles between solutions, not their distance.

A basis that holds u holds every multiple of u.  The sine of an angle, unlike a distance, does not tell these apart, so
that clusters of small sine are what a basis of few modes can span.
Source: Daniel, Casenave, Akkari, Ryckelynck, arXiv 2103.13683.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np

from forebay.solvers.rom.collective import refuse, total
from forebay.solvers.rom.pod import Pod, pod

Dissimilarity = Literal["sine", "subspace", "l2"]
Solution = Literal["trajectory", "final"]

PRECISION = 1e-6
"""Of every simulation, relative to its norm over all times, in `coordinates`."""
_BATCH = 256
"""Snapshots that enter the common basis at a time."""


def coordinates(simulations: Sequence[np.ndarray], weights: np.ndarray, comm: Any) -> tuple[np.ndarray, ...]:
    """Simulations in an orthonormal basis of them all, where Σ w u v is a dot product: small, the same everywhere.

    Whatever concerns the simulations among themselves (angles, bases, projection errors) can be computed from these
    without rows and ranks, up to 1e-6 of each simulation's norm.  Collective.

    Args:
        simulations: owned rows (rows, sᵢ) of the snapshots of each.  Leave out the initial state, which is zero.
        weights: w (rows,), positive.
        comm: mpi4py communicator over which the rows are spread.

    Returns:
        C of each simulation (r, sᵢ), in the units of the field · √(units of w); column j is snapshot j.

    Raises:
        ValueError: on every rank: no simulations, shapes that do not fit, NaN or inf, a simulation that is zero.
    """
    refuse(comm, _complaint(simulations, weights))
    counts = comm.allgather([snapshots.shape[1] for snapshots in simulations])
    if any(count != counts[0] for count in counts):
        raise ValueError(f"the ranks hold simulations of {counts} snapshots; each must hold its rows of all of them")
    norms = np.sqrt(total(comm, np.array([np.sum(weights @ snapshots**2) for snapshots in simulations])))
    if not norms.all():
        raise ValueError(
            f"simulation {int(np.argmin(norms))} is zero at all times, which has no direction; leave it out, or check "
            f"its loads"
        )
    basis = _common_basis([u / norm for u, norm in zip(simulations, norms, strict=True)], weights, comm)
    return tuple(basis.project(snapshots, comm) for snapshots in simulations)


def dissimilarities(
    coordinates: Sequence[np.ndarray],
    kind: Dissimilarity = "sine",
    solution: Solution = "trajectory",
    *,
    dimension: int = 3,
) -> np.ndarray:
    """Matrix (N, N) of the dissimilarities of N simulations; each kind is a metric (of lines, of subspaces, of points).

    - "sine": δ = √(1 - cos²) of the angle between two solutions, in [0, 1]; 0 for multiples of each other.
    - "subspace": √(Σ sin² θₖ / q), θₖ the principal angles between the spans of the first q POD modes of each
      simulation (chordal distance), in [0, 1]; for q = 1 the sine between first modes.
    - "l2": the distance, which also tells a solution from its double; for comparison.

    Computed from differences of unit vectors: 1 - cos² itself would lose angles below 1e-8.

    Args:
        coordinates: C (r, sᵢ) of each simulation, from `coordinates`.
        kind: of these three.
        solution: what stands for a simulation under "sine" and "l2": its "trajectory", that is all snapshots in turn as
            one vector (all simulations then need the same times), or its "final" snapshot.  On the necked bar of
            `benchmarks/local_bases.py` trajectories give twice the gain of final snapshots.
        dimension: q of "subspace"; 1 ... 5.

    Raises:
        ValueError: trajectories of unlike length, a zero solution, fewer independent snapshots than q, unknown names.
    """
    if kind == "subspace":
        return _chordal([_leading(c, dimension, i) for i, c in enumerate(coordinates)])
    if kind not in get_args(Dissimilarity) or solution not in get_args(Solution):
        raise ValueError(
            f"dissimilarity {kind!r} of solution {solution!r}; choose {', '.join(get_args(Dissimilarity))}, and "
            f"{' or '.join(get_args(Solution))}"
        )
    vectors = _solutions(coordinates, solution)
    return _sines(vectors) if kind == "sine" else _distances(vectors)


def _complaint(simulations: Sequence[np.ndarray], weights: np.ndarray) -> str:
    if not simulations:
        return "no simulations; give at least two"
    for i, snapshots in enumerate(simulations):
        if snapshots.ndim != 2 or weights.shape != snapshots.shape[:1] or not snapshots.shape[1]:
            return (
                f"simulation {i} of shape {snapshots.shape} with weights of shape {weights.shape}; they must be "
                f"(rows, snapshots) with at least one snapshot, and (rows,)"
            )
        if not np.isfinite(snapshots).all():
            return f"simulation {i} holds NaN or inf; leave it out"
    if not (np.isfinite(weights).all() and np.all(weights > 0)):
        return "weights must be positive and finite: use a lumped mass or quadrature weights"
    return ""


def _common_basis(simulations: Sequence[np.ndarray], weights: np.ndarray, comm: Any) -> Pod:
    """Of simulations of norm one, in batches: one QR of all would need a triangle of all snapshots squared."""
    tolerance = PRECISION / np.sqrt(len(simulations))
    basis: Pod | None = None
    for batch in _batches(simulations):
        snapshots = np.hstack(batch)
        if basis is None:
            basis = pod(snapshots, weights, comm, tolerance=tolerance)
        else:
            basis = basis.extend(snapshots, comm, tolerance=tolerance)
    assert basis is not None
    return basis


def _batches(simulations: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
    batches: list[list[np.ndarray]] = [[]]
    for snapshots in simulations:
        if sum(u.shape[1] for u in batches[-1]) >= _BATCH:
            batches.append([])
        batches[-1].append(snapshots)
    return batches


def _solutions(coordinates: Sequence[np.ndarray], solution: Solution) -> np.ndarray:
    """One row for each simulation."""
    if solution == "final":
        return np.stack([c[:, -1] for c in coordinates])
    lengths = sorted({c.shape[1] for c in coordinates})
    if len(lengths) > 1:
        raise ValueError(
            f"trajectories of {lengths[0]} to {lengths[-1]} snapshots cannot be compared; store the same times, or use "
            f"solution='final' or dissimilarity='subspace'"
        )
    return np.stack([c.ravel() for c in coordinates])


def _sines(vectors: np.ndarray) -> np.ndarray:
    """With unit vectors and the sign s of a·b: sin² = (1 - |a·b|)(1 + |a·b|) = |a - s b|² (1 + |a·b|) / 2."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not norms.all():
        raise ValueError(
            f"the solution of simulation {int(np.argmin(norms))} is zero, which has no direction; leave it out, or use "
            f"solution='trajectory'"
        )
    units = vectors / norms
    sines = np.zeros((len(units), len(units)))
    for i, unit in enumerate(units[:-1]):
        cosines = units[i + 1 :] @ unit
        differences = unit - np.where(cosines < 0, -1.0, 1.0)[:, None] * units[i + 1 :]
        squares = 0.5 * np.einsum("ij,ij->i", differences, differences) * (1 + np.abs(cosines))
        sines[i, i + 1 :] = np.sqrt(np.minimum(squares, 1.0))
    return sines + sines.T


def _distances(vectors: np.ndarray) -> np.ndarray:
    return np.stack([np.linalg.norm(vectors - vector, axis=1) for vector in vectors])


def _chordal(frames: Sequence[np.ndarray]) -> np.ndarray:
    """√(Σ sin² θ / q) = |Qⱼ - Qᵢ Qᵢᵀ Qⱼ| / √q, of orthonormal frames Q (r, q)."""
    count, dimension = len(frames), frames[0].shape[1]
    distances = np.zeros((count, count))
    for i in range(count):
        for j in range(i):
            outside = frames[j] - frames[i] @ (frames[i].T @ frames[j])
            distances[i, j] = np.linalg.norm(outside) / np.sqrt(dimension)
    return distances + distances.T


def _leading(snapshots: np.ndarray, dimension: int, number: int) -> np.ndarray:
    """Orthonormal POD modes (r, q) of one simulation."""
    left, values, _ = np.linalg.svd(snapshots, full_matrices=False)
    rank = int(np.count_nonzero(values > PRECISION * values.max(initial=0.0)))
    if not 1 <= dimension <= rank:
        raise ValueError(
            f"dimension = {dimension} of the subspace of simulation {number}, which has {rank} independent snapshots; "
            f"choose 1 to {rank}"
        )
    return np.asarray(left[:, :dimension])

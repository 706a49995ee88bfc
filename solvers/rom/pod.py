"""Proper orthogonal decomposition of fields whose rows are spread over ranks, and its update by further snapshots."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from forebay.solvers.rom.collective import from_root, refuse, total

_TIE = 0.99
"""Entries this close to the largest count as equal when a sign is chosen, so that rounding does not choose it."""


@dataclass(frozen=True, slots=True, eq=False)
class Pod:
    """Modes Φ with Φᵀ W Φ = I, W the diagonal of the weights: the owned rows of one rank, the rest on every rank."""

    modes: np.ndarray
    """Φ (rows, n), in the units of the field / √(units of u² W)."""
    singular_values: np.ndarray
    """σ (n,), decreasing: σₖ² is the sum over the snapshots of their squared coefficients of mode k."""
    weights: np.ndarray
    """w (rows,), positive: nodal masses, quadrature weights."""
    discarded: float
    """Σ σ² of what was left out, now and in earlier updates."""
    snapshots: int
    """How many the modes were made from."""

    @property
    def energy(self) -> float:
        """Σ |u|² over all snapshots, with |u|² = Σ w u²."""
        return float(self.singular_values @ self.singular_values) + self.discarded

    @property
    def error(self) -> float:
        """Relative projection error of the snapshots, √(discarded / energy); an estimate after updates."""
        return float(np.sqrt(self.discarded / self.energy))

    def project(self, fields: np.ndarray, comm: Any) -> np.ndarray:
        """Coefficients Φᵀ W u of fields (rows,) or (rows, k): shape (n,) or (n, k), on every rank.  Collective."""
        return total(comm, (self.weights[:, None] * self.modes).T @ fields)

    def expand(self, coefficients: np.ndarray) -> np.ndarray:
        """Owned rows of Φ c for coefficients (n,) or (n, k)."""
        return self.modes @ coefficients

    def truncated(self, *, tolerance: float | None = None, modes: int | None = None) -> Pod:
        """The first modes only, chosen as `pod` chooses them.

        Raises:
            ValueError: more modes than there are, or neither tolerance nor modes.
        """
        kept = _count(self.singular_values, self.discarded, tolerance, modes, self.snapshots)
        tail = float(np.sum(self.singular_values[kept:] ** 2))
        return Pod(
            np.ascontiguousarray(self.modes[:, :kept]),
            self.singular_values[:kept],
            self.weights,
            self.discarded + tail,
            self.snapshots,
        )

    def extend(
        self, snapshots: np.ndarray, comm: Any, *, tolerance: float | None = None, modes: int | None = None
    ) -> Pod:
        """POD of the old and the new snapshots (rows, s) together, without the old ones.  Collective.

        With u = Φ C + Q F, Q the orthonormal directions of what Φ misses, the singular values and modes are those of
        [[diag σ, C], [0, F]].  Φ is projected out of u and once more out of Q: where u lies almost in the span of Φ, Q
        is made of rounding errors that Φ has a part in.  The old snapshots enter through σ only, so that the result is
        the POD of all up to what was discarded before: with the same tolerance ε throughout, the projection error stays
        near ε, and under √(1 + updates) ε.
        Source: Brand, Linear Algebra Appl. 415 (2006), doi 10.1016/j.laa.2005.07.021.  Differs from it: weighted, rows
        spread over ranks, the second projection, and the bookkeeping of the discarded energy.

        Args:
            snapshots: owned rows of the new fields, (rows, s) or (rows,).
            comm: that of `pod`, with the same rows on every rank.
            tolerance: as in `pod`; the one of the first call keeps its promise.
            modes: as in `pod`.

        Raises:
            ValueError: on every rank, as `pod` does.
        """
        new = snapshots[:, None] if snapshots.ndim == 1 else snapshots
        _require(new, self.weights, comm)
        root_weights = np.sqrt(self.weights)[:, None]
        old, rows = root_weights * self.modes, root_weights * new
        coefficients = total(comm, old.T @ rows)
        directions, values, right = _svd(rows - old @ coefficients, comm)
        remainder = values[:, None] * right
        directions, values, right = _svd(directions - old @ total(comm, old.T @ directions), comm)
        remainder = (values[:, None] * right) @ remainder
        rotation, values, right = _shared(comm, lambda: _small_svd(_stacked(self, coefficients, remainder)))
        left = np.hstack([old, directions]) @ (rotation * _signs(right)) / root_weights
        count = self.snapshots + new.shape[1]
        return Pod(left, values, self.weights, self.discarded, count).truncated(tolerance=tolerance, modes=modes)


def pod(
    snapshots: np.ndarray,
    weights: np.ndarray,
    comm: Any,
    *,
    tolerance: float | None = None,
    modes: int | None = None,
) -> Pod:
    """Orthonormal modes that span snapshots (rows, s) best in the norm |u|² = Σ w u².  Collective.

    Left singular vectors of √W u by a tall and skinny QR: every rank factorises its rows, the root decomposes the
    stacked triangles.  Unlike the method of snapshots (eigenvectors of uᵀ W u), which squares the condition number
    and loses everything below 1e-8 of the largest singular value, it is accurate to rounding.  Ranks may own fewer rows
    than there are snapshots, or none.  The root holds a triangle (s, s) of each rank: good for some hundred
    ranks.  Signs: the largest coefficient of a mode among the snapshots is positive, on any number of ranks.
    Source: Demmel, Grigori, Hoemmen, Langou, SIAM J. Sci. Comput. 34 (2012), doi 10.1137/080731992.

    Args:
        snapshots: owned rows of the fields.  For several components a row see `component_rows`.
        weights: w (rows,), positive.
        comm: mpi4py communicator over which the rows are spread.
        tolerance: ε: the fewest modes whose projection error over all snapshots is at most ε times their norm, that is
            with energy 1 - ε².  1e-3 ... 1e-6; below 1e-8 modes of rounding errors of the snapshots begin.
        modes: so many modes; with a tolerance, at most so many.

    Raises:
        ValueError: on every rank: no snapshots, all zero, NaN or inf, weights that are not positive, more modes than
            linearly independent snapshots, or neither tolerance nor modes.
    """
    _require(snapshots, weights, comm)
    root_weights = np.sqrt(weights)[:, None]
    left, values, right = _svd(root_weights * snapshots, comm)
    if not len(values):
        raise ValueError("all snapshots are zero, which have no modes; leave out the initial state, or check the loads")
    found = Pod(left * _signs(right) / root_weights, values, weights, 0.0, snapshots.shape[1])
    return found.truncated(tolerance=tolerance, modes=modes)


def component_rows(fields: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fields (points, c, s) of c components as rows (points c, s) with each weight repeated c times, for `pod`.

    Modes come back by `modes.reshape(points, c, n)`.  With Mandel stresses the inner product is then ∫ σ:τ.
    """
    points, components, snapshots = fields.shape
    return fields.reshape(points * components, snapshots), np.repeat(weights, components)


def _require(snapshots: np.ndarray, weights: np.ndarray, comm: Any) -> None:
    refuse(comm, _complaint(snapshots, weights))
    widths = comm.allgather(snapshots.shape[1])
    if len(set(widths)) > 1:
        raise ValueError(f"the ranks hold {widths} snapshots; every rank must hold its rows of all of them")


def _complaint(snapshots: np.ndarray, weights: np.ndarray) -> str:
    if snapshots.ndim != 2 or weights.shape != snapshots.shape[:1]:
        return (
            f"snapshots of shape {snapshots.shape} with weights of shape {weights.shape}; they must be (rows, s) and "
            f"(rows,), see component_rows for fields of several components"
        )
    if snapshots.shape[1] == 0:
        return "no snapshots; pass at least one column"
    if not (np.isfinite(weights).all() and np.all(weights > 0)):
        worst = weights[np.argmin(np.where(np.isfinite(weights), weights, -np.inf))]
        return f"a weight is {worst}; weights must be positive and finite: use a lumped mass or quadrature weights"
    if not np.isfinite(snapshots).all():
        column = int(np.argmin(np.isfinite(snapshots).all(axis=0)))
        return f"snapshot {column} holds NaN or inf; drop the simulation it came from"
    return ""


def _svd(rows: np.ndarray, comm: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Thin singular value decomposition of spread rows up to their rank: U (rows, r) owned, σ (r,), Vᵀ (r, s)."""
    basis, triangle = np.linalg.qr(rows)
    triangles = comm.gather(triangle)

    def decompose() -> tuple[Any, list[np.ndarray]]:
        left, values, right = _small_svd(np.vstack(triangles))
        return (values, right), np.split(left, np.cumsum([len(triangle) for triangle in triangles])[:-1])

    (values, right), block = from_root(comm, decompose)
    return basis @ block, values, right


def _small_svd(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    floor = max(matrix.shape) * np.finfo(float).eps * values.max(initial=0.0)
    rank = int(np.count_nonzero(values > floor))
    return left[:, :rank], values[:rank], right[:rank]


def _stacked(old: Pod, coefficients: np.ndarray, remainder: np.ndarray) -> np.ndarray:
    """[[diag σ, C], [0, F]]."""
    below = np.zeros((len(remainder), len(old.singular_values)))
    return np.block([[np.diag(old.singular_values), coefficients], [below, remainder]])


def _shared[T](comm: Any, compute: Callable[[], T]) -> T:
    shared, _ = from_root(comm, lambda: (compute(), [None] * comm.size))
    return cast(T, shared)


def _signs(right: np.ndarray) -> np.ndarray:
    """Signs (r,) that make the first of the largest entries of every row of Vᵀ (r, s) positive."""
    sizes = np.abs(right)
    first = np.argmax(sizes >= _TIE * sizes.max(axis=1, keepdims=True, initial=0.0), axis=1)
    return np.sign(right[np.arange(len(right)), first])


def _count(values: np.ndarray, discarded: float, tolerance: float | None, modes: int | None, snapshots: int) -> int:
    """How many of the singular values to keep."""
    if tolerance is None and modes is None:
        raise ValueError("neither a tolerance nor a number of modes; pass tolerance=1e-4, modes=10, or both")
    if modes is not None and modes < 1:
        raise ValueError(f"{modes} modes; at least one is needed")
    if tolerance is None:
        wanted = modes or 0
        if wanted > len(values):
            raise ValueError(
                f"{wanted} modes of {snapshots} snapshots, of which {len(values)} are linearly independent; ask for "
                f"{len(values)} at most, or add snapshots"
            )
        return wanted
    if not 0 <= tolerance < 1:
        raise ValueError(f"a POD tolerance of {tolerance}; it must lie in [0, 1), good values are 1e-3 to 1e-6")
    tails = np.append(np.cumsum(values[::-1] ** 2)[::-1], 0.0) + discarded
    enough = max(1, int(np.count_nonzero(tails[:-1] > tolerance**2 * tails[0])))
    return min(enough, modes or enough)

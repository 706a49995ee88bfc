"""Empirical cubature: few integration points with positive weights that integrate the training stresses' work."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from forebay.solvers.rom.collective import Ask, lead, refuse, total
from forebay.solvers.rom.columns import Part, Together
from forebay.solvers.rom.nnomp import Outcome, Pursuit, prune, pursue, start_from, thin

CANDIDATE_TOLERANCE = 0.1
"""Of the tolerance, shared by the parts: what the candidates of every part reach on their own."""
OVERSHOOT = 0.2
"""Of the tolerance: how far points are added before the least useful are left out again."""
_ROUNDING = 1e-9
"""Of the tolerance: kept back, so that the residual is within it whatever the order of summation."""
_BLOCK = 1024
"""Points whose integrands are formed at once; a temporary array has so many × modes × stresses numbers."""

type Start = Sequence[int] | np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Cubature:
    """Points of one rank (or part), and what holds for all ranks together."""

    points: np.ndarray
    """Owned local numbers, increasing, (k,) int64: columns of this rank's G."""
    weights: np.ndarray
    """Positive, (k,), [mm³] if G w has that measure."""
    residual: float
    """|G w - b| / |b| of all ranks, computed afresh from the points and weights."""
    size: int
    """Points of all ranks."""
    outcome: Outcome
    """`Outcome.REACHED`, or why the tolerance was not reached; its value says what to do."""
    history: tuple[float, ...]
    """|G w - b| / |b| after every point that was added in the last, global stage, before pruning."""

    @property
    def reached(self) -> bool:
        """Is the residual within the tolerance?"""
        return self.outcome is Outcome.REACHED


def integrand_rows(mode_strains: np.ndarray, stress: np.ndarray, comm: Any, *, volume: bool = True) -> np.ndarray:
    """G[(k, j), q] = σⱼ(x_q) : ε(ψₖ)(x_q), rows for every pair of mode and stress, (n s [+ 1], points).  Collective.

    Instead of all stress snapshots pass their POD modes times the singular values: the rows of a mode k are then those
    of the snapshots turned by an orthogonal matrix, so that |G w - b| is the same up to the discarded energy, with
    a tenth of the rows.  Do not orthonormalise the rows: that gives their noise the weight of their content and
    doubled the number of points.

    Args:
        mode_strains: ε(ψₖ) at the owned points, (points, 6, n), Mandel.
        stress: σⱼ there, (points, 6, s), Mandel, [MPa].
        comm: communicator that shares the points.
        volume: one more row, constant, as large as the mean of |G|: the cubature then keeps the volume, and no point
            gets an enormous weight because hardly any work is done there.

    Raises:
        ValueError: on every rank, shapes that do not fit.
    """
    points, components, modes = mode_strains.shape
    fits = stress.ndim == 3 and stress.shape[:2] == (points, components)
    refuse(
        comm,
        ""
        if fits
        else f"stress of shape {stress.shape} with mode strains of shape {mode_strains.shape}; they "
        f"must be (points, 6, s) and (points, 6, n)",
    )
    rows = modes * stress.shape[2]
    integrands = np.empty((rows + volume, points))
    for first in range(0, points, _BLOCK):
        block = slice(first, first + _BLOCK)
        works = np.swapaxes(mode_strains[block], 1, 2) @ stress[block]
        integrands[:rows, block] = works.reshape(len(works), rows).T
    if volume:
        size, count = total(comm, np.array([np.abs(integrands[:rows]).sum(), float(rows * points)]))
        integrands[rows] = size / count
    return integrands


def integrals(integrands: np.ndarray, weights: np.ndarray, comm: Any) -> np.ndarray:
    """The target b = G w, (rows,), over the points of all ranks with their full weights (points,).  Collective."""
    return total(comm, integrands @ weights)


def select(
    integrands: np.ndarray, target: np.ndarray, tolerance: float, *, start: Start = (), most: int | None = None
) -> Cubature:
    """Few points and positive weights with |G w - b| ≤ tolerance |b|, in one process.

    Points are added by nonnegative orthogonal matching pursuit (see `nnomp.pursue`) beyond the tolerance, then
    left out again, least costly first, as long as the tolerance holds: fewer points than stopping at once, and a
    number that hangs less on the order in which they came.
    Source: Hernández, Caicedo, Ferrer, Comput. Methods Appl. Mech. Eng. 313 (2017), doi
    10.1016/j.cma.2016.10.022; Casenave et al., arXiv 1812.07228.  Differs from them: columns scaled to unit
    length for the pick, rows as they are, pruning.

    Args:
        integrands: G (rows, points), [rows' units / volume]; never copied.
        target: b (rows,), usually `integrals` of the full weights.
        tolerance: 1e-2 ... 1e-4; displacements of the reduced model are about as good as that.
        start: points to begin with, such as those of an earlier cubature.  Of a solution, it comes back.
        most: the most points allowed; None for no bound.

    Raises:
        ValueError: shapes that do not fit, NaN or inf, b = 0, a tolerance outside (0, 1), start outside the points.
    """
    return _in_process([integrands], target, tolerance, [start], most, None)[0]


def select_global(
    integrands: np.ndarray,
    target: np.ndarray,
    tolerance: float,
    comm: Any,
    *,
    start: Start = (),
    most: int | None = None,
) -> Cubature:
    """`select` with the points (columns of G) spread over ranks: the same points on any number of ranks.  Collective.

    Every step sends the residual from the root to all ranks, the best column of all to the root.  The reference:
    `select_hierarchical` needs a fraction of the time and of the messages.
    """
    return _on_ranks(integrands, target, tolerance, comm, start, most, None)


def select_hierarchical(
    integrands: np.ndarray,
    target: np.ndarray,
    tolerance: float,
    comm: Any,
    *,
    weights: np.ndarray,
    start: Start = (),
    most: int | None = None,
    rough: bool = False,
) -> Cubature:
    """`select` in two stages: candidates of every rank for its own integrals, then a pursuit among those.  Collective.

    The local residuals are bounded by `CANDIDATE_TOLERANCE` × tolerance |b| / ranks each, so that the candidates with
    their local weights would meet a tenth of the tolerance: the second stage can reach it.  Should it not (a rank
    stalled), the pursuit goes on over all points.  Among the few candidates `nnomp.thin` is affordable: fewer points
    than `select_global` finds.  The tolerance holds for the sum over the ranks, where subdomains that select alone, as
    in arXiv 1812.07228, miss it and need more points the more they are.

    Args:
        integrands: G (rows, owned points).
        target: b (rows,), `integrals(integrands, weights, comm)`.
        tolerance: as in `select`, for all ranks together.
        comm: communicator that shares the points.
        weights: full quadrature weights of the owned points (points,), not negative.
        start: owned local numbers to begin with.
        most: the most points of all ranks together; None for no bound.
        rough: from the start straight on over all points, and stop at the tolerance: some 15 % more points in a
            tenth of the time where the start nearly has it, as after one more simulation.

    Raises:
        ValueError: on every rank, as `select` does, or negative weights.
    """
    return _on_ranks(integrands, target, tolerance, comm, start, most, weights, rough=rough)


def select_from_parts(
    parts: Sequence[np.ndarray],
    target: np.ndarray,
    tolerance: float,
    *,
    weights: Sequence[np.ndarray],
    starts: Sequence[Start] | None = None,
    most: int | None = None,
) -> list[Cubature]:
    """What `select_hierarchical` gives to ranks that own these parts of G and of the weights, in one process."""
    return _in_process(parts, target, tolerance, starts or [()] * len(parts), most, weights)


@dataclass(frozen=True, slots=True, eq=False)
class _Task:
    """What the leader needs to know besides the columns."""

    target: np.ndarray
    tolerance: float
    start: np.ndarray
    most: int
    parts: int
    hierarchical: bool
    rough: bool


@dataclass(frozen=True, slots=True, eq=False)
class _Found:
    """What the leader tells the others: global keys, increasing, and their weights."""

    keys: np.ndarray
    weights: np.ndarray
    history: tuple[float, ...]
    outcome: Outcome


def _solve(task: _Task, ask: Ask) -> _Found:
    columns = Together(ask, task.parts)
    norm = float(np.linalg.norm(task.target))
    limit = task.tolerance * norm * (1 - _ROUNDING)
    pursuit = _pursuit(task, columns, limit)
    reached = pursuit.history[-1] <= limit
    chosen = prune(pursuit.chosen, limit) if reached and not task.rough else pursuit.chosen
    order = np.argsort(chosen.keys)
    history = tuple(size / norm for size in pursuit.history)
    outcome = Outcome.REACHED if reached else pursuit.outcome
    return _Found(chosen.keys[order], chosen.weights[order], history, outcome)


def _pursuit(task: _Task, columns: Together, limit: float) -> Pursuit:
    begin = start_from(columns, task.target, task.start)
    size = float(np.linalg.norm(begin.residual()))
    if size <= limit:
        return Pursuit(begin, (size,), Outcome.REACHED)
    if task.rough:
        return pursue(columns, begin, limit, task.most)
    if not task.hierarchical:
        return pursue(columns, begin, OVERSHOOT * limit, task.most)
    candidates = columns.candidates(CANDIDATE_TOLERANCE * limit, task.start)
    among = pursue(candidates, begin, OVERSHOOT * limit, task.most)
    if among.history[-1] <= limit:
        return replace(among, chosen=thin(candidates, among.chosen, limit, task.most))
    if among.outcome is Outcome.MAX_POINTS:
        return among
    beyond = pursue(columns, among.chosen, OVERSHOOT * limit, task.most)
    return Pursuit(beyond.chosen, among.history + beyond.history[1:], beyond.outcome)


def _on_ranks(
    integrands: np.ndarray,
    target: np.ndarray,
    tolerance: float,
    comm: Any,
    start: Start,
    most: int | None,
    weights: np.ndarray | None,
    *,
    rough: bool = False,
) -> Cubature:
    refuse(comm, _complaint(integrands, target, tolerance, start, most, weights))
    bounds = np.append(0, np.cumsum(comm.allgather(integrands.shape[1])))
    first, end = bounds[comm.rank], bounds[comm.rank + 1]
    starts = comm.allgather(np.asarray(start, dtype=np.int64) + first)
    part = Part(integrands, np.arange(first, end), None if weights is None else integrands @ weights)
    task = _task(target, tolerance, starts, most, weights is not None, rough)
    found = lead(comm, part, lambda ask: _solve(task, ask))
    points, chosen = _share(found, first, end)
    reproduced = total(comm, integrands[:, points] @ chosen)
    return _cubature(found, points, chosen, _relative(reproduced, target))


def _in_process(
    parts: Sequence[np.ndarray],
    target: np.ndarray,
    tolerance: float,
    starts: Sequence[Start],
    most: int | None,
    weights: Sequence[np.ndarray] | None,
) -> list[Cubature]:
    local = weights if weights is not None else [None] * len(parts)
    for number, (matrix, begin, share) in enumerate(zip(parts, starts, local, strict=True)):
        if complaint := _complaint(matrix, target, tolerance, begin, most, share):
            raise ValueError(f"{complaint} (in part {number})" if len(parts) > 1 else complaint)
    bounds = np.append(0, np.cumsum([matrix.shape[1] for matrix in parts]))
    helpers = [
        Part(matrix, np.arange(first, end), None if share is None else matrix @ share)
        for matrix, first, end, share in zip(parts, bounds[:-1], bounds[1:], local, strict=True)
    ]
    begins = [np.asarray(begin, dtype=np.int64) + first for begin, first in zip(starts, bounds[:-1], strict=True)]
    task = _task(target, tolerance, begins, most, weights is not None)
    found = _solve(task, lambda method, *arguments: [getattr(helper, method)(*arguments) for helper in helpers])
    shares = [_share(found, first, end) for first, end in itertools.pairwise(bounds)]
    reproduced = sum(matrix[:, points] @ chosen for matrix, (points, chosen) in zip(parts, shares, strict=True))
    return [_cubature(found, points, chosen, _relative(np.asarray(reproduced), target)) for points, chosen in shares]


def _task(
    target: np.ndarray,
    tolerance: float,
    starts: list[np.ndarray],
    most: int | None,
    hierarchical: bool,
    rough: bool = False,
) -> _Task:
    unbounded = np.iinfo(np.int64).max
    return _Task(
        target, tolerance, np.concatenate(starts), unbounded if most is None else most, len(starts), hierarchical, rough
    )


def _share(found: _Found, first: int, end: int) -> tuple[np.ndarray, np.ndarray]:
    mine = (found.keys >= first) & (found.keys < end)
    return found.keys[mine] - first, found.weights[mine]


def _relative(reproduced: np.ndarray, target: np.ndarray) -> float:
    return float(np.linalg.norm(reproduced - target) / np.linalg.norm(target))


def _cubature(found: _Found, points: np.ndarray, weights: np.ndarray, residual: float) -> Cubature:
    return Cubature(points, weights, residual, len(found.keys), found.outcome, found.history)


def _complaint(
    integrands: np.ndarray,
    target: np.ndarray,
    tolerance: float,
    start: Start,
    most: int | None,
    weights: np.ndarray | None,
) -> str:
    """What is wrong with the arguments of a selection, or ""."""
    if integrands.ndim != 2 or target.shape != integrands.shape[:1]:
        return f"G of shape {integrands.shape} with b of shape {target.shape}; they must be (rows, points) and (rows,)"
    if not np.isfinite(target).all() or not np.any(target):
        return f"b of norm {np.linalg.norm(target)}; it must be finite and not zero: are the training stresses zero?"
    if not 0 < tolerance < 1:
        return f"a cubature tolerance of {tolerance}; it must lie in (0, 1), good values are 1e-2 to 1e-4"
    if most is not None and most < 1:
        return f"at most {most} points; at least one must be allowed"
    numbers, points = np.asarray(start), integrands.shape[1]
    if len(numbers) and not (numbers.min() >= 0 and numbers.max() < points):
        return (
            f"start points from {numbers.min()} to {numbers.max()}; they must be owned local numbers, 0 to {points - 1}"
        )
    if weights is not None and (weights.shape != (points,) or not np.all(weights >= 0)):
        return f"weights of shape {weights.shape}, some perhaps negative; they must be {points} numbers ≥ 0"
    if not all(np.isfinite(row).all() for row in integrands):  # by rows: no mask as large as G
        return "G holds NaN or inf; drop the stress snapshots that do"
    return ""

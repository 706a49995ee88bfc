"""Numeric set-up and V-cycle: the numbers of all levels for one sample, in memory that is allocated once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from forebay.kernels.amg.cycle import (
    add_rows,
    prolong_add,
    residual,
    restrict_residual,
    restrict_rows,
    smooth,
    smooth_first,
)
from forebay.kernels.amg.numbers import set_up_level
from forebay.kernels.amg.plans import LevelPlan
from forebay.kernels.amg.symbolic import Symbolic
from forebay.kernels.amg.weights import AmgWeights

_SINGULAR = 1e-10
"""Eigenvalues of the coarsest matrix below this share of the largest are a null space, as of pure Neumann problems."""


@dataclass(slots=True, eq=False)
class LevelNumbers:
    """Numbers of one level: in float64 for the Galerkin product, in the cycle's precision for the cycle."""

    plan: LevelPlan
    coarse: np.ndarray
    """Entries of the next level's matrix, float64."""
    smoother_exact: np.ndarray
    prolong_exact: np.ndarray
    values: np.ndarray
    smoother: np.ndarray
    prolong: np.ndarray
    """Blocks of P, (blocks,) for one candidate."""
    restrict: np.ndarray
    """The same by the rows of Pᵀ for one candidate, else empty."""


class Hierarchy:
    """The cycle of one matrix after another on the same mesh."""

    def __init__(self, symbolic: Symbolic, weights: AmgWeights, dtype: np.dtype, sweeps: int = 1) -> None:
        self.symbolic, self.dtype, self.sweeps = symbolic, dtype, sweeps
        self.hidden, self.output = weights.hidden.astype(np.float64), weights.output.astype(np.float64)
        self._levels = [_level(plan, dtype) for plan in symbolic.levels]
        self._work = np.empty(max((plan.work_size for plan in symbolic.levels), default=1))
        size = symbolic.sizes[-1]
        rows = np.repeat(np.arange(size), np.diff(symbolic.coarsest_indptr))
        self._coarsest_places = rows * size + symbolic.coarsest_indices
        self._coarsest, self._inverse = np.zeros((size, size)), np.zeros((size, size), dtype=dtype)
        self._panels: dict[tuple[int, ...], list[_Panel]] = {}
        self._scale = 1.0

    @property
    def levels(self) -> tuple[LevelNumbers, ...]:
        """Numbers of all levels but the coarsest, finest first, after `set_up`."""
        return tuple(self._levels)

    @property
    def inverse(self) -> np.ndarray:
        """Of the coarsest matrix over `scale`."""
        return self._inverse

    @property
    def scale(self) -> float:
        """Mean of the finest diagonal, by which all levels are divided before rounding."""
        return self._scale

    def set_up(self, values: np.ndarray) -> None:
        """All levels for the entries (nnz,) of the finest matrix, float64."""
        if self._levels:
            self._scale = float(values[self._levels[0].plan.diagonal].mean())
        for level in self._levels:
            set_up_level(
                level.plan,
                values,
                self.hidden,
                self.output,
                level.smoother_exact,
                level.prolong_exact,
                level.coarse,
                self._work,
            )
            np.multiply(values, 1 / self._scale, out=level.values, casting="same_kind")
            np.multiply(level.smoother_exact, self._scale, out=level.smoother, casting="same_kind")
            level.prolong[...] = level.prolong_exact.reshape(level.prolong.shape)
            if level.plan.candidates == 1:
                np.take(level.prolong, level.plan.restrict_order, out=level.restrict)
            values = level.coarse
        self._coarsest.ravel()[self._coarsest_places] = values
        if not self._levels:
            self._scale = float(self._coarsest.diagonal().mean())
        self._inverse[:] = _inverse(self._coarsest / self._scale)

    def cycle(self, r: np.ndarray) -> np.ndarray:
        """`scale` B r for r (n,) or (n, c) in the cycle's precision; the next cycle overwrites the result."""
        panels = self._panels.get(r.shape[1:])
        if panels is None:
            panels = self._panels[r.shape[1:]] = [_panel(size, r.shape[1:], self.dtype) for size in self.symbolic.sizes]
        return self._cycle(r, 0, panels)

    def _cycle(self, r: np.ndarray, depth: int, panels: list[_Panel]) -> np.ndarray:
        panel = panels[depth]
        if depth == len(self._levels):
            return np.matmul(self._inverse, r, out=panel.result)
        level, below = self._levels[depth], panels[depth + 1]
        plan = level.plan
        matrix = (plan.indptr, plan.indices, level.values)
        z, other = panel.z, panel.result
        smooth_first(level.smoother, r, z)
        for _ in range(self.sweeps - 1):
            smooth(*matrix, level.smoother, r, z, panel.work, other)
            z, other = other, z
        if r.ndim == 1 and plan.candidates == 1:
            rows = (plan.restrict_indptr, plan.restrict_indices, level.restrict)
            residual(*matrix, r, z, other)
            restrict_rows(*rows, other, below.residual)
            add_rows(*rows, self._cycle(below.residual, depth + 1, panels), z)
        else:
            blocks = (plan.prolong_indptr, plan.prolong_indices, level.prolong)
            restrict_residual(*matrix, r, z, *blocks, panel.work, below.residual)
            prolong_add(*blocks, self._cycle(below.residual, depth + 1, panels), z)
        for _ in range(self.sweeps):
            smooth(*matrix, level.smoother, r, z, panel.work, other)
            z, other = other, z
        return z


@dataclass(slots=True, eq=False)
class _Panel:
    """Vectors of one level."""

    residual: np.ndarray
    z: np.ndarray
    result: np.ndarray
    """The other one of two that sweeps go between."""
    work: np.ndarray


def _panel(size: int, columns: tuple[int, ...], dtype: np.dtype) -> _Panel:
    residual, z, result = (np.zeros((size, *columns), dtype=dtype) for _ in range(3))
    return _Panel(residual, z, result, np.zeros(columns or 1, dtype=dtype))


def _level(plan: LevelPlan, dtype: np.dtype) -> LevelNumbers:
    blocks, k = len(plan.prolong_indices), plan.candidates
    return LevelNumbers(
        plan=plan,
        coarse=np.empty(len(plan.coarse_indices)),
        smoother_exact=np.empty(plan.unknowns),
        prolong_exact=np.empty((blocks, k)),
        values=np.empty(len(plan.indices), dtype=dtype),
        smoother=np.empty(plan.unknowns, dtype=dtype),
        prolong=np.empty(blocks if k == 1 else (blocks, k), dtype=dtype),
        restrict=np.empty(blocks if k == 1 else 0, dtype=dtype),
    )


def _inverse(matrix: np.ndarray) -> np.ndarray:
    """By Cholesky's factorisation, or the pseudo-inverse of a semidefinite matrix."""
    try:
        factor = np.linalg.cholesky(matrix)
        definite = factor.diagonal().min() ** 2 > _SINGULAR * matrix.diagonal().max()
    except np.linalg.LinAlgError:
        definite = False
    if definite:
        half = np.linalg.inv(factor)
        return half.T @ half
    eigenvalues, vectors = np.linalg.eigh(matrix)
    kept = eigenvalues > _SINGULAR * eigenvalues.max()
    return (vectors[:, kept] / eigenvalues[kept]) @ vectors[:, kept].T

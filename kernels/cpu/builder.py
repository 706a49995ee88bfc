"""Memory of one workspace, and the set-up of its hierarchy by the compiled loops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from forebay.kernels.cpu import learn_loops, load_loops, setup_loops
from forebay.kernels.cpu.layout import (
    ARRAYS,
    CORRECTION,
    COUPLINGS,
    DIAGONAL,
    OFF,
    PROLONG,
    RESIDUAL,
    SIZE,
    SLAB,
    SMOOTHER,
)
from forebay.kernels.cpu.plan import plan_of
from forebay.kernels.grid_weights import GATE, SMOOTHING, GridWeights
from forebay.kernels.hierarchy import half_offsets

CONTRAST = 3e4
"""Ratio of couplings up to which they are coarsened in float32, at half the cost.  Up to 1e5 the iterations are those
of float64; above there may be more: 13 for 8 at 2e5 on 512 x 512 cells with inclusions, twice as many at 1e6."""
CLASSICAL = 1.6
"""s of the classical smoother s / Σ|A_ij|."""
_CHEBYSHEV = 1.0 / (1.0 + 0.6 * math.sqrt(0.5)), 1.0 / (1.0 - 0.6 * math.sqrt(0.5))
"""Two steps for eigenvalues in [0.4, 1.6].  1 - (1 - w₁ λ)(1 - w₂ λ) is symmetric about λ = 1, hence positive on all of
(0, 2): the cycle is positive definite whatever s in (0, 2) a learned rule chooses."""
_STEPS = {1: (1.0,), 2: _CHEBYSHEV}
Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]
_Rule = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]
_NO_CELLS = np.zeros((0, 0, 0), np.bool_)
_NO_GATES = {t: np.zeros(0, t) for t in (np.float32, np.float64)}


class Builder:
    """Arrays for one grid shape, allocated once."""

    def __init__(self, shape: tuple[int, ...], weights: GridWeights | None, sweeps: int) -> None:
        if sweeps not in _STEPS:
            raise ValueError(f"sweeps = {sweeps}; it must be 1 or 2 smoothing steps before and after")
        self.plan = plan_of(shape)
        self.layout = layout = self.plan.layout
        if weights is not None:
            weights.require_dimension(layout.dimension)
        self._weights = weights
        self._couplings = int(layout.table[0, COUPLINGS])
        self._size = int(layout.table[0, SIZE])
        cells = math.prod(layout.shapes[-1])
        self.store = np.zeros(layout.floats, np.float32)
        self.exact = np.zeros((3 + self._couplings) * self._size)
        self._inverse, self._dense = np.zeros((cells, cells), np.float32), np.zeros((2, cells), np.float32)
        self._square = np.zeros(cells * cells)
        self._steps = np.array(_STEPS[sweeps], np.float32)
        self._scratch: dict[Any, _Scratch] = {}
        self.active: np.ndarray | None = None
        self.scale, self.singular, self.learned, self._contrast = 1.0, False, False, 1.0

    @property
    def hierarchy_arguments(self) -> Arrays:
        """What every compiled use of the hierarchy takes."""
        plan = self.plan
        return self.store, self.layout.table, plan.pairs, plan.edges, self._steps, self._inverse, self._dense

    def view(self, level: int, array: int) -> np.ndarray:
        """Cells of one of a level's arrays."""
        row = self.layout.table[level]
        begin = row[ARRAYS] + array * row[SIZE]
        return self.layout.interior(self.store[begin : begin + row[SIZE]], level)

    def load(self, faces: Sequence[np.ndarray], reaction: np.ndarray, active: np.ndarray | None) -> int:
        """Coefficients; bits of `load_loops.load` that say what is wrong with them.

        Raises:
            ValueError: shapes that do not fit.
        """
        self._check(faces, reaction, active)
        self.active = None if active is None or active.all() else np.ascontiguousarray(active)
        if self.active is not None:
            faces, reaction = _masked(faces, reaction, self.active)
        *slow, last = (self._planes(array) for array in faces)
        middle = slow[1] if self.layout.dimension == 3 else last
        mask = _NO_CELLS if self.active is None else self._planes(self.active, np.bool_)
        bad, scale, grounded, contrast = load_loops.load(
            last, middle, slow[0], self._planes(reaction), mask, self.layout.table, self.exact
        )
        self.scale, self.singular, self._contrast = scale, grounded == 0, contrast
        return int(bad)

    def start(self) -> None:
        """The finest operator alone, which is all that needs no hierarchy."""
        load_loops.start(self.layout.table, self.exact, self.scale, self.store)

    def build(self, *, learned: bool) -> None:
        """The hierarchy of the loaded coefficients, by the learned or the classical rule."""
        self.learned = learned
        kind: Any = np.float32 if self._contrast <= CONTRAST else np.float64
        scratch = self._scratch.get(kind) or self._scratch.setdefault(kind, _Scratch(self, kind))
        layout, plan = self.layout, self.plan
        store = scratch.store
        load_loops.start(layout.table, self.exact, self.scale, store)
        for level in range(len(layout.shapes) - 1):
            setup_loops.smooth_by_sums(store, layout.table, level, kind(1.0 if learned else CLASSICAL))
            gates = _NO_GATES[kind]
            if learned:
                gates = scratch.learn(level)
            setup_loops.descend(
                store, layout.table, level, plan.classes, plan.collapse, plan.pass_on, plan.fine, plan.coarse,
                plan.ranges, scratch.parts, scratch.weights, scratch.products, gates, plan.offsets,
            )  # fmt: skip
        ones = np.ones(layout.shapes[-1]) if self.active is None else self._coarsest_active()
        load_loops.invert(store, layout.table, ones.ravel(), self.singular, self._square, self._inverse)
        if store is not self.store:
            # What float32 cannot hold makes the solve end in an outcome.
            with np.errstate(over="ignore", under="ignore"):
                self.store[: layout.levels] = store

    def load_rhs(self, rhs: np.ndarray, guess: np.ndarray | None) -> float:
        """Right-hand side and guess, both divided by the largest entry of the former, which is returned."""
        b, u = self._vector(1), self._vector(2)
        values = rhs if self.active is None else np.where(self.active, rhs, 0.0)
        largest = float(max(values.max(), -values.min()))
        if not 0 < largest < math.inf:
            return largest
        np.divide(values, largest, out=b)
        if guess is None:
            u[...] = 0.0
        else:
            np.divide(guess if self.active is None else np.where(self.active, guess, 0.0), largest, out=u)
            if not np.isfinite(u).all():
                return math.nan
        return largest

    def norm_and_mean(self) -> tuple[float, float]:
        """‖b‖, and of a singular system the share of it that is out of range, which is taken off."""
        b = self._vector(1)
        axes = "zyx"[-b.ndim :]
        norm = math.sqrt(float(np.einsum(f"{axes},{axes}->", b, b)))
        if not self.singular:
            return norm, 0.0
        cells = b.size if self.active is None else int(self.active.sum())
        mean = float(b.sum()) / cells
        np.subtract(b, mean, out=b, where=True if self.active is None else self.active)
        return norm, abs(mean) * math.sqrt(cells) / norm

    def store_solution(self, out: np.ndarray, largest: float) -> None:
        """U in the units it was asked in, of mean zero where the system is singular."""
        u = self._vector(2)
        np.multiply(u, largest, out=out)
        if self.active is not None:
            # Coarse corrections reach them; to the others they are not coupled.
            out[~self.active] = 0
        if self.singular:
            mean = out.mean() if self.active is None else out[self.active].mean()
            np.subtract(out, mean, out=out, where=True if self.active is None else self.active)

    def load_probe(self, seed: int) -> None:
        """A random u for b = 0."""
        noise = np.random.default_rng(seed).standard_normal(self.layout.shape)
        self._vector(1)[...] = 0.0
        self._vector(2)[...] = noise if self.active is None else noise * self.active

    def clean(self) -> None:
        """Zero everything that a solve has written."""
        self.store[self.layout.levels :] = 0
        for level, row in enumerate(self.layout.table):
            for array in (RESIDUAL, CORRECTION):
                begin = row[ARRAYS] + array * row[SIZE]
                self.store[begin : begin + row[SIZE]] = 0
            if level == 0:
                self.exact[(1 + self._couplings) * row[SIZE] :] = 0
        self._scratch.clear()

    def hierarchy(self) -> list[dict[str, np.ndarray]]:
        """See `GridSolver.hierarchy`."""
        levels = []
        for level, shape in enumerate(self.layout.shapes):
            couplings = int(self.layout.table[level, COUPLINGS])
            found = {
                "diagonal": self.view(level, DIAGONAL).copy(),
                "off": np.stack([self.view(level, OFF + k) for k in range(couplings)]),
            }
            if level + 1 < len(self.layout.shapes):
                found["smoother"] = self.view(level, SMOOTHER).copy()
                found["prolong"] = self._prolong(level, 3 ** len(shape))
            else:
                found["inverse"] = self._inverse.copy()
            levels.append(found)
        return levels

    def _prolong(self, level: int, columns: int) -> np.ndarray:
        row = self.layout.table[level + 1]
        places = [row[PROLONG] + c * row[SIZE] for c in range(columns)]
        return np.stack([self.layout.interior(self.store[at : at + row[SIZE]], level + 1) for at in places])

    def _vector(self, number: int) -> np.ndarray:
        begin = (number + self._couplings) * self._size
        return self.layout.interior(self.exact[begin : begin + self._size], 0)

    def _planes(self, array: np.ndarray, kind: type = np.float64) -> np.ndarray:
        """As (slow, middle, x), of one memory layout, so that one compiled version serves all callers."""
        array = np.require(array, kind, ("C", "W"))
        return array if array.ndim == 3 else array[:, None]

    def _coarsest_active(self) -> np.ndarray:
        assert self.active is not None
        step = 2 ** (len(self.layout.shapes) - 1)
        return self.active[(slice(None, None, step),) * self.active.ndim].astype(float)

    def _check(self, faces: Sequence[np.ndarray], reaction: np.ndarray, active: np.ndarray | None) -> None:
        shape = self.layout.shape
        wanted = [tuple(n - (d == axis) for d, n in enumerate(shape)) for axis in range(len(shape))]
        if [face.shape for face in faces] != wanted:
            raise ValueError(
                f"faces have shapes {[face.shape for face in faces]}; for cells {shape} they must be {wanted}"
            )
        for name, array in (("reaction", reaction), ("active", active)):
            if array is not None and array.shape != shape:
                raise ValueError(f"{name} has shape {array.shape}; it must have the grid's, {shape}")


class _Scratch:
    """What a set-up in one precision works on."""

    def __init__(self, builder: Builder, kind: Any) -> None:
        plan, layout = builder.plan, builder.layout
        self.store = builder.store if kind is np.float32 else np.zeros(layout.levels, kind)
        self.parts: np.ndarray = np.zeros(plan.parts, kind)
        self.weights = np.zeros(2 * 3**layout.dimension * SLAB, kind)
        self.products: np.ndarray = np.zeros(plan.products, kind)
        self._table = layout.table
        self._rule: list[_Rule] = []
        if builder._weights is not None:
            axes = layout.dimension
            self._gates: np.ndarray = np.zeros(axes * int(layout.table[0, SIZE]), kind)
            self._work: np.ndarray = np.zeros((5 + 6 * axes) * SLAB, kind)
            self._limits: np.ndarray = np.array([SMOOTHING, GATE], kind)
            self._steps = [np.array(half_offsets(axes, finest=finest), np.int64) for finest in (True, False)]
            w = builder._weights
            for n in range(2):
                arrays = w.hidden[n], w.hidden_bias[n], w.smoother[n], w.smoother_bias[n : n + 1], w.gate[n]
                a, b, c, d, e = (np.asarray(array, kind) for array in arrays)
                self._rule.append((a, b, c, d, e))

    def learn(self, level: int) -> np.ndarray:
        """Smoother of a level by the learned rule, and the gates."""
        coarse = min(level, 1)
        learn_loops.learn(
            self.store,
            self._table,
            level,
            *self._rule[coarse],
            self._steps[coarse],
            self._limits,
            self._gates,
            self._work,
        )
        return self._gates


def _masked(
    faces: Sequence[np.ndarray], reaction: np.ndarray, active: np.ndarray
) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """Cells that are not active become rows of the identity, whatever they held."""
    kept = []
    for axis, face in enumerate(faces):
        low, high = (
            active[tuple(part if d == axis else slice(None) for d in range(active.ndim))]
            for part in (slice(None, -1), slice(1, None))
        )
        kept.append(np.where(low & high, face, 0.0))
    return tuple(kept), np.where(active, reaction, 1.0)

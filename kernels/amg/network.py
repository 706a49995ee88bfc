"""The network of learned smoothed aggregation in torch, and a cycle that is differentiable in its weights.

Same formulae as `numbers` and `hierarchy`, in float64, with sums over plans in place of loops; one candidate a node.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from forebay.kernels.amg.numbers import FEATURES
from forebay.kernels.amg.plans import LevelPlan
from forebay.kernels.amg.symbolic import Symbolic
from forebay.kernels.amg.weights import CLASSICAL, HIDDEN, AmgWeights


class AmgNetwork(nn.Module):
    """Features (n, 9) to ω in (0, 4) and s in (0, 2), each (n,); 98 parameters with 8 hidden units.

    Starts as the classical cycle.  Without hidden units, two tuned scalars.
    """

    def __init__(self, hidden: int = HIDDEN, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        spread = torch.randn(hidden, FEATURES + 1, generator=generator, dtype=torch.float64) / FEATURES**0.5
        biases = torch.from_numpy(CLASSICAL.output.astype(np.float64))
        self.hidden = nn.Parameter(spread)
        self.output = nn.Parameter(torch.cat([torch.zeros(2, hidden, dtype=torch.float64), biases], 1))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """ω and s."""
        units = _bounded(features @ self.hidden[:, :FEATURES].T + self.hidden[:, FEATURES])
        first, second = _bounded(units @ self.output[:, :-1].T + self.output[:, -1]).unbind(1)
        return 2 + 2 * first, 1 + second

    def export(self, version: int = 0) -> AmgWeights:
        """Plain arrays for `AmgSolver`."""
        hidden, output = (parameter.detach().numpy().astype(np.float32) for parameter in (self.hidden, self.output))
        return AmgWeights(hidden, output, version)

    @classmethod
    def restore(cls, weights: AmgWeights) -> AmgNetwork:
        """The network of exported weights, to go on training it."""
        network = cls(len(weights.hidden))
        with torch.no_grad():
            network.hidden.copy_(torch.from_numpy(weights.hidden))
            network.output.copy_(torch.from_numpy(weights.output))
        return network


@dataclass(frozen=True, slots=True, eq=False)
class TensorPlan:
    """A level's plan as index tensors, one element a summand."""

    plan: LevelPlan
    rows: Tensor
    columns: Tensor
    diagonal: Tensor
    strong: Tensor
    within: Tensor
    """Whether an entry couples to the row's own aggregate."""
    reach: Tensor
    """2 / number of blocks in the row of P, 0 without any; (n,)."""
    lumped: Tensor
    """Whether an entry is added to the filtered diagonal."""
    source: Tensor
    place: Tensor
    prolong_rows: Tensor
    prolong_columns: Tensor
    product: tuple[Tensor, Tensor, Tensor]
    """Entry of A, entry of P, entry of A P."""
    galerkin: tuple[Tensor, Tensor, Tensor]
    """Entry of P, entry of A P, entry of A_c."""

    @classmethod
    def of(cls, plan: LevelPlan) -> TensorPlan:
        """Spell out the loops of `numbers`.

        Raises:
            ValueError: several candidates.
        """
        if plan.candidates != 1:
            raise ValueError(f"a plan of {plan.candidates} candidates; training takes matrices of one unknown a node")
        rows, prolong_rows = _rows(plan.indptr), _rows(plan.prolong_indptr)
        columns = plan.indices.astype(np.int64)
        starts, lengths = plan.prolong_indptr[:-1].astype(np.int64), _lengths(plan.prolong_indptr)
        product_starts = np.concatenate([[0], np.cumsum(plan.width.astype(np.int64))])
        entry = np.repeat(np.arange(len(columns)), lengths[columns])
        pair = np.repeat(np.arange(len(prolong_rows)), plan.width[prolong_rows])
        source = plan.source.astype(np.int64)
        return cls(
            plan=plan,
            rows=_tensor(rows),
            columns=_tensor(columns),
            diagonal=_tensor(plan.diagonal),
            strong=torch.from_numpy(plan.strong == 1),
            within=torch.from_numpy(plan.place == plan.place[plan.diagonal][rows]),
            reach=torch.from_numpy(_reach(plan)),
            lumped=torch.from_numpy((source == rows) & (rows != columns)),
            source=_tensor(source),
            place=_tensor(starts[rows] + plan.place),
            prolong_rows=_tensor(prolong_rows),
            prolong_columns=_tensor(plan.prolong_indices),
            product=(
                _tensor(entry),
                _tensor(_ranges(starts[columns], lengths[columns])),
                _tensor(product_starts[rows[entry]] + plan.product),
            ),
            galerkin=(
                _tensor(pair),
                _tensor(_ranges(product_starts[prolong_rows], plan.width[prolong_rows])),
                _tensor(plan.galerkin),
            ),
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Numbers:
    plan: TensorPlan
    values: Tensor
    smoother: Tensor
    prolong: Tensor


class TensorCycle:
    """The V(1,1) cycle for values (nnz,), differentiable in the network's parameters."""

    def __init__(self, symbolic: Symbolic, plans: list[TensorPlan], network: AmgNetwork, values: Tensor) -> None:
        self.levels: list[_Numbers] = []
        for plan in plans:
            smoother, prolong = _smooth_and_prolong(plan, values, network)
            self.levels.append(_Numbers(plan, values, smoother, prolong))
            entry, block, product = plan.product
            ap = _sum(int(product.max()) + 1, product, values[entry] * prolong[block])
            block, product, coarse = plan.galerkin
            values = _sum(len(plan.plan.coarse_indices), coarse, prolong[block] * ap[product])
        size = symbolic.sizes[-1]
        rows = torch.from_numpy(np.repeat(np.arange(size), np.diff(symbolic.coarsest_indptr)))
        columns = torch.from_numpy(symbolic.coarsest_indices.astype(np.int64))
        dense = torch.zeros(size, size, dtype=torch.float64).index_put((rows, columns), values)
        # Without a check: NaN in a matrix must reach the loss, which the training skips.
        self.factor = torch.linalg.cholesky_ex((dense + dense.T) / 2).L

    def __call__(self, r: Tensor, depth: int = 0) -> Tensor:
        """B r for r (n, c)."""
        if depth == len(self.levels):
            return torch.cholesky_solve(r, self.factor)
        level = self.levels[depth]
        plan, smoother = level.plan, level.smoother[:, None]
        z = smoother * r
        left = r - multiply(plan, level.values, z)
        coarse = _sum(plan.plan.coarse_unknowns, plan.prolong_columns, level.prolong[:, None] * left[plan.prolong_rows])
        correction = level.prolong[:, None] * self(coarse, depth + 1)[plan.prolong_columns]
        z = z.index_add(0, plan.prolong_rows, correction)
        return z + smoother * (r - multiply(plan, level.values, z))


def multiply(plan: TensorPlan, values: Tensor, x: Tensor) -> Tensor:
    """A x for x (n, c)."""
    return _sum(plan.plan.unknowns, plan.rows, values[:, None] * x[plan.columns])


def features(plan: TensorPlan, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Features (n, 9), l and the same sum over the filtered matrix."""
    n, size = plan.plan.unknowns, values.abs()
    off = (plan.rows != plan.columns).to(values.dtype)
    l1, diagonal = _sum(n, plan.rows, size), values[plan.diagonal]
    largest = torch.zeros(n, dtype=values.dtype).scatter_reduce(0, plan.rows, size * off, "amax")
    linked = _sum(n, plan.rows, size * plan.strong)
    columns = (
        2 * diagonal / l1 - 1,
        _sum(n, plan.rows, values) / l1,
        4 * _sum(n, plan.rows, off * size**2) / l1**2,
        linked / l1,
        2 * largest / l1,
        torch.full_like(l1, float(plan.plan.depth > 0)),
        2 * _sum(n, plan.rows, size * plan.strong * plan.within) / l1,
        plan.reach,
        4 * _sum(n, plan.rows, off * size**2 / l1[plan.columns]) / l1,
    )
    filtered = linked + (diagonal + _sum(n, plan.rows, values * plan.lumped)).abs()
    return torch.stack(columns, 1), l1, filtered


def _smooth_and_prolong(plan: TensorPlan, values: Tensor, network: AmgNetwork) -> tuple[Tensor, Tensor]:
    x, l1, filtered = features(plan, values)
    omega, damping = network(x)
    coupled = l1 > values[plan.diagonal]
    smoother = torch.where(coupled, damping, torch.ones_like(damping)) / l1
    blocks = len(plan.prolong_rows)
    used = torch.from_numpy(plan.plan.aggregate >= 0)[plan.rows]
    tentative = torch.from_numpy(plan.plan.tentative[:, 0])
    summand = -((omega / filtered)[plan.rows] * values * tentative[plan.source])[used]
    prolong = _sum(blocks, plan.place[used], summand)
    own = torch.from_numpy(np.flatnonzero(plan.plan.aggregate >= 0))
    return smoother, prolong.index_add(0, plan.place[plan.diagonal[own]], tentative[own])


def _bounded(value: Tensor) -> Tensor:
    return value / (1 + value.abs())


def _sum(size: int, index: Tensor, summands: Tensor) -> Tensor:
    return torch.zeros(size, *summands.shape[1:], dtype=summands.dtype).index_add(0, index, summands)


def _tensor(numbers: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(numbers, dtype=np.int64))


def _lengths(indptr: np.ndarray) -> np.ndarray:
    return indptr[1:].astype(np.int64) - indptr[:-1].astype(np.int64)


def _reach(plan: LevelPlan) -> np.ndarray:
    blocks = _lengths(plan.prolong_indptr)
    return np.divide(2.0, blocks, out=np.zeros(len(blocks)), where=blocks > 0)


def _rows(indptr: np.ndarray) -> np.ndarray:
    return np.repeat(np.arange(len(indptr) - 1), _lengths(indptr))


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """starts[0], starts[0] + 1, ..., starts[1], ...: ranges of these lengths, one after another."""
    lengths = lengths.astype(np.int64)
    before = np.repeat(np.cumsum(lengths) - lengths, lengths)
    return np.arange(lengths.sum()) - before + np.repeat(starts.astype(np.int64), lengths)

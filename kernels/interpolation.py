"""Operator-dependent interpolation: a fine cell takes the value that its own equation, collapsed, gives."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from forebay.kernels.hierarchy import Offset, box_offsets
from forebay.kernels.level_rows import LevelRows, Parity, of_parity, padded_like_rows, parities

Weights = dict[Offset, Tensor]


def interpolation(rows: LevelRows, gates: Tensor | None = None) -> Tensor:
    r"""P[2 I + o, I] of a level, [b, 3^D, *n_coarse], o in lexicographic order.

    A fine cell i that is odd along the axes S gets from its neighbours at offsets c, nonzero within S only,

        u_i = Σ_c w_c u_{i+c},   w_c = n_c / (Σ_c n_c + max(Σ_j A_ij, 0)),
        n_c = max(−Σ_{o: o on S is c} A[i, i+o], 0)

    cells with one odd axis first (their neighbours are coarse cells), then with two, then with three.  Coarse cells
    take their own value; a cell that does not couple along S gets none.  Neighbours that couple to nothing at all,
    cells outside of the domain, give no value.  Weights sum to 1 where the row sum is 0.

    Differs from Dendy (1982) in the denominator, which is there the sum of A[i, i+o] with o = 0 on S: the same number
    for an M-matrix, but on coarse levels of rough media couplings may be positive, and it can be small or negative.

    Args:
        rows: the operator.
        gates: e_d > 0 by axis, [b, D, *n]: w_c is multiplied by Π_d e_d^{c_d} and the cell's weights are rescaled to
            their old sum; a cell with a negative weight is left as it is.
    """
    dimension = rows.dimension
    lone = _lone(rows)
    padded_gates = None if gates is None else [padded_like_rows(gates[:, axis], 1.0) for axis in range(dimension)]
    by_parity: dict[Parity, Weights] = {}
    for parity in parities(dimension)[1:]:
        weights = _collapsed(rows, parity, lone)
        if padded_gates is not None:
            weights = _gated(weights, [of_parity(gate, parity) for gate in padded_gates])
        by_parity[parity] = _onto_coarse(parity, weights, by_parity)
    parts = [_column(rows, offset, by_parity) for offset in box_offsets(dimension)]
    return torch.stack(parts, 1)


def _lone(rows: LevelRows) -> Tensor | None:
    """Cells without any coupling, padded as the rows are; None where there is none."""
    coupled = torch.zeros_like(rows.values[(0,) * rows.dimension], dtype=torch.bool)
    for offset, values in rows.values.items():
        if any(offset):
            coupled |= values != 0
    lone = ~coupled
    inside = lone
    for axis, count in enumerate(rows.shape, 1):
        inside = inside.narrow(axis, 1, count)
    return lone if bool(inside.any()) else None


def _collapsed(rows: LevelRows, parity: Parity, lone: Tensor | None) -> Weights:
    """w_c by c, for all cells of a class."""
    sums: Weights = {}
    for offset, values in rows.values.items():
        target = tuple(step * odd for step, odd in zip(offset, parity, strict=True))
        entry = of_parity(values, parity)
        sums[target] = sums[target] + entry if target in sums else entry
    diagonal = of_parity(rows.values[(0,) * rows.dimension], parity)
    row_sum = torch.stack(list(sums.values())).sum(0)
    del sums[(0,) * rows.dimension]
    axes = tuple(range(1, rows.dimension + 1))
    numerators: Weights = {}
    for target, total in sums.items():
        numerator = (-total).clamp_min(0)
        if lone is not None:
            # Rolling is shifting here: no cell of the grid has a coupling across the padding.
            barred = of_parity(lone.roll(tuple(-step for step in target), axes), parity)
            numerator = torch.where(barred, 0.0, numerator)
        numerators[target] = numerator
    # A row sum this small is rounding; taking it for decay would cost constants, and thereby contrast.
    least = (8 if row_sum.dtype == torch.float32 else 4096) * torch.finfo(row_sum.dtype).eps * diagonal
    own = torch.stack(list(numerators.values())).sum(0) + torch.where(row_sum > least, row_sum, 0.0)
    inverse = 1 / torch.where(own > 0, own, torch.where(diagonal > 0, diagonal, 1.0))
    # A NaN must stay one: the comparisons above are false for it.
    inverse = torch.where(row_sum.isnan(), row_sum, inverse)
    return {target: numerator * inverse for target, numerator in numerators.items()}


def _gated(weights: Weights, gates: list[Tensor]) -> Weights:
    """Weights multiplied by Π_d e_d^{c_d} and rescaled to their old sum."""
    changed = {
        target: weight * math.prod(gate**step for gate, step in zip(gates, target, strict=True) if step)
        for target, weight in weights.items()
    }
    old, new = torch.stack(list(weights.values())).sum(0), torch.stack(list(changed.values())).sum(0)
    ratio = torch.where(new > 0, old / torch.where(new > 0, new, 1.0), 1.0)
    return {target: weight * ratio for target, weight in changed.items()}


def _onto_coarse(parity: Parity, weights: Weights, finished: dict[Parity, Weights]) -> Weights:
    """Weights on the coarse cells J + corner, corner in {0, 1} along the odd axes, by corner.

    Neighbours that are not coarse cells themselves pass on the weights they were given in an earlier round.
    """
    result: Weights = {}
    for corner in itertools.product(*((0, 1) if odd else (0,) for odd in parity)):
        terms = []
        for target, weight in weights.items():
            if any(step and step != 2 * side - 1 for step, side in zip(target, corner, strict=True)):
                continue
            rest = tuple(odd * (step == 0) for odd, step in zip(parity, target, strict=True))
            if not any(rest):
                terms.append(weight)
                continue
            within = tuple(side * odd for side, odd in zip(corner, rest, strict=True))
            terms.append(weight * _neighbouring(finished[rest][within], target))
        result[corner] = torch.stack(terms).sum(0) if len(terms) > 1 else terms[0]
    return result


def _neighbouring(values: Tensor, target: Offset) -> Tensor:
    """Values of the class of the neighbours at `target`, one for each cell of the class that asks.

    Along an axis with a step the neighbours are even (J = 0 ... n_c - 1), the cells that ask odd (J = -1 ... n_c - 1):
    cell J has the neighbour J at step -1 and J + 1 at step +1; outside of the grid there is nothing to pass on.
    """
    amounts: list[int] = []
    for step in reversed(target):
        amounts += [1 if step == -1 else 0, 1 if step == 1 else 0]
    return pad(values, amounts)


def _column(rows: LevelRows, offset: Offset, by_parity: dict[Parity, Weights]) -> Tensor:
    """P[2 I + offset, I] for all coarse cells I."""
    if not any(offset):
        return torch.ones_like(of_parity(rows.values[offset], offset))
    parity = tuple(map(abs, offset))
    view = by_parity[parity][tuple(int(step == -1) for step in offset)]
    for axis, (step, count) in enumerate(zip(offset, rows.coarse_shape, strict=True), 1):
        if step:
            # The cell 2 I + 1 is J = I, the cell 2 I - 1 is J = I - 1, and J starts at -1.
            view = view.narrow(axis, 1 if step == 1 else 0, count)
    return view

"""The Galerkin operator of the next level and the inverse of the last one."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor
from torch.nn.functional import pad

from forebay.kernels.hierarchy import Offset, box_offsets, half_offsets
from forebay.kernels.level_rows import LevelRows, Parity, of_parity, parities

_SINGULAR = 1e-12
"""A pivot below this means a null space (the diagonal is scaled to 1): pivots bound eigenvalues from above."""


def coarse_operator(rows: LevelRows, prolong: Tensor) -> tuple[Tensor, Tensor]:
    """Pᵀ A P, exactly: diagonal [b, *n_c] and half of the off-diagonals [b, 4 or 13, *n_c].

    A P first, by classes of fine cells: a cell that is odd along an axis reaches two coarse cells along it, an even one
    three.  81 + 25 products of arrays in two dimensions and 729 + 172 in three, against 94 and 1100 of one triple loop
    with twice the multiplications.
    """
    dimension = rows.dimension
    padded = pad(prolong, (1, 1) * dimension)
    products = {parity: _fine_rows(rows, padded, parity) for parity in parities(dimension)}
    wanted = [(0,) * dimension, *half_offsets(dimension, finest=False)]
    diagonal, *off = [_coarse_entry(products, prolong, offset) for offset in wanted]
    kept = _coupled(diagonal, rows)
    return torch.where(kept, diagonal, 0.0), torch.stack(
        [torch.where(kept & _shifted(kept, offset), entry, 0.0) for offset, entry in zip(wanted[1:], off, strict=True)],
        1,
    )


def _coupled(diagonal: Tensor, rows: LevelRows) -> Tensor:
    """False where a coarse diagonal is what rounding left of the cell's own.

    That is a part of the domain without any wall, cut off by inactive cells and by now one coarse cell: its row is 0.
    Contrasts up to 1e13 stay clear of it; NaN counts as True.
    """
    own = of_parity(rows.values[(0,) * rows.dimension], (0,) * rows.dimension).detach()
    return ~(diagonal.detach() <= 64 * torch.finfo(diagonal.dtype).eps * own)


def _shifted(kept: Tensor, offset: Offset) -> Tensor:
    """`kept` at the neighbour i + offset of every cell i, True outside of the grid."""
    amounts: list[int] = []
    for step in reversed(offset):
        amounts += [-step, step]
    return pad(kept, amounts, value=True)


def _fine_rows(rows: LevelRows, padded: Tensor, parity: Parity) -> dict[Offset, Tensor]:
    """(A P)[2 J + parity, J + c] by c for all cells of a class."""
    order = {offset: index for index, offset in enumerate(box_offsets(rows.dimension))}
    result: dict[Offset, Tensor] = {}
    for reach in itertools.product(*((0, 1) if odd else (-1, 0, 1) for odd in parity)):
        for offset, values in rows.values.items():
            # The neighbour 2 J + parity + offset is the fine cell 2 (J + reach) + child.
            child = tuple(e + o - 2 * c for e, o, c in zip(parity, offset, reach, strict=True))
            if child not in order:
                continue
            weights = padded[:, order[child]]
            for axis, (step, odd, count) in enumerate(zip(reach, parity, rows.coarse_shape, strict=True), 1):
                weights = weights.narrow(axis, 1 + step - odd, count + odd)
            entries = of_parity(values, parity)
            if reach in result:
                result[reach].addcmul_(entries, weights)
            else:
                result[reach] = entries * weights
    return result


def _coarse_entry(products: dict[Parity, dict[Offset, Tensor]], prolong: Tensor, offset: Offset) -> Tensor:
    """A_c[I, I + offset] = Σ_o P[2 I + o, I] (A P)[2 I + o, I + offset]."""
    total: Tensor | None = None
    for index, child in enumerate(box_offsets(len(offset))):
        # The cell 2 I - 1 is J = I - 1 of its class, so that I + offset lies one further from it.
        reach = tuple(k + (o == -1) for k, o in zip(offset, child, strict=True))
        by_reach = products[tuple(map(abs, child))]
        if reach not in by_reach:
            continue
        product = by_reach[reach]
        for axis, step in enumerate(child, 1):
            if step:
                product = product.narrow(axis, 1 if step == 1 else 0, prolong.shape[axis + 1])
        if total is None:
            total = prolong[:, index] * product
        else:
            total.addcmul_(prolong[:, index], product)
    assert total is not None
    return total


def coarse_inverse(diagonal: Tensor, off: Tensor, offsets: tuple[Offset, ...]) -> Tensor:
    """Dense inverse [b, N, N] of a level in float64, the Moore-Penrose pseudo-inverse where it is singular.

    A singular A is inverted as (A + N Nᵀ)⁻¹ − N Nᵀ with an orthonormal basis N of its null space, which is exact and,
    unlike an eigendecomposition with equal eigenvalues, has a derivative.  Systems with NaN give NaN.
    """
    matrix = _dense(diagonal, off, offsets).double()
    finite = torch.isfinite(matrix).flatten(1).all(1)
    identity = torch.eye(matrix.shape[1], dtype=matrix.dtype, device=matrix.device)
    safe = torch.where(finite[:, None, None], matrix, identity)
    null = _null_projection(safe.detach())
    inverse = torch.linalg.inv(safe + null) - null
    inverse = (inverse + inverse.mT) / 2
    return torch.where(finite[:, None, None], inverse, torch.nan)


def _null_projection(matrix: Tensor) -> Tensor:
    """N Nᵀ by system, zero for regular ones."""
    diagonal = matrix.diagonal(dim1=1, dim2=2)
    root = torch.where(diagonal > 0, diagonal, 1.0).rsqrt()
    scaled = matrix * root[:, :, None] * root[:, None, :]
    factor, fault = torch.linalg.cholesky_ex(scaled)
    pivots = factor.diagonal(dim1=1, dim2=2) ** 2
    suspect = ((fault > 0) | ~(pivots.amin(1) > _SINGULAR)).nonzero()[:, 0]
    result = torch.zeros_like(matrix)
    if len(suspect) == 0:
        return result
    # How many: by the scaled operator, where contrast does not blur it.  Which: by the operator itself.
    count = (torch.linalg.eigvalsh(scaled[suspect]) < _SINGULAR).sum(1)
    vectors = torch.linalg.eigh(matrix[suspect]).eigenvectors
    basis = vectors * (torch.arange(matrix.shape[1], device=matrix.device) < count[:, None])[:, None, :]
    result[suspect] = basis @ basis.mT
    return result


def _dense(diagonal: Tensor, off: Tensor, offsets: tuple[Offset, ...]) -> Tensor:
    """A as [b, N, N]."""
    shape = diagonal.shape[1:]
    count = diagonal[0].numel()
    cells = torch.arange(count, device=diagonal.device).reshape(shape)
    matrix = torch.diag_embed(diagonal.flatten(1))
    for index, offset in enumerate(offsets):
        here = tuple(slice(max(0, -step), n - max(0, step)) for step, n in zip(offset, shape, strict=True))
        there = tuple(slice(max(0, step), n + min(0, step)) for step, n in zip(offset, shape, strict=True))
        entries = off[:, index][(slice(None), *here)].flatten(1)
        row, column = cells[here].flatten(), cells[there].flatten()
        position = torch.cat([row * count + column, column * count + row])
        values = torch.cat([entries, entries], 1)
        matrix = matrix.flatten(1).index_add(1, position, values).reshape(matrix.shape)
    return matrix

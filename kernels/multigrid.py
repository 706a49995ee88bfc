r"""Black-box multigrid in torch: batched, any device, differentiable with respect to coefficients and rule.

Operator-dependent interpolation P, Galerkin operators Pᵀ A P, l1-Jacobi smoothing m_i = s_i / Σ_j |A_ij|, V(1,1):

    z = m r;   z ← z + P · cycle(Pᵀ (r − A z));   z ← z + m (r − A z)

Source: J. E. Dendy, "Black box multigrid", J. Comput. Phys. 48 (1982) 366-386, doi:10.1016/0021-9991(82)90057-2.
Differs from it: the smoother is l1-Jacobi instead of Gauss-Seidel, so that every sweep is one pass over arrays without
colours; in three dimensions the same collapse is applied to edges, faces and interiors in turn; a rule may change s and
weigh the numerators of P by cell (learned preconditioners).  The cycle is symmetric positive definite for all s in
(0, 2), since diag(Σ_j |A_ij|) ≥ A, and for all P that are the identity on coarse cells; it is semidefinite with the
null space of A where A is singular.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from forebay.kernels.galerkin import coarse_inverse, coarse_operator
from forebay.kernels.hierarchy import Hierarchy, Level, Offset, box_offsets, half_offsets, levels_of
from forebay.kernels.interpolation import interpolation
from forebay.kernels.level_rows import LevelRows, level_rows
from forebay.kernels.stencil import Stencil


class GridRule(Protocol):
    """What may be chosen cell by cell without giving up symmetry or definiteness."""

    def __call__(self, rows: LevelRows, *, finest: bool) -> tuple[Tensor | float, Tensor | None]:
        """Smoothing s in (0, 2), [b, *n] or a number, and gates e_d > 0 by axis, [b, D, *n], or None for all 1."""


@dataclass(frozen=True, slots=True)
class ClassicalRule:
    """The same s in every cell, no gates."""

    smoothing: float = 1.6
    """s: 1.6 for l1-Jacobi is 0.8 for Jacobi where row sums vanish."""

    def __post_init__(self) -> None:
        """Check s.

        Raises:
            ValueError: outside of (0, 2).
        """
        if not 0 < self.smoothing < 2:
            raise ValueError(
                f"smoothing = {self.smoothing:g} makes an indefinite cycle; it lies between 0 and 2, 1.6 is good"
            )

    def __call__(self, rows: LevelRows, *, finest: bool) -> tuple[Tensor | float, Tensor | None]:
        """See `GridRule`."""
        return self.smoothing, None


CLASSICAL = ClassicalRule()


def build_hierarchy(
    stencil: Stencil,
    rule: GridRule = CLASSICAL,
    *,
    dtype: torch.dtype = torch.float32,
    setup_dtype: torch.dtype = torch.float64,
) -> Hierarchy:
    """All levels of a batch of systems.

    Args:
        stencil: two or three dimensions, any sizes; masked cells and singular systems are fine.  A system with NaN or
            inf gets levels of NaN and leaves the others alone.
        rule: smoothing and gates; `CLASSICAL`, or a `GridNetwork`.
        dtype: of the levels.
        setup_dtype: of the arithmetic.  In float32 the interpolation
            loses row sums at high contrast: 13 iterations became 19 at contrast 1e6 on 128 x 128 and 17 became 21 on
            32 x 32 x 32; up to 1e4 nothing changed.
    """
    diagonal, off, scale = _finest(stencil, setup_dtype)
    shapes = levels_of(stencil.shape)
    offsets = half_offsets(stencil.dimension, finest=True)
    levels = []
    for depth in range(len(shapes) - 1):
        rows = level_rows(diagonal, off, offsets)
        smoothing, gates = rule(rows, finest=depth == 0)
        absolute = rows.absolute_sum()
        # A row of zeros has nothing to smooth: a lone cell between walls without flux.
        smoother = torch.where(absolute > 0, smoothing / torch.where(absolute > 0, absolute, 1.0), absolute)
        prolong = interpolation(rows, gates)
        levels.append(Level(diagonal, off, smoother, prolong, None).to(dtype=dtype))
        diagonal, off = coarse_operator(rows, prolong)
        offsets = half_offsets(stencil.dimension, finest=False)
    levels.append(Level(diagonal, off, None, None, coarse_inverse(diagonal, off, offsets)).to(dtype=dtype))
    return Hierarchy(tuple(levels), scale)


def v_cycle(hierarchy: Hierarchy, residual: Tensor) -> Tensor:
    """One V(1,1) cycle for scale · A z = residual from z = 0: linear in the residual and symmetric.

    Args:
        hierarchy: of b systems.
        residual: [k, *n], in the type of the levels; k is b, or b is 1.
    """
    return _cycle(hierarchy.levels, residual)


def apply_level(level: Level, x: Tensor) -> Tensor:
    """A x on a level, [k, *n] with k as in `v_cycle`."""
    result = level.diagonal * x
    for index, offset in enumerate(level.offsets):
        here, there = _overlap(offset, level.shape)
        entries = level.off[:, index][here]
        result[here].addcmul_(entries, x[there])
        result[there].addcmul_(entries, x[here])
    return result


def prolongate(level: Level, coarse: Tensor) -> Tensor:
    """P coarse, [k, *n], from [k, *n_coarse]."""
    assert level.prolong is not None
    result = coarse.new_zeros(coarse.shape[0], *level.shape)
    for index, offset in enumerate(box_offsets(len(level.shape))):
        fine, own = _children(offset, level.shape)
        result[fine].addcmul_(level.prolong[:, index][own], coarse[own])
    return result


def restrict(level: Level, fine: Tensor) -> Tensor:
    """Pᵀ fine, [k, *n_coarse], from [k, *n]."""
    assert level.prolong is not None
    result = fine.new_zeros(fine.shape[0], *level.prolong.shape[2:])
    for index, offset in enumerate(box_offsets(len(level.shape))):
        children, own = _children(offset, level.shape)
        result[own].addcmul_(level.prolong[:, index][own], fine[children])
    return result


def _cycle(levels: tuple[Level, ...], residual: Tensor) -> Tensor:
    level = levels[0]
    if level.inverse is not None:
        # No batched matrix product: where `dolfinx.fem.petsc` was loaded before torch, that of the CPU crashes, since
        # the linker takes it from PETSc's OpenBLAS (`solvers.petsc.fem_petsc` prevents it, a user's import does not).
        return (level.inverse * residual.flatten(1)[:, None]).sum(2).reshape(residual.shape)
    assert level.smoother is not None
    z = level.smoother * residual
    z = z + prolongate(level, _cycle(levels[1:], restrict(level, residual - apply_level(level, z))))
    return z + level.smoother * (residual - apply_level(level, z))


def _finest(stencil: Stencil, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Diagonal, off-diagonal half and scale, the first two scaled."""
    stencil = stencil.to(dtype=torch.float64)
    diagonal = stencil.diagonal()
    scale = 1 / _mean_of_active(diagonal, stencil.active)
    by_cell = scale.view(-1, *[1] * stencil.dimension)
    faces = []
    # Axes of faces are slowest first, the half lists the fastest axis first.
    for axis in reversed(range(stencil.dimension)):
        widths = [0, 0] * stencil.dimension
        widths[2 * (stencil.dimension - 1 - axis) + 1] = 1
        faces.append(torch.nn.functional.pad(-stencil.faces[axis] * by_cell, widths))
    return (diagonal * by_cell).to(dtype), torch.stack(faces, 1).to(dtype), scale


def _mean_of_active(diagonal: Tensor, active: Tensor | None) -> Tensor:
    """[b]; 1 where that would be 0 (no active cell, or a grid of one cell without walls)."""
    if active is None:
        mean = diagonal.flatten(1).mean(1)
    else:
        count = active.flatten(1).sum(1).clamp_min(1)
        mean = torch.where(active, diagonal, 0.0).flatten(1).sum(1) / count
    return torch.where(mean == 0, 1.0, mean)


def _overlap(offset: Offset, shape: tuple[int, ...]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Cells i with i + offset inside of the grid, and those cells i + offset, as slices behind the batch axis."""
    here = tuple(slice(max(0, -step), count - max(0, step)) for step, count in zip(offset, shape, strict=True))
    there = tuple(slice(max(0, step), count + min(0, step)) for step, count in zip(offset, shape, strict=True))
    return (slice(None), *here), (slice(None), *there)


def _children(offset: Offset, shape: tuple[int, ...]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Fine cells 2 I + offset inside of the grid, and those coarse cells I, as slices behind the batch axis."""
    fine, own = [slice(None)], [slice(None)]
    for step, count in zip(offset, shape, strict=True):
        first = 1 if step < 0 else 0
        # Of an even number of cells the last has no coarse cell behind it.
        number = min(len(range(2 * first + step, count, 2)), (count + 1) // 2 - first)
        fine.append(slice(2 * first + step, 2 * (first + number) + step, 2))
        own.append(slice(first, first + number))
    return tuple(fine), tuple(own)

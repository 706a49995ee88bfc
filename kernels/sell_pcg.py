"""Conjugate gradients for one sparse matrix on a device: the launches of csrc/sell.cu and sell_small.cu in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from forebay.kernels.large_grid import FLAGS, SCALARS
from forebay.kernels.launcher import Launcher
from forebay.kernels.sell import Csr, Sell, length_order, sell, soft_matrix, soft_transfer

BLOCK = 256
"""Threads of a block unless said otherwise; the sources are compiled with the macro BLOCK of the same value."""
ENTRIES = 17
"""Addresses a level in the table of `solve_small`: enum Entry of csrc/sell_small.cu."""


@dataclass(frozen=True, slots=True, eq=False)
class CycleLevel:
    """One level of an algebraic multigrid cycle V(1, 1) but the last."""

    matrix: Csr
    """A, square."""
    smoother: np.ndarray
    """Diagonal of the smoother, [rows]."""
    prolong: Csr
    """P from the next level; restriction is its transpose."""


def macros(columns: int, *, bits: int = 32, block: int = BLOCK) -> dict[str, str]:
    """What csrc/sell.cu and sell_small.cu are compiled with for so many right-hand sides.

    `bits` of the preconditioner's entries: 32, or 16 (bfloat16), which moves 6 bytes an entry in place of 8.
    """
    return {"REAL": "double", "CYCLE": "float", "VALUE": str(bits), "NRHS": str(columns), "BLOCK": str(block)}


class _Rows(NamedTuple):
    slices: Tensor
    columns: Tensor
    values: Tensor


class _Soft(NamedTuple):
    """One level on the device; the last one has vectors and an inverse alone."""

    rows: int
    right: Tensor
    result: Tensor
    residual: Tensor | None = None
    iterate: Tensor | None = None
    off: _Rows | None = None
    diagonal: Tensor | None = None
    smoother: Tensor | None = None
    spread: Tensor | None = None
    prolong: _Rows | None = None
    restriction: _Rows | None = None
    inverse: Tensor | None = None


class SellPcg:
    """A matrix in float64, its cycle in float32 or less, and `columns` right-hand sides at once, on one device.

    The residual of the recurrence is float64, so that ‖r‖ follows ‖b - A x‖ down to rtol near 1e-12.  Each column stops
    alone.  Launches are those of `launcher` (csrc/sell.cu with `macros`); `solve_small` has its own source.
    """

    def __init__(
        self,
        launcher: Launcher,
        matrix: Csr,
        levels: Sequence[CycleLevel],
        inverse: np.ndarray,
        columns: int,
        *,
        bits: int = 32,
        window: int = 512,
        device: torch.device | str = "cuda",
        block: int = BLOCK,
    ) -> None:
        """Sort, store and copy to the device.

        Args:
            launcher: of csrc/sell.cu.
            matrix: A, symmetric positive definite.
            levels: of the cycle, finest first; the first one's matrix is A or close to it.  Empty: `inverse` alone.
            inverse: of the last level's matrix, dense.
            columns: right-hand sides, the macro NRHS.
            bits: of the preconditioner's entries, 16 or 32, the macro VALUE.
            window: rows that are sorted by length, σ.
            device: of the arrays.
            block: threads, the macro BLOCK.
        """
        self._launcher, self._columns, self._block, self._device = launcher, columns, block, torch.device(device)
        orders = [length_order(level.matrix.indptr, window) for level in levels]
        orders.append(np.arange(len(inverse)))
        if not levels:
            orders = [np.arange(len(inverse))]
        stored = sell(matrix, orders[0])
        self.fill = stored.fill
        """Stored entries of A over its entries."""
        self._matrix = self._rows(stored)
        self._order = self._array(orders[0])
        self._levels = [
            self._soft(level, orders[depth], orders[depth + 1], bits=bits) for depth, level in enumerate(levels)
        ]
        coarsest = self._array(inverse.astype(np.float32))
        right, result = (self._vectors(len(inverse)) for _ in range(2))
        self._levels.append(_Soft(len(inverse), right, result, inverse=coarsest))
        size = len(orders[0])
        self._n = size
        self._x, self._r, self._p, self._q = (self._vectors(size, torch.float64) for _ in range(4))
        self.scalars = torch.zeros(columns, len(SCALARS), dtype=torch.float64, device=self._device)
        """By column: `forebay.kernels.large_grid.SCALARS`."""
        self.flags = torch.zeros(columns, len(FLAGS), dtype=torch.int32, device=self._device)
        """By column: `forebay.kernels.large_grid.FLAGS`."""
        self._tickets = torch.zeros(1, dtype=torch.uint32, device=self._device)
        self._partial = torch.zeros(self._blocks(size) * columns, dtype=torch.float64, device=self._device)

    def begin(self, rhs: Tensor, target: Tensor, *, most_iterations: int | Tensor) -> None:
        """Set x = 0, r = `rhs`, (rows, columns) float64; stop a column at ‖r‖² ≤ target, float64 (columns,).

        `most_iterations` is a number, or one for each column.  Columns of zeros are done at once.  The preconditioner
        works in float32: scale columns to norm 1.
        """
        self._x.zero_()
        self._p.zero_()
        self._r.copy_(rhs[self._order])
        self._levels[0].right.copy_(self._r)
        self.scalars.zero_()
        self.scalars[:, SCALARS.index("target")] = target
        self.flags.zero_()
        self.flags[:, FLAGS.index("active")] = (self._r != 0).any(0).to(torch.int32)
        self.flags[:, FLAGS.index("most_iterations")] = most_iterations

    def iterate(self) -> None:
        """Launch one iteration for the columns that are still active: z = M r, p = z + β p, q = A p, x and r."""
        self._cycle()
        finest = self._levels[0]
        steering, size = (self._partial, self._tickets, self.scalars, self.flags), np.int32(self._n)
        self._launch("direction", self._n, [finest.result, self._p, self.scalars, self.flags, size])
        self._launch("spmm_dot", self._n, [*self._matrix, self._p, self._q, *steering, size])
        vectors = (self._p, self._q, self._x, self._r, finest.right)
        self._launch("update_dot", self._n, [*vectors, *steering, size])

    def solve_small(self, launcher: Launcher, blocks: int) -> None:
        """All iterations in one cooperative kernel of csrc/sell_small.cu.

        `blocks` must all fit on the device at once: a few a multiprocessor.  Pays below about 50,000 unknowns.
        """
        table = torch.tensor([_addresses(level) for level in self._levels], dtype=torch.int64, device=self._device)
        rows = torch.tensor([level.rows for level in self._levels], dtype=torch.int32, device=self._device)
        partial = torch.zeros(2 * blocks * self._columns, dtype=torch.float64, device=self._device)
        barrier = torch.zeros(1, dtype=torch.uint32, device=self._device)
        vectors = (self._x, self._r, self._p, self._q, partial, barrier, self.scalars, self.flags)
        args = [*self._matrix, table, rows, np.int32(len(self._levels)), *vectors]
        launcher.launch("solve_small", (blocks, 1, 1), (self._block, 1, 1), 0, args, cooperative=True)

    def solution(self) -> Tensor:
        """The solution x in the order of the unknowns, (rows, columns) float64."""
        result = torch.empty_like(self._x)
        result[self._order] = self._x
        return result

    def _cycle(self) -> None:
        sums = (self._partial, self._tickets, self.scalars, self.flags)
        for depth, level in enumerate(self._levels[:-1]):
            assert level.off is not None
            assert level.restriction is not None
            below, rows = self._levels[depth + 1], np.int32(level.rows)
            scaling = (level.diagonal, level.smoother, level.spread)
            self._launch("residual", level.rows, [*level.off, *scaling, level.right, level.residual, self.flags, rows])
            args = [*level.restriction, level.residual, below.right, self.flags, np.int32(below.rows)]
            self._launch("restriction", below.rows, args)
        last, finest = self._levels[-1], np.int32(len(self._levels) == 1)
        args = [last.inverse, last.right, last.result, *sums, np.int32(last.rows), finest]
        self._launch("coarsest_dot", last.rows, args)
        for depth in reversed(range(len(self._levels) - 1)):
            level, below = self._levels[depth], self._levels[depth + 1]
            assert level.off is not None
            assert level.prolong is not None
            rows = np.int32(level.rows)
            vectors = [level.right, below.result, level.iterate]
            args = [*level.prolong, level.smoother, level.spread, *vectors, self.flags, rows]
            self._launch("prolong", level.rows, args)
            vectors = [level.right, level.iterate, level.result]
            args = [*level.off, level.diagonal, level.smoother, *vectors, *sums, rows, np.int32(depth == 0)]
            self._launch("post_dot", level.rows, args)

    def _soft(self, level: CycleLevel, order: np.ndarray, coarse_order: np.ndarray, *, bits: int) -> _Soft:
        matrix = soft_matrix(level.matrix, order, bits=bits)
        prolong, restriction, spread = soft_transfer(level.prolong, order, coarse_order, bits=bits)
        size = len(order)
        return _Soft(
            size,
            self._vectors(size),
            self._vectors(size),
            residual=self._vectors(size),
            iterate=self._vectors(size),
            off=self._rows(matrix.off),
            diagonal=self._array(matrix.diagonal),
            smoother=self._array(level.smoother[order].astype(np.float32)),
            spread=None if spread is None else self._array(spread),
            prolong=self._rows(prolong),
            restriction=self._rows(restriction),
        )

    def _launch(self, kernel: str, rows: int, args: list[Any]) -> None:
        self._launcher.launch(kernel, (self._blocks(rows), 1, 1), (self._block, 1, 1), 0, args)

    def _blocks(self, rows: int) -> int:
        return -(-rows // self._block)

    def _vectors(self, rows: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(rows, self._columns, dtype=dtype, device=self._device)

    def _array(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self._device)

    def _rows(self, matrix: Sell) -> _Rows:
        return _Rows(self._array(matrix.slices), self._array(matrix.columns), self._array(matrix.values))


def _addresses(level: _Soft) -> list[int]:
    """In the order of enum Entry."""
    none = (None, None, None)
    arrays = [
        *(level.off or none),
        level.diagonal,
        level.smoother,
        level.spread,
        *(level.prolong or none),
        *(level.restriction or none),
        level.right,
        level.residual,
        level.iterate,
        level.result,
        level.inverse,
    ]
    return [0 if array is None else array.data_ptr() for array in arrays]

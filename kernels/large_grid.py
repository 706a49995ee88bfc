"""Conjugate gradients on grids too large for the chip: the order of the launches of csrc/large_grid.cu."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from forebay.kernels.hierarchy import Hierarchy
from forebay.kernels.launcher import Launcher
from forebay.kernels.stencil import Stencil

BLOCK = 256
"""Threads of a block unless said otherwise; the source is compiled with the macro BLOCK of the same value."""
MOST_SYSTEMS = 65_535
"""Of a batch, which is the grid's z."""
SCALARS = ("rho", "step", "turn", "norm2", "target")
"""Columns of `LargeGrid.scalars`: enum Scalar of csrc/scalars.cuh."""
FLAGS = ("active", "iterations", "outcome", "most_iterations")
"""Columns of `LargeGrid.flags`: enum Flag of csrc/scalars.cuh; outcomes are those of `forebay.kernels.records`."""

_ENOUGH_BLOCKS = 1024  # a few for each multiprocessor of the largest devices
_SHORTEST_CHUNK = 4  # planes; each chunk computes up to two planes of its neighbours again


class _Launch(NamedTuple):
    kernel: str
    grid: tuple[int, int, int]
    args: tuple[Any, ...]


class LargeGrid:
    """Workspace and launches for a batch of systems of one shape; nothing in an iteration waits for the host.

    With A z = r preconditioned by one V-cycle of `hierarchy` (or by a diagonal), each system goes through

        q = A p;  α = ρ / <p, q>;  x += α p;  r -= α q;  z = M r;  β = <r, z> / ρ;  p = z + β p

    until ‖r‖² ≤ target, alone: one that is done costs a flag a block.  `iterate` only launches, so a CUDA graph can
    hold any number of iterations; `flags` says afterwards who is done.
    """

    def __init__(
        self,
        launcher: Launcher,
        hierarchy: Hierarchy,
        reaction: Tensor,
        batch: int,
        *,
        diagonal: Tensor | None = None,
        block: int = BLOCK,
    ) -> None:
        """Allocate for `batch` systems beside the hierarchy, whose own batch is the same or 1.

        Args:
            launcher: of csrc/large_grid.cu.
            hierarchy: the finest level's diagonal is not read.
            reaction: s of the finest level, scaled as that is, [hierarchy.batch, *shape]: A is applied by differences,
                s u_i + Σ T (u_i - u_j).
            batch: of right-hand sides.
            diagonal: z = diagonal · r in place of the cycle, [hierarchy.batch, *shape].
            block: threads, the macro BLOCK.

        Raises:
            ValueError: the batches do not fit, or a level has more entries than 32-bit indices reach.
            MemoryError: more than `MOST_SYSTEMS`; `forebay.kernels.memory` then solves them in parts.
        """
        finest = hierarchy.levels[0]
        if hierarchy.batch not in (1, batch):
            raise ValueError(
                f"a hierarchy of {hierarchy.batch} systems for a batch of {batch}; it must be 1 or {batch}"
            )
        if batch > MOST_SYSTEMS:
            raise MemoryError(f"a batch of {batch} systems on a large grid; solve at most {MOST_SYSTEMS} at once")
        if _most_entries(hierarchy) >= 2**31:
            raise ValueError(
                f"a grid of {hierarchy.shape} cells has too many for 32-bit indices; use fewer than 2^31 / 3.4"
            )
        self._launcher, self._block, self._batch = launcher, block, batch
        self._reaction = reaction.contiguous()
        self._matrices = np.int32(hierarchy.batch)
        new = torch.zeros
        like: dict[str, Any] = {"dtype": finest.diagonal.dtype, "device": finest.diagonal.device}
        rights = [new(batch, *level.shape, **like) for level in hierarchy.levels]
        corrections = [torch.empty_like(right) for right in rights]
        self.x = torch.empty_like(rights[0])
        """Solution since `start`, [batch, *shape]."""
        self.residual = rights[0]
        """r of the recurrence, [batch, *shape]."""
        self.scalars = new(batch, len(SCALARS), dtype=torch.float64, device=like["device"])
        self.flags = new(batch, len(FLAGS), dtype=torch.int32, device=like["device"])
        self._direction = torch.empty_like(rights[0])
        self._tickets = new(batch, dtype=torch.uint32, device=like["device"])
        (tiles, chunks, _), _ = _tiles(hierarchy.shape, batch, block)
        most = max(tiles * chunks, self._flat(math.prod(hierarchy.shape))[0])
        self._partial = new(batch * most, dtype=torch.float64, device=like["device"])
        self._cycle = self._cycle_launches(hierarchy, rights, corrections, diagonal)
        self._krylov = self._krylov_launches(hierarchy, corrections[0])

    def start(
        self, residual: Tensor, target: Tensor, *, most_iterations: int | Tensor, active: Tensor | None = None
    ) -> None:
        """Begin with x = 0 and r = `residual`.

        Args:
            residual: [batch, *shape]; finite, not zero, and of a norm that float32 can square (scale it to 1).
            target: squared norm at which a system stops, float64 [batch].
            most_iterations: at which it gives up; a number, or int32 [batch].
            active: which systems take part, bool [batch]; None: all.
        """
        self.residual.copy_(residual)
        self.x.zero_()
        self._direction.zero_()
        self.scalars.zero_()
        self.scalars[:, SCALARS.index("target")] = target
        self.flags.zero_()
        self.flags[:, FLAGS.index("active")] = 1 if active is None else active.to(torch.int32)
        self.flags[:, FLAGS.index("most_iterations")] = most_iterations
        self._run(self._cycle)
        self._run([self._krylov[1]])

    def iterate(self) -> None:
        """Launch one iteration for all active systems."""
        self._run(self._krylov[0])
        self._run(self._cycle)
        self._run([self._krylov[1]])

    def _run(self, launches: list[_Launch]) -> None:
        for one in launches:
            self._launcher.launch(one.kernel, one.grid, (self._block, 1, 1), 0, one.args)

    def _cycle_launches(
        self, hierarchy: Hierarchy, rights: list[Tensor], corrections: list[Tensor], diagonal: Tensor | None
    ) -> list[_Launch]:
        sums = (self._partial, self._tickets, self.scalars, self.flags)
        if diagonal is not None:
            cells = math.prod(hierarchy.shape)
            scaled = (rights[0], diagonal, corrections[0], *sums, np.int32(cells), self._matrices)
            return [_Launch("scale_dot", self._flat(cells), scaled)]
        downs, ups = [], []
        args: tuple[Any, ...]
        for depth, level in enumerate(hierarchy.levels[:-1]):
            kind = "star" if depth == 0 else "box"
            centre = self._reaction if depth == 0 else level.diagonal
            arrays = (rights[depth], level.smoother, centre, level.off, level.prolong)
            coarse = hierarchy.levels[depth + 1].shape
            grid, chunk = _tiles(coarse, self._batch, self._block)
            args = (*arrays, rights[depth + 1], self.flags, *_sizes(level.shape), np.int32(chunk), self._matrices)
            downs.append(_Launch(f"down_{kind}", grid, args))
            grid, chunk = _tiles(level.shape, self._batch, self._block)
            sizes = (*_sizes(level.shape), np.int32(chunk), self._matrices)
            steering = sums if depth == 0 else (self.flags,)
            args = (*arrays, corrections[depth + 1], corrections[depth], *steering, *sizes)
            ups.append(_Launch(f"up_{kind}", grid, args))
        last = hierarchy.levels[-1]
        cells, finest = math.prod(last.shape), len(hierarchy.levels) == 1
        assert last.inverse is not None
        args = (
            rights[-1],
            last.inverse.contiguous(),
            corrections[-1],
            *sums,
            np.int32(cells),
            self._matrices,
            np.int32(finest),
        )
        return [*downs, _Launch("coarsest", (1, 1, self._batch), args), *reversed(ups)]

    def _krylov_launches(self, hierarchy: Hierarchy, correction: Tensor) -> tuple[list[_Launch], _Launch]:
        finest, cells = hierarchy.levels[0], math.prod(hierarchy.shape)
        steering = (self._partial, self._tickets, self.scalars, self.flags)
        grid, chunk = _tiles(hierarchy.shape, self._batch, self._block)
        sizes = (*_sizes(hierarchy.shape), np.int32(chunk), self._matrices)
        # A p is not needed any more when z is written, nor z when A p is: they share their memory.
        product = correction
        apply = _Launch("apply_dot", grid, (self._direction, self._reaction, finest.off, product, *steering, *sizes))
        vectors = (self._direction, product, self.x, self.residual)
        update = _Launch("update_dot", self._flat(cells), (*vectors, *steering, np.int32(cells)))
        turned = (correction, self._direction, self.scalars, self.flags, np.int32(cells))
        return [apply, update], _Launch("direction", self._flat(cells), turned)

    def _flat(self, cells: int) -> tuple[int, int, int]:
        enough = max(1, _ENOUGH_BLOCKS // self._batch)
        return min(-(-cells // self._block), enough), 1, self._batch


def true_residual(
    launcher: Launcher, stencil: Stencil, x: Tensor, rhs: Tensor, residual: Tensor, *, block: int = BLOCK
) -> Tensor:
    """The residual b - A x in float64 from faces and reaction themselves; returns ‖b - A x‖², [batch].

    All arrays float64, x, rhs and residual [batch, *shape], the stencil's batch the same or 1.
    """
    batch, (grid, chunk) = x.shape[0], _tiles(stencil.shape, x.shape[0], block)
    faces = stencil.faces if stencil.dimension == 3 else (stencil.faces[0], None, stencil.faces[1])
    partial = x.new_empty(batch * grid[0] * grid[1])
    tickets = torch.zeros(batch, dtype=torch.uint32, device=x.device)
    norm2 = x.new_empty(batch)
    sizes = (*_sizes(stencil.shape), np.int32(chunk), np.int32(stencil.batch))
    args = (x, rhs, *faces, stencil.reaction, residual, partial, tickets, norm2, *sizes)
    launcher.launch("true_residual", grid, (block, 1, 1), 0, args)
    return norm2


def _most_entries(hierarchy: Hierarchy) -> int:
    """Of one system's largest array: in three dimensions the finest level's transfers, 27 for eight cells."""
    arrays = (array for level in hierarchy.levels for array in (level.off, level.prolong) if array is not None)
    return max(math.prod(array.shape[1:]) for array in arrays)


def _tiles(shape: tuple[int, ...], batch: int, block: int) -> tuple[tuple[int, int, int], int]:
    """The grid of blocks (tiles of a plane, chunks of the slow axis, systems), and the planes of a chunk."""
    wide = 32 if len(shape) == 3 else block
    tiles = -(-shape[-1] // wide)
    if len(shape) == 3:
        tiles *= -(-shape[1] // (block // wide))
    chunks = max(1, _ENOUGH_BLOCKS // (tiles * batch))
    chunk = max(_SHORTEST_CHUNK, -(-shape[0] // chunks))
    return (tiles, -(-shape[0] // chunk), batch), chunk


def _sizes(shape: tuple[int, ...]) -> tuple[np.int32, np.int32, np.int32]:
    z, y, x = shape if len(shape) == 3 else (shape[0], 1, shape[1])
    return np.int32(z), np.int32(y), np.int32(x)

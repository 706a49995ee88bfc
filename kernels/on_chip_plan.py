"""Where the vectors of one system lie when it is solved on the chip: bytes counted against what the device has."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from forebay.kernels.hierarchy import levels_of

STATIC_BYTES = 2560
"""What csrc/on_chip.cu takes of shared memory besides the floats; the compiler's log says 2,032."""
LEVEL_INTS = 10
"""Columns of `Plan.table`: LEVEL_INTS of csrc/on_chip.cu."""
_MOST_LEVELS = 12
_CLUSTERS = (2, 4, 8)
_RESERVED_BYTES = 1024  # of every block, by the driver
_RESIDENT = {2: 1024, 3: 512}  # threads of a multiprocessor: 64 and 128 registers each, which do without spills
_MOST_THREADS = {2: 1024, 3: 448}  # of a block; in a cluster a little more than 128 registers are wanted


@dataclass(frozen=True, slots=True)
class Limits:
    """What decides how much of a system stays on the chip."""

    shared_bytes: int
    """Shared memory that one block may have at most: 232,448 on an H100 or H200, 166,912 on an A100."""
    multiprocessors: int
    clusters: bool
    """Whether blocks of a cluster can read each other's shared memory."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How csrc/on_chip.cu is compiled and launched for one shape of grid."""

    shape: tuple[int, ...]
    cluster: int
    """Blocks that share a system."""
    threads: int
    """Of a block."""
    resident: int
    """Blocks of a multiprocessor at a time, by registers and shared memory."""
    carveout: int
    """Percent of a multiprocessor's memory that those blocks need as shared memory; what is left can be cache."""
    direction_on_chip: bool
    floats: int
    """Dynamic shared memory of a block, in floats."""
    slab: int
    """Cells of the finest grid in a block."""
    table: tuple[tuple[int, ...], ...]
    """One row a level, see `pcg_on_chip`."""

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory of a block."""
        return 4 * self.floats

    @property
    def macros(self) -> dict[str, str]:
        """For the compiler."""
        values = {
            "DIMENSION": len(self.shape),
            "CLUSTER": self.cluster,
            "THREADS": self.threads,
            "BLOCKS": max(1, _RESIDENT[len(self.shape)] // self.threads),
            "DIRECTION_ON_CHIP": int(self.direction_on_chip),
        }
        return {name: str(value) for name, value in values.items()}

    def rows(self) -> np.ndarray:
        """`table` as the kernel reads it: int32 [levels, LEVEL_INTS], 2³²/n with the bits of unsigned numbers."""
        return np.array(self.table, dtype=np.int64).astype(np.uint32).view(np.int32)


def plan_of(shape: tuple[int, ...], limits: Limits, *, multigrid: bool, threads: int | None = None) -> Plan | None:
    """The arrangement with the fewest blocks a system; None where a system does not fit the chip.

    The vectors of a block are r and p of its slab of the grid, r of level 1 and an arena of one slab (or what the
    coarse levels need, if that is more).  In two dimensions that is 3.25 vectors, in three 3.13.

    Args:
        shape: of the grid.
        limits: of the device.
        multigrid: whether the cycle runs; Jacobi and none need three vectors.
        threads: of a block; None: by size.
    """
    # The kernel divides by multiplication with 2³²/n rounded up, which is exact below this.
    if math.prod(shape) * max(shape[-2:]) >= 2**32 or len(levels_of(shape)) > _MOST_LEVELS:
        return None
    options = [(1, True), *((size, True) for size in _CLUSTERS if limits.clusters), (1, False)]
    for cluster, direction_on_chip in options:
        # A slab begins at an even row and has two at least; a grid of one level is solved by one block.
        if cluster > 1 and (shape[0] < 2 * cluster or len(levels_of(shape)) == 1):
            continue
        plan = _arranged(shape, cluster, direction_on_chip, multigrid, threads, limits)
        if plan.shared_bytes + STATIC_BYTES <= limits.shared_bytes:
            return plan
    return None


def _arranged(
    shape: tuple[int, ...], cluster: int, direction_on_chip: bool, multigrid: bool, threads: int | None, limits: Limits
) -> Plan:
    rows = 2 * math.ceil(shape[0] / (2 * cluster)) if cluster > 1 else shape[0]
    slab = rows * math.prod(shape[1:])
    shapes = levels_of(shape) if multigrid else (shape,)
    cells = [math.prod(level) for level in shapes]
    places, floats = _places(cells, slab, (2 if direction_on_chip else 1) * slab)
    table = tuple(
        (*_sizes(level), *place, slab if depth == 0 else 0)
        for depth, (level, place) in enumerate(zip(shapes, places, strict=True))
    )
    wanted = threads or _threads(len(shape), slab)
    whole, one = limits.shared_bytes + _RESERVED_BYTES, 4 * floats + STATIC_BYTES + _RESERVED_BYTES
    resident = max(1, min(_RESIDENT[len(shape)] // wanted, whole // one))
    carveout = min(100, -(-100 * resident * one // whole))
    return Plan(shape, cluster, wanted, resident, carveout, direction_on_chip, floats, slab, table)


def _places(cells: list[int], slab: int, first: int) -> tuple[list[tuple[int, int, int]], int]:
    """Of residual, iterate and defect by level, among floats of which `first` are taken; and the number of all.

    What is read while t is written stands before the arena: z_1.
    """
    outside = 0 if len(cells) == 1 else cells[1] * (2 if len(cells) == 2 else 1)
    arena = first + outside
    places, end = [(0, arena, arena)], arena
    for level, count in enumerate(cells[1:], 1):
        if level == 1:
            residual, iterate = first, first + count if len(cells) == 2 else end
            end += 0 if len(cells) == 2 else count
        else:
            residual, iterate = end, end + count
            end += 2 * count
        defect = end
        end += count if level + 1 < len(cells) else 0
        places.append((residual, iterate, defect))
    return places, max(arena + slab, end)


def _sizes(shape: tuple[int, ...]) -> tuple[int, ...]:
    """nz, ny, nx, cells, and the reciprocals by which the kernel divides."""
    z, y, x = shape if len(shape) == 3 else (1, *shape)
    return z, y, x, z * y * x, *(2**32 // count + 1 if count > 1 else 0 for count in (x, y))


def _threads(dimension: int, slab: int) -> int:
    """Eight to forty cells a thread; small systems share a multiprocessor, so that one computes while another waits."""
    if slab <= 1024:
        return 128
    return 256 if slab <= 4096 else _MOST_THREADS[dimension]

"""What an iteration on a GPU must move and compute at least, counted from the kernels, and how fast the device is."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

SHARED_BYTES_PER_CLOCK = 128
"""Of one multiprocessor."""
FLOPS_PER_CLOCK = 256
"""Of one multiprocessor in float32: 128 lanes, a multiplication and an addition each."""


@dataclass(frozen=True)
class Chip:
    """The device, measured or, where there is none, by its data sheet."""

    name: str
    multiprocessors: int
    clock_hz: float
    bytes_per_s: float
    """Of a copy within device memory, read and written."""


H200 = Chip("H200, data sheet", 132, 1.98e9, 4.8e12)


def chip() -> Chip:
    """The present device; its copy bandwidth from the best of nine copies of 1 GiB."""
    found = torch.cuda.get_device_properties(0)
    source = torch.empty(2**28, dtype=torch.float32, device="cuda")
    target, best = torch.empty_like(source), math.inf
    for _ in range(9):
        torch.cuda.synchronize()
        started = time.perf_counter()
        target.copy_(source)
        torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    clock_hz = 1e3 * getattr(found, "clock_rate", H200.clock_hz / 1e3)
    return Chip(found.name, found.multi_processor_count, clock_hz, 2 * source.nbytes / best)


@dataclass(frozen=True)
class Floor:
    """Of one iteration of one system."""

    shared_bytes: float
    """Through shared memory, where the vectors are on the chip."""
    level_bytes: float
    """Of matrices and transfers (and x, on the chip), which come through the caches: once a pass that reads them."""
    vector_bytes: float
    """Of vectors through device memory, where they are not on the chip."""
    flops: float

    def on_chip_s(self, chip: Chip) -> float:
        """Seconds a system when all multiprocessors are busy: the slowest of the three."""
        whole = chip.multiprocessors * chip.clock_hz
        return max(
            self.shared_bytes / (whole * SHARED_BYTES_PER_CLOCK),
            self.flops / (whole * FLOPS_PER_CLOCK),
            self.level_bytes / chip.bytes_per_s,
        )

    def large_s(self, chip: Chip) -> float:
        """Seconds a system by the bytes of device memory."""
        return (self.level_bytes + self.vector_bytes) / chip.bytes_per_s


def floor_of(shapes: Sequence[tuple[int, ...]], *, on_chip: bool) -> Floor:
    """One iteration with one V(1,1) cycle on these levels, all but the last.

    Passes of the finest level: defect, restriction, prolongation, last smoothing with the direction, A p, update; on
    large grids defect and restriction are one pass, and so are prolongation and last smoothing.
    """
    dim = len(shapes[0])
    box, children = 3**dim, 2**dim
    shared = level = vectors = flops = 0.0
    for depth, shape in enumerate(shapes[:-1]):
        cells, finest = math.prod(shape), depth == 0
        neighbours = 2 * dim + 1 if finest else box
        couplings = dim if finest else (box - 1) // 2
        transfer = box / children
        if finest:
            # Defect; restriction; prolongation; smoothing and direction; A p; update: what each reads and writes.
            shared += (
                4 * cells * ((neighbours + 1) + transfer + (transfer + 2) + (neighbours + 4) + (neighbours + 2) + 4)
            )
            level += 4 * cells * ((2 + couplings) + 2 * transfer + 1 + (2 + couplings) + (1 + couplings))
            level += 4 * cells * 2 * on_chip  # x
            flops += 2 * cells * (3 * neighbours + 2 * transfer + 8)
            # A p: p, q; update: p, q, x, r, two of them written; down: r; up: r, z; direction: z, p, p.
            vectors += 4 * cells * (2 + 6 + 1 + 2 + 3 + 2 / children)
        else:
            shared += 4 * cells * (2 + (neighbours + 2) + transfer + (2 * transfer + 2) + (neighbours + 3))
            level += 4 * cells * (2 * (2 + couplings) + 2 * transfer)
            flops += 2 * cells * (2 * neighbours + 2 * transfer + 2)
            vectors += 4 * cells * (1 + 2 + 2 / children)
    last = math.prod(shapes[-1])
    return Floor(shared + 4 * last * last, level + 4 * last * last, vectors, flops + 2 * last * last)

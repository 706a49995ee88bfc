"""What `dataset_io` writes and reads, and how its contenders are called."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from forebay.pipeline.records import ChunkPlan

BATCH, SEED = 32, 20_231
FIELDS = ("a", "u")
FILE_BYTES = 4 * 2**20

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """One size of frames."""

    side: int
    stored_bytes: int

    @property
    def plan(self) -> ChunkPlan:
        """Samples and blocks."""
        each = 4 * self.side**2
        return ChunkPlan("train", self.stored_bytes // (len(FIELDS) * each), FILE_BYTES // each)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one field."""
        return (self.plan.samples, self.side, self.side)

    @property
    def chunk(self) -> tuple[int, int, int]:
        """Of one file."""
        return (self.plan.size, self.side, self.side)

    def blocks(self) -> Iterator[tuple[slice, Arrays]]:
        """Rows and their values; the same for every contender, made before the clock starts."""
        made = [self.values(block) for block in range(min(32, self.plan.chunks))]
        for block in range(self.plan.chunks):
            ids = self.plan.sample_ids(block)
            arrays = {name: values[: len(ids)] for name, values in made[block % 32].items()}
            yield slice(int(ids[0]), int(ids[-1]) + 1), arrays

    def values(self, block: int) -> Arrays:
        """The fields of one block: noise that nothing can compress; the 33rd block is like the first."""
        rng = np.random.default_rng([SEED, block % 32])
        return {name: rng.random(self.chunk, np.float32) for name in FIELDS}


Blocks = list[tuple[slice, Arrays]]
Write = Callable[[Path, Case, Blocks], None]

Read = Callable[[np.ndarray], Any]
"""A batch by its row numbers, in any order; whatever comes back holds both fields."""

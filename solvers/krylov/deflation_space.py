"""The space that deflated CG passes from system to system, and when it is refreshed."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from forebay.solvers.krylov.gcrodr import Variant
from forebay.solvers.krylov.space import RecycleSpace

YOUNG = 10
"""Systems during which a space is refreshed after every solve."""
DRIFT = 1.25
"""An economical space is refreshed again when a solve takes this many times the iterations of the best since."""
REJUVENATED = 3
"""For so many more systems then."""


@dataclass(frozen=True, slots=True, eq=False)
class DeflationSpace(RecycleSpace):
    """W of the next system, and what tells whether it has become stale."""

    pace: float = math.inf
    """Fewest iterations per decade of the residual since the last refresh; inf before the first solve."""

    def save(self, path: Path) -> None:
        """Write to one .npz file, whole or not at all; in parallel each process needs a file of its own."""
        unfinished = path.with_name(path.name + ".tmp")
        with unfinished.open("wb") as file:
            np.savez(file, vectors=self.vectors, systems=np.int64(self.systems), pace=np.float64(self.pace))
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)

    @classmethod
    def load(cls, path: Path) -> DeflationSpace:
        """Read what `save` wrote; the file of a plain `RecycleSpace` will do.

        Raises:
            ValueError: the file is not a saved space.
        """
        plain = RecycleSpace.load(path)
        with np.load(path, allow_pickle=False) as kept:
            return cls(plain.vectors, plain.systems, float(kept["pace"]) if "pace" in kept else math.inf)


def is_due(space: RecycleSpace | None, variant: Variant, recycle: int) -> bool:
    """Will the space be refreshed, however the solve goes: is it young, or much smaller than it may be?"""
    return variant == "exact" or space is None or space.systems < YOUNG or space.dimension < min(recycle, 5)


def is_stale(space: RecycleSpace | None, variant: Variant, pace: float) -> bool:
    """Did a solve take many more iterations per decade than the best since the last refresh?"""
    return variant == "economical" and math.isfinite(pace) and pace > DRIFT * _best(space)


def refreshed(vectors: np.ndarray, space: RecycleSpace | None, *, stale: bool) -> DeflationSpace:
    """The next space, with new vectors; a stale one becomes young again."""
    return DeflationSpace(vectors, YOUNG - REJUVENATED if stale else _systems(space) + 1)


def kept(vectors: np.ndarray, space: RecycleSpace, pace: float) -> DeflationSpace:
    """The next space, with the old vectors."""
    return DeflationSpace(vectors, space.systems + 1, min(pace, _best(space)))


def _systems(space: RecycleSpace | None) -> int:
    return 0 if space is None else space.systems


def _best(space: RecycleSpace | None) -> float:
    return space.pace if isinstance(space, DeflationSpace) else math.inf

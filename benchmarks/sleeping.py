"""A problem whose samples take a fixed time without a processor, so that more solvers than cores do not compete."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from forebay.pipeline.records import Field, Parameter, Schema

UNKNOWNS = 8


@dataclass(frozen=True)
class Sleeping:
    """-u'' + s u = 1 on a handful of points, repeated until a field of `side` x `side` is full.

    A sample lasts `seconds`, of which what is left when it is solved is slept, so a busy machine makes none longer
    unless drawing and solving take more than that.  Waking late is made up by the next sample of the same block, since
    that, too, is the machine's; every block begins anew, so nothing between two blocks is made up.
    """

    side: int = 128
    seconds: float = 0.03
    block: int = 1
    """Samples of a block, which are asked for one block after the other."""
    symmetry = "spd"

    @property
    def schema(self) -> Schema:
        """One parameter, one field."""
        return Schema((Parameter("s", 0.5, 1.0),), (), (Field("u", ("y", "x"), (self.side, self.side)),))

    def draw(self, parameters: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """No field; the time at which the sample is due is kept for `fields`."""
        number, due_s = clock
        begun_s = time.perf_counter() if number % self.block == 0 else due_s
        clock[:] = number + 1, begun_s + self.seconds
        return {}

    def pattern(self) -> tuple[np.ndarray, np.ndarray]:
        """Three diagonals."""
        rows = [[j for j in (i - 1, i, i + 1) if 0 <= j < UNKNOWNS] for i in range(UNKNOWNS)]
        indptr = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
        return indptr.astype(np.int32), np.concatenate(rows).astype(np.int32)

    def assemble(self, draw: dict[str, Any], values: np.ndarray, rhs: np.ndarray) -> None:
        """The matrix of the sample's s."""
        indptr, indices = self.pattern()
        rows = np.repeat(np.arange(UNKNOWNS), np.diff(indptr))
        values[:] = np.where(rows == indices, 2.0 + draw["parameters"][0], -1.0)
        rhs[:] = 1.0

    def fields(self, draw: dict[str, Any], solution: np.ndarray) -> dict[str, np.ndarray]:
        """The solution over and over, once the time is up."""
        time.sleep(max(0.0, clock[1] - time.perf_counter()))
        return {"u": np.resize(solution, (self.side, self.side))}


clock = [0, 0.0]
"""Samples begun in this process, and when the latest of them is due."""

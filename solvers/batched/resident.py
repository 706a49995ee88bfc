"""The solutions of a block on the device that computed them, beside the numpy arrays: no torch is loaded for it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from forebay.pipeline.records import Schema


class ResidentFields:
    """Gathers solutions in float32 where they lie, and says which output fields they are.

    A problem makes its output fields from the solution in numpy.  Most are the solution itself, cell by cell; those are
    found by comparing the arrays, bit for bit, so nothing is asked of a problem, and a field that is anything else is
    read from the arrays as ever.
    """

    def __init__(self, schema: Schema, count: int, unknowns: int) -> None:
        """For a block of `count` samples."""
        self._schema, self._count = schema, count
        self._same = {item.name for item in schema.outputs if math.prod(item.shape) == unknowns}
        self._values: Any = None

    def take(
        self,
        solutions: Any,
        x: np.ndarray,
        arrays: Mapping[str, np.ndarray],
        positions: Sequence[int],
        step: int | None = None,
    ) -> None:
        """Keep the solutions of samples at those positions, for one time step or the only one.

        Args:
            solutions: (k, *grid), a tensor on any device; None: there are none, and no field is resident.
            x: the same on the host, (k, n) float64.
            arrays: of the block, with the samples' fields as made from x.
            positions: (k,), where they stand in the block; samples that have faulted are passed over.
            step: index of a time step, None of a stationary problem.
        """
        if solutions is None:
            self._same = set()
        if not self._same or not positions:
            return
        values = solutions.float().flatten(1)
        if self._values is None:
            frames = () if step is None else (self._schema.steps,)
            self._values = values.new_full((self._count, *frames, values.shape[1]), math.nan)
        where = list(positions)
        self._values[where if step is None else (where, step)] = values
        with np.errstate(over="ignore"):
            wanted = x.astype(np.float32)
        self._same = {name for name in self._same if _equal(arrays[name], wanted, where, step)}

    def fields(self) -> dict[str, Any]:
        """By name, shaped as in the block's arrays."""
        if self._values is None:
            return {}
        shapes = {name: self._schema.sample_shape(name) for name in sorted(self._same)}
        return {name: self._values.reshape(self._count, *shape) for name, shape in shapes.items()}


def _equal(array: np.ndarray, wanted: np.ndarray, positions: list[int], step: int | None) -> bool:
    found = array[positions] if step is None else array[positions, step]
    return np.array_equal(found.reshape(wanted.shape), wanted)

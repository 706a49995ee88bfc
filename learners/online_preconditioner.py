"""The learned preconditioner of a running study: a few steps on the operators of each block, versions in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from forebay.kernels.grid_weights import GridWeights
from forebay.kernels.stencil import Stencil
from forebay.kernels.weight_file import latest_version
from forebay.learners.preconditioner import PreconditionerMetrics, make_state, publish, train_step

WINDOW = {2: 64, 3: 24}
"""Cells a side, by dimension, of what is cut out of larger grids: the formula is local, and a step is short."""
STEPS_A_VERSION = 20


class OnlinePreconditioner:
    """Starts from the folder's latest version, else from the weights that are shipped, and publishes new ones there.

    Raises:
        WeightsError: the latest version is damaged or of another dimension.
    """

    def __init__(self, folder: Path, dimension: int, *, seed: int) -> None:
        self._folder = folder
        latest = latest_version(folder)
        start = GridWeights.load(latest[1]) if latest else GridWeights.shipped(dimension)
        self._window = WINDOW[dimension]
        self._state = make_state(dimension, seed=seed, start=start)
        self._places = np.random.default_rng(seed)
        self._unpublished = 0
        self.metrics: PreconditionerMetrics | None = None
        """Of the latest step."""

    @property
    def steps(self) -> int:
        """Trained in this process."""
        return self._state.steps

    def learn(self, faces: tuple[np.ndarray, ...], reaction: np.ndarray) -> int:
        """One step on k operators, (k, *shape) float64; the number of the version that it completed, or 0.

        Raises:
            RunError: ten batches in a row that are not finite.
            OSError: the file system refuses a version.
        """
        faces, reaction = cut(faces, reaction, self._window, self._places)
        stencil = Stencil(tuple(torch.from_numpy(face) for face in faces), torch.from_numpy(reaction))
        self._state, self.metrics = train_step(self._state, stencil)
        self._unpublished += 1
        if self._unpublished < STEPS_A_VERSION:
            return 0
        self._unpublished = 0
        self._state, _ = publish(self._state, self._folder)
        return self._state.version


def cut(
    faces: tuple[np.ndarray, ...], reaction: np.ndarray, window: int, rng: np.random.Generator
) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """The same box of at most `window` cells a side of all operators, at a random place; copies.

    u = 0 beyond the cuts: the faces that lead there go to the reaction, so that the part is definite and its rows are
    those of the whole.
    """
    spans: list[tuple[int, int]] = []
    for count in reaction.shape[1:]:
        start = int(rng.integers(max(count - window, 0) + 1))
        spans.append((start, min(start + window, count)))
    inside = (slice(None), *(slice(*span) for span in spans))
    rest, parts = reaction[inside].copy(), []
    for axis, (face, (start, stop)) in enumerate(zip(faces, spans, strict=True), 1):
        before: tuple[Any, ...] = inside[:axis]
        behind: tuple[Any, ...] = inside[axis + 1 :]
        parts.append(face[(*before, slice(start, stop - 1), *behind)].copy())
        for cell, outer in ((0, start - 1), (-1, stop - 1)):
            if 0 <= outer < face.shape[axis]:
                edge: Any = (*(slice(None),) * axis, cell)
                across: Any = (*before, outer, *behind)
                rest[edge] += face[across]
    return tuple(parts), rest

"""When a solid is loaded, and when its solution is kept: equal cycles in equal steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from forebay.pipeline.errors import StudyError

Steps = Annotated[int, Field(ge=4, le=10_000)]
Cycles = Annotated[int, Field(ge=1, le=1000)]
Frames = Annotated[int, Field(ge=1, le=10_000)]
Temperature = Annotated[float, Field(ge=20, le=900, allow_inf_nan=False)]
"""Of a hot spot, [°C]; the laws are declared to hold up to 1000 °C."""
YieldFactor = Annotated[float, Field(ge=0.2, le=5, allow_inf_nan=False)]
"""By which the yield stress of a sample differs from that of its law."""

COLD = 20.0
"""Temperature of every part at the start, and of the cold ones always, [°C]."""


@dataclass(frozen=True, slots=True)
class Programme:
    """`cycles` cycles of `duration` seconds, each in `steps` equal steps; `frames` of all times are kept.

    Raises:
        StudyError: more frames than steps.
    """

    steps: int
    cycles: int
    duration: float
    frames: int

    def __post_init__(self) -> None:
        total = self.steps * self.cycles
        if self.frames > total:
            raise StudyError(
                f"problem.frames = {self.frames} is more than the {total} steps that problem.steps = {self.steps} and "
                f"problem.cycles = {self.cycles} give; lower problem.frames to {total} at most, or raise problem.steps"
            )

    @property
    def times(self) -> np.ndarray:
        """All times, 0 first, (steps * cycles + 1,), [s]."""
        return self.duration * (np.arange(self.steps * self.cycles + 1) / self.steps)

    @property
    def stored_steps(self) -> np.ndarray:
        """Numbers of the times that are kept (frames,), as evenly spaced as steps allow, the last one included."""
        total = self.steps * self.cycles
        return -(-np.arange(1, self.frames + 1, dtype=np.int64) * total // self.frames)

    @property
    def stored_times(self) -> tuple[float, ...]:
        """[s]"""
        return tuple(float(time) for time in self.times[self.stored_steps])


def warming(cycles: float) -> float:
    """How hot a hot spot is after so many cycles, from 0 at their ends to 1 at half of each: (1 - cos 2πs) / 2."""
    return float(0.5 * (1 - np.cos(2 * np.pi * cycles)))

"""What drives one simulation of a solid: loads, prescribed displacements, temperature and law over time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from forebay.solvers.materials.law import Law

Temperature = Callable[[np.ndarray, float], np.ndarray]
"""Positions (n, 3) [mm] and time [s] to temperatures (n,) [°C]; must be picklable to reach MPI tasks."""


@dataclass(frozen=True, eq=False, slots=True)
class History:
    """Everything of a sample that is not the mesh; step k leads from times[k-1] to times[k].

    The external force is Σᵢ loads[k, i] fᵢ with the model's unit loads fᵢ, prescribed displacements are
    Σⱼ displacements[k, j] dⱼ; both are linear in time within a step.

    Raises:
        ValueError: times that do not increase, or amplitudes for another number of times.
    """

    times: np.ndarray
    """(s + 1,), [s]; the first is that of the initial state."""
    loads: np.ndarray
    """(s + 1, L), in the units of each load."""
    displacements: np.ndarray
    """(s + 1, D), [mm]."""
    temperature: Temperature
    law: Law

    def __post_init__(self) -> None:
        if self.times.ndim != 1 or len(self.times) < 2 or not np.all(np.diff(self.times) > 0):
            raise ValueError(f"times {self.times} must be two or more increasing numbers")
        if not np.all(np.isfinite(self.times)):
            raise ValueError(f"times {self.times} must be finite")
        for name, values in (("loads", self.loads), ("displacements", self.displacements)):
            if values.ndim != 2 or len(values) != len(self.times):
                raise ValueError(
                    f"{name} of shape {values.shape} for {len(self.times)} times: "
                    f"give one row per time, also where there is no column"
                )
            if not np.all(np.isfinite(values)):
                raise ValueError(f"{name} hold NaN or inf; every amplitude must be finite")

    @property
    def steps(self) -> int:
        """S."""
        return len(self.times) - 1

    def loads_at(self, step: int, fraction: float) -> np.ndarray:
        """Load amplitudes (L,) at a fraction of a step: 0 is its start, 1 its end."""
        return _between(self.loads, step, fraction)

    def displacements_at(self, step: int, fraction: float) -> np.ndarray:
        """Amplitudes (D,) of the prescribed displacements at a fraction of a step."""
        return _between(self.displacements, step, fraction)

    def time_at(self, step: int, fraction: float) -> float:
        """[s]"""
        return float(_between(self.times, step, fraction))


def _between(values: np.ndarray, step: int, fraction: float) -> np.ndarray:
    if not 1 <= step < len(values):
        raise ValueError(f"step {step} of a history with steps 1 to {len(values) - 1}")
    start, end = values[step - 1], values[step]
    return np.asarray(end if fraction == 1.0 else start + fraction * (end - start))

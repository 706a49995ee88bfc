"""What goes into the solid model and what comes out of it: frozen values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

COMPONENTS = 3
AXES = "xyz"
LoadKind = Literal["traction", "pressure", "centrifugal", "body"]
_NEEDS_PART = ("traction", "pressure")
_NEEDS_VECTOR = ("traction", "centrifugal", "body")


@dataclass(frozen=True, slots=True)
class Support:
    """Displacement components that are prescribed on a part of the boundary.

    Raises:
        ValueError: components that are not distinct letters of "xyz".
    """

    where: str
    """A boundary part, or the edge or corner where several meet: "x_min & y_min"."""
    components: str = AXES
    """Some of "xyz"."""
    displacement: str | None = None
    """Name of an amplitude in `History.displacements` [mm]; None holds the components at zero."""

    def __post_init__(self) -> None:
        letters = set(self.components)
        if not letters or not letters <= set(AXES) or len(letters) != len(self.components):
            raise ValueError(
                f"components {self.components!r} of the support on {self.where!r} must be some of 'xyz', each once"
            )

    @property
    def parts(self) -> tuple[str, ...]:
        """The boundary parts that `where` names."""
        return tuple(part.strip() for part in self.where.split("&"))


@dataclass(frozen=True, slots=True)
class UnitLoad:
    """A distribution of forces, scaled in time by one amplitude of `History.loads`.

    - traction: ∫ t·v ds on `where` with t = `vector`; amplitude in MPa.
    - pressure: -∫ n·v ds on `where`, n the outward normal of the undeformed body; amplitude in MPa, positive presses.
    - body: ∫ b·v dx with b = `vector`; amplitude in N/mm³.
    - centrifugal: ∫ r·v dx, r the distance vector from the axis through `point` along `vector`; the amplitude is
      ρ ω², with ρ in t/mm³ (nickel alloys: 8.2e-9) and ω in rad/s, so in N/mm⁴.

    No load follows the deformation.

    Raises:
        ValueError: an unknown kind, or a part or a vector that is missing, superfluous or zero.
    """

    name: str
    kind: LoadKind
    where: str | None = None
    vector: Sequence[float] | None = None
    point: Sequence[float] = (0.0, 0.0, 0.0)
    """Of the axis of a centrifugal load, [mm]."""

    def __post_init__(self) -> None:
        kinds = ("traction", "pressure", "centrifugal", "body")
        if self.kind not in kinds:
            raise ValueError(f"load {self.name!r} has kind {self.kind!r}; the kinds are {', '.join(kinds)}")
        if (self.where is not None) != (self.kind in _NEEDS_PART):
            needs = "needs a boundary part" if self.kind in _NEEDS_PART else "acts on the whole body, not on a part"
            raise ValueError(f"load {self.name!r} with where = {self.where!r}: {self.kind} {needs}")
        if (self.vector is not None) != (self.kind in _NEEDS_VECTOR):
            needs = "needs a vector" if self.kind in _NEEDS_VECTOR else "acts along the normal and takes no vector"
            raise ValueError(f"load {self.name!r} with vector = {self.vector}: {self.kind} {needs}")
        if self.vector is not None and (len(self.vector) != COMPONENTS or not np.linalg.norm(self.vector) > 0):
            raise ValueError(f"vector {self.vector} of load {self.name!r} must have three components, not all zero")


@dataclass(frozen=True, slots=True, eq=False)
class SolidState:
    """Everything a step starts from; only what this process owns, picklable."""

    displacement: np.ndarray
    """(dofs,), [mm]."""
    variables: np.ndarray
    """The law's internal variables, (points, k)."""
    stress: np.ndarray
    """Mandel, (points, 6), [MPa]."""


@dataclass(frozen=True, slots=True)
class StepRecord:
    """How one step was solved."""

    step: int
    time: float
    """At its end, [s]."""
    iterations: int
    """Newton corrections over all substeps, refused ones included."""
    linear_iterations: int
    substeps: int
    """Accepted ones: 1 if the step was not cut."""
    cuts: int
    backtracks: int
    """Corrections that the line search shortened."""
    residuals: tuple[float, ...]
    """Relative residuals before every correction of the last substep, and the final one."""
    seconds: Mapping[str, float]
    """Wall time of this process in "strain", "law", "assembly" and "linear"."""


@dataclass(frozen=True, slots=True, eq=False)
class Trajectory:
    """One simulation; row k belongs to times[k], row 0 to the initial state.  Only what this process owns."""

    times: np.ndarray
    """(s + 1,), [s]."""
    displacement: np.ndarray
    """(s + 1, dofs), [mm]."""
    stress: np.ndarray
    """Mandel, (s + 1, points, 6), [MPa]."""
    p: np.ndarray
    """Accumulated plastic strain (s + 1, points); zero for a law without."""
    state: SolidState
    """At the end."""
    records: tuple[StepRecord, ...]
    seconds: float
    """Processor time of this process."""
    wall_seconds: float


class SolveError(RuntimeError):
    """A step was not solved, though it was cut as often as is allowed."""

    def __init__(self, message: str, *, step: int, time: float, residual: float) -> None:
        super().__init__(message)
        self.step, self.time, self.residual = step, time, residual

    def __reduce__(self) -> tuple[Any, ...]:
        return _solve_error, (str(self), self.step, self.time, self.residual)


def _solve_error(message: str, step: int, time: float, residual: float) -> SolveError:
    return SolveError(message, step=step, time=time, residual=residual)


@dataclass(slots=True)
class Effort:
    """What the substeps of one step have cost so far."""

    iterations: int = 0
    linear_iterations: int = 0
    backtracks: int = 0
    seconds: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("strain", "law", "assembly", "linear"), 0.0)
    )

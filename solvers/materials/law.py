"""What a material law is: strain history in, stress and consistent tangent out, point by point, without any mesh."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

TENSOR = 6
"""Symmetric tensors are Mandel vectors (xx, yy, zz, √2 xy, √2 xz, √2 yz), so that σ:ε is the plain dot product."""


@dataclass(frozen=True, slots=True)
class StateVariable:
    """One internal variable, some adjacent columns of the state array."""

    name: str
    components: int
    units: str = "1"
    description: str = ""


@dataclass(slots=True, eq=False)
class Response:
    """Where a law writes its answer at n points; allocated once, overwritten by every update."""

    stress: np.ndarray
    """(n, 6), [MPa]."""
    tangent: np.ndarray
    """dσ/dε of the discrete update, (n, 6, 6), [MPa]; not symmetric for every law."""
    state: np.ndarray
    """Internal variables at the end of the step, (n, k)."""

    @classmethod
    def empty(cls, law: Law, points: int) -> Response:
        """Room for the answer at so many points."""
        return cls(np.empty((points, TENSOR)), np.empty((points, TENSOR, TENSOR)), np.empty((points, width(law))))


class Law(Protocol):
    """A small-strain law with internal variables z: (ε, T, Δt, zₙ) -> (σ, dσ/dε, zₙ₊₁), implicit in time.

    Frozen and picklable; `name` and `constants` identify it in files.  `variables` should have one called "p", the
    accumulated plastic strain, which reduced models reconstruct and watch.  All arrays are C-contiguous float64.
    """

    @property
    def name(self) -> str:
        """As `LAWS` and package files know it."""
        ...

    @property
    def constants(self) -> Mapping[str, float]:
        """Everything that `LAWS[name](**constants)` needs to make it again."""
        ...

    @property
    def variables(self) -> tuple[StateVariable, ...]:
        """The columns of the state array, in this order."""
        ...

    def initial(self, points: int) -> np.ndarray:
        """State of the virgin material, (points, k)."""
        ...

    def update(
        self,
        strain: np.ndarray,
        temperature: np.ndarray,
        dt: float,
        state: np.ndarray,
        response: Response,
        *,
        tangent: bool = True,
    ) -> None:
        """Fill `response` for total strains (n, 6), temperatures (n,) [°C], a step Δt [s] and zₙ (n, k).

        `state` is not written; without `tangent`, `response.tangent` is left as it is.

        Raises:
            LawError: the local equations have no solution that was found, at some points.
        """
        ...


class LawError(ArithmeticError):
    """The local equations were not solved at some points; a smaller step usually helps."""

    def __init__(self, message: str, points: np.ndarray) -> None:
        super().__init__(message)
        self.points = points
        """Their numbers in the arrays that were passed."""

    def __reduce__(self) -> tuple[type[LawError], tuple[str, np.ndarray]]:
        return type(self), (str(self), self.points)


def width(law: Law) -> int:
    """Columns k of the law's state array."""
    return sum(variable.components for variable in law.variables)


def columns(law: Law, name: str) -> slice:
    """Columns of one internal variable.

    Raises:
        KeyError: the law has no such variable.
    """
    start = 0
    for variable in law.variables:
        if variable.name == name:
            return slice(start, start + variable.components)
        start += variable.components
    raise KeyError(f"law {law.name!r} has no variable {name!r}, only {[v.name for v in law.variables]}")


def plastic_strain(law: Law, state: np.ndarray) -> np.ndarray:
    """The accumulated plastic strain p of a state array (..., k), shape (...)."""
    return state[..., columns(law, "p").start]

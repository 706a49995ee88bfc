"""Small-strain laws with constants that depend on temperature: linear elastic, von Mises, Chaboche's viscoplastic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from itertools import chain
from typing import ClassVar

import numpy as np

from forebay.solvers.materials.checks import refuse_points, refuse_temperatures, require_arrays, require_tangent
from forebay.solvers.materials.constants import elastic_conditions, hardening_conditions, require, viscous_conditions
from forebay.solvers.materials.law import TENSOR, Response, StateVariable, width
from forebay.solvers.materials.return_mapping import (
    ITERATIONS,
    NOT_CONVERGED,
    NOT_FINITE,
    OUT_OF_RANGE,
    Constants,
    elastic_points,
    plastic_points,
)

_P = StateVariable("p", 1, description="accumulated plastic strain, ∫ √(2/3) |ε̇p| dt")
_NO_TANGENT = np.empty((0, TENSOR, TENSOR))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Thermoelastic:
    """Constants that all laws here have, and their bookkeeping; not a law."""

    name: ClassVar[str]

    young: float = 200e3
    """E at `reference_temperature`, [MPa]."""
    young_slope: float = 0.25
    """Fraction of E lost in 1000 °C; every slope acts so: X(T) = X (1 - slope (T - T_ref) / 1000 °C)."""
    poisson: float = 0.3
    """ν, in (-1, 0.5)."""
    expansion: float = 2e-5
    """α of the thermal strain α (T - T_free) 1, [1/°C]."""
    reference_temperature: float = 20.0
    """T_ref, at which moduli are given, [°C]."""
    stress_free_temperature: float = 20.0
    """T_free, [°C]."""
    coldest: float = 0.0
    """Lower end of the temperatures where the law holds, [°C]; others are refused."""
    hottest: float = 1000.0
    """Upper end, [°C]; every modulus must be positive from end to end."""
    _packed: Constants = field(init=False, repr=False, compare=False)

    @property
    def constants(self) -> Mapping[str, float]:
        """All constants by name, as the constructor takes them."""
        return {item.name: float(getattr(self, item.name)) for item in fields(self) if item.init}

    def _pack(self) -> None:
        """Leave the constants as kernels read them; those that the law does not have are 0."""
        own = self.constants
        object.__setattr__(self, "_packed", Constants(*(own.get(name, 0.0) for name in Constants._fields)))

    def _refuse_failures(self, temperature: np.ndarray, status: np.ndarray) -> None:
        points = [np.flatnonzero(status == kind) for kind in (OUT_OF_RANGE, NOT_FINITE, NOT_CONVERGED)]
        refuse_temperatures(self.name, temperature, points[0], self.coldest, self.hottest)
        refuse_points(self.name, "strain or internal variables are not finite", points[1], len(status))
        refuse_points(self.name, f"no plastic increment in {ITERATIONS} iterations", points[2], len(status))


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearElastic(_Thermoelastic):
    """σ = C(T) : (ε - α (T - T_free) 1), isotropic; p stays 0, so that whatever watches p can be tried on it.

    Raises:
        ValueError: constants out of range.
    """

    name: ClassVar[str] = "linear_elastic"

    def __post_init__(self) -> None:
        require(self, elastic_conditions(self))
        self._pack()

    @property
    def variables(self) -> tuple[StateVariable, ...]:
        """P."""
        return (_P,)

    def initial(self, points: int) -> np.ndarray:
        """Zero, (points, 1)."""
        return np.zeros((points, 1))

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
        """As `Law.update`; Δt is not used.

        Raises:
            LawError: a strain is NaN or infinite.
            ValueError: broken arrays, or a temperature outside [coldest, hottest].
        """
        strain, temperature, state = require_arrays(self.name, 1, strain, temperature, dt, state, response)
        if tangent:
            require_tangent(self.name, len(strain), response.tangent)
        status = np.empty(len(strain), np.int8)
        room = response.tangent if tangent else _NO_TANGENT
        response.state[:] = state
        if elastic_points(strain, temperature, self._packed, response.stress, room, tangent, status):
            self._refuse_failures(temperature, status)


@dataclass(frozen=True, slots=True, kw_only=True)
class _J2(_Thermoelastic):
    """Constants of yield and hardening, and the update that both plastic laws share; not a law."""

    viscous: ClassVar[bool]

    yield_stress: float = 150.0
    """R₀, [MPa]."""
    yield_stress_slope: float = 0.5
    hardening: float = 500.0
    """H of the linear isotropic hardening H p, [MPa]; R = R₀ + H p + Q (1 - exp(-b p))."""
    hardening_slope: float = 0.0
    saturation: float = 0.0
    """Q of the saturating isotropic hardening, [MPa]; negative: cyclic softening."""
    saturation_slope: float = 0.0
    saturation_rate: float = 10.0
    """b, [1]."""
    kinematic: float = 0.0
    """C of the first back-stress X = 2/3 C α, α̇ = ε̇p - D α ṗ, [MPa]; 0: none."""
    kinematic_slope: float = 0.0
    recall: float = 0.0
    """D of the first back-stress, [1]; in tension it saturates at C / D, with 0 it is linear (Prager)."""
    kinematic_2: float = 0.0
    """C of the second back-stress, [MPa]; 0: none."""
    kinematic_2_slope: float = 0.0
    recall_2: float = 0.0
    """D of the second back-stress, [1]."""
    _variables: tuple[StateVariable, ...] = field(init=False, repr=False, compare=False)
    _width: int = field(init=False, repr=False, compare=False)

    @property
    def variables(self) -> tuple[StateVariable, ...]:
        """p, plastic_strain, and back_strain_1, back_strain_2 as far as the law has them."""
        return self._variables

    def initial(self, points: int) -> np.ndarray:
        """Zero, (points, 7 + 6 back-stresses)."""
        return np.zeros((points, self._width))

    def _pack_plastic(self) -> None:
        self._pack()
        backs = (self.kinematic > 0.0) + (self.kinematic_2 > 0.0)
        strains = [StateVariable("plastic_strain", TENSOR, description="εp")]
        strains += [StateVariable(f"back_strain_{i}", TENSOR, description=f"α_{i}") for i in range(1, backs + 1)]
        object.__setattr__(self, "_variables", (_P, *strains))
        object.__setattr__(self, "_width", width(self))

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
        """As `Law.update`, with the constants at the temperatures of the end of the step.

        Raises:
            LawError: a strain or internal variable is NaN or infinite, or the scalar equation was not solved.
            ValueError: broken arrays or step, or a temperature outside [coldest, hottest].
        """
        strain, temperature, state = require_arrays(self.name, self._width, strain, temperature, dt, state, response)
        if tangent:
            require_tangent(self.name, len(strain), response.tangent)
        status = np.empty(len(strain), np.int8)
        if plastic_points(
            strain,
            temperature,
            float(dt),
            state,
            self._packed,
            self._width // TENSOR - 1,
            self.viscous,
            response.stress,
            response.tangent if tangent else _NO_TANGENT,
            response.state,
            tangent,
            status,
        ):
            self._refuse_failures(temperature, status)


@dataclass(frozen=True, slots=True, kw_only=True)
class VonMises(_J2):
    """Rate-independent J2 plasticity: f = √(3/2) |dev σ - X₁ - X₂| - R(p) <= 0, the limit K -> 0 of `Chaboche`.

    Δt is not used.  The default has linear isotropic hardening only; with `hardening = 0` it is perfectly plastic and
    structures have a limit load, beyond which no equilibrium exists.

    Raises:
        ValueError: constants out of range.
    """

    name: ClassVar[str] = "von_mises"
    viscous: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require(self, chain(elastic_conditions(self), hardening_conditions(self)))
        self._pack_plastic()


@dataclass(frozen=True, slots=True, kw_only=True)
class Chaboche(_J2):
    """J2 viscoplasticity with Norton's viscosity, isotropic and nonlinear kinematic hardening, all at temperature T.

        σ = C(T) : (ε - εp - α (T - T_free) 1),            ε̇p = √(3/2) ṗ N,  N = ξ / |ξ|,
        ξ = dev σ - X₁ - X₂,  Xᵢ = 2/3 Cᵢ(T) αᵢ,           ṗ = <(√(3/2) |ξ| - R) / K(T)>^m,
        α̇ᵢ = ε̇p - Dᵢ αᵢ ṗ  (Armstrong-Frederick),          R = R₀(T) + H(T) p + Q(T) (1 - exp(-b p)).

    Backward Euler, with a consistent tangent that is not symmetric while a back-stress recovers.  The state is αᵢ, not
    Xᵢ, so a change of temperature alone changes back-stresses by the ratio of Cᵢ(T).  m, Dᵢ, b, ν and α do not depend
    on temperature.  A step of Δt = 0 is elastic.  Defaults: a nickel-base superalloy in kind, not a measured one.
    Good values: K 50 to 500, m 3 to 30, C/D 50 to 300 MPa, D 50 to 2000.

    Raises:
        ValueError: constants out of range.
    """

    name: ClassVar[str] = "chaboche"
    viscous: ClassVar[bool] = True

    kinematic: float = 60e3
    kinematic_slope: float = 0.5
    recall: float = 400.0
    viscosity: float = 300.0
    """K, [MPa s^(1/m)]."""
    viscosity_slope: float = 0.4
    exponent: float = 8.0
    """m >= 1."""

    def __post_init__(self) -> None:
        require(self, chain(elastic_conditions(self), hardening_conditions(self), viscous_conditions(self)))
        self._pack_plastic()

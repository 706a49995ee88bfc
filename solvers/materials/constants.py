"""Which constants of a law make sense, said one by one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

Condition = tuple[bool, str, float, str]
"""Holds, name of the constant, its value, and how the message goes on."""


def modulus_at(law: Any, name: str, temperature: float) -> float:
    """X(T) = X (1 - slope (T - T_ref) / 1000 °C) of the constant X = `name` with the slope `name`_slope."""
    shift = 1e-3 * (temperature - law.reference_temperature)
    return float(getattr(law, name) * (1.0 - getattr(law, f"{name}_slope") * shift))


def require(law: Any, conditions: Iterator[Condition]) -> None:
    """Refuse the first constant that breaks a condition.

    Raises:
        ValueError: one does.
    """
    for name, value in law.constants.items():
        if not math.isfinite(value):
            raise ValueError(f"{name} = {value} of law {law.name!r} must be a finite number")
    for holds, name, value, message in conditions:
        if not holds:
            raise ValueError(f"{name} = {value} of law {law.name!r} {message}")


def elastic_conditions(law: Any) -> Iterator[Condition]:
    """Of the elastic constants and the range of temperatures."""
    yield law.coldest < law.hottest, "coldest", law.coldest, f"must be below hottest = {law.hottest}"
    yield -1.0 < law.poisson < 0.5, "poisson", law.poisson, "must lie between -1 and 0.5"
    yield from _positive(law, "young")


def hardening_conditions(law: Any) -> Iterator[Condition]:
    """Of the yield stress and all hardening."""
    yield from _positive(law, "yield_stress")
    for name in ("hardening", "kinematic", "kinematic_2"):
        yield from _positive(law, name, or_zero=True)
    for name in ("saturation_rate", "recall", "recall_2"):
        yield getattr(law, name) >= 0.0, name, getattr(law, name), "must not be negative"
    yield (
        law.kinematic > 0.0 or law.kinematic_2 == 0.0,
        "kinematic_2",
        law.kinematic_2,
        "is a second back-stress without a first; give its constants as `kinematic` and `recall`",
    )
    for temperature in (law.coldest, law.hottest):
        yield from _softening(law, temperature)


def viscous_conditions(law: Any) -> Iterator[Condition]:
    """Of Norton's viscosity."""
    yield from _positive(law, "viscosity")
    yield law.exponent >= 1.0, "exponent", law.exponent, "must be at least 1"


def _positive(law: Any, name: str, *, or_zero: bool = False) -> Iterator[Condition]:
    """At both ends of the range, hence within: moduli are linear in the temperature."""
    constraint = "must not be negative" if or_zero else "must be positive"
    for temperature in (law.coldest, law.hottest):
        value = modulus_at(law, name, temperature)
        message = (
            f"with {name}_slope = {getattr(law, f'{name}_slope')} is {value:.6g} at {temperature} °C, where it "
            f"{constraint}; mend it, or narrow the range from `coldest` to `hottest`"
        )
        yield value > 0.0 or (or_zero and value == 0.0), name, getattr(law, name), message


def _softening(law: Any, temperature: float) -> Iterator[Condition]:
    """A negative Q must leave a yield stress, and a scalar equation with one root: R' > -3G."""
    lost = -modulus_at(law, "saturation", temperature)
    rest = modulus_at(law, "yield_stress", temperature) - lost
    message = f"leaves a yield stress of {rest:.6g} MPa at {temperature} °C; it must stay positive"
    yield rest > 0.0, "saturation", law.saturation, message
    three_shear = 1.5 * modulus_at(law, "young", temperature) / (1.0 + law.poisson)
    slope = lost * law.saturation_rate
    message = f"softens with a slope of {slope:.6g} MPa at {temperature} °C; it must stay below 3G = {three_shear:.6g}"
    yield slope < three_shear, "saturation_rate", law.saturation_rate, message

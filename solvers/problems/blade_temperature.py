"""Temperature of a cooled blade: cold at the root and by the holes, hot at the leading edge and about one height."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from forebay.solvers.fem import blade_mesh
from forebay.solvers.problems.programme import COLD, warming

_FOOT, _HOT_ZONE = 12.0, 20.0
"""Along z: where the root's cold ends, and half the length of the hot zone, [mm]."""
_ALL_OVER = 0.4
"""Part of the heating that is not bound to the hot zone."""
_EDGE, _EDGE_DEPTH = 0.3, 0.25
"""What the leading edge is hotter by, relatively, and how deep that reaches, as a part of the chord."""
_COOLING, _COOLED = 0.3, 0.7
"""What a hole's wall is cooler by, relatively, and how far that reaches, in radii."""


@dataclass(frozen=True, slots=True)
class BladeTemperature:
    """T(x, t) = 20 °C + (T_max - 20 °C) w(t / duration) g(z) e(ξ) Π c(dᵢ), everywhere between 20 °C and T_max.

    g(z) = (1 - exp(-(z/12 mm)²)) (0.4 + 0.6 exp(-((z - z_h)/20 mm)²)): cold at the root, hottest near the height z_h,
    e(ξ) = 0.7 + 0.3 exp(-ξ/0.25): hot at the leading edge ξ = 0 (ξ runs along the chord),
    c(d) = 1 - 0.3 exp(-(d/r - 1)/0.7): cool near a hole of radius r whose centre is d away.
    """

    maximum: float
    """T_max, [°C]."""
    height: float
    """z_h, [mm]."""
    duration: float
    """Of a cycle, [s]."""

    def __call__(self, positions: np.ndarray, time: float) -> np.ndarray:
        """Temperatures (n,) [°C] at positions (n, 3) [mm]."""
        z = positions[:, 2]
        section = unplace(positions)
        zone = np.exp(-(((z - self.height) / _HOT_ZONE) ** 2))
        along = (1 - np.exp(-((z / _FOOT) ** 2))) * (_ALL_OVER + (1 - _ALL_OVER) * zone)
        edge = 1 - _EDGE + _EDGE * np.exp(-np.maximum(section[:, 0], 0.0) / (_EDGE_DEPTH * blade_mesh.CHORD))
        amplitude = (self.maximum - COLD) * warming(time / self.duration)
        return np.asarray(COLD + amplitude * along * edge * _cooling(section))


def unplace(positions: np.ndarray) -> np.ndarray:
    """Where points of the blade (n, 3) lie in its section before twist and taper, (n, 2) [mm] from the leading edge."""
    x, y, z = positions[:, 0], positions[:, 1], positions[:, 2] / blade_mesh.HEIGHT
    angle, scale = blade_mesh.TWIST * z, 1 - (1 - blade_mesh.TAPER) * z
    cosine, sine = np.cos(angle) / scale, np.sin(angle) / scale
    pivot = blade_mesh.PIVOT * blade_mesh.CHORD
    return np.column_stack([cosine * x + sine * y + pivot, cosine * y - sine * x])


def _cooling(section: np.ndarray) -> np.ndarray:
    """Π c(dᵢ) over the holes, at points of the section (n, 2)."""
    centres, radii = _holes()
    distance = np.hypot(*(section[:, None] - centres).transpose(2, 0, 1))
    return np.asarray(np.prod(1 - _COOLING * np.exp(-np.maximum(distance / radii - 1, 0.0) / _COOLED), axis=1))


@functools.cache
def _holes() -> tuple[np.ndarray, np.ndarray]:
    """Centres (h, 2) and radii (h,) in the section, [mm]; they lie on the camber line."""
    along, radii = np.array(blade_mesh.HOLES).T
    return 0.5 * (blade_mesh.outline(1, along) + blade_mesh.outline(-1, along)), blade_mesh.CHORD * radii

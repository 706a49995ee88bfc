"""Fields as a small elastoviscoplastic study leaves them: smooth mode strains, stresses with hot spots and fronts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from suites.thread_ranks import alone

from forebay.solvers.rom.cubature import integrals, integrand_rows

SIDES = np.array([40.0, 10.0, 10.0])
"""Of the box, [mm]."""
PAIRS = ((0, 1), (0, 2), (1, 2))


@dataclass(frozen=True)
class Cloud:
    """Points of a box with quadrature weights, and fields there."""

    positions: np.ndarray
    weights: np.ndarray
    mode_strains: np.ndarray
    stress: np.ndarray

    def integrands(self) -> tuple[np.ndarray, np.ndarray]:
        """G and b."""
        comm = alone()
        matrix = integrand_rows(self.mode_strains, self.stress, comm)
        return matrix, integrals(matrix, self.weights, comm)

    def slabs(self, count: int) -> list[np.ndarray]:
        """Point numbers of parts along the longest side, as a partitioner cuts."""
        return [np.sort(part) for part in np.array_split(np.argsort(self.positions[:, 0], kind="stable"), count)]


def cloud(points: int = 1500, modes: int = 5, stresses: int = 24, seed: int = 7) -> Cloud:
    """Random points and weights; the fields are smooth functions of position and of a parameter."""
    rng = np.random.default_rng(seed)
    positions = rng.uniform(0.0, 1.0, (points, 3)) * SIDES
    weights = rng.uniform(0.5, 1.5, points)
    weights *= SIDES.prod() / weights.sum()
    strains = np.stack([_mode_strain(positions, rng) for _ in range(modes)], axis=2)
    tensors = rng.standard_normal((4, 6))
    stress = np.stack([_stress(positions, s, tensors) for s in np.linspace(0.1, 1.0, stresses)], axis=2)
    return Cloud(positions, weights, strains, stress)


def _mode_strain(positions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mandel strain of a sum of plane waves about as long as the box."""
    gradient = np.zeros((len(positions), 3, 3))
    for _ in range(4):
        wave, amplitude = rng.normal(0.0, 2.5, 3) / SIDES, rng.standard_normal(3)
        slope = np.cos(positions @ wave + rng.uniform(0.0, 6.0))
        gradient += slope[:, None, None] * np.outer(amplitude, wave)
    strain = (gradient + np.swapaxes(gradient, 1, 2)) / 2
    shear = [np.sqrt(2.0) * strain[:, i, j] for i, j in PAIRS]
    return np.column_stack([strain[:, 0, 0], strain[:, 1, 1], strain[:, 2, 2], *shear])


def _stress(positions: np.ndarray, progress: float, tensors: np.ndarray) -> np.ndarray:
    """A growing uniform part, a hot spot that moves, a plastic front that spreads, bending, [MPa]."""
    x, y, z = (positions / SIDES).T
    spot = np.exp(-(((x - 0.3 - 0.3 * progress) / 0.15) ** 2) - ((y - 0.6) / 0.5) ** 2)
    front = np.tanh((progress - 2.0 * np.hypot(x - 0.5, z - 0.5)) / 0.15)
    shapes = np.column_stack([progress * np.ones_like(x), spot, front * progress, progress * (y - 0.5)])
    return 100.0 * shapes @ tensors

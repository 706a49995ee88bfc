"""Quantities of interest from a reduced trajectory and its package, without the mesh; one row a time, (s + 1, ...)."""

from __future__ import annotations

import numpy as np

from forebay.solvers.rom.package import RomPackage
from forebay.solvers.rom.trajectory import ReducedTrajectory


def p_max(package: RomPackage, trajectory: ReducedTrajectory) -> np.ndarray:
    """Largest accumulated plastic strain, (s + 1,): over the points of the package and the reconstructed hot spots.

    A lower bound of the maximum over the solid as far as the hot spots miss where it lies.
    """
    at_points = trajectory.p.max(axis=1)
    hot = trajectory.p_coefficients @ package.hot_p_modes.T
    return np.maximum(at_points, hot.max(axis=1, initial=0.0))


def monitored(package: RomPackage, trajectory: ReducedTrajectory) -> np.ndarray:
    """Displacements at the degrees of freedom `package.monitor_labels`, (s + 1, k), [mm]."""
    return trajectory.coefficients @ package.monitors.T + trajectory.displacements @ package.monitor_lifts.T


def reactions(package: RomPackage, trajectory: ReducedTrajectory) -> np.ndarray:
    """Force conjugate to each prescribed displacement, (s + 1, D), [N] where that is a translation.

    The work of internal minus external forces on the lift, Σ w σ:B_d - Σᵢ loadᵢ fᵢ·d.  In equilibrium it does not
    depend on how the lift continues into the solid; here it is as exact as the cubature is for the lift's strains.
    """
    internal = np.einsum("m,smc,mcd->sd", package.weights, trajectory.stress, package.lift_strains, optimize=True)
    return internal - trajectory.loads @ package.lift_loads


def energy(package: RomPackage, trajectory: ReducedTrajectory) -> np.ndarray:
    """Internal work ∫ Σ w σ:ε̇ dt, stored and dissipated, (s + 1,), [mJ]; trapezoidal rule, second order in Δt."""
    strains = trajectory.coefficients @ _flat(package.strains[:, :, : package.modes]).T
    strains += trajectory.displacements @ _flat(package.lift_strains).T
    stress = (trajectory.stress * package.weights[:, None]).reshape(strains.shape)
    return _work(stress, strains)


def external_work(package: RomPackage, trajectory: ReducedTrajectory) -> np.ndarray:
    """Work of loads and prescribed displacements, (s + 1,), [mJ]; trapezoidal rule.

    It equals `energy` up to the tolerance of the equilibrium if the history starts without loads.
    """
    on_modes = trajectory.loads @ package.loads[:, : package.modes]
    on_lifts = trajectory.loads @ package.lift_loads + reactions(package, trajectory)
    return _work(on_modes, trajectory.coefficients) + _work(on_lifts, trajectory.displacements)


def _work(forces: np.ndarray, displacements: np.ndarray) -> np.ndarray:
    """Running Σ ½ (fₖ + fₖ₋₁)·(uₖ - uₖ₋₁)."""
    increments = 0.5 * np.sum((forces[1:] + forces[:-1]) * np.diff(displacements, axis=0), axis=1)
    return np.concatenate([[0.0], np.cumsum(increments)])


def _flat(strains: np.ndarray) -> np.ndarray:
    return strains.reshape(-1, strains.shape[2])

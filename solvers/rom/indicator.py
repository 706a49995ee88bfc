"""How wrong is a reduced step?  Two indicators that need neither mesh nor full model.

1. *Gappy*: how badly the modes of p fit the p that the law gave at the points.  Source: Casenave & Akkari, "An error
   indicator-based adaptive reduced order model for nonlinear structural mechanics", Math. Comput. Appl. 24(2):41
   (2019).  Blind as long as the material is elastic.
2. *Equilibrium*: a hierarchical error estimate.  The modes cannot balance everything; what stays unbalanced in e
   further test modes is turned into a displacement by one Newton correction in all n + e modes.  Exact for a linear
   material whose displacement lies in the span of the n + e modes.  It sees the equilibrium of the present internal
   variables; what these collected before is stood for by the largest imbalance so far.

What a good set of test modes holds: the POD modes after the n-th, and the elastic answer to each unit load, made
orthogonal to the modes.  Without the latter a load that training did not have does no work on any of them: on a small
bar loaded across the plane of its training the true error was 10 % and the estimate 0.1 %, with them 5 %.
The cubature must integrate the test modes, too: else its error is all that the second indicator sees.
"""

from __future__ import annotations

import math

import numpy as np

from forebay.solvers.materials.law import Response
from forebay.solvers.rom.equilibrium import norm, solve
from forebay.solvers.rom.package import RomPackage

FLOOR = 0.01
"""Relative errors refer to at least this part of the training's scale, lest the first plastic point raise an alarm."""


class Estimator:
    """Computes the indicators of one package; holds nothing of a simulation."""

    def __init__(self, package: RomPackage) -> None:
        self._p_modes = package.p_modes
        self._fit = np.linalg.pinv(package.p_modes)
        self._p_floor = FLOOR * package.p_scale * np.sqrt(package.points)
        self._displacement_floor = FLOOR * package.displacement_scale
        self._gram = package.gram
        self._modes = package.modes
        self._extra = package.extra
        self._loads = package.loads
        strains = package.strains[: package.force_points]
        self._strains = strains
        weights = package.weights[: package.force_points, None, None]
        self._test = np.ascontiguousarray((strains * weights).reshape(-1, strains.shape[2]).T)

    def gappy(self, p: np.ndarray) -> tuple[np.ndarray, float]:
        """Coefficients z (q,) of the least-squares fit to p (m,), and ρ = |P z - p| / max(|p|, floor)."""
        fitted = self._fit @ p
        misfit = norm(self._p_modes @ fitted - p)
        reference = max(norm(p), self._p_floor)
        return fitted, misfit / reference if reference else 0.0

    def correction(self, loads: np.ndarray, response: Response, stiffness: np.ndarray | None = None) -> np.ndarray:
        """Δ (n + e,): one Newton correction in modes and test modes, from an equilibrium in the modes alone.

        With the given stiffness (n + e, n + e) of a state nearby, or else that of the response's tangents.

        Raises:
            LinAlgError: the tangent of all modes is singular.
        """
        columns = self._strains.shape[2]
        residual = loads @ self._loads - self._test @ response.stress.reshape(-1)
        if stiffness is None:
            stiffness = self._test @ np.matmul(response.tangent, self._strains).reshape(-1, columns)
        return solve(stiffness, residual)

    def displacement_norm(self, coefficients: np.ndarray, displacements: np.ndarray) -> float:
        """L2 norm of Σⱼ γⱼ φⱼ + Σᵢ gᵢ dᵢ, [mm^2.5]."""
        values = np.concatenate([coefficients, np.zeros(self._extra), displacements])
        return self._norm(values)

    def imbalance(self, loads: np.ndarray, response: Response, stiffness: np.ndarray | None = None) -> float:
        """|Δ|, [mm^2.5]; inf if it cannot be computed, 0 without test modes.

        `response` holds stress (f, 6) and tangent (f, 6, 6) at the f points of positive weight; `stiffness` spares its
        assembly, see `correction`.
        """
        if self._extra == 0:
            return 0.0
        try:
            correction = self.correction(loads, response, stiffness)
        except np.linalg.LinAlgError:
            return np.inf
        return self._norm(np.concatenate([correction, np.zeros(len(self._gram) - len(correction))]))

    def equilibrium(self, imbalance: float, worst: float, peak: float) -> float:
        """(|Δ| + `worst`) / 2 over max(peak, floor): the present imbalance and the largest so far, equally.

        What was unbalanced once has left wrong internal variables behind, hence an error that stays when balance is
        back.  On held-out necked bars the present imbalance alone gave a coverage of 87 % and a median ratio of 3.2,
        this 94 % and 2.4.  `peak` is the largest |u| of the simulation so far.
        """
        return 0.5 * (imbalance + worst) / max(peak, self._displacement_floor)

    def _norm(self, values: np.ndarray) -> float:
        return math.sqrt(max(values @ self._gram @ values, 0.0))

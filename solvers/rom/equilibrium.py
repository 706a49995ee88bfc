"""The reduced equations of equilibrium at the end of one step, and their solution by Newton's method."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.linalg.lapack import dgesv

from forebay.solvers.materials.law import TENSOR, Law, LawError, Response
from forebay.solvers.rom.package import RomPackage

HALVINGS = 5
"""Of one Newton correction, before the step is given up as too large."""
DECREASE = 1e-4
"""Part of the linear decrease of the residual that a correction must bring."""
ROUNDING = 1e-14
"""Of max|C| |ε| in stress: with loads that strain freely, forces are differences of this size, and no reference."""


class NotConvergedError(ArithmeticError):
    """Newton's method found no equilibrium; a smaller step usually helps."""

    def __init__(self, message: str, residual: float) -> None:
        super().__init__(message)
        self.residual = residual
        """Relative to the reference force."""


@dataclass(frozen=True, slots=True, eq=False)
class Drive:
    """What acts at the end of a step, or of a part of one."""

    loads: np.ndarray
    """(L,)"""
    displacements: np.ndarray
    """(D,)"""
    temperature: np.ndarray
    """At all points of the package, (m,), [°C]."""
    dt: float
    """[s]"""


@dataclass(frozen=True, slots=True, eq=False)
class Solution:
    """An equilibrium."""

    coefficients: np.ndarray
    """γ, (n,)."""
    iterations: int
    """Newton corrections."""
    residual: float
    """Norm of the residual over that of the reference force."""


class Points:
    """Some of a package's points, with room for one evaluation of the law; overwritten by every update."""

    def __init__(self, package: RomPackage, chosen: slice, law: Law) -> None:
        strains = package.strains[chosen]
        self.count = len(strains)
        self.chosen = chosen
        self.response = Response.empty(law, self.count)
        self.modes = np.ascontiguousarray(strains[:, :, : package.modes])
        rows = self.count * TENSOR
        self._operator = self.modes.reshape(rows, package.modes)
        self._lifts = package.lift_strains[chosen].reshape(rows, len(package.displacement_names))
        self._lifted = np.zeros(rows)
        self.strain = np.empty((self.count, TENSOR))

    def lift(self, displacements: np.ndarray) -> None:
        """Set what the prescribed displacements (D,) contribute to the strain."""
        np.matmul(self._lifts, displacements, out=self._lifted)

    def update(self, law: Law, drive: Drive, variables: np.ndarray, coefficients: np.ndarray, *, tangent: bool) -> None:
        """Evaluate the law at ε = B γ + B_d g from the internal variables (m, k) of all points at the step's start."""
        flat = self.strain.reshape(-1)
        np.matmul(self._operator, coefficients, out=flat)
        np.add(flat, self._lifted, out=flat)
        if self.count:
            temperature, start = drive.temperature[self.chosen], variables[self.chosen]
            law.update(self.strain, temperature, drive.dt, start, self.response, tangent=tangent)


class ReducedEquilibrium:
    """Σ w Bᵀ σ(B γ + B_d g) = Σᵢ loadᵢ fᵢ in n unknowns γ, at the points of positive weight.

    Newton's method with the consistent tangent Σ w Bᵀ C B (not symmetric for every law) and backtracking on the norm of
    the residual.  It has converged when |residual| <= rtol max(|f|, |σ| |B|), the weighted norms of stress and mode
    strains, which bound every internal force by the Cauchy-Schwarz inequality.  Unlike the forces themselves these do
    not cancel where only displacements or temperatures act.
    """

    def __init__(self, package: RomPackage, law: Law, *, rtol: float, max_iterations: int) -> None:
        self._rtol, self._max_iterations = rtol, max_iterations
        self.points = Points(package, slice(0, package.force_points), law)
        weights = package.weights[: package.force_points]
        self._root_weights = np.sqrt(np.repeat(weights, TENSOR))
        self._strains = np.ascontiguousarray(package.strains[: package.force_points])
        rows = self._strains.reshape(-1, package.modes + package.extra)
        self._test = np.ascontiguousarray(rows.T * np.repeat(weights, TENSOR))
        self._strain_norm = float(np.linalg.norm(rows.T[: package.modes] * self._root_weights))
        self._loads = np.ascontiguousarray(package.loads[:, : package.modes])
        self._external = np.zeros(package.modes)
        self._residual = np.empty(package.modes)
        self._tangent_rows = np.empty_like(self._strains)
        self._rounding = 0.0
        self.stiffness: np.ndarray | None = None
        """Of modes and test modes, (n + e, n + e), where the last correction was computed; None if none was needed."""

    def solve(self, law: Law, drive: Drive, variables: np.ndarray, guess: np.ndarray) -> Solution:
        """From internal variables (m, k) and a guess of γ (n,); `points.response` then belongs to the solution.

        Raises:
            LawError: the law fails at the guess.
            NotConvergedError: no decrease along a correction, a singular tangent, or too many iterations.
        """
        self.points.lift(drive.displacements)
        self._external = drive.loads @ self._loads
        self.stiffness = None
        coefficients, size = guess, self._evaluate(law, drive, variables, guess)
        self._rounding = ROUNDING * self._strain_norm * self._stress_scale()
        for iteration in range(self._max_iterations + 1):
            reference = self._reference()
            if size <= self._rtol * reference:
                return Solution(coefficients, iteration, size / reference if reference else 0.0)
            if iteration < self._max_iterations:
                coefficients, size = self._correct(law, drive, variables, coefficients, size)
        raise NotConvergedError(
            f"residual {size / reference:.2g} after {self._max_iterations} iterations, allowed is {self._rtol:.2g}",
            size / reference,
        )

    def _evaluate(self, law: Law, drive: Drive, variables: np.ndarray, coefficients: np.ndarray) -> float:
        """Norm of the residual, which is kept."""
        self.points.update(law, drive, variables, coefficients, tangent=True)
        np.matmul(self._test[: len(self._residual)], self.points.response.stress.reshape(-1), out=self._residual)
        np.subtract(self._external, self._residual, out=self._residual)
        return norm(self._residual)

    def _correct(
        self, law: Law, drive: Drive, variables: np.ndarray, coefficients: np.ndarray, size: float
    ) -> tuple[np.ndarray, float]:
        """One Newton correction, shortened until the norm of the residual, now `size`, decreases."""
        if not np.isfinite(size):
            raise NotConvergedError("the residual is not finite", size)
        direction = self._direction()
        length = 1.0
        for _ in range(HALVINGS + 1):
            trial = coefficients + length * direction
            try:
                reached = self._evaluate(law, drive, variables, trial)
            except LawError:
                reached = np.inf
            if reached <= (1.0 - DECREASE * length) * size or reached <= self._rtol * self._reference():
                return trial, reached
            length *= 0.5
        residual = size / self._reference()
        raise NotConvergedError(f"no decrease of the residual {residual:.2g} along the correction", residual)

    def _direction(self) -> np.ndarray:
        modes = len(self._residual)
        np.matmul(self.points.response.tangent, self._strains, out=self._tangent_rows)
        self.stiffness = self._test @ self._tangent_rows.reshape(-1, len(self._test))
        try:
            return solve(self.stiffness[:modes, :modes], self._residual)
        except np.linalg.LinAlgError:
            raise NotConvergedError("the reduced tangent is singular", np.inf) from None

    def _reference(self) -> float:
        """The force that a residual is compared with; at least the rounding of the internal forces over rtol."""
        stress = norm(self.points.response.stress.reshape(-1) * self._root_weights)
        return max(norm(self._external), stress * self._strain_norm, self._rounding / self._rtol)

    def _stress_scale(self) -> float:
        """Weighted norm of the stresses whose difference is the present one, if strain is free or not yet there."""
        stress = norm(self.points.response.stress.reshape(-1) * self._root_weights)
        strain = norm(self.points.strain.reshape(-1) * self._root_weights)
        return stress + float(np.abs(self.points.response.tangent).max()) * strain


def solve(matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Solve A x = b, x (n,), by LAPACK itself; a tenth of the time of `np.linalg.solve` where n is small.

    Raises:
        LinAlgError: A is singular.
    """
    *_, found, pivot = dgesv(matrix, right)
    if pivot:
        raise np.linalg.LinAlgError("singular matrix")
    return np.asarray(found).reshape(len(right))


def norm(values: np.ndarray) -> float:
    """Euclidean norm of a vector; a fifth of the time of `np.linalg.norm`."""
    return math.sqrt(np.dot(values, values))

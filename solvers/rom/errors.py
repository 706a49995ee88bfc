"""True errors of a reduced simulation against the full one, and whole fields from its few numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from forebay.solvers.rom.basis import Basis, Run
from forebay.solvers.rom.collective import total
from forebay.solvers.rom.indicator import FLOOR
from forebay.solvers.rom.march import Decision
from forebay.solvers.rom.online import ReducedTrajectory
from forebay.solvers.rom.package import RomPackage

if TYPE_CHECKING:
    from forebay.solvers.fem.solid import SolidModel


class Coefficients(Protocol):
    """What is read of a `ReducedTrajectory`: rows of times, the first of which is where it started."""

    @property
    def coefficients(self) -> np.ndarray:
        """γ, (s + 1, n)."""
        ...

    @property
    def displacements(self) -> np.ndarray:
        """Amplitudes, (s + 1, D), [mm]."""
        ...

    @property
    def p_coefficients(self) -> np.ndarray:
        """z, (s + 1, q)."""
        ...

    @property
    def indicators(self) -> np.ndarray:
        """(s, 2): gappy, equilibrium."""
        ...


def displacement_field(basis: Basis, lifts: np.ndarray, reduced: Coefficients) -> np.ndarray:
    """Displacements (s + 1, dofs) at the owned degrees of freedom, [mm]."""
    modes = basis.displacement.modes[:, : basis.modes]
    return reduced.coefficients @ modes.T + reduced.displacements @ lifts.T


def plastic_field(basis: Basis, reduced: Coefficients) -> np.ndarray:
    """Plastic strains p (s + 1, points) at the owned points by gappy POD, negative values set to zero."""
    if basis.p is None:
        return np.zeros((len(reduced.p_coefficients), len(basis.stress.weights) // 6))
    return np.maximum(reduced.p_coefficients @ basis.p.modes.T, 0.0)


def true_errors(model: SolidModel, basis: Basis, run: Run, reduced: Coefficients, *, peak: float = 0.0) -> np.ndarray:
    """Relative L2 errors of displacement and p at every step, (s, 2), on every process; collective.

    A displacement refers to the largest of the simulation so far, p to itself, both to at least one percent of what
    the training knows: the same references as those of the indicators.  `peak` is the largest norm of a displacement
    before a run that is a later part of a simulation, [mm^2.5].
    """
    u, p = run.trajectory.displacement[1:], run.trajectory.p[1:]
    u_error = _norms(model.comm, model.dof_weights, displacement_field(basis, model.lifts, reduced)[1:] - u)
    p_error = _norms(model.comm, model.weights, plastic_field(basis, reduced)[1:] - p)
    volume = float(total(model.comm, model.weights.sum()))
    moved = np.maximum(np.maximum.accumulate(_norms(model.comm, model.dof_weights, u)), peak)
    yielded = np.maximum(_norms(model.comm, model.weights, p), FLOOR * basis.p_scale * np.sqrt(volume))
    errors = np.zeros((len(u), 2))
    np.divide(u_error, np.maximum(moved, FLOOR * basis.displacement_scale), out=errors[:, 0])
    np.divide(p_error, yielded, out=errors[:, 1], where=yielded > 0)
    return errors


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a reduced simulation says about itself as a whole."""

    indicator: float
    """The larger of both, the largest over the steps."""
    displacement: float
    """Estimated error, relative to the largest displacement."""
    p: float
    """Estimated error, relative to the final p."""

    @property
    def estimate(self) -> float:
        """The larger of both errors."""
        return max(self.displacement, self.p)


def judge(package: RomPackage, reduced: ReducedTrajectory) -> Judgement:
    """Sum up the steps: each counts by how large displacement and p were then, beside the largest of the simulation.

    A relative error of an early step, of a displacement that is small, hence counts little: it is the error of
    the stored fields on the scale of the sample.  What could not be estimated is infinite whatever its weight.
    """
    values = np.hstack([reduced.coefficients, np.zeros((len(reduced.times), package.extra)), reduced.displacements])[1:]
    moved = np.sqrt(np.maximum(np.einsum("si,ij,sj->s", values, package.gram, values), 0.0))
    yielded = np.linalg.norm(reduced.p[1:], axis=1)
    weights = np.column_stack([_share(np.maximum.accumulate(moved)), _share(yielded)])
    errors = _weighted(reduced.errors, weights).max(axis=0)
    indicators = _weighted(reduced.indicators, weights[:, ::-1])
    return Judgement(float(indicators.max()), float(errors[0]), float(errors[1]))


def judge_steps(decisions: Sequence[Decision], sizes: np.ndarray) -> Judgement:
    """As `judge` for a simulation some of whose steps were solved in full.

    `sizes` (s + 1, 2): norms of displacement and p at all times.  A full step restores the balance of that step, not
    what earlier steps left in the internal variables: it keeps their absolute error, which is counted where it arose.
    """
    reduced = [row for row, decision in enumerate(decisions) if decision.reduced]
    weights = np.column_stack([_share(np.maximum.accumulate(sizes[1:, 0])), _share(sizes[1:, 1])])[reduced]
    kept = [decisions[row] for row in reduced]
    errors = np.array([(d.displacement_error, d.p_error) for d in kept]).reshape(-1, 2)
    indicators = np.array([(d.gappy, d.equilibrium) for d in kept]).reshape(-1, 2)
    displacement, p = _weighted(errors, weights).max(axis=0, initial=0.0)
    return Judgement(float(_weighted(indicators, weights[:, ::-1]).max(initial=0.0)), float(displacement), float(p))


def _share(sizes: np.ndarray) -> np.ndarray:
    largest = sizes.max()
    return sizes / largest if largest > 0 else np.zeros_like(sizes)


def _weighted(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Products, where values are finite; ∞ stays what it is, also times 0."""
    return np.multiply(values, weights, out=values.copy(), where=np.isfinite(values))


def calibration_pairs(
    model: SolidModel, basis: Basis, run: Run, reduced: Coefficients, *, peak: float = 0.0
) -> np.ndarray:
    """Indicators beside `true_errors` of every step, (steps with finite indicators, 4); collective.

    Errors of p are 0, which do not count, where the basis has no modes of p: they are 1 whatever the indicators say,
    and say nothing of the basis that will have some.
    """
    pairs = np.hstack([reduced.indicators, true_errors(model, basis, run, reduced, peak=peak)])
    if basis.p is None:
        pairs[:, 3] = 0.0
    return pairs[np.isfinite(pairs).all(axis=1)]


def _norms(comm: Any, weights: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """√(Σ w v²) of each row of v (k, rows), over all processes."""
    return np.sqrt(total(comm, rows**2 @ weights))

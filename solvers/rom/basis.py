"""What full simulations leave behind for reduced ones: modes of displacement, stress and plastic strain on the mesh.

A basis grows with every further simulation, without the earlier ones; `offline.make_package` turns it into the small
value that runs without the mesh.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

import numpy as np

from forebay.solvers.materials.history import History
from forebay.solvers.rom.collective import total
from forebay.solvers.rom.pod import Pod, component_rows, pod

if TYPE_CHECKING:
    from forebay.solvers.fem.solid import SolidModel

Bases = Literal["auto", "global", "local"]

_SPARE = 1e-2
"""Of its tolerance: how much further the displacement keeps modes, from which the test modes are taken."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How fine a reduced model is; every number is relative.

    Raises:
        ValueError: a tolerance outside (0, 1), a negative number of modes or points, or unknown bases.
    """

    displacement: float = 1e-4
    """ε of the displacement modes: projection error over all training snapshots; 1e-3 ... 1e-5."""
    stress: float = 1e-3
    """ε of the stress modes, whose work the cubature integrates."""
    p: float = 1e-3
    """ε of the modes of accumulated plastic strain."""
    cubature: float = 1e-3
    """Residual of the cubature; displacements are about as good as that."""
    test_modes: int = 4
    """e, further modes of displacement for the error indicator; 2 ... 6."""
    hot_points: int = 16
    """Points besides those of the package at which the largest p is looked for."""
    modes: int | None = None
    """Most displacement modes; None for no bound."""
    bases: Bases = "global"
    """Of a library that grows: one model for all samples, models for clusters of them, or whichever does better."""

    def __post_init__(self) -> None:
        for name in ("displacement", "stress", "p", "cubature"):
            value = getattr(self, name)
            if not 0 < value < 1:
                raise ValueError(f"{name} = {value} must lie between 0 and 1; 1e-4 ... 1e-3 is good")
        if self.bases not in get_args(Bases):
            raise ValueError(f"bases = {self.bases!r} must be one of {', '.join(get_args(Bases))}")
        if self.test_modes < 0 or self.hot_points < 0 or (self.modes is not None and self.modes < 1):
            raise ValueError(
                f"test_modes = {self.test_modes}, hot_points = {self.hot_points}, modes = {self.modes}; the first two "
                f"must not be negative, the last at least 1"
            )


class Fields(Protocol):
    """What is read of a `Trajectory`: rows of times, the first of which is where the run started."""

    @property
    def displacement(self) -> np.ndarray:
        """(s + 1, dofs), [mm]."""
        ...

    @property
    def stress(self) -> np.ndarray:
        """(s + 1, points, 6), [MPa]."""
        ...

    @property
    def p(self) -> np.ndarray:
        """(s + 1, points)."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """One full simulation, or a part of one, and what drove it."""

    history: History
    trajectory: Fields


@dataclass(frozen=True, slots=True, eq=False)
class Basis:
    """Modes over the rows that this process owns; counts and singular values are the same everywhere."""

    displacement: Pod
    """Of u - Σ gᵢ dᵢ, which vanishes at supports: n modes, the e test modes after them."""
    modes: int
    """n."""
    stress: Pod
    """Rows are (point, component)."""
    p: Pod | None
    """None while nothing has yielded."""
    displacement_scale: float
    """Largest L2 norm of a displacement, [mm^2.5]."""
    p_scale: float
    """Largest root mean square of p over the volume."""
    settings: Settings
    peaks: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    """Owned points where p was largest at some time, the most frequent first."""
    points: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    """Owned points of the latest cubature, where the next one starts."""

    def extended(self, model: SolidModel, runs: Sequence[Run]) -> Basis:
        """With further runs; collective.

        Raises:
            ValueError: no runs, or snapshots that are not finite.
        """
        fields = _Snapshots.of(model, runs)
        comm, settings = model.comm, self.settings
        return _assembled(
            self.displacement.extend(fields.displacement, comm, tolerance=_SPARE * settings.displacement),
            self.stress.extend(fields.stress, comm, tolerance=settings.stress),
            _plastic(self.p, fields, model, settings),
            settings,
            fields.scales(model, (self.displacement_scale, self.p_scale)),
            _merged_peaks(self.peaks, fields.peaks, self.settings.hot_points),
            self.points,
        )


def basis_of(model: SolidModel, runs: Sequence[Run], settings: Settings) -> Basis:
    """From full simulations on one mesh; collective.

    Raises:
        ValueError: no runs, or runs without any displacement or stress.
    """
    fields = _Snapshots.of(model, runs)
    comm = model.comm
    displacement = pod(fields.displacement, model.dof_weights, comm, tolerance=_SPARE * settings.displacement)
    rows, weights = component_rows(fields.stress.reshape(model.points, 6, -1), model.weights)
    return _assembled(
        displacement,
        pod(rows, weights, comm, tolerance=settings.stress),
        _plastic(None, fields, model, settings),
        settings,
        fields.scales(model, (0.0, 0.0)),
        _merged_peaks(np.empty(0, np.int64), fields.peaks, settings.hot_points),
        np.empty(0, np.int64),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Snapshots:
    """Columns are times of all runs; rows as owned."""

    displacement: np.ndarray
    stress: np.ndarray
    p: np.ndarray
    whole: np.ndarray
    """Displacements with their lifts."""
    peaks: np.ndarray

    @classmethod
    def of(cls, model: SolidModel, runs: Sequence[Run]) -> _Snapshots:
        if not runs:
            raise ValueError("a basis of no simulations; give at least one")
        lifts = model.lifts
        whole = np.hstack([run.trajectory.displacement[1:].T for run in runs])
        lifted = np.hstack([lifts @ run.history.displacements[1:].T for run in runs])
        stress = np.hstack([run.trajectory.stress[1:].reshape(run.history.steps, -1).T for run in runs])
        p = np.hstack([run.trajectory.p[1:].T for run in runs])
        return cls(whole - lifted, stress, p, whole, _peaks(p, model.comm))

    def scales(self, model: SolidModel, least: tuple[float, float]) -> tuple[float, float]:
        """Largest norm of u and root mean square of p, at least those given."""
        squares = total(model.comm, model.dof_weights @ self.whole**2)
        means = total(model.comm, model.weights @ self.p**2) / total(model.comm, model.weights.sum())
        return max(least[0], float(np.sqrt(squares.max()))), max(least[1], float(np.sqrt(means.max())))


def _plastic(before: Pod | None, fields: _Snapshots, model: SolidModel, settings: Settings) -> Pod | None:
    """Modes of p, or None as long as nothing has yielded on any process."""
    if before is not None:
        return before.extend(fields.p, model.comm, tolerance=settings.p)
    if not any(model.comm.allgather(bool(fields.p.any()))):
        return None
    return pod(fields.p, model.weights, model.comm, tolerance=settings.p)


def _assembled(
    displacement: Pod,
    stress: Pod,
    p: Pod | None,
    settings: Settings,
    scales: tuple[float, float],
    peaks: np.ndarray,
    points: np.ndarray,
) -> Basis:
    modes = displacement.truncated(tolerance=settings.displacement).modes.shape[1]
    modes = min(modes, settings.modes or modes)
    kept = min(modes + settings.test_modes, displacement.modes.shape[1])
    return Basis(displacement.truncated(modes=kept), modes, stress, p, *scales, settings, peaks, points)


def _peaks(p: np.ndarray, comm: Any) -> np.ndarray:
    """Owned points that have the largest p of all processes in some column, the most frequent first."""
    if not p.shape[1]:
        return np.empty(0, np.int64)
    best = p.argmax(axis=0) if len(p) else np.zeros(p.shape[1], np.int64)
    largest = p.max(axis=0) if len(p) else np.full(p.shape[1], -np.inf)
    everywhere = np.array(comm.allgather(largest))
    mine = (everywhere.argmax(axis=0) == comm.rank) & (largest > 0)
    points, counts = np.unique(best[mine], return_counts=True)
    return points[np.argsort(-counts, kind="stable")].astype(np.int64)


def _merged_peaks(old: np.ndarray, new: np.ndarray, most: int) -> np.ndarray:
    """The newest first, each once."""
    merged = np.concatenate([new, old[~np.isin(old, new)]])
    return merged[:most]

"""The reduced model as a value and as a file: all that a simulation without the mesh needs, about 100 kB.

Reduced-order model of quasi-static solids: displacement u = Σⱼ γⱼ φⱼ + Σᵢ gᵢ dᵢ with n modes φⱼ (zero where the
displacement is prescribed) and lifts dᵢ; integrals by a cubature of few points; plastic strain p = P z.
Source: Casenave, Akkari, Bordeu, Rey, Ryckelynck, "A Nonintrusive Distributed Reduced Order Modeling Framework for
nonlinear structural mechanics", Int. J. Numer. Methods Eng. 121 (2020), arXiv 1812.07228.  Differs from it: test modes
beyond the n of the solution come along, for an estimate of the error in equilibrium.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from forebay.solvers.materials.catalogue import fingerprint
from forebay.solvers.materials.law import Law
from forebay.solvers.rom.calibration import LEAST, Calibration
from forebay.solvers.rom.package_file import PackageError, content_of, parse, write

__all__ = ["LawStamp", "PackageError", "RomPackage"]

_SHAPES = {
    "strains": ("m", "6", "n+e"),
    "weights": ("m",),
    "positions": ("m", "3"),
    "point_ids": ("m",),
    "loads": ("L", "n+e"),
    "lift_strains": ("m", "6", "D"),
    "lift_loads": ("L", "D"),
    "gram": ("n+e+D", "n+e+D"),
    "p_modes": ("m", "q"),
    "hot_p_modes": ("h", "q"),
    "hot_positions": ("h", "3"),
    "hot_point_ids": ("h",),
    "monitors": ("k", "n"),
    "monitor_lifts": ("k", "D"),
}
_INTEGERS = ("point_ids", "hot_point_ids")
_NAMES = ("load_names", "displacement_names", "monitor_labels")
_REBUILD = "build the package again, all arrays from one offline run"


@dataclass(frozen=True, slots=True)
class LawStamp:
    """Which material law a package was trained with."""

    name: str
    constants: Mapping[str, float]
    fingerprint: str

    @classmethod
    def of(cls, law: Law) -> LawStamp:
        """Of a law."""
        return cls(law.name, dict(law.constants), fingerprint(law))


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class RomPackage:
    """n modes, e further test modes, m points; arrays are copied, read-only, float64 (ids int64).

    Points of positive weight come first: the law is evaluated there in every Newton iteration, at the others, which
    only serve to reconstruct p, once a step.  Make a changed one with `dataclasses.replace(package, version=..., ...)`.

    Raises:
        PackageError: shapes that do not fit each other, values that are not finite, negative or badly ordered weights,
            fewer points than modes of p, a point given twice, a Gram matrix that is not symmetric.
    """

    problem: str
    """Name of the problem that it reduces."""
    law: LawStamp
    modes: int
    """n; the columns n ... n + e of `strains` and `loads` belong to the test modes of the error estimator."""
    strains: np.ndarray
    """B: strains of the modes and test modes at the points, (m, 6, n + e), [1/mm] for modes in mm."""
    weights: np.ndarray
    """w of the cubature, (m,), [mm³]; 0 at points that only serve to reconstruct."""
    positions: np.ndarray
    """(m, 3), [mm]."""
    point_ids: np.ndarray
    """Canonical numbers of the points in the full model, (m,)."""
    loads: np.ndarray
    """Work of each unit load on each mode, fᵢ·φⱼ, (L, n + e)."""
    load_names: tuple[str, ...]
    lift_strains: np.ndarray
    """B_d: strains of the lifts, (m, 6, D)."""
    lift_loads: np.ndarray
    """Work of each unit load on each lift, fᵢ·dⱼ, (L, D)."""
    displacement_names: tuple[str, ...]
    gram: np.ndarray
    """L2 inner products of modes, test modes and lifts, in this order, (n + e + D, n + e + D)."""
    p_modes: np.ndarray
    """Modes of the accumulated plastic strain at the points, (m, q)."""
    hot_p_modes: np.ndarray
    """The same at h further points where p was large, (h, q)."""
    hot_positions: np.ndarray
    """(h, 3), [mm]."""
    hot_point_ids: np.ndarray
    """(h,)"""
    monitors: np.ndarray
    """Values of the modes at the k degrees of freedom that are watched, (k, n)."""
    monitor_lifts: np.ndarray
    """Values of the lifts there, (k, D)."""
    monitor_labels: tuple[str, ...]
    displacement_scale: float
    """Largest L2 norm of the displacement in training; relative errors refer to it where a displacement is tiny."""
    p_scale: float
    """Largest root mean square of p over the points in training, 0 if nothing yielded; used in the same way."""
    parameters: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Ranges of the parameters that it was trained on."""
    calibration: Calibration = field(default_factory=Calibration)
    version: int = 1
    """Counter of the run that makes it: raised with each enrichment."""

    def __post_init__(self) -> None:
        for name in _SHAPES:
            array = np.array(getattr(self, name), np.int64 if name in _INTEGERS else np.float64, order="C")
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        self._require_shapes()
        self._require_values()

    @property
    def points(self) -> int:
        """Their number, m."""
        return len(self.weights)

    @property
    def force_points(self) -> int:
        """Points of positive weight, the first ones."""
        return int(np.count_nonzero(self.weights))

    @property
    def extra(self) -> int:
        """Test modes of the error estimator, e; without any it sees nothing."""
        return int(self.strains.shape[2]) - self.modes

    def require_law(self, law: Law) -> None:
        """Refuse another law than that of the training.

        Raises:
            PackageError: name or constants differ.
        """
        given = LawStamp.of(law)
        if given.fingerprint != self.law.fingerprint:
            raise PackageError(
                f"the package was trained with law {_describe(self.law)}, given is {_describe(given)}; "
                f"train a package for this law, or pass the other"
            )

    def save(self, path: Path) -> None:
        """Write to one .npz file without pickles, durably, whole or not at all.

        Raises:
            DatasetError: the operating system refuses to write.
        """
        write(path, _metadata(self), self._arrays())

    def to_bytes(self) -> bytes:
        """What `save` writes, to send it to another process."""
        return content_of(_metadata(self), self._arrays())

    @classmethod
    def load(cls, path: Path, law: Law | None = None) -> RomPackage:
        """Read what `save` wrote, and check it against a law.

        Raises:
            PackageError: not a package, damaged, of another format, or trained with another law.
            FileNotFoundError: no such file.
        """
        return cls.from_bytes(path.read_bytes(), law, name=repr(str(path)))

    @classmethod
    def from_bytes(cls, content: bytes, law: Law | None = None, *, name: str = "the content") -> RomPackage:
        """The inverse of `to_bytes`, checked against a law; `name` is for messages.

        Raises:
            PackageError: as `load`.
        """
        try:
            package = _restore(*parse(content, name))
        except KeyError as error:
            raise PackageError(f"{name} lacks {error}; it is damaged: copy it again or rebuild it") from error
        if law is not None:
            package.require_law(law)
        return package

    def _arrays(self) -> dict[str, np.ndarray]:
        return {**{name: getattr(self, name) for name in _SHAPES}, "calibration_pairs": self.calibration.pairs}

    def _require_shapes(self) -> None:
        if self.strains.ndim != 3 or not 1 <= self.modes <= self.strains.shape[2]:
            raise PackageError(
                f"modes = {self.modes} with strains of shape {self.strains.shape}; they must be (m, 6, n + e) with "
                f"n >= 1 and e >= 0: {_REBUILD}"
            )
        sizes = self._sizes()
        for name, symbols in _SHAPES.items():
            expected = tuple(sizes[symbol] for symbol in symbols)
            if getattr(self, name).shape != expected:
                shape = getattr(self, name).shape
                raise PackageError(f"{name} has shape {shape}, but ({', '.join(symbols)}) is {expected}; {_REBUILD}")

    def _sizes(self) -> dict[str, int]:
        lifts, columns = len(self.displacement_names), self.strains.shape[2]
        return {
            "m": len(self.strains),
            "6": 6,
            "3": 3,
            "n": self.modes,
            "n+e": columns,
            "n+e+D": columns + lifts,
            "L": len(self.load_names),
            "D": lifts,
            "q": self.p_modes.shape[-1] if self.p_modes.ndim else 0,
            "h": len(np.atleast_1d(self.hot_point_ids)),
            "k": len(self.monitor_labels),
        }

    def _require_values(self) -> None:
        for name in _SHAPES:
            if not np.isfinite(getattr(self, name)).all():
                raise PackageError(f"{name} holds NaN or inf; {_REBUILD}")
        for names in _NAMES:
            _require_distinct(names, getattr(self, names))
        _require_distinct("point_ids", self.point_ids.tolist())
        _require_weights(self.weights)
        if self.p_modes.shape[1] > self.points:
            raise PackageError(
                f"{self.p_modes.shape[1]} modes of p at {self.points} points cannot be fitted; give at least as many "
                f"points, those that Q-DEIM picks, with weight 0"
            )
        if not np.allclose(self.gram, self.gram.T, rtol=1e-10, atol=1e-12 * np.abs(self.gram).max()):
            raise PackageError(f"gram is not symmetric; {_REBUILD}")
        _require_scales(self)


def _require_weights(weights: np.ndarray) -> None:
    if (weights < 0).any() or not (weights > 0).any():
        raise PackageError(
            f"the weights lie in {weights.min():.3g} ... {weights.max():.3g}; they must be >= 0, one at least > 0"
        )
    if (np.diff((weights > 0).astype(int)) > 0).any():
        raise PackageError(
            "a point of weight 0 comes before one of positive weight; order all arrays by weights == 0, stably"
        )


def _require_scales(package: RomPackage) -> None:
    if not (0 < package.displacement_scale < np.inf and 0 <= package.p_scale < np.inf):
        raise PackageError(
            f"displacement_scale = {package.displacement_scale} must be positive and p_scale = {package.p_scale} not "
            f"negative, both finite; take the largest norms of the training"
        )
    for name, (low, high) in package.parameters.items():
        if not -np.inf < low <= high < np.inf:
            raise PackageError(
                f"parameter {name!r} ranges over {low} ... {high}; the range must be finite, low <= high"
            )


def _require_distinct(what: str, values: Any) -> None:
    twice = sorted({value for value in values if values.count(value) > 1}, key=str)
    if twice:
        raise PackageError(f"{what} holds {twice} more than once; every entry must differ: {_REBUILD}")


def _describe(law: LawStamp) -> str:
    return f"{law.name!r} {dict(law.constants)} (fingerprint {law.fingerprint})"


def _metadata(package: RomPackage) -> dict[str, Any]:
    return {
        "version": package.version,
        "problem": package.problem,
        "law": {
            "name": package.law.name,
            "constants": dict(package.law.constants),
            "fingerprint": package.law.fingerprint,
        },
        "modes": package.modes,
        "displacement_scale": package.displacement_scale,
        "p_scale": package.p_scale,
        "parameters": {name: list(bounds) for name, bounds in package.parameters.items()},
        "level": package.calibration.level,
        "least": package.calibration.least,
        **{names: list(getattr(package, names)) for names in _NAMES},
    }


def _restore(metadata: Mapping[str, Any], members: Mapping[str, np.ndarray]) -> RomPackage:
    values: dict[str, Any] = {names: tuple(metadata[names]) for names in _NAMES}
    values |= {key: metadata[key] for key in ("problem", "version", "modes", "displacement_scale", "p_scale")}
    values |= {name: members[name] for name in _SHAPES}
    return RomPackage(
        law=LawStamp(**metadata["law"]),
        parameters={name: (low, high) for name, (low, high) in metadata["parameters"].items()},
        calibration=Calibration(members["calibration_pairs"], metadata["level"], metadata.get("least", LEAST)),
        **values,
    )

"""The 98 numbers of learned smoothed aggregation as plain arrays (no torch here); `numbers` has the formula."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np

from forebay.kernels import weight_file
from forebay.kernels.amg.numbers import FEATURES, LEVEL_FEATURE
from forebay.kernels.weight_file import WeightsError

FORMAT = 2
"""Raised whenever the formula changes."""
HIDDEN = 8
"""Hidden units of the shipped weights."""
CLASSICAL_OMEGA = CLASSICAL_DAMPING = 4 / 3
"""ω and s of the classical cycle: Jacobi's damping 2/3 where l_i = 2 a_ii, for the prolongator and the smoother."""
_KIND = "amg"
_SHIPPED = Path(__file__).parents[1] / "weights" / "amg.safetensors"


@dataclass(frozen=True, eq=False)
class AmgWeights:
    """Float32 arrays of the network, H hidden units."""

    hidden: np.ndarray
    """[H, 10]: W₁, and b₁ as the last column."""
    output: np.ndarray
    """[2, H + 1]: W₂, and b₂ as the last column."""
    version: int = 0
    """Counts what one training has published; 0 for weights that were shipped."""

    _ARRAYS: ClassVar[tuple[str, ...]] = ("hidden", "output")

    def __post_init__(self) -> None:
        """Check shapes and values.

        Raises:
            WeightsError: a type, shape or value that the formula cannot take.
        """
        units = len(self.hidden)
        for name, shape in (("hidden", (units, FEATURES + 1)), ("output", (2, units + 1))):
            array = getattr(self, name)
            if array.shape != shape or array.dtype != np.float32:
                raise WeightsError(
                    f"weights {name!r} are {array.dtype} of shape {array.shape}, not float32 of {shape}; retrain"
                )
            if not np.isfinite(array).all():
                raise WeightsError(f"weights {name!r} hold NaN or inf; use an earlier version")

    @classmethod
    def constant(cls, omega: float = CLASSICAL_OMEGA, damping: float = CLASSICAL_DAMPING) -> AmgWeights:
        """The same ω and s in every row, without hidden units; the classical cycle by default.

        Raises:
            WeightsError: ω outside of (0, 4) or s outside of (0, 2).
        """
        if not (0 < omega < 4 and 0 < damping < 2):
            raise WeightsError(
                f"omega = {omega:g} and damping = {damping:g}: the first lies in (0, 4), the second in (0, 2); "
                f"{CLASSICAL_OMEGA:.3g} is classical for both"
            )
        raw = [value / (1 - abs(value)) for value in (omega / 2 - 1, damping - 1)]
        return cls(np.zeros((0, FEATURES + 1), dtype=np.float32), np.array(raw, dtype=np.float32)[:, None])

    @classmethod
    def by_level(cls, finest: tuple[float, float], others: tuple[float, float]) -> AmgWeights:
        """One pair (ω, s) on the finest level and another one on the others, by a hidden unit that knows the level.

        Raises:
            WeightsError: as of `constant`.
        """
        bias, coarse = (cls.constant(*pair).output for pair in (finest, others))
        hidden = np.zeros((1, FEATURES + 1), dtype=np.float32)
        hidden[0, LEVEL_FEATURE] = 1.0  # φ(1) = 1/2
        return cls(hidden, np.hstack([2 * (coarse - bias), bias]))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the arrays: equal digests make equal preconditioners."""
        return weight_file.digest(self._arrays())

    def save(self, path: Path) -> None:
        """Write a safetensors file, whole or not at all."""
        weight_file.write(path, _KIND, FORMAT, self._arrays(), {"version": str(self.version)})

    @classmethod
    def load(cls, path: Path) -> AmgWeights:
        """Read what `save` wrote.

        Raises:
            WeightsError: damaged, of another kind or format, or arrays that do not fit together.
            FileNotFoundError: no such file.
        """
        facts, arrays = weight_file.read(path, _KIND, FORMAT)
        absent = [name for name in cls._ARRAYS if name not in arrays] + [n for n in ("version",) if n not in facts]
        if absent:
            raise WeightsError(f"{str(path)!r} lacks {', '.join(absent)}; retrain")
        return cls(arrays["hidden"], arrays["output"], int(facts["version"]))

    @classmethod
    def shipped(cls) -> AmgWeights:
        """The weights that come with Forebay: P1 meshes and grids, log-normal, two-valued and white coefficients."""
        return cls.load(_SHIPPED)

    def _arrays(self) -> dict[str, np.ndarray]:
        return {name: getattr(self, name) for name in self._ARRAYS}


CLASSICAL = AmgWeights.constant()

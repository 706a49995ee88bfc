"""Weights of the learned preconditioner on grids as plain arrays, and the formula they stand for (no torch here).

For every cell i of a level with operator A (5/7-point on the finest level, 9/27-point below) and every direction
(axis d, side ±) eight features, all without scale and within [0, 1]; o runs over the offsets of the stencil:

    arm(d±)   = clip(−Σ_{o_d = ±1} A[i, i+o] / A_ii, 0, 1)
    ratio(d±) = A_ii / (A_ii + A_jj),   j = i ± e_d,   and 1/2 where j is outside of the grid
    0  √arm(d±)       1  √arm(d∓)       2  ratio(d±)       3  ratio(d∓)
    4  √(mean of arm over both sides of all other axes), 0 in one dimension
    5  clip(Σ_j A_ij / A_ii, 0, 1)
    6  Σ_{o with two nonzeros or more} |A[i, i+o]| / Σ_j |A_ij|
    7  Σ_{o ≠ 0} max(A[i, i+o], 0) / Σ_j |A_ij|

One hidden layer, the same for all directions, axes and cells; n = 0 on the finest level, n = 1 on all coarse ones:

    h(d±) = relu(hidden[n] · features(d±) + hidden_bias[n])
    u     = smoother_bias[n] + mean over the 2D directions of smoother[n] · h(d±)
    s_i   = 1 + 0.999 u / (1 + |u|)                                      in (0, 2): smoother m_i = s_i / Σ_j |A_ij|
    v_d   = gate[n] · (h(d+) − h(d−))
    e_d   = (1 + γ) / (1 − γ),   γ = GATE v_d / (1 + |v_d|)              > 0: gate of axis d

The numerators −A[i, i+o] of the interpolation, collapsed to oc, are multiplied by Π_d e_d^{oc_d}, and the weights of
the cell are rescaled to their old sum; a cell with a negative numerator keeps its weights.  A reflection of the grid
swaps h(d+) and h(d−), hence keeps s and inverts e_d: the preconditioner has the symmetries of the grid.  It is
symmetric positive definite for any weights.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np

from forebay.kernels import weight_file
from forebay.kernels.weight_file import WeightsError

FEATURES = 8
"""Features of a direction."""
GATE = 0.8
"""Largest |γ|: a gate stays within 1/9 and 9."""
SMOOTHING = 0.999
"""Largest |s − 1|."""
FORMAT = 1
"""Raised whenever the formula above changes."""
_KIND = "grid"
_FOLDER = Path(__file__).parent / "weights"


@dataclass(frozen=True, eq=False)
class GridWeights:
    """Float32 arrays of the formula above; the first axis is n (finest level, coarse levels), H units are hidden."""

    dimension: int
    """2 or 3: the grids they were trained on."""
    hidden: np.ndarray
    """[2, H, 8]"""
    hidden_bias: np.ndarray
    """[2, H]"""
    smoother: np.ndarray
    """[2, H]"""
    smoother_bias: np.ndarray
    """[2]"""
    gate: np.ndarray
    """[2, H]"""
    version: int = 0
    """Counts what one training has published; 0 for weights that were shipped."""

    _ARRAYS: ClassVar[tuple[str, ...]] = ("hidden", "hidden_bias", "smoother", "smoother_bias", "gate")

    def __post_init__(self) -> None:
        """Check shapes and values.

        Raises:
            WeightsError: a dimension, type, shape or value that the formula cannot take.
        """
        if self.dimension not in (2, 3):
            raise WeightsError(f"weights for dimension {self.dimension}: it is 2 or 3")
        units = self.hidden.shape[1] if self.hidden.ndim == 3 else 0
        shapes = ((2, units, FEATURES), (2, units), (2, units), (2,), (2, units))
        for name, shape in zip(self._ARRAYS, shapes, strict=True):
            array = getattr(self, name)
            if array.shape != shape or array.dtype != np.float32:
                raise WeightsError(
                    f"weights {name!r} are {array.dtype} of shape {array.shape}, they must be float32 of {shape}; "
                    f"retrain"
                )
            if not np.isfinite(array).all():
                raise WeightsError(f"weights {name!r} hold NaN or inf; use an earlier version")

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays by name."""
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name in self._ARRAYS}

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the arrays: equal digests make equal preconditioners."""
        return weight_file.digest(self.arrays)

    def require_dimension(self, dimension: int) -> None:
        """Refuse grids of another dimension.

        Raises:
            WeightsError: naming both.
        """
        require_dimension(self.dimension, dimension)

    def save(self, path: Path) -> None:
        """Write a safetensors file, whole or not at all."""
        facts = {"dimension": str(self.dimension), "version": str(self.version)}
        weight_file.write(path, _KIND, FORMAT, self.arrays, facts)

    @classmethod
    def load(cls, path: Path) -> GridWeights:
        """Read what `save` wrote.

        Raises:
            WeightsError: damaged, of another kind or format, or arrays that do not fit together.
            FileNotFoundError: no such file.
        """
        facts, arrays = weight_file.read(path, _KIND, FORMAT)
        absent = [name for name in cls._ARRAYS if name not in arrays]
        if absent or not {"dimension", "version"} <= set(facts):
            raise WeightsError(f"{str(path)!r} lacks {', '.join(absent) or 'its dimension or version'}; retrain")
        arrays = {name: arrays[name] for name in cls._ARRAYS}
        return cls(dimension=int(facts["dimension"]), version=int(facts["version"]), **arrays)

    @classmethod
    def shipped(cls, dimension: int) -> GridWeights:
        """The weights that come with Forebay, trained on log-normal, two-valued, white and inclusion media.

        Raises:
            WeightsError: a dimension other than 2 and 3.
        """
        if dimension not in (2, 3):
            raise WeightsError(f"no weights are shipped for {dimension} dimensions, only for 2 and 3")
        return cls.load(_FOLDER / f"grid{dimension}d.safetensors")


def require_dimension(trained: int, wanted: int) -> None:
    """Refuse weights trained on grids of another dimension.

    Raises:
        WeightsError: naming both.
    """
    if trained != wanted:
        raise WeightsError(
            f"these weights were trained on {trained}-dimensional grids, this one has {wanted} axes; use weights "
            f"trained for {wanted} dimensions"
        )

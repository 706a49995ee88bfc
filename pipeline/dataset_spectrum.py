"""The isotropic spectrum of fields on a uniform grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.fft

from forebay.pipeline.records import Field, Schema

_FRAMES = 16
"""Frames that are transformed at once."""


@dataclass(frozen=True, slots=True)
class Spectrum:
    r"""Mean over frames of E(k) = Σ |û(κ)|² over the shell |k - |κ|| <= Δk/2, û the Fourier coefficients of the field.

    Σ E(k) over all shells, those in the corners included, is the mean square of the field, and E(0) the square of its
    mean, averaged over frames.  κ counts waves along each axis per unit of length, so it has the inverse units of the
    coordinates; Δk = 1 / (longest side).  The components of a vector add up.  The field is continued periodically:
    where opposite sides differ, the jump adds a tail that falls like k⁻².
    """

    units: str
    """Of the wavenumbers."""
    wavenumber: tuple[float, ...]
    energy: tuple[float, ...]
    """In squared units of the field."""


@dataclass(frozen=True, slots=True, eq=False)
class Wavenumbers:
    """Which shell each Fourier coefficient of a grid belongs to."""

    axes: tuple[int, ...]
    """Axes of space in an array (frame, *field shape)."""
    shell: np.ndarray
    """Of every coefficient of the real transform, flat."""
    weight: np.ndarray
    """1 or 2: the real transform leaves out one of two conjugate coefficients."""
    spacing: float
    units: str

    @classmethod
    def of(cls, item: Field, schema: Schema) -> Wavenumbers | None:
        """None unless the field lives on one to three equally spaced axes."""
        lines = {c.name: c for c in schema.coordinates if c.dims == (c.name,) and c.values.dtype.kind == "f"}
        space = [k for k, dim in enumerate(item.dims) if dim in lines and len(lines[dim].values) > 1]
        rest = [dim for k, dim in enumerate(item.dims) if k not in space]
        if not 1 <= len(space) <= 3 or any(not dim.startswith("component") for dim in rest):
            return None
        gaps = [np.diff(lines[item.dims[k]].values) for k in space]
        if not all(np.allclose(gap, gap[0], rtol=1e-3, atol=0) and gap[0] for gap in gaps):
            return None
        shape = [item.shape[k] for k in space]
        sides = [abs(float(gap.mean())) * n for gap, n in zip(gaps, shape, strict=True)]
        whole = [np.fft.fftfreq(n, 1 / n) / side for n, side in zip(shape, sides, strict=True)]
        whole[-1] = np.arange(shape[-1] // 2 + 1) / sides[-1]
        length = np.sqrt(sum(np.square(k) for k in np.meshgrid(*whole, indexing="ij")))
        weight = np.full(len(whole[-1]), 2.0)
        weight[0] = 1.0
        if shape[-1] % 2 == 0:
            weight[-1] = 1.0
        spacing = 1 / max(sides)
        units = lines[item.dims[space[0]]].units
        return cls(
            axes=tuple(k + 1 for k in space),
            shell=np.rint(length / spacing).astype(np.int64).reshape(-1),
            weight=np.broadcast_to(weight, length.shape).reshape(-1),
            spacing=spacing,
            units=f"1/{units}" if units != "1" else "1",
        )

    def power(self, frames: np.ndarray) -> np.ndarray:
        """Sum over frames of the energy in each shell; components add up."""
        moved = np.moveaxis(frames, self.axes, range(-len(self.axes), 0))
        shape = moved.shape[-len(self.axes) :]
        fields = moved.reshape(-1, *shape)
        total = np.zeros(int(self.shell.max()) + 1)
        for start in range(0, len(fields), _FRAMES):
            piece = np.ascontiguousarray(fields[start : start + _FRAMES])
            modes = scipy.fft.rfftn(piece, axes=range(1, piece.ndim), norm="forward").reshape(len(piece), -1)
            energy = np.square(modes.real, dtype=np.float64) + np.square(modes.imag, dtype=np.float64)
            total += np.bincount(self.shell, energy.sum(axis=0) * self.weight, minlength=len(total))
        return total

    def spectrum(self, energy: np.ndarray) -> Spectrum:
        """With its wavenumbers."""
        numbers = tuple(float(k) for k in self.spacing * np.arange(len(energy)))
        return Spectrum(self.units, numbers, tuple(energy.tolist()))

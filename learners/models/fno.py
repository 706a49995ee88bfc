"""Fourier neural operator on grids of one or two axes, without complex numbers.

Legend: b batch, H and W grid axes (a grid of one axis is H x 1), C channels in, O channels out, K = modes along H kept
from 0 up, L = modes along W of both signs, r the pair (real, imaginary).

Channels are last, so pointwise layers are plain matrix products; the truncated Fourier transform is two matrix products
with cosine and sine matrices.  At 64 x 64 and a dozen modes this beats FFTs, which compute all modes and drop most.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from forebay.learners.options import option
from forebay.pipeline.errors import StudyError

if TYPE_CHECKING:
    from forebay.learners.surrogate import IOSpec

Basis = tuple[Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class FNOOptions:
    """Fourier neural operator; fields to fields on a uniform grid of one or two axes."""

    width: int = option(32, "channels of the hidden layers; good: 16 to 64", low=1, high=1024)
    modes: tuple[int, ...] = option((12,), "highest wavenumber kept, one for all axes or one each", low=0)
    layers: int = option(4, "Fourier layers; good: 3 to 5", low=1, high=64)
    projection: int = option(64, "width of the lifting and projecting layers", low=1, high=4096)
    padding: float = option(
        0.0, "share of the grid added as zeros in every transform, for fields that are not periodic", low=0, high=4
    )
    channel_mlp: bool = option(False, "two further pointwise layers after every Fourier layer")

    def check(self, io: IOSpec) -> None:
        """Raise StudyError without a grid of one or two axes, or with more modes than the grid resolves."""
        require_grid("fno", io)
        periods = _periods(_two_axes(io.grid), self.padding)
        if len(self.modes) not in (1, len(io.grid)):
            raise StudyError(
                f"learner.model.modes = {list(self.modes)} has {len(self.modes)} entries for a grid of {len(io.grid)} "
                "axes; give one number, or one for each axis"
            )
        for axis, (modes, period) in enumerate(zip(_modes(self, io), periods, strict=True)):
            most = period // 2 if axis == 0 else (period - 1) // 2
            if modes > most:
                raise StudyError(
                    f"learner.model.modes = {list(self.modes)}: {modes} exceeds {most}, the highest wavenumber that a "
                    f"grid of {io.grid} points resolves along axis {axis}; use modes <= {most}, or a finer grid"
                )

    def build(self, io: IOSpec) -> nn.Module:
        """The network with fresh weights."""
        return FNO(self, io)


class SpectralConvolution(nn.Module):
    """v(x) -> Re Σ_k R_k v̂_k e^{2πi k·x / P}, with one complex matrix R_k per kept wavenumber.

    v̂_k = (1/P) Σ_x v(x) e^{-2πi k·x / P}, P the period; wavenumbers 0 <= k_H <= m_H and -m_W <= k_W <= m_W, the other
    half follows from the result being real: k_H > 0 counts twice, the Nyquist wavenumber once.  Identical to the
    truncated rfft-multiply-irfft of Li et al., arXiv 2010.08895, eq. 4, with the halved axis first.  Differs from it:
    both signs of the highest wavenumber are kept along W, so that the layer commutes with reflections if its weights
    do; and P may exceed the number of points N (P = N + padding): the transform of the zero-padded field, at no cost.
    """

    def __init__(self, channels: int, modes: tuple[int, int]) -> None:
        super().__init__()
        self.channels = channels
        count = (modes[0] + 1) * (2 * modes[1] + 1)
        # E|R|² = 1/C keeps the variance of white input: each of the two parts has half of it.
        self.weight = nn.Parameter(torch.randn(count, channels, 2 * channels) / math.sqrt(2 * channels))
        """(K L, C, r O): real parts of the O outputs, then the imaginary parts."""

    def forward(self, values: Tensor, bypass: Tensor, basis: Basis) -> Tensor:
        """Transform of values (b, H, W, C) plus bypass (b, H, W, O)."""
        b, height, width, channels = values.shape
        along_h, along_w, back_w, back_h = basis
        kept = along_h.shape[0] // 2
        signed = along_w.shape[0] // 2
        rows = _multiply(along_h, values.reshape(b, height, width * channels))
        modes = _multiply(along_w, rows.view(b * kept, 2 * width, channels))
        modes = modes.view(b, kept, 2, signed, channels).permute(1, 3, 2, 0, 4)
        mixed = self._mix(modes.reshape(kept * signed, 2 * b, channels), b)
        mixed = mixed.view(2, kept, signed, b, channels).permute(3, 1, 0, 2, 4)
        rows = _multiply(back_w, mixed.reshape(b * kept, 2 * signed, channels))
        rows = rows.view(b, 2 * kept, width * channels)
        flat = torch.baddbmm(bypass.reshape(b, height, -1), _batched(back_h, b), rows)
        return flat.view(b, height, width, channels)

    def _mix(self, modes: Tensor, b: int) -> Tensor:
        """(K L, r b, C) times R_k, to (r, K L, b, O)."""
        products = torch.bmm(modes, self.weight).view(-1, 2, b, 2, self.channels)
        real = products[:, 0, :, 0] - products[:, 1, :, 1]
        imaginary = products[:, 0, :, 1] + products[:, 1, :, 0]
        return torch.stack([real, imaginary])


class FourierLayer(nn.Module):
    """φ(K v + A v + c), φ = GELU, K the spectral convolution; optionally a pointwise two-layer network after it."""

    def __init__(self, width: int, modes: tuple[int, int], *, last: bool, channel_mlp: bool) -> None:
        super().__init__()
        self.spectral = SpectralConvolution(width, modes)
        self.pointwise = nn.Linear(width, width)
        self.last = last
        self.mlp = (
            nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)) if channel_mlp else None
        )

    def forward(self, values: Tensor, basis: Basis) -> Tensor:
        """(b, H, W, C) to (b, H, W, C)."""
        values = self.spectral(values, self.pointwise(values), basis)
        if self.mlp is not None:
            values = values + self.mlp(functional.gelu(values))
        return values if self.last else functional.gelu(values)


class FNO(nn.Module):
    """Lift, L Fourier layers, project; scalars and the points' positions are further input channels.

    Positions are (i + 1/2)/n along every axis, so refining a cell-centred grid refines the same function.  The network
    takes any grid that resolves its modes.  Source: Li et al., arXiv 2010.08895.
    """

    any_grid = True
    basis_0: Tensor
    basis_1: Tensor
    basis_2: Tensor
    basis_3: Tensor
    positions: Tensor

    def __init__(self, options: FNOOptions, io: IOSpec) -> None:
        super().__init__()
        width = options.width
        self.axes = len(io.grid)
        self.modes = _modes(options, io)
        self.padding = options.padding
        self.grid = _two_axes(io.grid)
        inputs = len(io.channels) + io.scalars + self.axes
        self.lift = nn.Sequential(
            nn.Linear(inputs, options.projection), nn.GELU(), nn.Linear(options.projection, width)
        )
        self.layers = nn.ModuleList(
            FourierLayer(width, self.modes, last=i == options.layers - 1, channel_mlp=options.channel_mlp)
            for i in range(options.layers)
        )
        self.project = nn.Sequential(
            nn.Linear(width, options.projection), nn.GELU(), nn.Linear(options.projection, len(io.outputs))
        )
        for i, matrix in enumerate(fourier_basis(self.grid, self.modes, self.padding)):
            self.register_buffer(f"basis_{i}", matrix, persistent=False)
        self.register_buffer("positions", _positions(self.grid, self.axes), persistent=False)

    def forward(self, fields: Tensor, scalars: Tensor) -> Tensor:
        """(b, C, *grid) and (b, S) to (b, O, *grid)."""
        b, count, *grid = fields.shape
        height, width = _two_axes(tuple(grid))
        basis, positions = self._matrices((height, width))
        constant = scalars[:, None, None].expand(b, height, width, -1)
        channels = fields.reshape(b, count, height, width).permute(0, 2, 3, 1)
        values = self.lift(torch.cat([channels, constant, positions.expand(b, -1, -1, -1)], -1))
        for layer in self.layers:
            values = layer(values, basis)
        return self.project(values).permute(0, 3, 1, 2).reshape(b, -1, *grid)

    def _matrices(self, grid: tuple[int, int]) -> tuple[Basis, Tensor]:
        if grid == self.grid:
            return (self.basis_0, self.basis_1, self.basis_2, self.basis_3), self.positions
        basis = fourier_basis(grid, self.modes, self.padding)
        device = self.positions.device
        return tuple(m.to(device) for m in basis), _positions(grid, self.axes).to(device)  # type: ignore[return-value]


def fourier_basis(grid: tuple[int, int], modes: tuple[int, int], padding: float = 0.0) -> Basis:
    """The four real matrices of the truncated transform, float32, computed in float64.

    Returns:
        along_h (K r, H), along_w (r L, r W), back_w (r W, r L), back_h (H, K r).

    Raises:
        ValueError: a grid too coarse for the modes.
    """
    periods = _periods(grid, padding)
    if modes[0] > periods[0] // 2 or modes[1] > (periods[1] - 1) // 2:
        raise ValueError(f"a grid of {grid} does not resolve wavenumbers {modes}; use a finer grid or fewer modes")
    half = torch.arange(modes[0] + 1, dtype=torch.float64)
    both = torch.arange(-modes[1], modes[1] + 1, dtype=torch.float64)
    angle_h = 2 * math.pi / periods[0] * half[:, None] * torch.arange(grid[0], dtype=torch.float64)
    angle_w = 2 * math.pi / periods[1] * both[:, None] * torch.arange(grid[1], dtype=torch.float64)
    along_h = torch.stack([angle_h.cos(), -angle_h.sin()], 1).flatten(0, 1) / periods[0]
    cos, sin = angle_w.cos(), angle_w.sin()
    along_w = torch.cat([torch.cat([cos, sin], 1), torch.cat([-sin, cos], 1)]) / periods[1]
    back_w = torch.cat([torch.cat([cos.T, -sin.T], 1), torch.cat([sin.T, cos.T], 1)])
    twice = torch.full((modes[0] + 1, 1), 2.0, dtype=torch.float64)
    twice[0] = 1
    if 2 * modes[0] == periods[0]:
        twice[-1] = 1
    back_h = torch.stack([twice * angle_h.cos(), -twice * angle_h.sin()], 1).flatten(0, 1).T
    return along_h.float(), along_w.float(), back_w.float(), back_h.float().contiguous()


def require_grid(model: str, io: IOSpec) -> None:
    """Raise StudyError unless all fields are on one structured grid of one or two axes."""
    if not io.structured:
        raise StudyError(
            f"learner.model.name = {model!r} needs fields on a structured grid, but {io.outputs[0].name!r} lives on "
            f"{io.outputs[0].dims} of a mesh; use 'mlp', or interpolate to a grid in the problem's `fields`"
        )
    if len(io.grid) > 2:
        raise StudyError(f"learner.model.name = {model!r} takes grids of 1 or 2 axes, not {io.grid}; use 'mlp'")
    if io.vectors:
        item = io.vectors[0]
        raise StudyError(
            f"learner.model.name = {model!r} needs every input on the grid {io.grid} of the outputs, but {item.name!r} "
            f"has shape {item.shape}; use 'mlp', or extend it to the grid in the problem's `draw`"
        )


def _multiply(matrix: Tensor, values: Tensor) -> Tensor:
    # matmul would fold the batch into the columns, at the price of two transposed copies of the activations.
    return torch.bmm(_batched(matrix, values.shape[0]), values)


def _batched(matrix: Tensor, b: int) -> Tensor:
    return matrix.expand(b, *matrix.shape)


def _two_axes(grid: tuple[int, ...]) -> tuple[int, int]:
    return (grid[0], grid[1] if len(grid) > 1 else 1)


def _modes(options: FNOOptions, io: IOSpec) -> tuple[int, int]:
    if len(io.grid) == 1:
        return options.modes[0], 0
    return options.modes[0], options.modes[-1]


def _periods(grid: tuple[int, int], padding: float) -> tuple[int, int]:
    # An axis of one point carries no wave, so there is nothing to pad.
    return tuple(n + round(padding * n) if n > 1 else n for n in grid)  # type: ignore[return-value]


def _positions(grid: tuple[int, int], axes: int) -> Tensor:
    """(1, H, W, axes), each coordinate in (0, 1)."""
    lines = [(torch.arange(n) + 0.5) / n for n in grid]
    return torch.stack(torch.meshgrid(*lines, indexing="ij"), -1)[None, ..., :axes]

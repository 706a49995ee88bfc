"""U-Net: an encoder and a decoder of convolutions with bypasses between equal resolutions."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from forebay.learners.models.fno import require_grid
from forebay.learners.options import option
from forebay.pipeline.errors import StudyError

if TYPE_CHECKING:
    from forebay.learners.surrogate import IOSpec

_GROUPS = 8
_PADDING = ("zeros", "reflect", "replicate", "circular")


@dataclass(frozen=True, slots=True)
class UNetOptions:
    """U-Net; local features and sharp interfaces on a uniform grid of one or two axes."""

    width: int = option(
        32, "channels at the finest level, doubled at every coarser one; good: 16 to 64", low=1, high=512
    )
    levels: int = option(3, "times the grid is halved", low=1, high=8)
    padding: str = option("zeros", "what convolutions see beyond the boundary", choices=_PADDING)

    def check(self, io: IOSpec) -> None:
        """Raise StudyError without a grid of one or two axes, or when halving leaves less than two points."""
        require_grid("unet", io)
        deepest = min(io.grid).bit_length() - 2
        if self.levels > deepest:
            raise StudyError(
                f"learner.model.levels = {self.levels} halves a grid of {io.grid} below 2 points; "
                f"use levels <= {deepest}, or a finer grid"
            )

    def build(self, io: IOSpec) -> nn.Module:
        """The network with fresh weights."""
        return UNet(self, io)


class UNet(nn.Module):
    """Encoder and decoder with `levels` halvings by averaging, after Ronneberger et al., arXiv 1505.04597.

    Differs from it: convolutions keep the size, group normalisation and GELU, linear interpolation instead of
    transposed convolutions (no chequerboard), doubling stops at 8 x width.  Scalars and positions are input channels.
    A grid that 2^levels does not divide is extended by repeating its last values and cropped at the end.
    """

    any_grid = True

    def __init__(self, options: UNetOptions, io: IOSpec) -> None:
        super().__init__()
        self.axes = len(io.grid)
        self.levels = options.levels
        widths = [options.width * min(2**level, 8) for level in range(options.levels + 1)]
        inputs = len(io.channels) + io.scalars + self.axes
        self.first = _block(self.axes, inputs, widths[0], options.padding)
        pairs = list(itertools.pairwise(widths))
        self.down = nn.ModuleList(_block(self.axes, fine, coarse, options.padding) for fine, coarse in pairs)
        self.up = nn.ModuleList(
            _block(self.axes, fine + coarse, fine, options.padding) for fine, coarse in reversed(pairs)
        )
        self.last = _convolution(self.axes)(widths[0], len(io.outputs), 1)

    def forward(self, fields: Tensor, scalars: Tensor) -> Tensor:
        """(b, C, *grid) and (b, S) to (b, O, *grid)."""
        b, _, *grid = fields.shape
        constant = scalars.view(*scalars.shape, *(1,) * self.axes).expand(b, -1, *grid)
        lines = [(torch.arange(n, device=fields.device, dtype=fields.dtype) + 0.5) / n for n in grid]
        positions = torch.stack(torch.meshgrid(*lines, indexing="ij")).expand(b, -1, *grid)
        values = self.first(self._extend(torch.cat([fields, constant, positions], 1)))
        bypasses = []
        for block in self.down:
            bypasses.append(values)
            values = block(_halve(values))
        for block, bypass in zip(self.up, reversed(bypasses), strict=True):
            values = functional.interpolate(values, scale_factor=2, mode="linear" if self.axes == 1 else "bilinear")
            values = block(torch.cat([values, bypass], 1))
        crop = (slice(None), slice(None), *(slice(n) for n in grid))
        return self.last(values)[crop]

    def _extend(self, values: Tensor) -> Tensor:
        step = 2**self.levels
        missing = [(0, -n % step) for n in reversed(values.shape[2:])]
        return functional.pad(values, [side for pair in missing for side in pair], mode="replicate")


def _convolution(axes: int) -> type[nn.Conv1d] | type[nn.Conv2d]:
    return nn.Conv1d if axes == 1 else nn.Conv2d


def _halve(values: Tensor) -> Tensor:
    return functional.avg_pool1d(values, 2) if values.ndim == 3 else functional.avg_pool2d(values, 2)


def _block(axes: int, inputs: int, outputs: int, padding: Any) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        groups = next(g for g in range(min(_GROUPS, outputs), 0, -1) if outputs % g == 0)
        layers += [
            _convolution(axes)(channels, outputs, 3, padding=1, padding_mode=padding),
            nn.GroupNorm(groups, outputs),
            nn.GELU(),
        ]
    return nn.Sequential(*layers)

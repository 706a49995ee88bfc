"""Streaming normalisation: means and deviations that are learned from the first frames, then stand still."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from forebay.learners.surrogate import IOSpec

_CONSTANT = 1e-7
"""A deviation below this share of the mean is float32 round-off of a constant."""


def moments_of(values: Tensor) -> Tensor:
    """(count, mean, M2 = Σ (x - mean)²) of all values, float64, shape (3,)."""
    flat = values.to(torch.float64).flatten()
    mean = flat.mean()
    return torch.stack([mean.new_full((), flat.numel()), mean, ((flat - mean) ** 2).sum()])


def merge_moments(first: Tensor, second: Tensor) -> Tensor:
    """Moments of the union of two disjoint sets, each (..., 3).

        δ = m_b - m_a,   m = m_a + δ n_b / n,   M2 = M2_a + M2_b + δ² n_a n_b / n

    Source: Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances",
    Stanford STAN-CS-79-773 (1979), eq. 2.1.  Sums of squares would lose the variance of a field like temperature,
    whose mean is large beside its deviation.
    """
    count_a, mean_a, square_a = first.unbind(-1)
    count_b, mean_b, square_b = second.unbind(-1)
    count = count_a + count_b
    share = count_b / count.clamp(min=1)
    delta = mean_b - mean_a
    return torch.stack([count, mean_a + delta * share, square_a + square_b + delta**2 * count_a * share], -1)


class Normaliser(nn.Module):
    """Mean and standard deviation per input channel, per scalar and per output channel.

    Statistics are taken over samples, time steps and points together, one pair a channel, so they do not depend on the
    resolution.  They are updated as blocks arrive and freeze after `freeze_after` frames: as long as they move, the
    function that the weights stand for moves with them, so a network would chase its own normalisation.  A thousand
    frames know a mean to about 3 % of the deviation, which is all that conditioning needs; the physical output is exact
    either way.  Time is not streamed: its steps are known, and every one is equally frequent.

    The buffers travel in the surrogate's state dict.  Channels that never vary get deviation 1.
    """

    moments: Tensor
    """(channels, 3), float64: count, mean, M2; inputs on the grid, other inputs, parameters, outputs."""
    frames: Tensor
    """Frames taken in, int64."""
    frozen: Tensor
    shift: Tensor
    scale: Tensor

    def __init__(self, io: IOSpec, *, freeze_after: int = 1000) -> None:
        super().__init__()
        self.freeze_after = freeze_after
        self._channels = tuple(f.name for f in io.channels)
        self._vectors = tuple(f.name for f in io.vectors)
        self._parameter_count = len(io.parameters)
        self._outputs = tuple(f.name for f in io.outputs)
        self._output_size = io.outputs[0].size
        self._grid = io.grid
        times = np.asarray(io.times, np.float64)
        self._time = (float(times.mean()), float(times.std()) or 1.0) if io.transient else None
        total = len(self._channels) + len(self._vectors) + self._parameter_count + len(self._outputs)
        self.register_buffer("moments", torch.zeros(total, 3, dtype=torch.float64))
        self.register_buffer("frames", torch.zeros((), dtype=torch.int64))
        self.register_buffer("frozen", torch.zeros((), dtype=torch.bool))
        # What forward needs, derived once per update: recomputing it costs a small model a tenth of its step.
        self.register_buffer("shift", torch.zeros(total), persistent=False)
        self.register_buffer("scale", torch.ones(total), persistent=False)
        self.register_load_state_dict_post_hook(_refresh_after_loading)

    def update(self, arrays: Mapping[str, Any]) -> bool:
        """Take in valid samples or frames; False when the statistics are frozen and nothing was done.

        Arrays are numpy's, or tensors on any device.  Fields may have any leading axes (samples, time steps): all their
        values count.  "parameters" is (..., p).

        Raises:
            ValueError: a missing array, a wrong number of parameters, or a value that is not finite.
        """
        return False if self.frozen else self.take(*self.moments_of(arrays))

    def moments_of(self, arrays: Mapping[str, Any]) -> tuple[Tensor, int]:
        """Moments of a block, float64 (channels, 3), and its number of frames; arguments and errors as for `update`."""
        rows = [moments_of(_tensor(arrays, name)) for name in self._channels + self._vectors]
        if self._parameter_count:
            rows += [moments_of(column) for column in self._parameter_columns(arrays)]
        outputs = [_tensor(arrays, name) for name in self._outputs]
        rows += [moments_of(values) for values in outputs]
        # Numpy arrays are summed up where they are; three numbers travel.
        block = torch.stack([row.to(self.moments.device) for row in rows])
        if not torch.isfinite(block).all():
            raise ValueError(
                "a block for the normaliser holds NaN or inf; pass valid samples only (`Block.valid_rows`)"
            )
        return block, outputs[0].numel() // self._output_size

    def take(self, block: Tensor, frames: int) -> bool:
        """Merge the moments of a block; False when the statistics are frozen and nothing was done."""
        if self.frozen:
            return False
        self.moments.copy_(merge_moments(self.moments, block))
        self.frames += frames
        self._refresh()
        if self.frames >= self.freeze_after:
            self.freeze()
        return True

    def freeze(self) -> None:
        """Let the statistics stand from now on."""
        self.frozen.fill_(True)

    def encode(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Normalised channels (b, C, *grid) and scalars (b, S = parameters + time + flattened fields)."""
        size = self._frames_in(batch)
        shift, scale = self.shift, self.scale
        fields = [(batch[n] - shift[i]) / scale[i] for i, n in enumerate(self._channels)]
        stacked = torch.stack(fields, 1) if fields else shift.new_zeros((size, 0, *self._grid))
        first = len(self._channels)
        start = first + len(self._vectors)
        scalars = []
        if self._parameter_count:
            part = slice(start, start + self._parameter_count)
            scalars.append((batch["parameters"] - shift[part]) / scale[part])
        if self._time is not None:
            scalars.append((batch["time"] - self._time[0]) / self._time[1])
        scalars += [((batch[n] - shift[first + i]) / scale[first + i]).flatten(1) for i, n in enumerate(self._vectors)]
        return stacked, torch.cat(scalars, 1) if scalars else shift.new_zeros((size, 0))

    def restore(self, outputs: Tensor) -> Tensor:
        """Physical units for a model's output (b, O, *grid)."""
        shape = (-1, *(1,) * (outputs.ndim - 2))
        count = len(self._outputs)
        return outputs.float() * self.scale[-count:].view(shape) + self.shift[-count:].view(shape)

    def output_scale(self, name: str) -> Tensor:
        """Standard deviation of an output field, a 0-d tensor in its units."""
        return self.scale[self._outputs.index(name) - len(self._outputs)]

    def statistics(self) -> dict[str, dict[str, float]]:
        """Mean and deviation by name, for people."""
        names = [
            *self._channels,
            *self._vectors,
            *(f"parameters[{i}]" for i in range(self._parameter_count)),
            *self._outputs,
        ]
        pairs = zip(self.shift.tolist(), self.scale.tolist(), strict=True)
        return {name: {"mean": mean, "std": std} for name, (mean, std) in zip(names, pairs, strict=True)}

    def _refresh(self) -> None:
        count, mean, square = self.moments.unbind(-1)
        deviation = (square / count.clamp(min=1)).sqrt()
        varies = deviation > _CONSTANT * mean.abs()
        self.shift.copy_(mean)
        self.scale.copy_(torch.where(varies, deviation, torch.ones_like(deviation)))

    def _frames_in(self, batch: Mapping[str, Tensor]) -> int:
        name = next(iter((*self._channels, *self._vectors)), "parameters" if self._parameter_count else "time")
        return batch[name].shape[0]

    def _parameter_columns(self, arrays: Mapping[str, Any]) -> tuple[Tensor, ...]:
        values = _tensor(arrays, "parameters")
        if values.shape[-1] != self._parameter_count:
            raise ValueError(
                f"parameters have shape {tuple(values.shape)}; the last axis should be {self._parameter_count}"
            )
        return values.reshape(-1, self._parameter_count).unbind(1)


def _refresh_after_loading(module: nn.Module, _: object) -> None:
    assert isinstance(module, Normaliser)
    module._refresh()


def _tensor(arrays: Mapping[str, Any], name: str) -> Tensor:
    if name not in arrays:
        raise ValueError(f"a block for the normaliser lacks {name!r}; it has {sorted(arrays)}")
    values = torch.as_tensor(arrays[name])
    if not math.prod(values.shape):
        raise ValueError(
            f"{name!r} of a block for the normaliser is empty, shape {tuple(values.shape)}; skip the block"
        )
    return values

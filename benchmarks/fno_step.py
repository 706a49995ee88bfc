"""Claim: our Fourier neural operator trains faster than the published formulation at the same function.

One training step with AdamW, batch 16, width 32, 4 layers, on one thread.  Ours has channels last and the truncated
transform as real matrix products.  The plain contender is Li et al.'s formulation (arXiv 2010.08895), channels first:
1x1 convolutions, rfft2, complex einsum, irfft2; it is given our weights, and must then compute the same function.
neuraloperator's FNO takes part when it is installed.  Contenders take turns and the median counts, in processor time,
because a shared machine disturbs single steps.
"""

from __future__ import annotations

import importlib.util
import os
import statistics
import sys
import time
from collections.abc import Callable

import torch
from common import Report, alternate, arguments, number, table
from torch import Tensor, nn
from torch.nn import functional

from forebay.learners.models.fno import FNO, FNOOptions
from forebay.learners.surrogate import IOSpec, TensorSpec

TARGET = 1.3
BATCH = 16
CASES = ((64, 12), (64, 24), (128, 12), (128, 24))
QUICK = ((64, 12),)
# Beyond 32 MiB glibc maps and unmaps every activation anew, which costs as much as the arithmetic.
_MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
    "MALLOC_TOP_PAD_": "268435456",
}
_SETTING = {"width": 32, "layers": 4, "projection": 64}


class PlainLayer(nn.Module):
    """rfft2, multiply the kept corners, irfft2, plus a 1x1 convolution."""

    def __init__(self, width: int, modes: tuple[int, int]) -> None:
        super().__init__()
        self.modes = modes
        self.parts = nn.Parameter(torch.zeros(width, width, modes[0] + 1, 2 * modes[1] + 1, 2))
        self.pointwise = nn.Conv2d(width, width, 1)

    def forward(self, values: Tensor) -> Tensor:
        size = values.shape[2:]
        m, n = self.modes
        weight = torch.view_as_complex(self.parts)
        spectrum = torch.fft.rfft2(values, dim=(3, 2), norm="forward")
        result = torch.zeros_like(spectrum)
        corners = ((slice(0, n + 1), slice(n, 2 * n + 1)), (slice(-n, None), slice(0, n)))
        for along_w, signed in corners:
            kept = spectrum[:, :, : m + 1, along_w]
            result[:, :, : m + 1, along_w] = torch.einsum("bixy,ioxy->boxy", kept, weight[..., signed])
        return torch.fft.irfft2(result, s=size[::-1], dim=(3, 2), norm="forward") + self.pointwise(values)


class PlainFNO(nn.Module):
    """The same operator, channels first and complex."""

    def __init__(self, own: FNO, grid: tuple[int, int], modes: tuple[int, int]) -> None:
        super().__init__()
        self.lift = nn.Sequential(_convolution(own.lift[0]), nn.GELU(), _convolution(own.lift[2]))
        self.layers = nn.ModuleList(PlainLayer(_SETTING["width"], modes) for _ in own.layers)
        self.project = nn.Sequential(_convolution(own.project[0]), nn.GELU(), _convolution(own.project[2]))
        self.register_buffer("positions", own.positions.permute(0, 3, 1, 2).clone())
        for layer, source in zip(self.layers, own.layers, strict=True):
            _copy_layer(layer, source)

    def forward(self, fields: Tensor, scalars: Tensor) -> Tensor:
        values = self.lift(torch.cat([fields, self.positions.expand(len(fields), -1, -1, -1)], 1))
        for layer in self.layers[:-1]:
            values = functional.gelu(layer(values))
        return self.project(self.layers[-1](values))


def _convolution(linear: nn.Linear) -> nn.Conv2d:
    layer = nn.Conv2d(linear.in_features, linear.out_features, 1)
    layer.weight.data = linear.weight.data[:, :, None, None].clone()
    layer.bias.data = linear.bias.data.clone()
    return layer


def _copy_layer(layer: PlainLayer, source: nn.Module) -> None:
    packed = source.spectral.weight.data
    parts = packed.view(*packed.shape[:2], 2, -1).permute(1, 3, 0, 2)
    layer.parts.data = parts.reshape(layer.parts.shape).contiguous()
    layer.pointwise = _convolution(source.pointwise)


def make_step(model: nn.Module, size: int, precision: str = "float32") -> Callable[[], float]:
    """A function that trains on one batch and returns its processor milliseconds."""
    generator = torch.Generator().manual_seed(2027)
    fields = torch.randn(BATCH, 1, size, size, generator=generator)
    target = torch.randn(BATCH, 1, size, size, generator=generator)
    scalars = torch.zeros(BATCH, 0)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> float:
        started = time.process_time()
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            prediction = model(fields, scalars)
        ((prediction.float() - target).flatten(1).norm(dim=1) / target.flatten(1).norm(dim=1)).mean().backward()
        optimiser.step()
        return 1e3 * (time.process_time() - started)

    return step


def contenders(size: int, modes: int) -> dict[str, Callable[[], float]]:
    """Training steps by name; raises when the plain formulation computes something else."""
    spec = TensorSpec("a", ("y", "x"), (size, size))
    io = IOSpec((spec,), (spec,), ())
    own, low = (FNO(FNOOptions(modes=(modes,), **_SETTING), io) for _ in range(2))
    plain = PlainFNO(own, (size, size), (modes, modes))
    sample = torch.randn(2, 1, size, size, generator=torch.Generator().manual_seed(2029))
    with torch.no_grad():
        expected, found = plain(sample, torch.zeros(2, 0)), own(sample, torch.zeros(2, 0))
    difference = float((expected - found).norm() / expected.norm())
    if not difference < 1e-4:
        raise AssertionError(f"the two formulations differ by {difference:.1e} at {size} x {size}, {modes} modes")
    steps = {
        "own": make_step(own, size),
        "own, bf16": make_step(low, size, "bf16"),
        "plain rfft2": make_step(plain, size),
    }
    if importlib.util.find_spec("neuralop"):
        steps["neuraloperator"] = make_step(_neuraloperator(modes), size)
    return steps


def _neuraloperator(modes: int) -> nn.Module:
    from neuralop.models import FNO as PublishedFNO

    class Adapter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            count = (2 * modes + 1, 2 * modes + 1)
            self.inner = PublishedFNO(n_modes=count, in_channels=1, out_channels=1, hidden_channels=32, n_layers=4)

        def forward(self, fields: Tensor, scalars: Tensor) -> Tensor:
            return self.inner(fields)

    return Adapter()


def main() -> int:
    options = arguments(__doc__)
    if any(os.environ.get(key) != value for key, value in _MALLOC.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | _MALLOC)
    torch.set_num_threads(1)
    report = Report("fno_step", options, ("torch", "numpy"))
    report.say(f"One thread, batch {BATCH}, " + ", ".join(f"{key} {value}" for key, value in _SETTING.items()) + ".\n")
    rows, ratios = [], []
    for size, modes in QUICK if options.quick else CASES:
        steps = contenders(size, modes)
        alternate(steps, 1)  # the first step allocates moments and imports what the optimiser needs
        times = alternate(steps, 6 if options.quick else 12)
        for name, measured in times.items():
            ratio = measured.median / times["own"].median
            per_frame = number(measured.median / BATCH)
            rows.append((f"{size} x {size}, {modes} modes", name, measured, per_frame, f"{ratio:.2f}"))
        ratios.append(times["plain rfft2"].median / times["own"].median)
    report.say(table(("case", "contender", "ms a step", "ms a frame", "time / own"), rows))
    figure = statistics.geometric_mean(ratios)
    return report.finish(f"{figure:.2f}x plain rfft2's speed", f">= {TARGET}x", ok=figure >= TARGET)


if __name__ == "__main__":
    sys.exit(main())

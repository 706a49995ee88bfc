"""Milliseconds of one FNO training step: real matrix products, channels last, against the published rfft2 formulation.

    python benchmarks/fno_step.py [--quick]

All contenders have the same architecture and size, one thread, AdamW, batch 16, width 32, 4 layers.  The plain contender
is Li et al.'s formulation (arXiv 2010.08895): channels first, 1x1 convolutions, rfft2, complex einsum, irfft2; it is given
our weights first, and must then compute the same function.  neuraloperator's FNO takes part when it is installed.
Contenders take turns and the median counts, in processor time, because a shared machine disturbs single steps.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable

# Before torch starts: beyond 32 MiB glibc maps and unmaps every activation anew, which costs more than the arithmetic.
_MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
    "MALLOC_TOP_PAD_": "268435456",
}
if __name__ == "__main__" and any(os.environ.get(key) != value for key, value in _MALLOC.items()):
    os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | _MALLOC)

import numpy as np
import torch
from forebay.learners.models.fno import FNO, FNOOptions
from forebay.learners.surrogate import IOSpec, TensorSpec
from torch import Tensor, nn
from torch.nn import functional

TARGET = 1.15
BATCH = 16
CASES = ((64, 12), (64, 24), (128, 12), (128, 24))
QUICK = ((64, 12),)
_SETTING = {"width": 32, "layers": 4, "projection": 64}


class PlainLayer(nn.Module):
    """rfft2, multiply the kept corners, irfft2, plus a 1x1 convolution."""

    def __init__(self, width: int, modes: tuple[int, int]) -> None:
        super().__init__()
        self.modes = modes
        shape = (width, width, modes[0] + 1, 2 * modes[1] + 1)
        self.weight = nn.Parameter(torch.zeros(shape, dtype=torch.cfloat))
        self.pointwise = nn.Conv2d(width, width, 1)

    def forward(self, values: Tensor) -> Tensor:
        size = values.shape[2:]
        m, n = self.modes
        spectrum = torch.fft.rfft2(values, dim=(3, 2), norm="forward")
        result = torch.zeros_like(spectrum)
        corners = ((slice(0, n + 1), slice(n, 2 * n + 1)), (slice(-n, None), slice(0, n)))
        for along_w, signed in corners:
            kept = spectrum[:, :, : m + 1, along_w]
            result[:, :, : m + 1, along_w] = torch.einsum("bixy,ioxy->boxy", kept, self.weight[..., signed])
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
    width = packed.shape[1]
    weight = torch.complex(packed[..., :width], packed[..., width:]).permute(1, 2, 0)
    layer.weight.data = weight.reshape(layer.weight.shape).clone()
    layer.pointwise = _convolution(source.pointwise)


def make_step(model: nn.Module, size: int, precision: str = "float32") -> Callable[[], float]:
    """A function that trains on one batch and returns its processor seconds."""
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
        return time.process_time() - started

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


def measure(steps: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of every contender, in turns; the first round warms up."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 1):
        for name, step in steps.items():
            elapsed = 1e3 * step()
            if turn:
                times[name].append(elapsed)
    return times


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="64 x 64 with 12 modes only; under a minute")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    print(f"{platform.machine()}, {os.cpu_count()} cores, one used; torch {torch.__version__}, numpy {np.__version__}")
    print(f"batch {BATCH}, " + ", ".join(f"{key} {value}" for key, value in _SETTING.items()))
    print(
        f"{'grid':>10} {'modes':>6} {'contender':>16} {'median ms':>10} {'quartiles':>15} {'ms/sample':>10} {'ratio':>6}"
    )
    ratios = []
    for size, modes in QUICK if quick else CASES:
        times = measure(contenders(size, modes), 8 if quick else 12)
        own = statistics.median(times["own"])
        for name, values in times.items():
            low, middle, high = statistics.quantiles(values, n=4)
            print(
                f"{size:>5} x {size:<3}{modes:>5} {name:>16} {middle:>10.1f} {low:>7.1f}-{high:<7.1f} "
                f"{middle / BATCH:>10.2f} {middle / own:>6.2f}"
            )
        ratios.append(statistics.median(times["plain rfft2"]) / own)
    figure = math.exp(statistics.fmean(math.log(ratio) for ratio in ratios))
    ok = figure >= TARGET
    print(f"fno_step: {figure:.2f}x faster than plain rfft2 (target {TARGET:.2f}x) {'ok' if ok else 'short'}")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())

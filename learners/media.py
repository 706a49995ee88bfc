"""Random coefficient fields a(x) > 0 for training preconditioners: four families from smooth to rough, any contrast."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from forebay.kernels.stencil import Stencil, diffusion

LARGEST_CONTRAST = 1e6
_INCLUSIONS = 10


def log_normal(batch: int, shape: Sequence[int], contrast: float, generator: torch.Generator) -> Tensor:
    """exp(σ g) with g a smooth Gaussian field of unit variance and σ = ln(contrast)/4, [batch, *shape] in float64.

    99.99 % of the cells lie within sqrt(contrast) of the median, so `contrast` is about the largest ratio in a field.
    """
    return torch.exp(_smooth(batch, shape, generator) * (math.log(contrast) / 4))


def white(batch: int, shape: Sequence[int], contrast: float, generator: torch.Generator) -> Tensor:
    """As `log_normal` without any correlation between cells: the hardest of the four at equal contrast."""
    noise = torch.randn(batch, *shape, generator=generator, dtype=torch.float64)
    return torch.exp(noise * (math.log(contrast) / 4))


def two_valued(batch: int, shape: Sequence[int], contrast: float, generator: torch.Generator) -> Tensor:
    """1 where a smooth Gaussian field is negative, `contrast` elsewhere."""
    return torch.where(_smooth(batch, shape, generator) > 0, contrast, 1.0).double()


def inclusions(batch: int, shape: Sequence[int], contrast: float, generator: torch.Generator) -> Tensor:
    """1 with ten random boxes in it, each between 1/sqrt(contrast) and contrast; later ones cover earlier ones."""
    field = torch.ones(batch, *shape, dtype=torch.float64)
    for system in field:
        for _ in range(_INCLUSIONS):
            draw = torch.rand(2 * len(shape) + 1, generator=generator, dtype=torch.float64)
            box = []
            for count, start, width in zip(shape, draw[1::2], draw[2::2], strict=True):
                first = int(start * count)
                box.append(slice(first, first + max(1, int(width * count / 2))))
            exponent = 1.5 * float(draw[0]) - 0.5
            system[tuple(box)] = contrast**exponent
    return field


Family = Callable[[int, Sequence[int], float, torch.Generator], Tensor]
FAMILIES: dict[str, Family] = {
    "log_normal": log_normal,
    "two_valued": two_valued,
    "inclusions": inclusions,
    "white": white,
}


def stream(
    shapes: Sequence[Sequence[int]], *, batch: int, seed: int, families: Sequence[str] = tuple(FAMILIES)
) -> Iterator[Stencil]:
    """Batches without end: families and shapes by turns, contrast log-uniform in 1 to 1e6, Dirichlet walls.

    One batch in four has Neumann walls on one axis; one in two a reaction, as an implicit step in time adds, between
    1e-4 and 1.
    """
    generator = torch.Generator().manual_seed(seed)
    number = 0
    while True:
        draw = torch.rand(3, generator=generator, dtype=torch.float64)
        shape = shapes[number // len(families) % len(shapes)]
        contrast = LARGEST_CONTRAST ** float(draw[0])
        field = FAMILIES[families[number % len(families)]](batch, shape, contrast, generator)
        walls = ["dirichlet"] * len(shape)
        if draw[1] < 0.25:
            walls[int(draw[1] * 4 * len(shape))] = "neumann"
        size = 10.0 ** (-4 * float(draw[2]) * 2) if draw[2] < 0.5 else 0.0
        yield diffusion(field, walls, reaction=size)  # type: ignore[arg-type]
        number += 1


def _smooth(batch: int, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Gaussian fields with the spectrum (|k|² + 9)^(−D/2 − 1/2), each scaled to mean 0 and variance 1."""
    # Twice the size and cropped: the transform is periodic, the domain is not.
    double = [2 * count for count in shape]
    noise = torch.randn(batch, *double, generator=generator, dtype=torch.float64)
    axes = tuple(range(1, len(shape) + 1))
    spectrum = torch.fft.fftn(noise, dim=axes)
    squared = torch.zeros(double, dtype=torch.float64)
    for axis, count in enumerate(double):
        wave = torch.fft.fftfreq(count, 1 / (math.pi * shape[axis] * 2 / count), dtype=torch.float64) * count
        squared = squared + wave.view(-1, *[1] * (len(shape) - axis - 1)) ** 2
    filtered = torch.fft.ifftn(spectrum * (squared + 9.0) ** (-(len(shape) + 1) / 2), dim=axes).real
    cropped = filtered[(slice(None), *(slice(0, count) for count in shape))]
    flat = cropped.flatten(1)
    spread = flat.std(1).clamp_min(torch.finfo(torch.float64).tiny)
    by_cell = (slice(None), *[None] * len(shape))
    return (cropped - flat.mean(1)[by_cell]) / spread[by_cell]

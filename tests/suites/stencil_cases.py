"""Stencils that the kernels are tested on."""

import itertools

import numpy as np
import torch

from forebay.kernels.stencil import diffusion

SHAPES = ((9, 14), (17, 5), (1, 23), (7, 6, 11), (5, 1, 8), (12, 12))


def field(shape, *, contrast=10.0, batch=3, seed=7, kind="log_normal"):
    """Coefficients [batch, *shape]: log-normal white noise, or two values in boxes."""
    rng = np.random.default_rng(seed)
    if kind == "log_normal":
        values = np.exp(rng.standard_normal((batch, *shape)) * np.log(contrast) / 4)
    else:
        values = np.ones((batch, *shape))
        for row, _ in itertools.product(range(batch), range(4)):
            values[row][
                tuple(slice(a, a + max(1, n // 3)) for a, n in zip(rng.integers(0, shape), shape, strict=True))
            ] = contrast
    return torch.from_numpy(values)


def holes(shape, *, batch=1, seed=11):
    """Cells of the domain: all but about one in six."""
    return torch.from_numpy(np.random.default_rng(seed).random((batch, *shape)) > 0.16)


def fields(shape, *, batch=3, seed=13):
    """Normal random numbers, [batch, *shape]."""
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((batch, *shape)))


def stencils(shape, **kinds):
    """The same coefficient between several kinds of walls, by name."""
    a, rng = field(shape, **kinds), np.random.default_rng(17)
    mixed = [("dirichlet", "neumann"), *["neumann"] * (len(shape) - 1)]
    reaction = torch.from_numpy(rng.random(a.shape))
    return {
        "dirichlet": diffusion(a, "dirichlet", spacing=0.3),
        "mixed": diffusion(a, mixed, spacing=[0.2, 0.5, 0.4][: len(shape)]),
        "reaction": diffusion(a, "neumann", reaction=reaction),
        "masked": diffusion(a, "dirichlet", active=holes(shape), hole="dirichlet"),
    }

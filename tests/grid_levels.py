"""Levels and media written out densely, entry by entry, for comparison."""

import math

import numpy as np
import torch

from forebay.kernels.hierarchy import box_offsets, coarsened
from forebay.kernels.multigrid import v_cycle
from forebay.kernels.stencil import diffusion


def rough(shape, *, contrast=1e3, batch=1, seed=7):
    """Coefficients without any smoothness, [batch, *shape] in float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.exp(torch.randn(batch, *shape, generator=generator, dtype=torch.float64) * math.log(contrast) / 4)


def rough_stencil(shape, walls="dirichlet", **options):
    names = {"contrast", "batch", "seed"} & set(options)
    field = rough(shape, **{name: options.pop(name) for name in names})
    return diffusion(field, walls, **options)


def dense_operator(level, system=0):
    """A from the stored half by its definition, cell by cell; entries that leave the grid must be 0."""
    shape = level.shape
    cells = np.arange(math.prod(shape)).reshape(shape)
    matrix = np.diag(level.diagonal[system].double().numpy().ravel())
    for index, offset in enumerate(level.offsets):
        values = level.off[system, index].double().numpy()
        for cell in np.ndindex(*shape):
            other = tuple(np.add(cell, offset))
            if all(0 <= at < count for at, count in zip(other, shape, strict=True)):
                matrix[cells[cell], cells[other]] = matrix[cells[other], cells[cell]] = values[cell]
            else:
                assert values[cell] == 0
    return matrix


def dense_prolongation(level, system=0):
    """P[2 I + o, I] by its definition; entries that leave the grid must be 0."""
    shape, coarse = level.shape, coarsened(level.shape)
    rows, columns = np.arange(math.prod(shape)).reshape(shape), np.arange(math.prod(coarse)).reshape(coarse)
    matrix = np.zeros((rows.size, columns.size))
    for index, offset in enumerate(box_offsets(len(shape))):
        values = level.prolong[system, index].double().numpy()
        for cell in np.ndindex(*coarse):
            fine = tuple(2 * at + step for at, step in zip(cell, offset, strict=True))
            if all(0 <= at < count for at, count in zip(fine, shape, strict=True)):
                matrix[rows[fine], columns[cell]] = values[cell]
            else:
                assert values[cell] == 0
    return matrix


def dense_cycle(hierarchy):
    """M of a hierarchy of one system."""
    count = math.prod(hierarchy.shape)
    units = torch.eye(count, dtype=hierarchy.levels[0].diagonal.dtype).reshape(count, *hierarchy.shape)
    return v_cycle(hierarchy, units).reshape(count, count).numpy().T


def iterations(stencil, hierarchy, *, rtol=1e-8, limit=100):
    """Conjugate gradients in float64 for a random right-hand side with the cycle in the type of the hierarchy."""
    from forebay.kernels.stencil import apply

    generator = torch.Generator().manual_seed(11)
    residual = torch.randn(1, *stencil.shape, generator=generator, dtype=torch.float64)
    first, low = residual.norm(), hierarchy.levels[0].diagonal.dtype
    direction, product = torch.zeros_like(residual), torch.ones(())
    for count in range(1, limit + 1):
        z = v_cycle(hierarchy, (residual / residual.norm()).to(low)).double()
        previous, product = product, (z * residual).sum()
        direction = z + (product / previous if count > 1 else 0.0) * direction
        image = apply(stencil, direction)
        residual = residual - product / (direction * image).sum() * image
        if residual.norm() <= rtol * first:
            return count
    return limit

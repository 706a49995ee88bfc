"""The pressure equation of a fluid on a grid of cells, the problem that the method was published for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from forebay.kernels.stencil import Stencil


def fluid_poisson(
    shape: Sequence[int],
    *,
    solid: Tensor | None = None,
    air: Tensor | None = None,
    closed: Sequence[bool] | None = None,
) -> Stencil:
    """-Δp, times h², on the fluid cells of a box: Σ over the neighbours that are not solid of (p_i - p_j).

    Neighbours that are solid take no part (Neumann), those that are air have p = 0 at their centre (Dirichlet); around
    the box is air, or solid behind the sides named in `closed`.  Float64, a batch of one.

    Args:
        shape: cells along each axis, slowest first.
        solid: bool (*shape), obstacles.
        air: bool (*shape), free of fluid and not solid.
        closed: for each side (low and high of the slowest axis first, 2 D in all) whether it is solid.

    Raises:
        ValueError: a mask of another shape or type, the wrong number of sides, or no fluid at all.

    Source: the staggered-grid discretisation that is standard for incompressible flow, first order at the surfaces.
    """
    shape = tuple(shape)
    sides = (False,) * (2 * len(shape)) if closed is None else tuple(closed)
    if len(sides) != 2 * len(shape):
        raise ValueError(
            f"`closed` has {len(sides)} entries; a box in {len(shape)} dimensions has {2 * len(shape)} sides"
        )
    solid, air = _mask("solid", solid, shape), _mask("air", air, shape)
    fluid = ~(solid | air)
    if not fluid.any():
        raise ValueError(f"none of the {fluid.numel()} cells is fluid; leave some out of `solid` and `air`")
    reaction = torch.zeros(1, *shape, dtype=torch.float64)
    faces = []
    for axis, count in enumerate(shape):
        low, high = fluid.narrow(axis, 0, count - 1), fluid.narrow(axis, 1, count - 1)
        faces.append((low & high).double()[None])
        reaction[0].narrow(axis, 0, count - 1).add_(low & air.narrow(axis, 1, count - 1))
        reaction[0].narrow(axis, 1, count - 1).add_(high & air.narrow(axis, 0, count - 1))
        for end, position in ((0, 0), (1, count - 1)):
            if not sides[2 * axis + end]:
                reaction[0].select(axis, position).add_(fluid.select(axis, position))
    return Stencil(tuple(faces), reaction, None if fluid.all() else fluid[None])


def _mask(name: str, mask: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    if mask is None:
        return torch.zeros(shape, dtype=torch.bool)
    if mask.dtype != torch.bool or tuple(mask.shape) != shape:
        raise ValueError(f"`{name}` is {mask.dtype} of shape {tuple(mask.shape)}; it must be bool of shape {shape}")
    return mask

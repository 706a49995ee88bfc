"""The preconditioners of the torch backend: linear, symmetric positive definite maps of a batch of residuals."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from forebay.kernels.backends import Preconditioner
from forebay.kernels.grid_network import GridNetwork
from forebay.kernels.grid_probe import guarded_hierarchy
from forebay.kernels.grid_weights import GridWeights
from forebay.kernels.guard import Costs
from forebay.kernels.hierarchy import Hierarchy
from forebay.kernels.multigrid import build_hierarchy, v_cycle
from forebay.kernels.stencil import Stencil


class Cycle(Protocol):
    """A symmetric positive definite approximation of A⁻¹ of each system of a batch."""

    def __call__(self, residual: Tensor) -> Tensor:
        """M⁻¹ r, [k, *shape]."""

    def select(self, which: Tensor) -> Cycle:
        """Those of the systems at these positions."""


@dataclass(frozen=True, slots=True)
class Identity:
    """M = 1."""

    def __call__(self, residual: Tensor) -> Tensor:
        """The residual itself."""
        return residual

    def select(self, which: Tensor) -> Identity:
        """Itself."""
        return self


@dataclass(frozen=True, slots=True, eq=False)
class Jacobi:
    """M = diag(A)."""

    inverse: Tensor
    """1 / diagonal, [k or 1, *shape]; 0 where the diagonal is 0."""

    def __call__(self, residual: Tensor) -> Tensor:
        """The residual over the diagonal."""
        return self.inverse * residual

    def select(self, which: Tensor) -> Jacobi:
        """Those of the systems at these positions."""
        return Jacobi(self.inverse[which])


def jacobi(stencil: Stencil) -> Jacobi:
    """Of this stencil, in its precision."""
    diagonal = stencil.diagonal()
    return Jacobi(torch.where(diagonal > 0, 1 / diagonal, 0.0))


@dataclass(frozen=True, slots=True, eq=False)
class Multigrid:
    """One V(1,1) cycle of black-box multigrid, classical or learned."""

    hierarchy: Hierarchy

    def __call__(self, residual: Tensor) -> Tensor:
        """One cycle from z = 0."""
        return v_cycle(self.hierarchy, residual)

    def select(self, which: Tensor) -> Multigrid:
        """Those of the systems at these positions."""
        return Multigrid(self.hierarchy.select(which))


@dataclass(frozen=True, slots=True, eq=False)
class Chosen:
    """A preconditioner that was set up."""

    cycle: Cycle
    label: str
    """For the records."""
    note: str = ""
    """Why the guard replaced learned weights; "" where it did not."""


def cycle_of(
    stencil: Stencil,
    preconditioner: Preconditioner,
    *,
    costs: Callable[[int], Costs] | None = None,
    solves: float = math.inf,
) -> Chosen:
    """Set the preconditioner of a float64 stencil up in float32; learned weights only if a probe prefers them.

    `costs` of set-ups by dimension, asked for where weights are learned; `solves` as in `guarded_hierarchy`.
    """
    match preconditioner:
        case "none":
            return Chosen(Identity(), "none")
        case "jacobi":
            return Chosen(jacobi(stencil.to(dtype=torch.float32)), "jacobi")
        case "multigrid":
            return Chosen(Multigrid(build_hierarchy(stencil)), "multigrid")
        case GridWeights():
            preconditioner = GridNetwork.from_weights(preconditioner)
    if costs is None or math.isinf(solves):
        hierarchy, decision = guarded_hierarchy(stencil, preconditioner)
    else:
        hierarchy, decision = guarded_hierarchy(stencil, preconditioner, costs=costs(stencil.dimension), solves=solves)
    if decision.learned:
        return Chosen(Multigrid(hierarchy), "learned")
    return Chosen(Multigrid(hierarchy), "multigrid(guard)", decision.reason)

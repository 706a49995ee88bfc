"""Rounds of refinement for systems that do not fit the chip: the launches of `forebay.kernels.large_grid`, recorded."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from forebay.kernels.cycles import Chosen, Jacobi, Multigrid
from forebay.kernels.hierarchy import Hierarchy, Level
from forebay.kernels.inner_cg import norm, nullspace_of, project, scale
from forebay.kernels.large_grid import BLOCK, FLAGS, LargeGrid, true_residual
from forebay.kernels.launch import Launchers, recorded
from forebay.kernels.on_chip import star_entries
from forebay.kernels.stencil import Stencil

INNER_RTOL = 1e-3
"""As on the chip."""
ITERATIONS_RECORDED = 4
"""Of one graph; the host looks once after each which systems are done.  More of them run idle at the end, fewer wait
more often for the host: an empty iteration costs its launches, some 30 µs."""


class LargeRounds:
    """Float32 solves by fused kernels over the whole device, and their float64 corrections, for k right-hand sides."""

    inner_rtol = INNER_RTOL

    def __init__(
        self,
        launchers: Launchers,
        stencil: Stencil,
        chosen: Chosen,
        scales: Tensor,
        rhs: Tensor,
        fields: Tensor,
        *,
        block: int = BLOCK,
    ) -> None:
        """Allocate beside the stencil and the preconditioner; see `OnChip`.  `block`: threads of a block."""
        self._stencil, self._rhs, self._fields, self._block = stencil, rhs, fields, block
        self._scales, self._nullspace = scales.expand(len(rhs)), nullspace_of(stencil)
        macros = {"DIM": str(stencil.dimension), "REAL": "float", "BLOCK": str(block)}
        self._launcher = launchers("large_grid", macros)
        hierarchy, diagonal = _hierarchy(stencil, chosen, scales)
        reaction = (stencil.reaction * scales.view(-1, *[1] * stencil.dimension)).float()
        self._grid = LargeGrid(self._launcher, hierarchy, reaction, len(rhs), diagonal=diagonal, block=block)
        self._residual = torch.empty_like(rhs)
        self._steps: Callable[[], None] | None = None

    def measure(self) -> Tensor:
        """‖b - A u‖₂ of all systems, [k]; the next round starts there."""
        arrays = (self._fields, self._rhs, self._residual)
        norms = true_residual(self._launcher, self._stencil, *arrays, block=self._block).sqrt()
        self._residual.copy_(project(self._residual, self._nullspace))
        return norms

    def round(self, members: Tensor, goal: Tensor, budget: Tensor) -> tuple[Tensor, Tensor]:
        """Correct those systems: their residual norms afterwards, and the iterations that it took."""
        active = torch.zeros(len(self._rhs), dtype=torch.bool, device=self._rhs.device)
        active[members] = True
        unit = torch.where(active, norm(self._residual), 1.0)
        target, most = torch.zeros_like(unit), torch.zeros_like(unit, dtype=torch.int32)
        target[members] = goal**2
        most[members] = budget.to(torch.int32)
        self._grid.start(scale(1 / unit, self._residual), target, most_iterations=most, active=active)
        self._iterate()
        self._fields.add_(scale(torch.where(active, unit * self._scales, 0.0), self._grid.x.double()))
        norms = self.measure()
        return norms[members], self._grid.flags[members, FLAGS.index("iterations")].long()

    def _iterate(self) -> None:
        if self._steps is None:
            # The first iteration loads the kernels, which a recording cannot.
            self._grid.iterate()
            self._steps = recorded(self._rhs.device, self._several)
        while bool(self._grid.flags[:, FLAGS.index("active")].any()):
            self._steps()

    def _several(self) -> None:
        for _ in range(ITERATIONS_RECORDED):
            self._grid.iterate()


def _hierarchy(stencil: Stencil, chosen: Chosen, scales: Tensor) -> tuple[Hierarchy, Tensor | None]:
    """The levels, or the finest alone and the diagonal that takes the place of the cycle."""
    if isinstance(chosen.cycle, Multigrid):
        return chosen.cycle.hierarchy, None
    by_cell = scales.view(-1, *[1] * stencil.dimension)
    diagonal = (stencil.diagonal() * by_cell).float()
    level = Level(diagonal, star_entries(stencil, by_cell), None, None, None)
    inverse = chosen.cycle.inverse.contiguous() if isinstance(chosen.cycle, Jacobi) else torch.ones_like(diagonal)
    return Hierarchy((level,), scales), inverse

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
from forebay.kernels.launcher import Launcher
from forebay.kernels.on_chip import star_entries
from forebay.kernels.stencil import Stencil

INNER_RTOL = 1e-3
"""As on the chip."""
ITERATIONS_RECORDED = 4
"""Of one graph; the host looks once after each which systems are done.  More of them run idle at the end, fewer wait
more often for the host: an empty iteration costs its launches, some 30 µs."""


class Iteration:
    """Float32 solves of `batch` systems: a `LargeGrid`, and its iterations as the first solve has recorded them.

    The recording refers to arrays that the grid holds and never replaces, so it serves any number of solves with that
    preconditioner, one after another.
    """

    def __init__(
        self, launcher: Launcher, stencil: Stencil, chosen: Chosen, scales: Tensor, batch: int, *, block: int
    ) -> None:
        """Allocate beside the stencil and the preconditioner."""
        hierarchy, diagonal = _hierarchy(stencil, chosen, scales)
        reaction = (stencil.reaction * scales.view(-1, *[1] * stencil.dimension)).float()
        self.grid = LargeGrid(launcher, hierarchy, reaction, batch, diagonal=diagonal, block=block)
        self._device = stencil.device
        self._steps: Callable[[], None] | None = None

    def run(self) -> None:
        """Iterate until every system of the grid is done."""
        if self._steps is None:
            # The first iteration loads the kernels, which a recording cannot.
            self.grid.iterate()
            self._steps = recorded(self._device, self._several)
        while bool(self.grid.flags[:, FLAGS.index("active")].any()):
            self._steps()

    def _several(self) -> None:
        for _ in range(ITERATIONS_RECORDED):
            self.grid.iterate()


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
        iteration: Iteration | None = None,
        block: int = BLOCK,
    ) -> None:
        """Allocate beside the stencil and the preconditioner.

        Args:
            launchers: of the device, or of the host.
            stencil: float64, [k or 1].
            chosen: the preconditioner of the scaled stencil.
            scales: by which the inner systems are scaled, float64 [k or 1].
            rhs: b, float64 [k, *shape].
            fields: u, float64 [k, *shape]; what rounds correct.
            iteration: of an earlier solve of as many right-hand sides by the same preconditioner; None: a new one.
            block: threads of a block.
        """
        self._stencil, self._rhs, self._fields, self._block = stencil, rhs, fields, block
        self._scales, self._nullspace = scales.expand(len(rhs)), nullspace_of(stencil)
        macros = {"DIM": str(stencil.dimension), "REAL": "float", "BLOCK": str(block)}
        self._launcher = launchers("large_grid", macros)
        self.iteration = iteration or Iteration(self._launcher, stencil, chosen, scales, len(rhs), block=block)
        """Idle once the host has read the norms of a round."""
        self._residual = torch.empty_like(rhs)

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
        grid = self.iteration.grid
        grid.start(scale(1 / unit, self._residual), target, most_iterations=most, active=active)
        self.iteration.run()
        self._fields.add_(scale(torch.where(active, unit * self._scales, 0.0), grid.x.double()))
        norms = self.measure()
        return norms[members], grid.flags[members, FLAGS.index("iterations")].long()


def _hierarchy(stencil: Stencil, chosen: Chosen, scales: Tensor) -> tuple[Hierarchy, Tensor | None]:
    """The levels, or the finest alone and the diagonal that takes the place of the cycle."""
    if isinstance(chosen.cycle, Multigrid):
        return chosen.cycle.hierarchy, None
    by_cell = scales.view(-1, *[1] * stencil.dimension)
    diagonal = (stencil.diagonal() * by_cell).float()
    level = Level(diagonal, star_entries(stencil, by_cell), None, None, None)
    inverse = chosen.cycle.inverse.contiguous() if isinstance(chosen.cycle, Jacobi) else torch.ones_like(diagonal)
    return Hierarchy((level,), scales), inverse

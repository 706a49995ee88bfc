"""Batched PCG in plain torch, on any device: float32 inside, float64 residual and correction outside."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from forebay.kernels.backends import Ending, Preconditioner
from forebay.kernels.cycles import cycle_of
from forebay.kernels.inner_cg import InnerSystems, inner_cg, norm, nullspace_of, project, scale
from forebay.kernels.refinement import RUNNING, Progress, typical_diagonal
from forebay.kernels.set_up_costs import costs_of
from forebay.kernels.stencil import Stencil, apply

INNER_RTOL = 1e-2
"""Reduction of the residual that one round in float32 is asked for.  Rounds cost no iterations but two products with A;
with 1e-4, white noise and inclusions of contrast 1e4 took a tenth to a third more iterations, 128 x 128."""


@dataclass(frozen=True, slots=True, eq=False)
class TorchSolver:
    """Systems that were set up once, for any number of right-hand sides."""

    stencil: Stencil
    """float64."""
    inner: InnerSystems
    scales: Tensor
    """1 / mean of the diagonal over active cells, by which the inner systems are scaled; [batch]."""
    label: str
    note: str

    @classmethod
    def prepare(cls, stencil: Stencil, preconditioner: Preconditioner, *, solves: float = math.inf) -> TorchSolver:
        """Scale, set the preconditioner up and round to float32; `solves` as in `pcg.prepare`."""
        stencil = stencil.to(dtype=torch.float64)
        scales = 1 / typical_diagonal(stencil)
        scaled = stencil.scaled(scales)
        costs = partial(costs_of, "torch", stencil.device)
        chosen = cycle_of(scaled, preconditioner, costs=costs, solves=solves)
        inner = InnerSystems(scaled.to(dtype=torch.float32), chosen.cycle, nullspace_of(stencil))
        return cls(stencil, inner, scales, chosen.label, chosen.note)

    def select(self, which: Tensor) -> TorchSolver:
        """The systems at these positions; itself where all right-hand sides share one."""
        if self.stencil.batch == 1:
            return self
        return replace(
            self, stencil=self.stencil.select(which), inner=self.inner.select(which), scales=self.scales[which]
        )

    def solve(
        self, rhs: Tensor, *, rtol: float, guess: Tensor | None, max_iterations: int
    ) -> tuple[Tensor, list[Ending]]:
        """A u = b for finite b ≠ 0, float64 [k, *shape]; of a singular system the solution of zero mean."""
        fields = torch.zeros_like(rhs) if guess is None else project(guess, self.inner.nullspace).clone()
        residual = rhs - apply(self.stencil, fields)
        progress = Progress(norm(residual), norm(rhs), rtol=rtol, max_iterations=max_iterations, inner_rtol=INNER_RTOL)
        members, group = torch.arange(len(rhs), device=rhs.device), self
        direction = torch.zeros_like(rhs, dtype=torch.float32)
        while count := len(progress.running()):
            going = progress.outcome[members] == RUNNING
            if 2 * count <= len(members):
                members, group, residual, direction = (
                    members[going],
                    group.select(going),
                    residual[going],
                    direction[going],
                )
                going = going[going]
            budget = torch.where(going, progress.budget(members), 0)
            correction, steps, direction = group._round(residual, direction, progress.goal(members), budget)
            fields[members] += correction
            residual = rhs[members] - apply(group.stencil, fields[members])
            progress.update(members[going], norm(residual[going]), steps[going])
        return fields, progress.endings(self.label, self.note)

    def _round(
        self, residual: Tensor, direction: Tensor, goal: Tensor, budget: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """A float64 correction that reduces the residual by `goal`, its steps, and the direction of the last one."""
        residual = project(residual, self.inner.nullspace)
        unit = torch.where(budget > 0, norm(residual), 1.0)
        rhs = scale(1 / unit, residual).float()
        fields, steps, direction = inner_cg(self.inner, rhs, direction, goal=goal, budget=budget)
        correction = scale(torch.where(budget > 0, unit * self.scales, 0.0), fields.double())
        return project(correction, self.inner.nullspace), steps, direction

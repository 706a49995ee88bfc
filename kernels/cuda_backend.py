"""Batched PCG by our CUDA kernels: whole systems on the chip where they fit, else fused kernels over the device."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from forebay.kernels.backends import Ending, Preconditioner
from forebay.kernels.cycles import Chosen, Multigrid, cycle_of
from forebay.kernels.inner_cg import norm, nullspace_of, project
from forebay.kernels.large_grid import BLOCK
from forebay.kernels.large_rounds import Iteration, LargeRounds
from forebay.kernels.launch import Launchers, launchers_of, limits_of
from forebay.kernels.on_chip import OnChip
from forebay.kernels.on_chip_plan import Limits, Plan, plan_of
from forebay.kernels.refinement import Progress, typical_diagonal
from forebay.kernels.set_up_costs import costs_of
from forebay.kernels.stencil import Stencil


class Rounds(Protocol):
    """k right-hand sides between float32 solves and float64 corrections."""

    inner_rtol: float
    """Reduction of the residual that one round is asked for."""

    def measure(self) -> Tensor:
        """‖b - A u‖₂ of all systems, [k]; the next round starts there."""

    def round(self, members: Tensor, goal: Tensor, budget: Tensor) -> tuple[Tensor, Tensor]:
        """Correct those systems: their residual norms afterwards, and the iterations that it took."""


@dataclass(frozen=True, slots=True)
class Device:
    """Where kernels run and what fits there."""

    launchers: Launchers
    limits: Limits
    threads: int | None = None
    """Of a block; None: by size.  For tests on the host, where a thread costs a switch of stacks."""

    @classmethod
    def of(cls, device: torch.device) -> Device:
        """A CUDA device."""
        return cls(launchers_of(device), limits_of(device))


@dataclass(frozen=True, slots=True, eq=False)
class CudaSolver:
    """Systems that were set up once, for any number of right-hand sides."""

    stencil: Stencil
    """float64, contiguous."""
    chosen: Chosen
    """The preconditioner, of the scaled stencil."""
    scales: Tensor
    """1 / mean of the diagonal over active cells, by which the inner systems are scaled; [batch]."""
    device: Device
    _kept: dict[int, Iteration] = field(default_factory=dict, init=False, repr=False)
    """Of the last solve on a large grid, by its number of right-hand sides: its workspace stays allocated with the
    recording.  Whoever uses it takes it out, so that threads do not share it and a failed solve leaves none."""

    @classmethod
    def prepare(
        cls,
        stencil: Stencil,
        preconditioner: Preconditioner,
        device: Device | None = None,
        *,
        solves: float = math.inf,
    ) -> CudaSolver:
        """Scale, set the preconditioner up and round to float32.

        `device`: None for the one where the stencil is; `solves` as in `pcg.prepare`.
        """
        stencil = stencil.to(dtype=torch.float64).contiguous()
        scales = 1 / typical_diagonal(stencil)
        costs = None if device else partial(costs_of, "cuda", stencil.device)
        chosen = cycle_of(stencil.scaled(scales), preconditioner, costs=costs, solves=solves)
        return cls(stencil, chosen, scales, device or Device.of(stencil.device))

    def select(self, which: Tensor) -> CudaSolver:
        """The systems at these positions; itself where all right-hand sides share one."""
        if self.stencil.batch == 1:
            return self
        chosen = replace(self.chosen, cycle=self.chosen.cycle.select(which))
        return replace(self, stencil=self.stencil.select(which), chosen=chosen, scales=self.scales[which])

    def plan(self) -> Plan | None:
        """How systems of this shape lie on the chip; None: the kernels for large grids are used."""
        multigrid = isinstance(self.chosen.cycle, Multigrid)
        return plan_of(self.stencil.shape, self.device.limits, multigrid=multigrid, threads=self.device.threads)

    def solve(
        self, rhs: Tensor, *, rtol: float, guess: Tensor | None, max_iterations: int
    ) -> tuple[Tensor, list[Ending]]:
        """A u = b for finite b ≠ 0, float64 [k, *shape]; of a singular system the solution of zero mean."""
        nullspace = nullspace_of(self.stencil)
        rhs = rhs.contiguous()
        fields = torch.zeros_like(rhs)
        if guess is not None:
            fields += project(guess, nullspace)
        rounds = self._rounds(rhs, fields)
        progress = Progress(
            rounds.measure(), norm(rhs), rtol=rtol, max_iterations=max_iterations, inner_rtol=rounds.inner_rtol
        )
        while len(members := progress.running()):
            norms, steps = rounds.round(members, progress.goal(members), progress.budget(members))
            progress.update(members, norms, steps)
        if isinstance(rounds, LargeRounds):
            self._kept[len(rhs)] = rounds.iteration
        return project(fields, nullspace), progress.endings(self.chosen.label, self.chosen.note)

    def _rounds(self, rhs: Tensor, fields: Tensor) -> Rounds:
        plan, device = self.plan(), self.device
        if plan is None:
            kept = self._kept.pop(len(rhs), None)
            self._kept.clear()
            systems = (self.stencil, self.chosen, self.scales, rhs, fields)
            return LargeRounds(device.launchers, *systems, iteration=kept, block=device.threads or BLOCK)
        return OnChip(device.launchers, device.limits, plan, self.stencil, self.chosen, self.scales, rhs, fields)

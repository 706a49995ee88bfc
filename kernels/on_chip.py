"""Rounds of refinement for systems that fit the chip: the launches of csrc/on_chip.cu."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from forebay.kernels.cycles import Chosen, Jacobi, Multigrid
from forebay.kernels.inner_cg import nullspace_of, project
from forebay.kernels.launch import Launchers
from forebay.kernels.on_chip_plan import Limits, Plan
from forebay.kernels.stencil import Stencil

INNER_RTOL = 1e-3
"""Reduction of the residual that one round is asked for.  Rounds begin anew, so more of them cost iterations, and fewer
leave float32 too long alone: 1e-3 took 11 iterations where float64 takes 11, 14 for 11, 27 for 23 (log-normal,
inclusions 1e4, white noise 1e4; 64 x 64), 1e-5 took 12, 16 and 27."""
_PLAIN, _JACOBI, _MULTIGRID = 0, 1, 2
_MEASURING_THREADS = 256


class OnChip:
    """Float32 solves of one system a block, and their float64 corrections, for k right-hand sides."""

    inner_rtol = INNER_RTOL

    def __init__(
        self,
        launchers: Launchers,
        limits: Limits,
        plan: Plan,
        stencil: Stencil,
        chosen: Chosen,
        scales: Tensor,
        rhs: Tensor,
        fields: Tensor,
    ) -> None:
        """Allocate beside the stencil and the preconditioner.

        Args:
            launchers: of the device, or of the host.
            limits: of the device.
            plan: for the shape of the stencil.
            stencil: float64, [k or 1].
            chosen: the preconditioner of the scaled stencil.
            scales: by which the inner systems are scaled, float64 [k or 1].
            rhs: b, float64 [k, *shape].
            fields: u, float64 [k, *shape]; what rounds correct.
        """
        self._plan, self._stencil, self._rhs, self._fields = plan, stencil, rhs, fields
        self._nullspace = nullspace_of(stencil)
        self._launcher = launchers("on_chip", plan.macros)
        self._clusters = min(len(rhs), max(1, limits.multiprocessors * plan.resident // plan.cluster))
        self._size = rhs.flatten(1).norm(dim=1)
        self._correction_scale = self._size * scales.expand(len(rhs))
        self._kind, self._levels = _levels(stencil, chosen, scales)
        device: Any = {"device": rhs.device}
        self._table = torch.from_numpy(plan.rows()).to(**device)
        self._addresses = torch.tensor([[a.data_ptr() for a in row] for row in self._levels], **device)
        self._residual = torch.empty_like(rhs, dtype=torch.float32)
        self._solution = torch.empty_like(self._residual)
        self._direction = None
        if not plan.direction_on_chip:
            self._direction = self._residual.new_empty(self._clusters, *plan.shape)
        self._norm = torch.empty_like(self._size)
        self._iterations = torch.zeros(len(rhs), dtype=torch.int32, **device)
        self.status = torch.zeros_like(self._iterations)
        """Outcome of each system's last float32 solve, by its recurrence, int32 [k]."""
        self._ticket = torch.zeros(1, dtype=torch.int32, **device)

    def measure(self) -> Tensor:
        """‖b - A u‖₂ of all systems, [k]; the next round starts there."""
        everyone = torch.arange(len(self._rhs), dtype=torch.int32, device=self._rhs.device)
        self._correct(everyone, torch.zeros_like(self._size))
        return self._norm

    def round(self, members: Tensor, goal: Tensor, budget: Tensor) -> tuple[Tensor, Tensor]:
        """Correct those systems: their residual norms afterwards, and the iterations that it took."""
        systems = members.to(torch.int32)
        target, most = torch.zeros_like(self._norm), torch.zeros_like(self._iterations)
        target[members] = goal * self._norm[members] / self._size[members]
        most[members] = budget.to(torch.int32)
        self._iterations.zero_()
        self._ticket.zero_()
        plan = self._plan
        clusters = min(self._clusters, len(members))
        shared = np.int32(self._stencil.batch == 1)
        args: tuple[Any, ...] = (
            self._table,
            self._addresses,
            np.int32(len(self._levels)),
            np.int32(self._kind),
            shared,
        )
        args += (systems, np.int32(len(systems)), self._ticket, self._residual, self._solution, self._direction)
        args += (target, most, self._iterations, self.status)
        self._launcher.launch(
            "pcg_on_chip",
            (clusters * plan.cluster,),
            (plan.threads,),
            plan.shared_bytes,
            args,
            cluster=plan.cluster,
            carveout=plan.carveout,
        )
        self._correct(systems, self._correction_scale)
        return self._norm[members], self._iterations[members].long()

    def _correct(self, systems: Tensor, scale: Tensor) -> None:
        stencil = self._stencil
        faces = (*stencil.faces, None) if stencil.dimension == 2 else stencil.faces
        sizes = (np.int32(value) for value in self._plan.table[0][:3])
        args = (*faces, stencil.reaction, *sizes, np.int32(stencil.batch == 1), systems, self._rhs, self._fields)
        args += (self._solution, scale, self._size, self._residual, self._norm)
        self._launcher.launch("correct_and_measure", (len(systems),), (_MEASURING_THREADS,), 0, args)
        if self._nullspace is not None:
            self._residual.copy_(project(self._residual, self._nullspace))


def _levels(stencil: Stencil, chosen: Chosen, scales: Tensor) -> tuple[int, list[tuple[Tensor, ...]]]:
    """Kind of preconditioner and four arrays a level for `pcg_on_chip`; one that it does not read repeats another."""
    by_cell = scales.view(-1, *[1] * stencil.dimension)
    reaction = (stencil.reaction * by_cell).float()
    if isinstance(chosen.cycle, Multigrid):
        levels = chosen.cycle.hierarchy.levels
        first, last = levels[0], levels[-1]
        assert last.inverse is not None
        if len(levels) == 1:
            return _MULTIGRID, [(reaction, first.off.contiguous(), reaction, last.inverse.contiguous())]
        arrays: list[tuple[Tensor, ...]] = []
        for level in levels[:-1]:
            assert level.smoother is not None
            assert level.prolong is not None
            top = reaction if level is first else level.diagonal
            arrays.append(tuple(a.contiguous() for a in (top, level.off, level.smoother, level.prolong)))
        return _MULTIGRID, [*arrays, (last.inverse.contiguous(),) * 4]
    off = star_entries(stencil, by_cell)
    if isinstance(chosen.cycle, Jacobi):
        return _JACOBI, [(reaction, off, chosen.cycle.inverse.contiguous(), reaction)]
    return _PLAIN, [(reaction, off, reaction, reaction)]


def star_entries(stencil: Stencil, by_cell: Tensor) -> Tensor:
    """`Level.off` of the finest level, float32 [batch, D, *shape]."""
    off = torch.zeros(stencil.batch, stencil.dimension, *stencil.shape, device=stencil.device)
    for axis, face in enumerate(stencil.faces):
        # The half list has the fastest axis first, faces the slowest.
        entries = off[:, stencil.dimension - 1 - axis]
        entries.narrow(axis + 1, 0, face.shape[axis + 1]).copy_(-face * by_cell)
    return off

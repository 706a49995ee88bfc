"""Batched preconditioned conjugate gradients in float32: the inner solver of iterative refinement."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from forebay.kernels.cycles import Cycle
from forebay.kernels.stencil import Stencil, apply


@dataclass(frozen=True, slots=True, eq=False)
class InnerSystems:
    """k systems, or one for many right-hand sides, scaled so that the mean of each diagonal is 1."""

    stencil: Stencil
    """float32."""
    cycle: Cycle
    """The preconditioner."""
    nullspace: Tensor | None
    """Constants of the singular systems: 1/√cells in their active cells and 0 elsewhere, [k or 1, *shape]; None where
    no system is singular."""

    def select(self, which: Tensor) -> InnerSystems:
        """The systems at these positions; itself where all right-hand sides share one."""
        if self.stencil.batch == 1:
            return self
        nullspace = None if self.nullspace is None else self.nullspace[which]
        return InnerSystems(self.stencil.select(which), self.cycle.select(which), nullspace)

    def precondition(self, residual: Tensor) -> Tensor:
        """Apply the symmetric positive definite cycle, orthogonal to the null space."""
        return project(self.cycle(residual), self.nullspace)


def nullspace_of(stencil: Stencil) -> Tensor | None:
    """Constants of unit norm of the singular systems, see `InnerSystems`."""
    singular = stencil.singular()
    if not bool(singular.any()):
        return None
    ones = torch.ones_like(stencil.reaction)
    if stencil.active is not None:
        ones = ones * stencil.active
    return scale(singular / norm(ones), ones)


def project(fields: Tensor, nullspace: Tensor | None) -> Tensor:
    """Take the part in the null space away."""
    if nullspace is None:
        return fields
    nullspace = nullspace.to(fields.dtype)
    return fields - scale(dot(nullspace, fields), nullspace)


def inner_cg(
    systems: InnerSystems, rhs: Tensor, direction: Tensor, *, goal: Tensor, budget: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One round: A⁻¹ rhs to a reduction of the recursive residual by `goal` [k], in at most `budget` [k] steps.

    The first step is conjugate to the last direction of the round before (of any length, 0 for none): the search goes
    on, and refinement costs no iterations.  This is residual replacement (van der Vorst and Ye, SIAM J. Sci. Comput. 22
    (2000)).  Differs from it: the first β of a round is computed from the matrix; that of the recurrence diverges where
    float32 has lost the residual altogether.  Scalar products are summed in float64.  A system stops by itself, also
    before a step with pᵀA p ≤ 0 or rᵀz ≤ 0.  When half of them have stopped, the others go on as a smaller batch.

    Returns:
        fields [k, *shape], steps [k] (0 where the budget is 0), and the last directions [k, *shape].
    """
    fields, steps, last = torch.zeros_like(rhs), torch.zeros_like(budget), direction.clone()
    where = torch.nonzero(budget > 0).flatten()
    running = _Running.start(systems.select(where), rhs[where], direction[where], goal[where], budget[where])
    live = torch.ones_like(where, dtype=torch.bool)
    while True:
        live = running.advance(live)
        count = int(live.sum())
        if 2 * count > len(live):
            continue
        left = where[~live]
        fields[left], steps[left], last[left] = running.x[~live], running.steps[~live], running.p[~live]
        if count == 0:
            return fields, steps, last
        where, running, live = where[live], running.select(live), live[live]


@dataclass(slots=True, eq=False)
class _Running:
    """The systems of a round that have not stopped, and some that have; arrays are [k] or [k, *shape]."""

    systems: InnerSystems
    residual: Tensor
    x: Tensor
    p: Tensor
    steps: Tensor
    target: Tensor
    budget: Tensor
    rz: Tensor
    """rᵀz of the residual that p was made from."""
    beta: Tensor | None
    """Of the first step; None after it."""
    z: Tensor | None
    """The preconditioned residual of the first step; None after it."""

    @classmethod
    def start(cls, systems: InnerSystems, rhs: Tensor, direction: Tensor, goal: Tensor, budget: Tensor) -> _Running:
        """Before the first step."""
        z = systems.precondition(rhs)
        q = apply(systems.stencil, direction)
        curvature = dot(direction, q)
        beta = torch.where(curvature > 0, -dot(z, q) / curvature, 0.0)
        zeros = torch.zeros_like(rhs)
        return cls(
            systems, rhs, zeros, direction, torch.zeros_like(budget), goal * norm(rhs), budget, curvature, beta, z
        )

    def advance(self, live: Tensor) -> Tensor:
        """One step of those that are live; which of them go on."""
        z = self.systems.precondition(self.residual) if self.z is None else self.z
        rz = dot(self.residual, z)
        beta = rz / self.rz if self.beta is None else self.beta
        self.beta = self.z = None
        # Systems that have stopped keep their p, which the next round starts from.
        self.p = scale(torch.where(live, beta, 1.0), self.p).add_(scale(live, z))
        self.rz = torch.where(live, rz, self.rz)
        q = apply(self.systems.stencil, self.p)
        curvature = dot(self.p, q)
        live = live & (curvature > 0) & (rz > 0)
        alpha = torch.where(live, dot(self.residual, self.p) / curvature, 0.0)
        self.x += scale(alpha, self.p)
        self.residual -= scale(alpha, q)
        self.steps += live
        return live & (norm(self.residual) > self.target) & (self.steps < self.budget)

    def select(self, which: Tensor) -> _Running:
        """Those at these positions, after the first step."""
        residual, x, p, steps, target, budget, rz = (
            array[which] for array in (self.residual, self.x, self.p, self.steps, self.target, self.budget, self.rz)
        )
        return _Running(self.systems.select(which), residual, x, p, steps, target, budget, rz, None, None)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Scalar product of each system, accumulated in float64, [k]."""
    return (a * b).flatten(1).sum(1, dtype=torch.float64)


def norm(a: Tensor) -> Tensor:
    """‖a‖₂ of each system, float64 [k]."""
    return dot(a, a).sqrt()


def scale(factors: Tensor, fields: Tensor) -> Tensor:
    """One factor a system, in the precision of the fields."""
    return factors.to(fields.dtype).reshape(-1, *[1] * (fields.ndim - 1)) * fields

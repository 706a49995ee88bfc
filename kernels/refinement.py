"""Iterative refinement of a batch: where each system stands between its rounds in float32, and when it ends."""

from __future__ import annotations

import torch
from torch import Tensor

from forebay.kernels.backends import Ending
from forebay.kernels.records import Outcome
from forebay.kernels.stencil import Stencil

RUNNING = -1
"""Outcome of a system that has not ended."""
STALLED_ROUNDS = 5
"""Refinements without a new smallest residual after which a system is given up.  Not fewer: in float32 the rounding of
a large solution beside stiff cells may first raise the residual, and the rounds after it take that away."""


def typical_diagonal(stencil: Stencil) -> Tensor:
    """Mean of the diagonal over active cells, [batch]; 1 where that is 0 or there is none."""
    diagonal, weight = stencil.diagonal(), torch.ones_like(stencil.reaction)
    if stencil.active is not None:
        weight = weight * stencil.active
    mean = (diagonal * weight).flatten(1).sum(1) / weight.flatten(1).sum(1).clamp_min(1)
    return torch.where(mean > 0, mean, 1.0)


class Progress:
    """The rounds of a batch; all arrays are [k]."""

    def __init__(
        self, residual_norm: Tensor, rhs_norm: Tensor, *, rtol: float, max_iterations: int, inner_rtol: float
    ) -> None:
        """Before the first round.

        `inner_rtol`: reduction of the residual that one round is asked for.
        """
        self._rhs_norm, self._rtol = rhs_norm, rtol
        self._max_iterations, self._inner_rtol = max_iterations, inner_rtol
        self.outcome = torch.full_like(rhs_norm, RUNNING, dtype=torch.int64)
        self._iterations, self._refinements = torch.zeros_like(self.outcome), torch.zeros_like(self.outcome)
        self._stalled = torch.zeros_like(self.outcome)
        self._relative = residual_norm / rhs_norm
        self._smallest = self._relative.clone()
        self._judge(torch.arange(len(rhs_norm), device=rhs_norm.device), torch.ones_like(self.outcome))

    def running(self) -> Tensor:
        """Positions of those that go on."""
        return torch.nonzero(self.outcome == RUNNING).flatten()

    def goal(self, members: Tensor) -> Tensor:
        """Reduction of the residual to ask of the next round."""
        # A third of what is missing: the true residual ends a little above the recursive one.
        return (0.3 * self._rtol / self._relative[members]).clamp(self._inner_rtol, 0.3)

    def budget(self, members: Tensor) -> Tensor:
        """Steps that are left."""
        return self._max_iterations - self._iterations[members]

    def update(self, members: Tensor, residual_norm: Tensor, steps: Tensor) -> None:
        """Enter what a round has done to systems that were running."""
        relative = residual_norm / self._rhs_norm[members]
        self._relative[members] = relative
        self._iterations[members] += steps
        self._refinements[members] += steps > 0
        smaller = relative < self._smallest[members]
        self._stalled[members] = torch.where(smaller, 0, self._stalled[members] + 1)
        self._smallest[members] = torch.where(smaller, relative, self._smallest[members])
        self._judge(members, steps)

    def _judge(self, members: Tensor, steps: Tensor) -> None:
        """End systems; of several reasons the last one here counts."""
        relative, outcome = self._relative[members], self.outcome[members]
        outcome[steps == 0] = Outcome.DIVERGED
        outcome[self._stalled[members] >= STALLED_ROUNDS] = Outcome.RESIDUAL_ABOVE_TOLERANCE
        outcome[self._iterations[members] >= self._max_iterations] = Outcome.MAX_ITERATIONS
        outcome[~torch.isfinite(relative)] = Outcome.NONFINITE_SOLUTION
        outcome[relative <= self._rtol] = Outcome.CONVERGED
        self.outcome[members] = outcome

    def endings(self, label: str, note: str) -> list[Ending]:
        """One a system."""
        counts = zip(self.outcome.tolist(), self._iterations.tolist(), self._refinements.tolist(), strict=True)
        rows = zip(counts, self._relative.tolist(), strict=True)
        return [
            Ending(Outcome(code), iterations, refinements, residual, label, note)
            for (code, iterations, refinements), residual in rows
        ]

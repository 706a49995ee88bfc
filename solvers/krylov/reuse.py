"""When to renew a preconditioner that was made for an earlier, similar sample."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class RefreshRule:
    """Keep a factor or hierarchy while the next solve with it costs less than the average since it was made.

    With set-up cost S and iterations i₁, i₂, ... since, the average cost of a sample is (S + Σ iₗ) / j.  It falls as
    long as the latest iₗ is below it, so the preconditioner is renewed when iⱼ is above: the stopping rule that
    minimises the average when the counts grow (they do, as samples move away).  Counts, not seconds, decide, so that a
    run can be repeated.  Good values of S: 12 for a 2D factorisation, 6 for a multigrid hierarchy.
    """

    setup_cost: float = 12.0
    """S in iterations."""
    _total: float = 0.0
    _solves: int = 0
    _due: bool = True

    @property
    def due(self) -> bool:
        """Shall the next solve renew?"""
        return self._due

    def renewed(self) -> None:
        """A new preconditioner was made."""
        self._total, self._solves, self._due = self.setup_cost, 0, False

    def solved(self, iterations: int) -> None:
        """A solve with the present one took that many."""
        self._total += iterations
        self._solves += 1
        self._due = self._solves > 1 and iterations > self._total / self._solves

    def reset(self) -> None:
        """Forget it: the next solve makes a new one."""
        self._due = True

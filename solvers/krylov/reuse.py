"""When to renew a preconditioner that was made for an earlier, similar sample."""

from __future__ import annotations

from dataclasses import dataclass

LONGEST_PAUSE = 64


@dataclass(slots=True)
class RefreshRule:
    """Keep a factor or hierarchy while the next solve with it costs less than the average since it was made.

    With set-up cost S and iterations i₁, i₂, ... since, the average cost of a sample is (S + Σ iₗ) / j.  It falls as
    long as the latest iₗ is below it, so the preconditioner is renewed when iⱼ is above: the stopping rule that
    minimises the average when the counts grow (they do, as samples move away).  A solve with a kept one that costs more
    than a new one would have, S + i₁, shows that the samples are too different: for 1, 2, 4, ... 64 samples each makes
    its own, then keeping is tried again.  Counts, not seconds, decide, so that a run can be repeated.
    Good values of S: 12 for a 2D factorisation, 6 for a multigrid hierarchy.
    """

    setup_cost: float = 12.0
    """S in iterations."""
    _total: float = 0.0
    _solves: int = 0
    _fresh: int = 0
    """i₁: iterations with a preconditioner of the sample's own."""
    _pause: int = 0
    """Samples that still make their own."""
    _next_pause: int = 1
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
        if self._solves == 1:
            self._fresh = iterations
            self._due = self._pause > 0
            self._pause = max(0, self._pause - 1)
        elif iterations > self.setup_cost + self._fresh:
            self._pause, self._next_pause = self._next_pause, min(2 * self._next_pause, LONGEST_PAUSE)
            self._due = True
        else:
            self._next_pause = 1
            self._due = iterations > self._total / self._solves

    def reset(self) -> None:
        """Forget everything: the next solve makes a new one."""
        self._due, self._pause, self._next_pause = True, 0, 1

    def lost(self) -> None:
        """The preconditioner is gone, or was of no use: the next solve makes a new one."""
        self._due = True

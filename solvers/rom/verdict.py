"""What becomes of the samples of a solid: when a reduced one is believed, what its record says, and what they cost."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from forebay.pipeline.records import SolveRecord
from forebay.solvers.rom.errors import Judgement
from forebay.solvers.rom.trajectory import ReducedTrajectory
from forebay.solvers.sample import Row

FULL, REDUCED, MIXED = "full", "rom", "rom+full"
"""How a sample was made: a study's methods, and some steps by each."""


@dataclass(frozen=True, slots=True)
class RomRule:
    """When a reduced sample is believed, and what happens where it is not."""

    tolerance: float = 0.03
    """Largest estimated relative error, of displacement and of p alike."""
    training: int = 4
    """Full samples before any is believed; all but the first have calibrated the estimates."""
    audit: float = 0.02
    """Share of the samples within the tolerance that are solved in full nevertheless."""
    adapt: Literal["sample", "step"] = "sample"
    """What the full model solves of a sample that is not believed: all of it, or the steps that need it."""
    rtol: float = 1e-8
    """Of the equations, reduced ones too."""


@dataclass(frozen=True, slots=True, eq=False)
class Verdict:
    """Whether the reduced model was believed, and why."""

    judgement: Judgement | None = None
    """Of the reduced solution that was kept or refused."""
    reason: str = ""
    accepted: bool = False
    refused: bool = False
    """Is the estimate, or the lack of a solution, the reason why it was not?"""
    audited: bool = False
    trajectory: ReducedTrajectory | None = None
    full_steps: int | None = None
    """Of a sample of both kinds."""

    def noting(self, note: str) -> Verdict:
        """With something more to tell."""
        return replace(self, reason="; ".join(text for text in (self.reason, note) if text)) if note else self

    def record(self, row: Row) -> SolveRecord:
        """The frozen record of the finished sample."""
        plain = row.record(FULL)
        judged = self.judgement
        return replace(
            plain,
            message=plain.message or self.reason,
            indicator=None if judged is None else judged.indicator,
            estimate=None if judged is None else judged.estimate,
            full_steps=self.full_steps if plain.valid else None,
        )


@dataclass(slots=True)
class Ledger:
    """What became of the samples of one process."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: {REDUCED: [], MIXED: [], FULL: []})
    """Of the sound samples, by method."""
    refused: int = 0
    """Reduced solutions that were not believed, those of the training not counted."""
    audits: int = 0
    failed: int = 0

    def count(self, row: Row, verdict: Verdict) -> None:
        """Add a finished sample."""
        if row.fault is not None:
            self.failed += 1
            return
        self.seconds[row.method].append(row.seconds)
        self.audits += verdict.audited
        self.refused += verdict.refused

    def rows(self) -> tuple[dict[str, Any], ...]:
        """As `pipeline.records.Block.choices` wants them; samples of both kinds where there are any."""
        rows = [_choice(REDUCED, self.seconds[REDUCED], self.refused, self.audits)]
        if self.seconds[MIXED]:
            rows.append(_choice(MIXED, self.seconds[MIXED], 0, 0))
        return (*rows, _choice(FULL, self.seconds[FULL], self.failed, 0))


def _choice(method: str, seconds: list[float], failures: int, cut_offs: int) -> dict[str, Any]:
    median = float(np.median(seconds)) if seconds else None
    return {"method": method, "solved": len(seconds), "failures": failures, "cut_offs": cut_offs, "median_s": median}

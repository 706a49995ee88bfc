"""Bookkeeping of what goes wrong: who was lost how often, at which sample, and how many samples failed.

    an actor is lost ─► Losses counts ─► Loss ─► decide (cluster.faults, a pure function) ─► Remedy ─► Losses remembers

The state machine in `controller.py` turns remedies into commands; nothing here sends any.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from forebay.pipeline.messages import BlockKey, SolverLost
from forebay.pipeline.records import Care, Outcome, SolveRecord, Split

SampleKey = tuple[Split, int]


class Remedy(enum.Enum):
    """What is done about a loss."""

    RETRY = "retry"
    """Restart the actor and do the work again."""
    REDRAW = "redraw"
    """The same with another draw of the sample that it was at."""
    GIVE_UP_SAMPLE = "give up the sample"
    """The same without that sample, whose outcome is `PROCESS_LOST`."""
    GIVE_UP_RUN = "give up the run"


@dataclass(frozen=True, slots=True)
class Loss:
    """An actor that is gone, and what is known about why."""

    actor: str
    reason: str
    in_a_row: int
    """Losses of this actor without progress in between, this one included."""
    at_sample: int = 0
    """Solvers lost at the present draw of one sample, this one included; 0 where no sample is known."""
    draw: int = 0
    """Number of that draw; 0 is the first."""


@dataclass(frozen=True, slots=True)
class Failures:
    """Samples without a valid solution so far."""

    failed: int
    of: int
    most: Outcome
    """The most frequent outcome of those that failed."""


Decide = Callable[[Loss | Failures], Remedy]


@dataclass(slots=True)
class Losses:
    """Counts, asks `decide`, remembers."""

    decide: Decide
    care: dict[BlockKey, Care] = field(default_factory=dict)
    """Of blocks at which a solver was lost."""
    _in_a_row: Counter[str] = field(default_factory=Counter, init=False)
    _at_sample: Counter[SampleKey] = field(default_factory=Counter, init=False)
    _outcomes: Counter[Outcome] = field(default_factory=Counter, init=False)

    def progress(self, actor: str) -> None:
        """An actor has done something: its next loss is a first one."""
        self._in_a_row.pop(actor, None)

    def of_actor(self, actor: str, reason: str) -> str | None:
        """Count a loss of the writer or the learner; why the run is to be given up, or None."""
        self._in_a_row[actor] += 1
        loss = Loss(actor, reason, self._in_a_row[actor])
        return self._verdict(loss) if self.decide(loss) is Remedy.GIVE_UP_RUN else None

    def of_solver(self, event: SolverLost, blocks: Sequence[BlockKey], size: int) -> str | None:
        """Count a loss of a solver and take care of its blocks of `size` samples; why to give up, or None."""
        self._in_a_row[event.solver] += 1
        for key in blocks:
            self.care.setdefault(key, Care())
        if event.sample is not None and (event.sample[0], event.sample[1] // size) in blocks:
            return self._of_sample(event, event.sample, (event.sample[0], event.sample[1] // size))
        loss = Loss(event.solver, event.reason, self._in_a_row[event.solver])
        return self._verdict(loss) if self.decide(loss) is Remedy.GIVE_UP_RUN else None

    def _of_sample(self, event: SolverLost, sample: SampleKey, key: BlockKey) -> str | None:
        self._at_sample[sample] += 1
        care, name = self.care[key], sample[1]
        draw = care.draws.get(name, 0)
        loss = Loss(event.solver, event.reason, self._in_a_row[event.solver], self._at_sample[sample], draw)
        match self.decide(loss):
            case Remedy.GIVE_UP_RUN:
                return self._verdict(loss)
            case Remedy.RETRY:
                return None
            case Remedy.REDRAW:
                self.care[key] = replace(care, draws={**care.draws, name: draw + 1})
            case Remedy.GIVE_UP_SAMPLE:
                self.care[key] = replace(care, given_up=care.given_up | {name})
        self.progress(event.solver)  # the culprit is found
        del self._at_sample[sample]
        return None

    def of_samples(self, records: Sequence[SolveRecord]) -> str | None:
        """Count the outcomes of a block; why to give up, or None."""
        self._outcomes.update(record.outcome for record in records)
        of = self._outcomes.total()
        failed = of - self._outcomes[Outcome.CONVERGED]
        if not failed:
            return None
        most, _ = max(
            ((outcome, count) for outcome, count in self._outcomes.items() if outcome is not Outcome.CONVERGED),
            key=lambda pair: pair[1],
        )
        if self.decide(Failures(failed, of, most)) is not Remedy.GIVE_UP_RUN:
            return None
        return (
            f"{failed} of {of} samples failed, most with {most.name}: {most.advice}; `faults.failures` allows another "
            f"share"
        )

    @staticmethod
    def _verdict(loss: Loss) -> str:
        return f"{loss.actor} was lost {loss.in_a_row} times without progress in between: {loss.reason}"

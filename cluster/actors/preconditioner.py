"""Actor of the preconditioner's training: unpack, call one plain object, pack."""

from __future__ import annotations

from forebay.cluster.preconditioner import PreconditionerTrainer
from forebay.cluster.specs import RunSpec
from forebay.pipeline.records import Block


class PreconditionerActor:
    """One torch stack of its own: neither the solvers nor the learner wait for it."""

    def __init__(self, spec: RunSpec) -> None:
        self._trainer = PreconditionerTrainer(spec)

    def ready(self) -> bool:
        """True once the network is built."""
        return True

    def learn(self, block: Block) -> None:
        """A few steps on operators of a training block."""
        self._trainer.learn(block)

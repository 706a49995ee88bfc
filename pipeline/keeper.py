"""Keeps what happened: journal line first, then the data set's metadata.

Order of one block: field files durable (sink) → journal line `block_stored` with the records, fsynced → commit to the
coordinator → visible to readers at the next publish.  A crash between any two of them loses nothing that was journaled
and shows nothing that was not.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field

from forebay.pipeline.dataset import DatasetCoordinator
from forebay.pipeline.journal import Journal, records_to_columns
from forebay.pipeline.messages import (
    BlockIngested,
    BlockKey,
    BlockLost,
    BlockSolved,
    BlockStored,
    CheckpointSaved,
    Command,
    EndProduction,
    Event,
    Finish,
    LearnerLost,
    LearnerReady,
    Solve,
    SolverLost,
    SolverReady,
    StageFailed,
    StopRequested,
    Tick,
    TrainingEnded,
    WriterLost,
)
from forebay.pipeline.records import Split


@dataclass(slots=True)
class Keeper:
    """Journal and data-set coordinators of one run."""

    journal: Journal
    datasets: Mapping[Split, DatasetCoordinator]
    publish_every_s: float = 2.0
    _solved: dict[BlockKey, BlockSolved] = field(default_factory=dict, init=False)
    _published_s: float = field(default=0.0, init=False)

    def note(self, command: Command) -> None:
        """Journal the commands that a replay needs."""
        match command:
            case Solve(key=(split, chunk), solver=solver, care=care):
                taught = {} if care is None else {"draws": dict(care.draws), "given_up": sorted(care.given_up)}
                self.journal.append("block_requested", split=split, chunk=chunk, solver=solver, **taught)
            case EndProduction():
                self.journal.append("production_ended")
            case Finish(status=status, reason=reason):
                self.journal.append("run_finished", status=status, reason=reason)

    def keep(self, event: Event) -> None:
        """Make one event durable before anything follows from it."""
        match event:
            case BlockSolved(key=key):
                self._solved[key] = event
            case BlockStored(key=key):
                self._commit(key)
            case BlockIngested(key=(split, chunk), frames=frames):
                self.journal.append("block_ingested", split=split, chunk=chunk, frames=frames)
            case BlockLost(key=(split, chunk), reason=reason):
                self.journal.append("block_lost", split=split, chunk=chunk, reason=reason)
            case SolverReady(solver=solver):
                self.journal.append("solver_ready", solver=solver)
            case SolverLost(solver=solver, reason=reason, sample=sample):
                self.journal.append("solver_lost", solver=solver, reason=reason, sample=sample)
            case WriterLost(reason=reason):
                self.journal.append("writer_lost", reason=reason)
            case LearnerLost(reason=reason):
                self.journal.append("learner_lost", reason=reason)
            case LearnerReady(batches=batches, chunks=chunks):
                self.journal.append("learner_restarted", batch=batches, chunks=len(chunks))
            case CheckpointSaved(batch=batch, path=path):
                self.journal.append("checkpoint", batch=batch, path=path)
            case TrainingEnded(batches=batches):
                self.journal.append("training_ended", batches=batches)
            case StopRequested(reason=reason):
                self.journal.append("stop_requested", reason=reason)
            case StageFailed(stage=stage, reason=reason):
                self.journal.append("stage_failed", stage=stage, reason=reason)
            case Tick(wall_s=wall_s):
                if wall_s - self._published_s >= self.publish_every_s:
                    self._published_s = wall_s
                    self.publish()

    def publish(self) -> None:
        """Make the committed prefix of both data sets visible to readers."""
        for dataset in self.datasets.values():
            dataset.publish()

    def close(self, ending: Finish | None) -> None:
        """Publish what is committed and let go of the files; no ending means a crash, which is journaled too."""
        with ExitStack() as stack:  # each of these happens whatever the others raise, on a full disk for example
            stack.enter_context(self.journal)
            if ending is None:
                stack.callback(
                    self.journal.append, "run_finished", status="failed", reason="the driver raised an exception"
                )
            for dataset in self.datasets.values():
                stack.callback(dataset.close)

    def _commit(self, key: BlockKey) -> None:
        solved = self._solved.pop(key, None)
        if solved is None:
            return  # a second report of the same block
        split, chunk = key
        self.journal.append(
            "block_stored",
            split=split,
            chunk=chunk,
            solver=solved.solver,
            seconds=solved.seconds,
            records=records_to_columns(solved.records),
            parameters=solved.parameters.tolist(),
            **({"choices": list(solved.choices)} if solved.choices else {}),
            **({"path": list(solved.path)} if any(solved.path) else {}),
        )
        self.datasets[split].commit(chunk, solved.records, solved.parameters)

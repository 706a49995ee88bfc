"""`solver.learned = "online"`: operators of the blocks that stream by go to the trainer, versions to the run folder."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from forebay.cluster.online_training import make_training
from forebay.cluster.specs import RunSpec
from forebay.pipeline.errors import RunError
from forebay.pipeline.journal import Journal
from forebay.pipeline.records import Block

OPERATORS = 4
"""Of a block: one batch."""
SHARE = 0.2
"""Of the time that was spent on solving, spent on training; the first step is free."""
STEPS_A_BLOCK = 8
"""At most."""


class PreconditionerTrainer:
    """Assembles samples of a block again and trains on their matrices; leaves a journal event for each version."""

    def __init__(self, spec: RunSpec) -> None:
        from forebay.solvers.problems import load_problem

        study = spec.study
        problem: Any = load_problem(study.problem.name, study.problem.options, folder=spec.study_folder)
        self._problem = problem
        self._inputs = [field.name for field in spec.schema.inputs]
        indptr, indices = problem.pattern()
        self._values = np.zeros((OPERATORS, len(indices)))
        self._rhs = np.zeros(len(indptr) - 1)
        self._training = make_training(spec, problem, (indptr, indices))
        self._journal = spec.folder / "journal.jsonl"
        self._next = 0
        self._failed = False
        self._trained_s = self._solved_s = 0.0

    def learn(self, block: Block) -> None:
        """A few steps on operators of a training block; samples without a solution have none to learn from.

        A training that diverges ends, and the journal says so: the run has its last good version, and the guard.

        Raises:
            RunError: the journal cannot be written.
        """
        if self._failed or block.split != "train":
            return
        try:
            self._learn(block)
        except RunError as error:
            self._failed = True
            self._tell("preconditioner_failed", reason=str(error))

    def _learn(self, block: Block) -> None:
        rows = block.valid_rows
        self._solved_s += block.seconds
        for _ in range(STEPS_A_BLOCK if len(rows) else 0):
            if self._trained_s > SHARE * self._solved_s:
                return
            start = time.perf_counter()
            chosen = rows[(self._next + np.arange(min(OPERATORS, len(rows)))) % len(rows)]
            self._next += len(chosen)
            version = self._training.learn(self._matrices(block, chosen))
            if version:
                self._tell("preconditioner_published", version=version, **self._training.facts)
            self._trained_s += time.perf_counter() - start

    def _matrices(self, block: Block, rows: np.ndarray) -> np.ndarray:
        """Entries (k, nnz) of these samples' matrices; the next ones overwrite them."""
        for values, row in zip(self._values, rows, strict=False):
            draw = {name: block.arrays[name][row].astype(np.float64) for name in self._inputs}
            self._problem.assemble({**draw, "parameters": block.arrays["parameters"][row]}, values, self._rhs)
        return self._values[: len(rows)]

    def _tell(self, event: str, **facts: Any) -> None:
        journal = Journal(self._journal)
        try:
            journal.append(event, **facts)
        finally:
            journal.close()

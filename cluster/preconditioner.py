"""`solver.learned = "online"`: operators of the blocks that stream by go to the trainer, versions to the run folder."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

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
    """Assembles samples of a block again and trains on their stencils; leaves a journal event for each version."""

    def __init__(self, spec: RunSpec) -> None:
        from forebay.learners.online_preconditioner import OnlinePreconditioner
        from forebay.pipeline.sampling import sample_seed
        from forebay.solvers.batched.stencil import StencilReader
        from forebay.solvers.compose import PRECONDITIONER
        from forebay.solvers.problems import load_problem

        study = spec.study
        problem: Any = load_problem(study.problem.name, study.problem.options, folder=spec.study_folder)
        self._problem = problem
        self._inputs = [field.name for field in spec.schema.inputs]
        indptr, indices = problem.pattern()
        self._reader = StencilReader(indptr, indices, problem.grid_shape)
        self._values = np.zeros(len(indices))
        self._rhs = np.zeros(int(np.prod(problem.grid_shape)))
        seed = sample_seed(study.seed, "preconditioner", 0) % 2**63
        self._trainer = OnlinePreconditioner(spec.folder / PRECONDITIONER, len(problem.grid_shape), seed=seed)
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
            version = self._trainer.learn(*self._stencils(block, chosen))
            metrics = self._trainer.metrics
            if version and metrics is not None:
                self._tell(
                    "preconditioner_published", version=version, steps=self._trainer.steps, factor=metrics.factor
                )
            self._trained_s += time.perf_counter() - start

    def _stencils(self, block: Block, rows: np.ndarray) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
        faces, reaction = self._reader.allocate(len(rows))
        for k, row in enumerate(rows):
            draw = {name: block.arrays[name][row].astype(np.float64) for name in self._inputs}
            self._problem.assemble({**draw, "parameters": block.arrays["parameters"][row]}, self._values, self._rhs)
            self._reader.read(self._values, tuple(face[k] for face in faces), reaction[k])
        return faces, reaction

    def _tell(self, event: str, **facts: Any) -> None:
        journal = Journal(self._journal)
        try:
            journal.append(event, **facts)
        finally:
            journal.close()

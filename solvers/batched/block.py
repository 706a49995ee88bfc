"""All samples of a block by one call of a stencil kernel.

    draw, assemble, read the stencil   of every sample, each guarded
    solve                              all that are left, together
    certify, keep                      every sample, each guarded

Problems in time whose matrix never changes set it up once and solve each step of all samples together.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from forebay.pipeline.records import Outcome
from forebay.pipeline.stages import Draw, TransientProblem
from forebay.solvers.assemble import System
from forebay.solvers.batched.engine import Answer
from forebay.solvers.batched.resident import ResidentFields
from forebay.solvers.batched.solver import StencilSolver, stencil_outcome
from forebay.solvers.linear import RHS_NOT_FINITE
from forebay.solvers.sample import Arrays, GuardedProblem, Row, SampleFault, Timings

Drawn = list[tuple[Row, Draw]]


class StencilBlock:
    """Solves blocks of samples with the engine of a `StencilSolver`; owns the arrays of a block.

    `problem` is given for problems in time with a fixed matrix, None for stationary ones.  With `keep_resident`, the
    solutions stay where a device has computed them, too, see `resident`.
    """

    def __init__(
        self,
        solver: StencilSolver,
        guarded: GuardedProblem,
        timings: Timings,
        *,
        problem: TransientProblem | None = None,
        keep_resident: bool = False,
    ) -> None:
        self._solver = solver
        self._system: System = solver.system
        self._guarded = guarded
        self._timings = timings
        self._problem = problem
        self._count = 0
        self._matrix: tuple[Outcome, str] | None = None
        self._matrix_known = False
        self._generation = solver.generation
        self._keep_resident = keep_resident
        self._resident: ResidentFields | None = None

    @property
    def resident(self) -> Mapping[str, Any]:
        """Output fields of the latest `run` on the device, see `pipeline.records.Block`; they belong to the caller."""
        return {} if self._resident is None else self._resident.fields()

    def run(self, rows: list[Row], draw: Callable[[Row], Draw], arrays: Arrays) -> None:
        """Fill the rows' arrays and records; a faulty sample is left out, the others go on."""
        self._allocate(len(rows))
        if self._keep_resident:
            self._resident = ResidentFields(self._guarded.schema, len(rows), len(self._system.rhs))
        if self._generation != self._solver.generation:
            self._generation, self._matrix_known = self._solver.generation, False
        if self._problem is None:
            self._stationary(rows, draw, arrays)
        else:
            self._march(self._problem, rows, draw, arrays)

    def destroy(self) -> None:
        """Nothing of PETSc's is owned here."""

    def _allocate(self, count: int) -> None:
        if count == self._count:
            return
        n = len(self._system.rhs)
        matrices = count if self._problem is None else 1
        self._count = count
        self._faces, self._reaction = self._solver.reader.allocate(matrices)
        self._values = np.zeros((matrices, len(self._system.values)))
        self._rhs, self._x = np.zeros((count, n)), np.zeros((count, n))
        self._matrix_known = False

    def _stationary(self, rows: list[Row], draw: Callable[[Row], Draw], arrays: Arrays) -> None:
        drawn: Drawn = []
        for row in rows:
            with row.guard(arrays):
                values = draw(row)
                self._guarded.assemble(values)
                self._take_matrix(len(drawn))
                self._take_rhs(len(drawn), self._system.rhs)
                drawn.append((row, values))
        count = len(drawn)
        if not count:
            return
        start = time.perf_counter()
        matrices = count if any(not np.array_equal(self._values[k], self._values[0]) for k in range(1, count)) else 1
        self._solver.engine.setup(tuple(face[:matrices] for face in self._faces), self._reaction[:matrices])
        self._timings.solve += time.perf_counter() - start
        share = (time.perf_counter() - start) / count
        for row, _ in drawn:
            row.seconds += share
        answers = self._solve(drawn)
        for k, (row, values) in enumerate(drawn):
            with row.guard(arrays):
                self._certify(row, answers[k], k, self._values[k])
                self._guarded.keep(arrays, row.position, values, self._x[k])
                self._guarded.check_outputs(arrays, row.position)
        self._keep_on_device(drawn, arrays)

    def _keep_on_device(self, solved: Drawn, arrays: Arrays, step: int | None = None) -> None:
        """Those without a fault of the latest solve."""
        if self._resident is None:
            return
        sound = [k for k, (row, _) in enumerate(solved) if row.fault is None]
        fields, x = self._solver.engine.fields, self._x[: len(solved)]
        if len(sound) < len(solved):
            fields, x = None if fields is None else fields[sound], x[sound]
        self._resident.take(fields, x, arrays, [solved[k][0].position for k in sound], step)

    def _take_matrix(self, k: int) -> None:
        start = time.perf_counter()
        np.copyto(self._values[k], self._system.values)
        fault = stencil_outcome(self._solver.reader, self._values[k], self._faces, self._reaction, k)
        self._timings.assemble += time.perf_counter() - start
        if fault is not None:
            raise SampleFault(*fault)

    def _take_rhs(self, k: int, rhs: np.ndarray) -> None:
        if not np.isfinite(rhs).all():
            raise SampleFault(Outcome.NONFINITE_INPUT, RHS_NOT_FINITE)
        self._rhs[k] = rhs

    def _solve(self, drawn: Drawn, *, guessed: bool = False) -> Sequence[Answer]:
        """All rows of the leading arrays, and their share of the time."""
        start, count = time.perf_counter(), len(drawn)
        x = self._x[:count]
        answers = self._solver.engine.solve(
            self._rhs[:count],
            x,
            guess=x if guessed else None,
            max_iterations=self._solver.method.max_iterations,
        )
        seconds = time.perf_counter() - start
        self._timings.solve += seconds
        for row, _ in drawn:
            row.seconds += seconds / count
        return answers

    def _certify(self, row: Row, answer: Answer, k: int, values: np.ndarray) -> None:
        certificate = self._solver.certificate
        before = certificate.seconds
        residual = certificate.residual(values, self._x[k], self._rhs[k])
        self._timings.certify += certificate.seconds - before
        outcome, message = certificate.judge(answer, residual)
        row.certify(answer.iterations, residual, outcome, message, method=answer.label)

    # -- problems in time ------------------------------------------------------------------------------------------

    def _march(self, problem: TransientProblem, rows: list[Row], draw: Callable[[Row], Draw], arrays: Arrays) -> None:
        states: dict[int, np.ndarray] = {}
        alive: Drawn = []
        for row in rows:
            with row.guard(arrays):
                values = draw(row)
                self._assemble_once(values)
                states[row.position] = self._guarded.initial(problem, values)
                alive.append((row, values))
        for step in range(1, self._guarded.schema.steps + 1):
            alive = self._step(problem, step, alive, states, arrays)
        for row, _ in alive:
            with row.guard(arrays):
                self._guarded.check_outputs(arrays, row.position)

    def _assemble_once(self, values: Draw) -> None:
        """Set the matrix of all samples up; a faulty one is each sample's outcome."""
        if not self._matrix_known:
            self._guarded.assemble(values)
            np.copyto(self._values[0], self._system.values)
            self._matrix = stencil_outcome(self._solver.reader, self._values[0], self._faces, self._reaction)
            # NaN may be the doing of this sample's inputs; the next one assembles again.
            self._matrix_known = bool(np.isfinite(self._values[0]).all())
            if self._matrix is None:
                self._solver.engine.setup(self._faces, self._reaction)
        if self._matrix is not None:
            raise SampleFault(*self._matrix)

    def _step(
        self, problem: TransientProblem, step: int, alive: Drawn, states: dict[int, np.ndarray], arrays: Arrays
    ) -> Drawn:
        """One step of all samples that are left; those that are after it."""
        ready: Drawn = []
        for row, values in alive:
            with row.guard(arrays):
                k, state = len(ready), states[row.position]
                self._guarded.advance(problem, values, step, state, self._system.rhs)
                self._take_rhs(k, self._system.rhs)
                self._x[k] = state
                ready.append((row, values))
        if not ready:
            return []
        answers = self._solve(ready, guessed=True)
        for k, (row, values) in enumerate(ready):
            with row.guard(arrays):
                self._certify(row, answers[k], k, self._values[0])
                states[row.position][:] = self._x[k]
                self._guarded.keep(arrays, row.position, values, self._x[k], step - 1)
        self._keep_on_device(ready, arrays, step - 1)
        return [(row, values) for row, values in ready if row.fault is None]

"""Problems in time whose matrix never changes: all samples of a block march together.

One factorisation serves every step of every sample, and each step solves one right-hand side per sample at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from forebay.pipeline.records import Outcome
from forebay.pipeline.stages import Draw, TransientProblem
from forebay.solvers.assemble import System
from forebay.solvers.columns import Columns
from forebay.solvers.linear import RHS_NOT_FINITE, Factorisation, LinearSolver
from forebay.solvers.sample import Arrays, GuardedProblem, Row, Timings


class BlockMarch:
    """Steps blocks of samples with a direct solver; owns the arrays of right-hand sides and states."""

    def __init__(
        self,
        problem: TransientProblem,
        guarded: GuardedProblem,
        system: System,
        solver: LinearSolver,
        timings: Timings,
    ) -> None:
        self._problem = problem
        self._guarded = guarded
        self._system = system
        self._solver = solver
        self._timings = timings
        self._columns: dict[int, Columns] = {}
        self._matrix_known = False

    def run(self, rows: list[Row], draw: Callable[[Row], Draw], arrays: Arrays) -> None:
        """Fill the rows' arrays and records; a faulty sample leaves the march, the others go on."""
        start = time.perf_counter()
        columns = self._columns_for(len(rows))
        drawn: list[tuple[Row, Draw]] = []
        for row in rows:
            with row.guard(arrays):
                values = draw(row)
                self._assemble_once(values)
                columns.x[row.position] = self._guarded.initial(self._problem, values)
                drawn.append((row, values))
        for step in range(1, self._guarded.schema.steps + 1):
            self._step(step, [(row, values) for row, values in drawn if row.fault is None], columns, arrays)
        for row, _ in drawn:
            if row.fault is None:
                with row.guard(arrays):
                    self._guarded.check_outputs(arrays, row.position)
        share = (time.perf_counter() - start) / len(rows)
        for row in rows:
            row.seconds = share

    def _assemble_once(self, values: Draw) -> None:
        if not self._matrix_known:
            self._guarded.assemble(values)
            self._matrix_known = bool(np.isfinite(self._system.values).all())

    def _step(self, step: int, alive: list[tuple[Row, Draw]], columns: Columns, arrays: Arrays) -> None:
        for row, values in alive:
            with row.guard(arrays):
                self._guarded.advance(self._problem, values, step, columns.x[row.position], columns.rhs[row.position])
        alive = [(row, values) for row, values in alive if row.fault is None]
        if not alive:
            return
        idle = np.ones(len(columns.rhs), dtype=bool)
        idle[[row.position for row, _ in alive]] = False
        columns.rhs[idle] = 0.0
        factorisation, residuals, refinements = self._solve(columns)
        for row, values in alive:
            with row.guard(arrays):
                k = row.position
                outcome, message = self._outcome(factorisation, columns, k, residuals[k])
                row.certify(int(refinements[k]), float(residuals[k]), outcome, message)
                self._guarded.keep(arrays, k, values, columns.x[k], step - 1)

    def _solve(self, columns: Columns) -> tuple[Factorisation, np.ndarray, np.ndarray]:
        """Residual and refinement steps of every column; NaN and 0 without a factor."""
        start, certifying = time.perf_counter(), columns.seconds_certifying
        factorisation = self._solver.factor()
        if factorisation.outcome is not Outcome.CONVERGED:
            return factorisation, np.full(len(columns.rhs), np.nan), np.zeros(len(columns.rhs))
        residuals, refinements = columns.solve(factorisation.matrix)
        certifying = columns.seconds_certifying - certifying
        self._timings.solve += time.perf_counter() - start - certifying
        self._timings.certify += certifying
        return factorisation, residuals, refinements

    def _outcome(self, factorisation: Factorisation, columns: Columns, k: int, residual: float) -> tuple[Outcome, str]:
        if factorisation.outcome is not Outcome.CONVERGED:
            return factorisation.outcome, factorisation.message
        if residual <= self._solver.method.rtol:
            return Outcome.CONVERGED, ""
        if not np.isfinite(columns.rhs[k]).all():
            return Outcome.NONFINITE_INPUT, RHS_NOT_FINITE
        finite = np.isfinite(columns.x[k]).all()
        return Outcome.RESIDUAL_ABOVE_TOLERANCE if finite else Outcome.NONFINITE_SOLUTION, ""

    def _columns_for(self, count: int) -> Columns:
        if count not in self._columns:
            self._columns[count] = Columns(self._system, count, rtol=self._solver.method.rtol)
        return self._columns[count]

    def destroy(self) -> None:
        """Free PETSc's side."""
        for columns in self._columns.values():
            columns.destroy()
        self._columns.clear()

"""Blocks of simulations of a solid: each sample by the reduced model where it may be believed, else by the full one.

    draw ─► reduced model (latest version) ─► estimate within the tolerance? ─► yes: fields from the modes
                 ▲                                  │ no, none yet, or an audit
                 │                                  ▼
              library ◄── next version ◄── full model: fields as they are

What a sample is made by depends on what was solved before it, hence on the order of solving; its record says by
which version, and with which estimate.  Validation samples are always solved in full, and nothing learns from them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from forebay.pipeline.errors import ForebayError, ProblemError, RunError
from forebay.pipeline.records import Block, ChunkPlan, Outcome, SolveRecord, Split
from forebay.pipeline.sampling import Design, DesignKind, draw_parameters, keyed_generator, sample_seed
from forebay.pipeline.stages import Draw
from forebay.solvers.problems.solid import SolidProblem
from forebay.solvers.rom.basis import Basis
from forebay.solvers.rom.errors import Judgement, displacement_field, judge, plastic_field
from forebay.solvers.rom.library import Library
from forebay.solvers.rom.offline import CubatureError
from forebay.solvers.rom.online import ReducedModel, ReducedSolveError, ReducedTrajectory
from forebay.solvers.rom.tasks import FullSample, FullSolveError, HistoryError, history_of, told_of_history
from forebay.solvers.sample import Arrays, Row, SampleFault, Timings, call_problem, write_field

if TYPE_CHECKING:
    from forebay.solvers.fem.solid import SolidModel

FULL, REDUCED = "full", "rom"
"""Methods of a study for solids; `rom` falls back to the other."""


@dataclass(frozen=True, slots=True)
class RomRule:
    """When a reduced sample is believed."""

    tolerance: float = 0.03
    """Largest estimated relative error, of displacement and of p alike."""
    training: int = 4
    """Full samples before any is believed; all but the first have calibrated the estimates."""
    audit: float = 0.02
    """Share of the samples within the tolerance that are solved in full nevertheless."""


class FullSolver(Protocol):
    """Solves samples in full, here or on several MPI ranks."""

    @property
    def model(self) -> SolidModel:
        """A model of this process alone, for the order of rows and the lifts."""
        ...

    def solve(self, draw: Draw, *, learn: bool) -> FullSample:
        """One sample; with `learn` the library then has a version that knows it.

        Raises:
            HistoryError: the sample's history is at fault.
            FullSolveError: the model has no solution that was found.
        """
        ...

    def close(self) -> None:
        """End what was started for it."""
        ...


@dataclass(slots=True)
class _Ledger:
    """What became of the samples of this process."""

    reduced_s: list[float] = field(default_factory=list)
    full_s: list[float] = field(default_factory=list)
    refused: int = 0
    audits: int = 0
    failed: int = 0

    def rows(self) -> tuple[dict[str, Any], ...]:
        """As `pipeline.records.Block.choices` wants them."""
        return (
            _choice(REDUCED, self.reduced_s, self.refused, self.audits),
            _choice(FULL, self.full_s, self.failed, 0),
        )


class SolidBlockSolver:
    """Solves the chunks of a `SolidProblem`; see `pipeline.records.Block` for what it returns.

    `library` holds the versions of the reduced model, for all solvers of a run; None solves everything in full.
    A sample that fails costs that sample only.

    Raises:
        ProblemError: the problem returns what its schema does not say.
    """

    def __init__(
        self,
        problem: SolidProblem,
        full: FullSolver,
        *,
        library: Library | None,
        rule: RomRule,
        run_seed: int,
        plans: Mapping[Split, ChunkPlan],
        design: DesignKind = "random",
    ) -> None:
        self.timings = Timings()
        self._problem, self._full, self._library, self._rule = problem, full, library, rule
        self._schema = problem.schema
        self._run_seed, self._plans = run_seed, plans
        self._designs = {
            split: Design(design, run_seed, split, plan.samples, len(self._schema.parameters))
            for split, plan in plans.items()
        }
        self._reduced: _Version | None = None
        self._ledger = _Ledger()

    @property
    def method(self) -> str:
        """Name of the method as a study has it."""
        return FULL if self._library is None else REDUCED

    def solve_block(self, split: Split, chunk: int) -> Block:
        """Draw, simulate and certify the samples of one chunk."""
        start = time.perf_counter()
        ids = self._plans[split].sample_ids(chunk)
        arrays, records = self._solve(split, ids, reduce=self._library is not None and split == "train")
        choices = self._ledger.rows() if self._library is not None else ()
        return Block(split, chunk, ids, arrays, records, time.perf_counter() - start, choices)

    def resolve(self, split: Split, sample_id: int) -> tuple[dict[str, np.ndarray], SolveRecord]:
        """Solve one sample again, in full and without learning; shapes as in the schema."""
        arrays, records = self._solve(split, np.array([sample_id]), reduce=False)
        return {name: array[0] for name, array in arrays.items()}, records[0]

    def destroy(self) -> None:
        """End what was started for full samples."""
        self._full.close()

    def _solve(self, split: Split, ids: np.ndarray, *, reduce: bool) -> tuple[dict[str, np.ndarray], list[SolveRecord]]:
        arrays = self._allocate(len(ids))
        records = []
        for position, sample_id in enumerate(ids.tolist()):
            row = Row(position, sample_id, sample_seed(self._run_seed, split, sample_id))
            verdict = _Verdict()
            with row.guard(arrays):
                draw = self._draw(split, row, arrays)
                verdict = self._sample(draw, row, arrays, reduce=reduce)
            self._count(row, verdict)
            records.append(verdict.record(row))
        self.timings.samples += len(ids)
        return arrays, records

    def _sample(self, draw: Draw, row: Row, arrays: Arrays, *, reduce: bool) -> _Verdict:
        """Fill the row's outputs."""
        if not reduce:
            self._keep_full(self._solve_full(draw, row, learn=False), row, arrays)
            return _Verdict()
        tried = self._try_reduced(draw)
        if tried.accepted and tried.trajectory is not None and not self._audited(row):
            self._keep_reduced(tried.trajectory, row, arrays)
            return tried
        self._keep_full(self._solve_full(draw, row, learn=True), row, arrays)
        reason = f"audit of {tried.reason}" if tried.accepted else tried.reason
        return _Verdict(tried.judgement, reason, accepted=False, audited=tried.accepted)

    def _try_reduced(self, draw: Draw) -> _Verdict:
        """The sample by the latest version, if there is one that may be believed."""
        version = self._latest()
        if version is None:
            return _Verdict(reason="there is no reduced model yet")
        start = time.perf_counter()
        try:
            with told_of_history():
                trajectory = version.model.run(history_of(self._problem, draw))
        except HistoryError as error:
            raise SampleFault(Outcome.PROBLEM_RAISED, str(error)) from error
        except ReducedSolveError as error:
            return _Verdict(reason=f"version {version.number} of the reduced model: {error}")
        finally:
            self.timings.solve += time.perf_counter() - start
        judgement = judge(version.model.package, trajectory)
        if version.number < self._rule.training:
            reason = f"the reduced model has seen {version.number} of {self._rule.training} training samples"
            return _Verdict(judgement, reason)
        allowed = self._rule.tolerance
        reason = f"version {version.number}: estimated error {100 * judgement.estimate:.2g} % of {100 * allowed:.2g} %"
        accepted = judgement.estimate <= allowed
        return _Verdict(judgement, reason, accepted=accepted, trajectory=trajectory)

    def _audited(self, row: Row) -> bool:
        """Decided by the sample's seed alone."""
        return row.seed / 2**64 < self._rule.audit

    def _latest(self) -> _Version | None:
        """Swap the reduced model when a newer version is there, whoever made it."""
        assert self._library is not None
        number = self._library.latest
        while number and (self._reduced is None or number > self._reduced.number):
            try:
                self._reduced = self._opened(self._library, number)
            except RunError:
                # Bases of old versions are removed: two newer ones may have come between the look and the opening.
                if self._library.latest == number:
                    raise
                number = self._library.latest
        return self._reduced

    def _opened(self, library: Library, number: int) -> _Version:
        law = self._problem.law
        return _Version(
            number, ReducedModel(library.package(number, law), law), library.basis(number, self._full.model)
        )

    def _solve_full(self, draw: Draw, row: Row, *, learn: bool) -> FullSample:
        start = time.perf_counter()
        try:
            sample = self._full.solve(draw, learn=learn)
        except HistoryError as error:
            raise SampleFault(Outcome.PROBLEM_RAISED, str(error)) from error
        except FullSolveError as error:
            raise SampleFault(Outcome.DIVERGED, str(error)) from error
        except CubatureError as error:
            raise ProblemError(f"the reduced model cannot learn from sample {row.sample_id}: {error}") from error
        finally:
            self.timings.solve += time.perf_counter() - start
        row.certify(sample.iterations, sample.residual, Outcome.CONVERGED, method=FULL)
        return sample

    def _keep_full(self, sample: FullSample, row: Row, arrays: Arrays) -> None:
        if sample.displacement is None or sample.p is None:
            raise ForebayError("the full model returned no fields to its caller; please report this as a bug")
        self._keep(sample.displacement, sample.p, row, arrays)

    def _keep_reduced(self, trajectory: ReducedTrajectory, row: Row, arrays: Arrays) -> None:
        assert self._reduced is not None
        model, basis = self._full.model, self._reduced.basis
        displacement = displacement_field(basis, model.lifts, trajectory)
        p = plastic_field(basis, trajectory)
        row.method = REDUCED
        row.iterations = sum(result.iterations for result in trajectory.results)
        row.residual = max(result.residual for result in trajectory.results)
        self._keep(displacement[:, np.argsort(model.dof_ids)], p[:, np.argsort(model.point_ids)], row, arrays)

    def _keep(self, displacement: np.ndarray, p: np.ndarray, row: Row, arrays: Arrays) -> None:
        """Cast the stored times to float32 fields."""
        start = time.perf_counter()
        steps = self._problem.stored_steps
        fields = call_problem("fields", self._problem.fields, displacement[steps], p[steps])
        for item in self._schema.outputs:
            target = arrays[item.name][row.position]
            write_field(target, fields, item.name, target.shape, "fields")
            if not np.isfinite(target).all():
                message = f"output {item.name!r} has values that float32 cannot hold"
                raise SampleFault(Outcome.NONFINITE_SOLUTION, message)
        self.timings.keep += time.perf_counter() - start

    def _draw(self, split: Split, row: Row, arrays: Arrays) -> Draw:
        start = time.perf_counter()
        parameters = draw_parameters(self._schema, self._designs[split], row.sample_id)
        inputs = call_problem("draw", self._problem.draw, parameters, keyed_generator(row.seed))
        arrays["parameters"][row.position] = parameters
        for item in self._schema.inputs:
            target = arrays[item.name][row.position]
            write_field(target, inputs, item.name, target.shape, "draw")
            if not np.isfinite(target).all():
                message = f"input {item.name!r} has values that float32 cannot hold"
                raise SampleFault(Outcome.NONFINITE_INPUT, message)
        self.timings.draw += time.perf_counter() - start
        return {**inputs, "parameters": parameters}

    def _allocate(self, count: int) -> dict[str, np.ndarray]:
        schema = self._schema
        arrays = {"parameters": np.full((count, len(schema.parameters)), np.nan)}
        for item in (*schema.inputs, *schema.outputs):
            arrays[item.name] = np.full((count, *schema.sample_shape(item.name)), np.nan, dtype=np.float32)
        return arrays

    def _count(self, row: Row, verdict: _Verdict) -> None:
        ledger = self._ledger
        if row.fault is not None:
            ledger.failed += 1
        elif verdict.accepted:
            ledger.reduced_s.append(row.seconds)
        else:
            ledger.full_s.append(row.seconds)
            ledger.audits += verdict.audited
            ledger.refused += verdict.judgement is not None and not verdict.audited


@dataclass(frozen=True, slots=True, eq=False)
class _Version:
    number: int
    model: ReducedModel
    basis: Basis


@dataclass(frozen=True, slots=True, eq=False)
class _Verdict:
    """Whether the reduced model was believed, and why."""

    judgement: Judgement | None = None
    reason: str = ""
    accepted: bool = False
    audited: bool = False
    trajectory: ReducedTrajectory | None = None

    def record(self, row: Row) -> SolveRecord:
        """The frozen record of the finished sample."""
        plain = row.record(FULL)
        indicator = estimate = None
        if self.judgement is not None:
            indicator, estimate = self.judgement.indicator, self.judgement.estimate
        return SolveRecord(
            plain.sample_id,
            plain.seed,
            plain.outcome,
            plain.method,
            plain.iterations,
            plain.residual,
            plain.seconds,
            plain.message or self.reason,
            indicator,
            estimate,
        )


def _choice(method: str, seconds: list[float], failures: int, cut_offs: int) -> dict[str, Any]:
    median = float(np.median(seconds)) if seconds else None
    return {"method": method, "solved": len(seconds), "failures": failures, "cut_offs": cut_offs, "median_s": median}

"""Blocks of simulations of a solid: each sample by the reduced model where it may be believed, else by the full one.

    draw ─► reduced model (latest version) ─► estimate within the tolerance? ─► yes: fields from the modes
                 ▲                                  │ no, none yet, or an audit
                 │                                  ▼
              library ◄── next version ◄── full model: fields as they are, or of single steps (`adapt = "step"`)

What a sample is made by depends on what was solved before it, hence on the order of solving; its record says by
which version, and with which estimate.  Validation samples are always solved in full, and nothing learns from them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from forebay.pipeline.errors import ForebayError, ProblemError, RunError
from forebay.pipeline.records import Block, Care, ChunkPlan, Outcome, SolveRecord, Split
from forebay.pipeline.sampling import Design, DesignKind, draw_number, draw_parameters, keyed_generator
from forebay.pipeline.stages import Draw
from forebay.solvers.problems.solid import SolidProblem
from forebay.solvers.rom.basis import Basis
from forebay.solvers.rom.clusters import Decision
from forebay.solvers.rom.errors import displacement_field, judge, plastic_field
from forebay.solvers.rom.growth import Place, place_of
from forebay.solvers.rom.library import Library
from forebay.solvers.rom.march import Scales, Tolerance
from forebay.solvers.rom.offline import CubatureError
from forebay.solvers.rom.online import ReducedModel, ReducedSolveError, ReducedTrajectory
from forebay.solvers.rom.step_tasks import FullHalfOfSample, adapted
from forebay.solvers.rom.tasks import FullSample, FullSolveError, HistoryError, history_of, told_of_history
from forebay.solvers.rom.verdict import FULL, MIXED, REDUCED, Ledger, RomRule, Verdict
from forebay.solvers.sample import Arrays, Mark, Row, SampleFault, Timings, begin_rows, call_problem, write_field

if TYPE_CHECKING:
    from forebay.solvers.fem.solid import SolidModel

STEP_FLOOR = 0.5
"""Of the tolerance of single steps, see `march.Tolerance`: half of it is kept for fields that come out smaller than the
refused solution said."""


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

    def adapt(self, draw: Draw, base: Place) -> FullHalfOfSample:
        """For single steps of one sample, from the model of `base` on.

        Raises:
            HistoryError: as `solve`.
            RunError: the version's basis is gone, as newer ones have come.
        """
        ...

    def close(self) -> None:
        """End what was started for it."""
        ...


class SolidBlockSolver:
    """Solves the chunks of a `SolidProblem`; see `pipeline.records.Block` for what it returns.

    `library` holds the versions of the reduced model, for all solvers of a run; None solves everything in full.
    A sample that fails costs that sample only; it is drawn anew up to `redraws` times.

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
        redraws: int = 0,
    ) -> None:
        self.timings = Timings()
        self._redraws = redraws
        self._problem, self._full, self._library, self._rule = problem, full, library, rule
        self._schema = problem.schema
        self._run_seed, self._plans = run_seed, plans
        self._designs = {
            split: Design(design, run_seed, split, plan.samples, len(self._schema.parameters))
            for split, plan in plans.items()
        }
        self._opened: dict[Place, _Version] = {}
        """Models of the latest version that was looked at."""
        self._decisions: dict[int, Decision | None] = {}
        self._ledger = Ledger()

    @property
    def method(self) -> str:
        """Name of the method as a study has it."""
        return FULL if self._library is None else REDUCED

    def solve_block(self, split: Split, chunk: int, *, care: Care | None = None, mark: Mark | None = None) -> Block:
        """Draw, simulate and certify the samples of one chunk; see `pipeline.stages.Solver`."""
        start = time.perf_counter()
        ids = self._plans[split].sample_ids(chunk)
        rows = begin_rows(self._run_seed, split, ids, care, mark)
        reduce = self._library is not None and split == "train"
        arrays, records = self._solve(split, rows, reduce=reduce, redraws=self._redraws)
        choices = self._ledger.rows() if self._library is not None else ()
        return Block(split, chunk, ids, arrays, records, time.perf_counter() - start, choices)

    def resolve(
        self, split: Split, sample_id: int, seed: int | None = None
    ) -> tuple[dict[str, np.ndarray], SolveRecord]:
        """Solve one sample again, in full and without learning; shapes as in the schema.

        `seed` is the recorded one, which tells a sample that was drawn anew.
        """
        draw = 0 if seed is None else draw_number(self._run_seed, split, sample_id, seed)
        rows = begin_rows(self._run_seed, split, np.array([sample_id]), Care({sample_id: draw}), None)
        arrays, records = self._solve(split, rows, reduce=False)
        return {name: array[0] for name, array in arrays.items()}, records[0]

    def destroy(self) -> None:
        """End what was started for full samples."""
        self._full.close()

    def _solve(
        self, split: Split, rows: list[Row], *, reduce: bool, redraws: int = 0
    ) -> tuple[dict[str, np.ndarray], list[SolveRecord]]:
        arrays = self._allocate(len(rows))
        records = []
        for row in rows:
            records.append(self._solve_row(split, row, arrays, reduce=reduce))
            while row.fault is not None and row.fault.outcome is not Outcome.PROCESS_LOST and row.draw < redraws:
                row = row.anew(self._run_seed, split)
                records[-1] = self._solve_row(split, row, arrays, reduce=reduce)
        self.timings.samples += len(rows)
        return arrays, records

    def _solve_row(self, split: Split, row: Row, arrays: Arrays, *, reduce: bool) -> SolveRecord:
        verdict = Verdict()
        if row.fault is None:
            with row.guard(arrays):
                draw = self._draw(split, row, arrays)
                verdict = self._sample(draw, row, arrays, reduce=reduce)
        self._ledger.count(row, verdict)
        return verdict.record(row)

    def _sample(self, draw: Draw, row: Row, arrays: Arrays, *, reduce: bool) -> Verdict:
        """Fill the row's outputs."""
        if not reduce:
            return Verdict(reason=self._solve_full(draw, row, arrays, learn=False))
        version, tried = self._try(draw)
        if tried.accepted and tried.trajectory is not None and version is not None and not self._audited(row):
            self._keep_reduced(tried.trajectory, version, row, arrays)
            return tried
        if tried.refused and version is not None and self._rule.adapt == "step":
            tried = self._adapt(draw, version, tried, row, arrays)
            if tried.accepted:
                return tried
        note = self._solve_full(draw, row, arrays, learn=True)
        reason = f"audit of {tried.reason}" if tried.accepted else tried.reason
        return Verdict(tried.judgement, reason, accepted=False, refused=tried.refused, audited=tried.accepted).noting(
            note
        )

    def _try(self, draw: Draw) -> tuple[_Version | None, Verdict]:
        """The sample by the model of its cluster, and where that is not believed by the one of all samples."""
        version = self._latest(draw)
        tried = self._try_reduced(draw, version)
        if version is None or version.place.cluster is None or not tried.refused:
            return version, tried
        whole = self._at(Place(version.place.version))
        second = self._try_reduced(draw, whole)
        return (whole, second) if second.accepted else (version, tried)

    def _try_reduced(self, draw: Draw, version: _Version | None) -> Verdict:
        """The sample by the latest version, if there is one that may be believed."""
        if version is None:
            return Verdict(reason="there is no reduced model yet")
        start = time.perf_counter()
        number, rule = version.place.version, self._rule
        trained = number >= rule.training
        try:
            with told_of_history():
                trajectory = version.model.run(history_of(self._problem, draw))
        except HistoryError as error:
            raise SampleFault(Outcome.PROBLEM_RAISED, str(error)) from error
        except ReducedSolveError as error:
            return Verdict(reason=f"{version.name} of the reduced model: {error}", refused=trained)
        finally:
            self.timings.solve += time.perf_counter() - start
        judgement = judge(version.model.package, trajectory)
        if not trained:
            return Verdict(judgement, f"the reduced model has seen {number} of {rule.training} training samples")
        reason = f"{version.name}: estimated error {100 * judgement.estimate:.2g} % of {100 * rule.tolerance:.2g} %"
        accepted = judgement.estimate <= rule.tolerance
        return Verdict(judgement, reason, accepted=accepted, refused=not accepted, trajectory=trajectory)

    def _adapt(self, draw: Draw, version: _Version, tried: Verdict, row: Row, arrays: Arrays) -> Verdict:
        """The sample step by step, if that comes out within the tolerance; else why not, and it is still to be solved.

        `tried` is the refused reduced solution, whose fields say how large those of the sample are.
        """
        start = time.perf_counter()
        tolerance = self._rule.tolerance
        scales = None if tried.trajectory is None else Scales.of_trajectory(tried.trajectory)
        try:
            with told_of_history():
                found = adapted(
                    self._full.adapt(draw, version.place),
                    version.model.package,
                    history_of(self._problem, draw),
                    self._problem.law,
                    Tolerance(tolerance, tolerance, STEP_FLOOR),
                    scales,
                    rtol=self._rule.rtol,
                )
        except HistoryError as error:
            raise SampleFault(Outcome.PROBLEM_RAISED, str(error)) from error
        except (CubatureError, FullSolveError, RunError) as error:
            return tried.noting(f"not solved by steps: {error}")
        finally:
            self.timings.solve += time.perf_counter() - start
        said = f"{found.text}, estimated error {100 * found.judgement.estimate:.2g} %"
        if found.fields is None or not found.judgement.estimate <= tolerance:
            return tried.noting(f"not solved by steps: {said}")
        row.method, row.iterations, row.residual = MIXED, found.iterations, found.residual
        self._keep_full(found.fields, row, arrays)
        return Verdict(
            found.judgement, f"{tried.reason}; {said}", accepted=True, refused=True, full_steps=found.full_steps
        )

    def _audited(self, row: Row) -> bool:
        """Decided by the sample's seed alone."""
        return row.seed / 2**64 < self._rule.audit

    def _latest(self, draw: Draw) -> _Version | None:
        """The model for a sample; swapped when a newer version is there, whoever made it."""
        assert self._library is not None
        number = self._library.latest
        while number:
            try:
                return self._at(self._place(number, draw))
            except RunError:
                # Bases of old versions are removed: two newer ones may have come between the look and the opening.
                if self._library.latest == number:
                    raise
                number = self._library.latest
        return None

    def _place(self, number: int, draw: Draw) -> Place:
        assert self._library is not None
        if number not in self._decisions:
            self._decisions = {number: self._library.decision(number)}
        return place_of(self._decisions[number], number, draw)

    def _at(self, place: Place) -> _Version:
        assert self._library is not None
        if place not in self._opened:
            law, number = self._problem.law, place.version
            self._opened = {p: v for p, v in self._opened.items() if p.version == number}
            package = self._library.package(number, law, place.cluster)
            basis = self._library.basis(number, self._full.model, place.cluster)
            self._opened[place] = _Version(place, ReducedModel(package, law, rtol=self._rule.rtol), basis)
        return self._opened[place]

    def _solve_full(self, draw: Draw, row: Row, arrays: Arrays, *, learn: bool) -> str:
        """The whole sample; what went wrong before it was solved."""
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
        self._keep_full(sample, row, arrays)
        return sample.note

    def _keep_full(self, sample: FullSample, row: Row, arrays: Arrays) -> None:
        if sample.displacement is None or sample.p is None:
            raise ForebayError("the full model returned no fields to its caller; please report this as a bug")
        self._keep(sample.displacement, sample.p, row, arrays)

    def _keep_reduced(self, trajectory: ReducedTrajectory, version: _Version, row: Row, arrays: Arrays) -> None:
        model, basis = self._full.model, version.basis
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
        parameters = draw_parameters(self._schema, self._designs[split], row.sample_id, row.draw)
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


@dataclass(frozen=True, slots=True, eq=False)
class _Version:
    """One model of a version, opened."""

    place: Place
    model: ReducedModel
    basis: Basis

    @property
    def name(self) -> str:
        """For messages."""
        cluster = "" if self.place.cluster is None else f", cluster {self.place.cluster}"
        return f"version {self.place.version}{cluster}"

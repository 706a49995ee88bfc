"""What one sample goes through: the problem's own code, guarded, and the row of the block it ends in."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from forebay.pipeline.errors import ForebayError, ProblemError
from forebay.pipeline.records import Care, Outcome, Schema, SolveRecord, Split
from forebay.pipeline.sampling import draw_stream, sample_seed
from forebay.pipeline.stages import Draw, Problem, TransientProblem
from forebay.solvers.assemble import System

Arrays = Mapping[str, np.ndarray]
Mark = Callable[[int | None], None]


class SampleFault(Exception):
    """Ends one sample; becomes its record and never leaves a block solver."""

    def __init__(self, outcome: Outcome, message: str = "") -> None:
        super().__init__(message)
        self.outcome, self.message = outcome, message


@dataclass(slots=True)
class Row:
    """One sample of the block that is being solved."""

    position: int
    sample_id: int
    seed: int
    iterations: int = 0
    residual: float = 0.0
    seconds: float = 0.0
    fault: SampleFault | None = None
    method: str = ""
    """What solved it last."""
    draw: int = 0
    """Number of the draw of its parameters and inputs; 0 is the first."""
    story: str = ""
    """Why earlier draws were given up."""
    mark: Mark | None = None

    @contextmanager
    def guard(self, arrays: Arrays) -> Iterator[None]:
        """Whatever faults this sample inside is its outcome, and blanks its row of the arrays."""
        start = time.perf_counter()
        if self.mark is not None:
            self.mark(self.sample_id)
        try:
            yield
        except SampleFault as fault:
            self.fault = fault
            for array in arrays.values():
                array[self.position] = np.nan
        if self.mark is not None:
            self.mark(None)
        self.seconds += time.perf_counter() - start

    def anew(self, run_seed: int, split: Split) -> Row:
        """The same sample with its next draw; what went wrong with this one is told in its story."""
        fault, draw = self.fault, self.draw + 1
        told = f"draw {self.draw}: {fault.outcome.name} {fault.message}".strip() if fault is not None else ""
        seed = sample_seed(run_seed, draw_stream(split, draw), self.sample_id)
        story = "; ".join(part for part in (self.story, told) if part)
        return replace(
            self, seed=seed, draw=draw, story=story, fault=None, iterations=0, residual=0.0, method=""
        )  # its seconds go on: the sample has cost them

    def certify(
        self, iterations: int, residual: float, outcome: Outcome, message: str = "", *, method: str = ""
    ) -> None:
        """Add one solve to the record.

        Raises:
            SampleFault: the solve did not converge.
        """
        self.method = method
        self.iterations += iterations
        self.residual = float(np.maximum(self.residual, residual))
        if outcome is not Outcome.CONVERGED:
            raise SampleFault(outcome, message)

    def record(self, method: str) -> SolveRecord:
        """The frozen record of the finished sample; a fault before any solve has the residual NaN and that method."""
        fault = self.fault
        if fault is None:
            outcome, message, residual = Outcome.CONVERGED, "", self.residual
        else:
            outcome, message, residual = fault.outcome, fault.message, self.residual or float("nan")
        message = "; ".join(part for part in (self.story, message) if part)
        method = self.method or method
        return SolveRecord(self.sample_id, self.seed, outcome, method, self.iterations, residual, self.seconds, message)


def begin_rows(run_seed: int, split: Split, ids: np.ndarray, care: Care | None, mark: Mark | None) -> list[Row]:
    """The samples of a block; those that are given up have their fault already and must not be touched."""
    care = care or Care()
    rows = []
    for position, sample_id in enumerate(ids.tolist()):
        draw = care.draws.get(sample_id, 0)
        story = f"drawn anew {draw} times: its solver was lost" if draw else ""
        row = Row(position, sample_id, sample_seed(run_seed, draw_stream(split, draw), sample_id))
        row.draw, row.story, row.mark = draw, story, mark
        if sample_id in care.given_up:
            row.fault = SampleFault(Outcome.PROCESS_LOST, "every solver that tried it was lost")
        rows.append(row)
    return rows


@dataclass(slots=True)
class Timings:
    """Seconds spent since the solver was made, by what for."""

    draw: float = 0.0
    """Drawing and keeping the inputs."""
    assemble: float = 0.0
    """Matrix and right-hand sides, those of time steps included."""
    solve: float = 0.0
    certify: float = 0.0
    """Recomputing residuals."""
    keep: float = 0.0
    """From the solution vector to float32 fields."""
    samples: int = 0


class GuardedProblem:
    """A problem whose exceptions are sample faults, whose shapes are checked and whose time is taken."""

    def __init__(self, problem: Problem, system: System, timings: Timings) -> None:
        self._problem = problem
        self._system = system
        self._timings = timings
        self.schema: Schema = problem.schema

    def draw(self, parameters: np.ndarray, rng: np.random.Generator, arrays: Arrays, position: int) -> Draw:
        """Draw the input fields and keep them with the parameters."""
        start = time.perf_counter()
        inputs = call_problem("draw", self._problem.draw, parameters, rng)
        arrays["parameters"][position] = parameters
        for field in self.schema.inputs:
            kept = arrays[field.name][position]
            write_field(kept, inputs, field.name, field.shape, "draw")
            if not np.isfinite(kept).all():
                raise SampleFault(Outcome.NONFINITE_INPUT, f"input {field.name!r} has values that float32 cannot hold")
        self._timings.draw += time.perf_counter() - start
        return {**inputs, "parameters": parameters}

    def assemble(self, draw: Draw) -> None:
        """Write matrix and right-hand side of the sample."""
        start = time.perf_counter()
        call_problem("assemble", self._system.update, draw)
        self._timings.assemble += time.perf_counter() - start

    def initial(self, problem: TransientProblem, draw: Draw) -> np.ndarray:
        """A copy of the initial state (n,)."""
        state = np.array(call_problem("initial", problem.initial, draw), dtype=np.float64)
        if state.shape != self._system.rhs.shape:
            raise ProblemError(f"initial() returned shape {state.shape}; the state has shape {self._system.rhs.shape}")
        return state

    def advance(self, problem: TransientProblem, draw: Draw, step: int, state: np.ndarray, rhs: np.ndarray) -> None:
        """Write the right-hand side of one step."""
        start = time.perf_counter()
        call_problem("advance", problem.advance, draw, step, state, rhs)
        self._timings.assemble += time.perf_counter() - start

    def keep(self, arrays: Arrays, position: int, draw: Draw, solution: np.ndarray, step: int | None = None) -> None:
        """Write the output fields of one frame."""
        start = time.perf_counter()
        fields = call_problem("fields", self._problem.fields, draw, solution)
        for field in self.schema.outputs:
            sample = arrays[field.name][position]
            write_field(sample if step is None else sample[step], fields, field.name, field.shape, "fields")
        self._timings.keep += time.perf_counter() - start

    def check_outputs(self, arrays: Arrays, position: int) -> None:
        """Refuse a sample whose solution does not fit float32.

        Raises:
            SampleFault: NaN or inf in an output field.
        """
        for field in self.schema.outputs:
            if not np.isfinite(arrays[field.name][position]).all():
                message = f"output {field.name!r} has values that float32 cannot hold"
                raise SampleFault(Outcome.NONFINITE_SOLUTION, message)


def call_problem[**P, T](name: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run the problem's code; what it raises is that sample's outcome, unless it is an error meant for the user."""
    try:
        return function(*args, **kwargs)
    except ForebayError:
        raise
    except Exception as error:
        raise SampleFault(Outcome.PROBLEM_RAISED, f"{name}: {type(error).__name__}: {error}") from error


def write_field(target: np.ndarray, fields: Mapping[str, Any], name: str, shape: tuple[int, ...], method: str) -> None:
    """Cast one field to float32 in place; too large values become inf, which the caller refuses.

    Raises:
        ProblemError: the problem's `method` returned no such field, or one of another shape.
    """
    value = fields.get(name)
    if value is None or np.shape(value) != shape:
        found = f"no field {name!r}" if value is None else f"{name!r} of shape {np.shape(value)}"
        raise ProblemError(f"{method}() returned {found}; the schema says {name!r} of shape {shape}")
    with np.errstate(over="ignore", invalid="ignore"):
        target[...] = value

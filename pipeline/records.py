"""The frozen values that travel between the stages.

A *sample* is one simulation: one draw of the parameters, one certified solution.  A *frame* is one (sample, time step)
pair, the unit of training; a stationary problem has one frame per sample.  A *block* is the samples of one chunk of the
data set; block `c` of a split holds the samples c·S, ..., c·S + S - 1, so who solved it, when, and in which order
leaves no trace in the data.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import numpy as np
from scipy.special import ndtri

Split = Literal["train", "validation"]


class Outcome(enum.IntEnum):
    """How the solve of one sample ended; only `CONVERGED` may reach training.  Codes are stored: only append."""

    CONVERGED = 0
    MAX_ITERATIONS = 1
    DIVERGED = 2
    NONFINITE_INPUT = 3
    NONFINITE_SOLUTION = 4
    RESIDUAL_ABOVE_TOLERANCE = 5
    FACTORISATION_FAILED = 6
    PROBLEM_RAISED = 7
    PROCESS_LOST = 8

    @property
    def advice(self) -> str:
        """What probably happened and which knob to turn."""
        return _ADVICE[self]


_ADVICE = {
    Outcome.CONVERGED: "",
    Outcome.MAX_ITERATIONS: "residual still above rtol: raise `solver.max_iterations`, or precondition better",
    Outcome.DIVERGED: 'the iteration broke down: is the operator indefinite or singular? try `method = "direct"`; of a '
    "solid: see `message` of the record in journal.jsonl",
    Outcome.NONFINITE_INPUT: "the problem drew NaN or inf: look at `draw` and `assemble` at this sample's seed",
    Outcome.NONFINITE_SOLUTION: "the solution holds NaN or inf: the operator is probably singular at this point",
    Outcome.RESIDUAL_ABOVE_TOLERANCE: "the true residual misses rtol: loosen `solver.rtol`, or precondition better",
    Outcome.FACTORISATION_FAILED: "zero pivot: the matrix is singular, or not definite although the problem says so",
    Outcome.PROBLEM_RAISED: "the problem's own code raised: see `message` of the record in journal.jsonl",
    Outcome.PROCESS_LOST: "solving it ended its process every time: look for a crash or too little memory in the "
    "problem's compiled code; `faults.redraws` draws such samples anew",
}


@dataclass(frozen=True, slots=True)
class Parameter:
    """One scalar parameter θᵢ of a problem and the distribution it is drawn from.

    `uniform` and `log_uniform` fill [low, high]; `normal` has mean (low + high)/2 and deviation (high - low)/2.
    """

    name: str
    low: float
    high: float
    units: str = "1"
    distribution: Literal["uniform", "log_uniform", "normal"] = "uniform"
    description: str = ""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"parameter {self.name!r} has range [{self.low}, {self.high}]; low < high, both finite")
        if self.distribution == "log_uniform" and self.low <= 0:
            raise ValueError(f"parameter {self.name!r} is log_uniform from {self.low}; the range must be positive")

    def quantile(self, unit: float) -> float:
        """Map a point of the unit interval to the parameter's distribution."""
        match self.distribution:
            case "uniform":
                return self.low + (self.high - self.low) * unit
            case "log_uniform":
                return math.exp(math.log(self.low) + math.log(self.high / self.low) * unit)
            case "normal":
                inner = min(max(unit, 1e-12), 1 - 1e-12)
                return 0.5 * (self.low + self.high) + 0.5 * (self.high - self.low) * float(ndtri(inner))


@dataclass(frozen=True, slots=True)
class Field:
    """One array that every sample carries."""

    name: str
    dims: tuple[str, ...]
    """Names of the axes, slowest first, without `sample` and `time`: ("y", "x"), or ("node",) on a mesh."""
    shape: tuple[int, ...]
    units: str = "1"
    description: str = ""

    @property
    def nbytes(self) -> int:
        """Bytes of one float32 frame."""
        return 4 * math.prod(self.shape)


@dataclass(frozen=True, slots=True, eq=False)
class Coordinate:
    """Positions along one or more dimensions, for example x of shape (nx,) or node_x of shape (node,)."""

    name: str
    dims: tuple[str, ...]
    values: np.ndarray
    units: str = "1"


@dataclass(frozen=True, slots=True, eq=False)
class Schema:
    """What one sample of a problem consists of."""

    parameters: tuple[Parameter, ...]
    inputs: tuple[Field, ...]
    """Fields drawn before the solve (coefficients, forcing); constant in time."""
    outputs: tuple[Field, ...]
    """Fields that the solve returns; with a leading time axis when `times` is not empty."""
    coordinates: tuple[Coordinate, ...] = ()
    times: tuple[float, ...] = ()
    """Physical time of every stored step, [s]; empty for a stationary problem."""
    boundary_conditions: str = ""

    @property
    def steps(self) -> int:
        """Frames per sample."""
        return len(self.times) or 1

    def sample_shape(self, name: str) -> tuple[int, ...]:
        """Shape of one sample's array of that name, the time axis included."""
        for item in self.inputs:
            if item.name == name:
                return item.shape
        for item in self.outputs:
            if item.name == name:
                return (len(self.times), *item.shape) if self.times else item.shape
        raise KeyError(name)

    def only(self, outputs: Sequence[str]) -> Schema:
        """The same with some of the output fields; all of them when none is named.

        Raises:
            KeyError: there is no such output field.
        """
        if not outputs:
            return self
        known = {item.name: item for item in self.outputs}
        return replace(self, outputs=tuple(known[name] for name in outputs))

    @property
    def sample_nbytes(self) -> int:
        """Bytes of one sample's fields as stored (float32)."""
        return sum(f.nbytes for f in self.inputs) + self.steps * sum(f.nbytes for f in self.outputs)


@dataclass(frozen=True, slots=True)
class SolveRecord:
    """What certifies one sample."""

    sample_id: int
    seed: int
    """Key word of the sample's Philox generator: f(run seed, split, sample id)."""
    outcome: Outcome
    method: str
    """For example "direct:petsc-cholesky" or "cg+gamg"."""
    iterations: int
    """Krylov iterations (Newton iterations of a nonlinear problem), summed over the time steps; 0 for a direct solve
    without refinement."""
    residual: float
    """True relative residual ‖b - A u‖₂ / ‖b‖₂, recomputed in float64; the largest over the time steps.  Of a reduced
    model the residual of its own equations, which says nothing about the full ones: see `estimate`."""
    seconds: float
    """Wall time of assembling and solving this sample."""
    message: str = ""
    indicator: float | None = None
    """What a reduced model says of its own solution, the largest over the time steps; None where none was asked."""
    estimate: float | None = None
    """Relative error of that solution by calibration; where the sample was then solved in full, of what was refused."""
    full_steps: int | None = None
    """Time steps that the full model solved where a reduced one solved the others; None where one solved them all."""

    @property
    def valid(self) -> bool:
        """May this sample be trained on?"""
        return self.outcome is Outcome.CONVERGED


@dataclass(frozen=True, slots=True)
class Care:
    """What lost solvers have taught about the samples of a block that is to be solved again."""

    draws: Mapping[int, int] = field(default_factory=dict)
    """Sample id → number of the draw to take; samples that are not named take their first, 0."""
    given_up: frozenset[int] = frozenset()
    """Ids of samples that are not tried any more: their outcome is `PROCESS_LOST`."""


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """The solved samples of one chunk of one split.

    `arrays["parameters"]` has shape (k, p), float64; every field has shape (k, *schema.sample_shape(name)), float32.
    Rows of samples whose record is not `valid` hold NaN.
    """

    split: Split
    chunk: int
    sample_ids: np.ndarray
    arrays: Mapping[str, np.ndarray]
    records: Sequence[SolveRecord]
    seconds: float = 0.0
    """Wall time that the solver spent on the block, drawing and hand-over included."""
    choices: Sequence[Mapping[str, Any]] = ()
    """What `method = "auto"` has learned by the end of the block: one plain dict per arm; empty for one method."""
    path: tuple[float, float] = (0.0, 0.0)
    """Length of the chain of samples in feature space as numbered, and as solved; zeros where they were not sorted."""
    resident: Mapping[str, Any] = field(default_factory=dict)
    """Output fields that lie on the device that computed them, too: tensors whose valid rows are those of `arrays`, bit
    for bit.  Left out when a block is pickled."""

    def __getstate__(self) -> list[Any]:
        """What travels between processes, in the order of the fields."""
        return [{} if item.name == "resident" else getattr(self, item.name) for item in fields(self)]

    @property
    def valid_rows(self) -> np.ndarray:
        """Positions of the samples that may be trained on."""
        return np.flatnonzero([r.valid for r in self.records])

    @property
    def nbytes(self) -> int:
        """Bytes of the block's arrays."""
        return sum(a.nbytes for a in self.arrays.values())


@dataclass(frozen=True, slots=True)
class ChunkPlan:
    """How `samples` samples of a split are cut into blocks of `size`; the last block may be shorter."""

    split: Split
    samples: int
    size: int

    @property
    def chunks(self) -> int:
        """Number of blocks."""
        return -(-self.samples // self.size)

    def sample_ids(self, chunk: int) -> np.ndarray:
        """Ids of the samples in a block, int64."""
        if not 0 <= chunk < self.chunks:
            raise IndexError(f"chunk {chunk} of split {self.split!r} which has {self.chunks}")
        return np.arange(chunk * self.size, min((chunk + 1) * self.size, self.samples), dtype=np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Frames that are trained on together, as float32 arrays of the learner's library."""

    keys: np.ndarray
    """int64 (b,): sample id · steps + step."""
    arrays: Mapping[str, Any] = field(default_factory=dict)

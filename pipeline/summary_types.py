"""The figures of a run as frozen values; `pipeline.summary` computes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict

from forebay.pipeline.records import Split

Status = Literal["not started", "running", "interrupted", "complete", "stopped", "failed"]
StageName = Literal["solvers", "writer", "learner", "evaluation"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class SplitCounts(_Frozen):
    """Samples of one split."""

    requested: int
    solved: int
    """Solved and durable, whatever the outcome."""
    valid: int

    @property
    def dropped(self) -> int:
        """Samples that may not be trained on."""
        return self.solved - self.valid


class Dropped(_Frozen):
    """The samples that ended in one outcome other than convergence."""

    outcome: str
    split: Split
    count: int
    advice: str
    sample_ids: tuple[int, ...]
    """The first few."""
    message: str
    """What the first of them said."""


class MethodRow(_Frozen):
    """All solves by one method, both splits."""

    method: str
    count: int
    valid: int
    iterations_mean: float
    iterations_max: int
    seconds_mean: float
    seconds_total: float
    residual_max: float
    """Largest true relative residual of the valid samples; NaN if there are none."""


class ArmRow(_Frozen):
    """What `method = "auto"` found out about one method, over all solvers."""

    method: str
    solved: int
    failures: int
    """Samples that another method had to solve."""
    cut_offs: int
    """Experiments that were stopped because they had cost more than the best method, by the selector's cap."""
    median_s: float
    """Processor seconds per certified sample; NaN before the first."""


class Stage(_Frozen):
    """What one stage did while data streamed.

    busy_s and waiting_s are per lane (one solver process, one writer, one learner); utilisation = busy_s / streaming_s.
    """

    name: StageName
    unit: str
    lanes: int
    processed: int
    busy_s: float
    waiting_s: float
    """Solvers: production time without work; learner: waiting for data.  NaN where nobody measures it."""
    utilisation: float
    rate_busy: float
    """Units a second of all lanes together while they work."""
    rate_wall: float
    """Units a second of streaming time."""


class ValidationPoint(_Frozen):
    """One evaluation: relative L2 errors over the validation frames."""

    batch: int
    wall_s: float
    mean: float
    p99: float
    max: float
    seconds: float


class Summary(_Frozen):
    """A run in figures.  Floats are NaN where there is nothing to measure yet; times are seconds."""

    name: str
    status: Status
    reason: str
    executor: str
    commands: tuple[str, ...]
    """How each attempt was started."""
    cores: int
    solvers: int
    learner_threads: int
    elapsed_s: float
    """Wall time of all attempts, start-up and validation included."""
    streaming_s: float
    """Wall time from the first training block to the end of training, over all attempts."""
    remaining_s: float
    """Estimate while running."""
    train: SplitCounts
    validation_samples: SplitCounts
    dropped: tuple[Dropped, ...]
    methods: tuple[MethodRow, ...]
    arms: tuple[ArmRow, ...]
    """Cheapest first; empty unless the method was "auto" or "rom"."""
    sorted_path: float
    """Distance from sample to sample as solved over that as numbered; NaN unless samples were sorted."""
    local_bases: str
    """Whether several reduced bases would have done better than one, and why; "" where nobody asked."""
    stages: tuple[Stage, ...]
    bottleneck: StageName | Literal["none", "unknown"]
    bottleneck_reason: str
    overlap_efficiency: float
    """max(busy seconds of one solver, busy seconds of the learner) / streaming_s; 1 is perfect overlap."""
    batches: int
    batches_planned: int
    loss: float
    frames_per_sample: float
    frames_ingested: int
    frames_trained: int
    reuse_mean: float
    """Uses of an average frame that reached the buffer."""
    reuse_histogram: tuple[int, ...]
    validation: tuple[ValidationPoint, ...]
    best: ValidationPoint | None
    """The evaluation with the smallest mean."""
    spilled_bytes: int
    lost: Mapping[str, int]
    """Processes that died and were replaced, and blocks that were made again, by kind."""

    @property
    def attempts(self) -> int:
        """How often the run was started."""
        return len(self.commands)

    @property
    def latest(self) -> ValidationPoint | None:
        """The last evaluation."""
        return self.validation[-1] if self.validation else None

    def stage(self, name: StageName) -> Stage:
        """One stage by its name."""
        return next(stage for stage in self.stages if stage.name == name)

    def to_json(self) -> str:
        """Strict JSON; NaN as a string."""
        return self.model_dump_json(indent=2) + "\n"

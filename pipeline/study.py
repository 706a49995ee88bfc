"""The study: one frozen tree of typed values, read from a TOML file or made in Python with the same names.

Nothing here solves or trains.  What depends on the problem (block size, buffer capacity) may be left out of the file
and is filled in by `plan.make_plan`, so that the run folder keeps a study without gaps.
"""

from __future__ import annotations

import datetime
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from forebay.pipeline.errors import StudyError
from forebay.pipeline.study_faults import CLOCK, PLAIN_WORD, explain

Count = Annotated[int, Field(ge=1)]
Tolerance = Annotated[float, Field(gt=0, lt=1)]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and _is_number(cls.model_fields[info.field_name or ""].annotation):
            raise ValueError(f"{json.dumps(value)} is no number; give one, or leave the key out")
        return value


def _is_number(annotation: Any) -> bool:
    """Is a key for a number, or for a number or nothing?"""
    return annotation in (int, float) or any(item in (int, float) for item in map(_plain, get_args(annotation)))


def _plain(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


class ProblemTable(BaseModel):
    """`[problem]`: a built-in name or "file.py:Class"; every further key is an option of that problem."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)
    name: str

    @property
    def options(self) -> dict[str, Any]:
        """All keys but the name."""
        return dict(self.model_extra or {})


OptionValue = str | int | float | bool


class ArmTable(_Table):
    """An entry of `[[solver.arms]]`: one method for "auto" to choose from; keys as in `[solver]`."""

    method: str
    preconditioner: str | None = None
    factor: Literal["auto", "petsc", "mumps"] = "auto"
    restart: Count | None = None
    omega: Annotated[float, Field(gt=0, lt=2)] | None = None
    fill: Annotated[int, Field(ge=0, le=10)] = 0
    recycle: Count | None = None
    variant: Literal["exact", "economical", "frozen"] = "economical"
    reuse: Literal["none", "preconditioner"] = "none"
    learned: str = ""
    options: dict[str, OptionValue] = {}


class RomTable(_Table):
    """`[solver.rom]`: the reduced model of `method = "rom"`, which learns from the samples that it is not sure of."""

    tolerance: Tolerance = 0.03
    """Largest estimated relative error, of displacement and of plastic strain alike, of a sample that stays reduced."""
    training: Annotated[int, Field(ge=2)] = 4
    """Samples solved in full before a reduced one is believed."""
    audit: Annotated[float, Field(ge=0, le=1)] = 0.02
    """Share of the samples within the tolerance that are solved in full nevertheless, to check the estimates."""
    displacement: Tolerance = 1e-4
    """Projection error of the displacement modes."""
    stress: Tolerance = 3e-3
    """Projection error of the stress modes."""
    p: Tolerance = 3e-3
    """Projection error of the modes of plastic strain."""
    cubature: Tolerance = 2e-3
    """Residual of the reduced integration."""
    test_modes: Annotated[int, Field(ge=0, le=32)] = 4
    """Further modes for the error indicator."""
    adapt: Literal["sample", "step"] = "sample"
    """What the full model solves of a sample whose estimate is too large: all of it, or the steps that need it."""
    bases: Literal["auto", "global", "local"] = "auto"
    """One reduced model for all samples, models for clusters of them, or what has less error on samples held out."""
    ranks: Count = 1
    """MPI processes of a full sample or step; 1 solves it in the solver actor itself."""


class SolverTable(_Table):
    """`[solver]`: how each sample is solved, and by how many actors."""

    method: str = "direct"
    """"auto" learns while it solves which of several methods is the cheapest; solids have "full" and "rom"."""
    preconditioner: str | None = None
    factor: Literal["auto", "petsc", "mumps"] = "auto"
    rtol: Tolerance = 1e-8
    max_iterations: Count = 10_000
    restart: Count | None = None
    """Dimension of a cycle of gmres, lgmres and gcrodr."""
    omega: Annotated[float, Field(gt=0, lt=2)] | None = None
    """Relaxation of eisenstat and sor."""
    fill: Annotated[int, Field(ge=0, le=10)] = 0
    """Levels of fill of ilu and icc."""
    recycle: Count | None = None
    """Directions that gcrodr and deflated_cg carry from sample to sample."""
    variant: Literal["exact", "economical", "frozen"] = "economical"
    """Of gcrodr and deflated_cg."""
    reuse: Literal["none", "preconditioner"] = "none"
    """"preconditioner": keep that of an earlier sample while it pays."""
    backend: Literal["auto", "cpu", "cuda", "torch"] = "auto"
    """What "batched" computes on; "auto": a GPU where there is one."""
    learned: str = ""
    """Weights of a learned preconditioner for "batched", "boxmg" and "amg": "shipped", a file, or "online", which
    trains them in the run ("batched", and "cg" with "amg")."""
    options: dict[str, OptionValue] = {}
    """Raw PETSc options without prefix, for example { pc_gamg_threshold = 0.02 }."""
    arms: tuple[ArmTable, ...] = ()
    """What "auto" chooses from; by default every method that has won somewhere on such matrices."""
    sort: bool = False
    """Solve the samples of a block along a chain of near neighbours."""
    guesses: Annotated[int, Field(ge=0, le=64)] = 0
    """Start iterations from the best combination of so many earlier solutions of the block."""
    rom: RomTable = RomTable()
    actors: Count | None = None
    """Solver actors; by default every core that the learner does not use."""


class ValidationTable(_Table):
    """`[validation]`: a fixed set with seeds of its own, solved before the first training sample."""

    samples: Count = 128
    every: Count = 250
    """Batches between two evaluations."""


class BufferTable(_Table):
    """`[buffer]`: semantics in `pipeline.buffer`."""

    policy: Literal["fifo", "firo", "reservoir"] = "reservoir"
    capacity: Count | None = None
    """Frames held; by default all frames of the study, at most `memory_gib`."""
    threshold: Annotated[int, Field(ge=0)] | None = None
    """Frames that must be exceeded before the first draw."""
    memory_gib: Annotated[float, Field(gt=0)] = 2.0

    @model_validator(mode="after")
    def _threshold_below_capacity(self) -> BufferTable:
        if self.capacity is not None and self.threshold is not None and self.threshold >= self.capacity:
            raise ValueError(
                f"threshold {self.threshold} must be below capacity {self.capacity}, else no batch is ever drawn; "
                f"use at most {self.capacity - 1}"
            )
        return self


class ModelTable(BaseModel):
    """`[learner.model]`: an architecture's name and its options."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)
    name: str = "fno"

    @property
    def options(self) -> dict[str, Any]:
        """All keys but the name."""
        return dict(self.model_extra or {})


class LearnerTable(_Table):
    """`[learner]`: what is trained, and how long."""

    model: ModelTable = ModelTable()
    fields: tuple[str, ...] = ()
    """Output fields to learn, all of one grid; empty: all. The data set keeps all of them in any case."""
    loss: Literal["relative_l2", "relative_h1", "mse"] = "relative_l2"
    batch_size: Count = 16
    batches: Count | None = None
    """Length of training and of the schedule; by default every frame once: frames / batch_size."""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    schedule: Literal["one_cycle", "cosine", "step", "constant"] = "one_cycle"
    warmup: Annotated[int, Field(ge=0)] = 0
    """Batches of linear warm-up for "cosine"."""
    clip: Annotated[float, Field(gt=0)] | None = 1.0
    """Largest gradient norm."""
    precision: Literal["float32", "bf16"] = "float32"
    freeze_normaliser_after: Count = 1000
    """Frames after which means and deviations no longer move."""
    device: str = "auto"
    """Of weights, ring and validation data: "cpu", "cuda", "cuda:1", or "auto", a GPU where there is one."""
    ranks: Count = 1
    """Learners that train together (data-parallel), each with its share of the buffer and of every batch."""
    threads: Count = 1
    """Of each learner while solvers work."""
    threads_after_production: Count | None = None
    """Most threads once the last sample is solved and the solvers' cores are idle; by default all cores."""

    @field_validator("device")
    @classmethod
    def _known_device(cls, value: str) -> str:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
            raise ValueError(f"{value!r} is no device; use 'auto', 'cpu', 'cuda', or a numbered GPU such as 'cuda:0'")
        return value


class DatasetTable(_Table):
    """`[dataset]`: how samples are cut into blocks; one block is one chunk file of every field."""

    block_samples: Count | None = None
    """By default what makes a block of about `block_mib`."""
    block_mib: Annotated[float, Field(gt=0, le=64)] = 2.0


class RunTable(_Table):
    """`[run]`: where it runs and what is written how often."""

    executor: Literal["ray", "local"] = "ray"
    cores: Count | None = None
    """Cores shared by solvers and learner; by default those this process may use."""
    checkpoint_every_s: Annotated[float, Field(gt=0)] = 60.0
    publish_every_s: Annotated[float, Field(gt=0)] = 2.0
    keep_checkpoints: Count = 2
    blocks_in_flight: Count = 4
    """Credits: blocks a solver may have requested but not yet stored and ingested."""


class FaultsTable(_Table):
    """`[faults]`: what is tried again, and when the run gives up; `cluster.faults` has the rules."""

    restarts: Count = 3
    """Losses of one process (solver, learner, writer) in a row, without progress in between, that are borne."""
    sample_losses: Count = 2
    """Solvers that one draw of a sample may take down; then it is drawn anew, or given up."""
    redraws: Annotated[int, Field(ge=0, le=16)] = 0
    """How often a sample that failed is drawn anew.  0 keeps the failure by its outcome, and the samples as they were
    drawn: what is drawn anew is missing where the problem is hard."""
    failures: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of failed samples above which the run gives up."""
    failures_after: Count = 100
    """Samples that are solved before that share counts."""


Word = Annotated[str, Field(pattern=PLAIN_WORD, max_length=128)]
"""What a batch system may be told as it is: no blank, quote or other character of a shell."""


class ClusterTable(_Table):
    """`[cluster]`: what `forebay submit` asks a batch system for; the site file fills in what is left out."""

    nodes: Count | None = None
    cores_per_node: Count | None = None
    gpus_per_node: Annotated[int, Field(ge=0)] | None = None
    memory_gib: Annotated[float, Field(gt=0)] | None = None
    """Of each node."""
    time: Annotated[str, Field(pattern=CLOCK)] | None = None
    """Limit of one job, "hours:minutes:seconds" or "days-hours:minutes:seconds"; a run may take several jobs."""
    partition: Word | None = None
    """Of Slurm; the queue of PBS and LSF."""
    account: Word | None = None
    qos: Word | None = None
    signal_s: Annotated[int, Field(ge=10)] | None = None
    """Seconds before the limit at which the run saves a checkpoint and the job is queued again."""
    requeues: Annotated[int, Field(ge=0)] | None = None
    """Most often that one job is queued again."""
    setup: tuple[str, ...] = ()
    """Shell lines before the run; refused in a study unless the user allows them, at home in the site file."""
    extra: tuple[str, ...] = ()
    """Further options of the batch system, such as "--constraint=skylake"; refused likewise."""

    @field_validator("time", "partition", "account", "qos", mode="before")
    @classmethod
    def _without_quotes(cls, value: Any) -> Any:
        """TOML reads 12:00:00 as a time of the day and 12345 as a number, which is how a shell user writes them."""
        if isinstance(value, datetime.time):
            return value.isoformat()
        return str(value) if type(value) is int else value


class Study(_Table):
    """One study: a parametric PDE, a tolerance, a surrogate."""

    name: Annotated[str, Field(pattern=PLAIN_WORD)]
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 2026
    samples: Count = 1000
    """Simulations to solve, keep and train on."""
    design: Literal["random", "sobol", "latin_hypercube"] = "random"
    """How scalar parameters fill their ranges."""
    problem: ProblemTable
    solver: SolverTable = SolverTable()
    validation: ValidationTable = ValidationTable()
    buffer: BufferTable = BufferTable()
    learner: LearnerTable = LearnerTable()
    dataset: DatasetTable = DatasetTable()
    run: RunTable = RunTable()
    faults: FaultsTable = FaultsTable()
    cluster: ClusterTable = ClusterTable()


def load_study(path: Path, overrides: Sequence[str] = ()) -> Study:
    """Read a TOML study and apply overrides such as "learner.lr=1e-3".

    Raises:
        StudyError: unreadable file, invalid TOML, or any value that breaks its constraint; every fault is listed.
    """
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StudyError(f"study {str(path)!r} does not exist; make one with `forebay init {path}`") from None
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(f"study {str(path)!r} cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise StudyError(f"study {str(path)!r} is not valid TOML: {error}; strings need quotes") from None
    return study_from_dict(overridden(tree, overrides), source=str(path))


def overridden(tree: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A study's plain values with changes such as "learner.lr=1e-3" made in place.

    Raises:
        StudyError: an override that is not of that form.
    """
    for override in overrides:
        _apply_override(tree, override)
    return tree


def study_from_dict(tree: Mapping[str, Any], *, source: str = "study") -> Study:
    """Validate a tree of plain values."""
    try:
        return Study.model_validate(tree)
    except ValidationError as error:
        lines = [explain(Study, dict(fault)) for fault in error.errors()]
        raise StudyError(f"{source}: " + "\n".join(lines)) from None


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts):
        raise StudyError(f"--set {override!r} is not of the form table.key=value, for example learner.lr=1e-3")
    node = tree
    for part in parts[:-1]:
        child = node.setdefault(part, {})
        if not isinstance(child, dict):
            raise StudyError(f"--set {override!r}: {part!r} is a value, not a table")
        node = child
    node[parts[-1]] = _toml_value(text.strip())


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # an unquoted string, as a shell user writes it

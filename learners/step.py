"""One training step as a function: `(state, batch) -> (state, metrics)`."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from forebay.learners.losses import LOSSES, Loss, make_loss
from forebay.learners.options import option, read_options
from forebay.learners.surrogate import FrameBatch, Surrogate
from forebay.pipeline.errors import RunError, StudyError

if TYPE_CHECKING:
    from forebay.pipeline.study import LearnerTable

logger = logging.getLogger(__name__)

SCHEDULES = ("one_cycle", "cosine", "step", "constant")


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """How a surrogate is trained.  Everything is counted in batches, never in epochs: a stream has none."""

    batches: int = option(10_000, "length of the schedule", low=1)
    loss: str = option("relative_l2", "what is minimised", choices=tuple(LOSSES))
    lr: float = option(1e-3, "largest learning rate; good: 1e-3 to 5e-3 with one_cycle", above=0)
    weight_decay: float = option(1e-4, "of AdamW", low=0)
    schedule: str = option("one_cycle", "learning rate against batches", choices=SCHEDULES)
    warmup: int = option(0, "batches of linear warm-up for cosine", low=0)
    clip: float | None = option(1.0, "largest gradient norm, none for no clipping", above=0)
    precision: str = option("float32", "of the model's arithmetic", choices=("float32", "bf16"))
    step_every: int = option(1000, "batches between two reductions of the step schedule", low=1)
    step_factor: float = option(0.5, "each reduction of the step schedule", above=0, high=1)
    compile: bool = option(False, "fuse the model with torch.compile (needs a C++ compiler at run time)")
    bad_batches: int = option(10, "non-finite batches in a row that stop the run", low=1)

    @classmethod
    def from_study(cls, table: LearnerTable, *, batches: int) -> TrainOptions:
        """What a study's `[learner]` says, for a training of `batches` batches."""
        shared = {item.name for item in fields(cls)} & set(type(table).model_fields)
        return cls.from_table({name: getattr(table, name) for name in sorted(shared)} | {"batches": batches})

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> TrainOptions:
        """Validate a table of plain values.

        Raises:
            StudyError: as `read_options`, naming learner.<key>; or a warm-up that is longer than the training.
        """
        options = read_options(cls, table, where="learner")
        if options.warmup >= options.batches and options.schedule == "cosine":
            raise StudyError(
                f"learner.warmup = {options.warmup} is not below learner.batches = {options.batches}, so the "
                f"learning rate would never come down; use at most {options.batches - 1}"
            )
        return options


@dataclass(frozen=True, slots=True, eq=False)
class TrainState:
    """All that training changes.  The counters are values; weights and moments are torch's, updated in place."""

    surrogate: Surrogate
    optimiser: torch.optim.AdamW
    options: TrainOptions
    loss: Loss
    forward: Callable[[FrameBatch], dict[str, Tensor]]
    """The surrogate, or its compiled or distributed wrapper."""
    batches: int = 0
    """Batches seen, skipped ones included; the only input of the schedule."""
    skipped: int = 0
    """Batches whose loss or gradient was not finite, in total."""
    skipped_in_a_row: int = 0

    @property
    def lr(self) -> float:
        """Learning rate of the next batch."""
        return learning_rate(self.options, self.batches)


@dataclass(frozen=True, slots=True, eq=False)
class StepMetrics:
    """What one step tells."""

    batch: int
    """Number of this batch, from 0."""
    loss: float
    """Mean over the batch, dimensionless; NaN or inf when the batch was skipped."""
    per_frame: Tensor
    """(b,): loss of every frame, detached."""
    lr: float
    gradient_norm: float
    """Before clipping."""
    skipped: bool


def make_state(
    surrogate: Surrogate,
    options: TrainOptions,
    *,
    forward: Callable[[FrameBatch], dict[str, Tensor]] | None = None,
) -> TrainState:
    """A state at batch 0.

    Args:
        surrogate: already on its device.
        options: see `TrainOptions`.
        forward: a wrapper of the surrogate (for example DistributedDataParallel) to be called in its place.

    Raises:
        StudyError: a loss that the problem's grid cannot have.
    """
    call: Any = forward or surrogate
    return TrainState(
        surrogate=surrogate,
        optimiser=_make_optimiser(surrogate.model, options),
        options=options,
        loss=make_loss(options.loss, surrogate.io),
        forward=torch.compile(call) if options.compile else call,
    )


def train_step(state: TrainState, batch: FrameBatch) -> tuple[TrainState, StepMetrics]:
    """Loss, gradient, clipping, AdamW update.

    A batch whose loss or gradient is not finite leaves the weights untouched; it is counted and told in the metrics.

    Raises:
        RunError: `options.bad_batches` such batches in a row.
    """
    options = state.options
    rate = learning_rate(options, state.batches)
    for group in state.optimiser.param_groups:
        group["lr"] = rate
    state.surrogate.train()
    state.optimiser.zero_grad(set_to_none=True)
    per_frame = frame_losses(state, batch)
    loss = per_frame.mean()
    loss.backward()
    weights = list(state.surrogate.model.parameters())
    norm = nn.utils.clip_grad_norm_(weights, math.inf if options.clip is None else options.clip)
    value, length = float(loss.detach()), float(norm)
    usable = math.isfinite(value) and math.isfinite(length)
    if usable:
        state.optimiser.step()
    metrics = StepMetrics(state.batches, value, per_frame.detach(), rate, length, not usable)
    return _advance(state, metrics), metrics


def frame_losses(state: TrainState, batch: FrameBatch) -> Tensor:
    """Loss of every frame (b,), mean over the output fields; the model runs in the chosen precision."""
    low = state.options.precision == "bf16"
    with torch.autocast(state.surrogate.device.type, dtype=torch.bfloat16, enabled=low):
        predictions = state.forward(batch)
    scale = state.surrogate.normaliser.output_scale
    losses = [state.loss(field, batch[name], scale(name)) for name, field in predictions.items()]
    return torch.stack(losses).mean(0)


def learning_rate(options: TrainOptions, batch: int) -> float:
    """Learning rate of batch 0, 1, ..., a function of the counter alone, so that resuming needs no further state.

    - one_cycle: cosine from lr/25 up to lr over the first 30 %, then cosine down to lr/25e4 at the last batch
      (Smith and Topin, arXiv 1708.07120; the values are those of torch's OneCycleLR);
    - cosine: linear over `warmup` batches, then lr (1 + cos(π t)) / 2, t from 0 to 1 (arXiv 1608.03983);
    - step: lr · step_factor^⌊batch / step_every⌋;
    - constant.

    Past the last batch the last value holds.
    """
    last = options.batches - 1
    batch = min(batch, last)
    match options.schedule:
        case "one_cycle":
            peak = 0.3 * options.batches - 1
            if batch <= peak:
                return _cosine(options.lr / 25, options.lr, batch / peak)
            return _cosine(options.lr, options.lr / 25e4, (batch - peak) / (last - peak))
        case "cosine":
            if batch < options.warmup:
                return options.lr * (batch + 1) / options.warmup
            return _cosine(options.lr, 0.0, (batch - options.warmup) / (options.batches - options.warmup))
        case "step":
            return options.lr * options.step_factor ** (batch // options.step_every)
        case _:
            return options.lr


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def _make_optimiser(model: nn.Module, options: TrainOptions) -> torch.optim.AdamW:
    # Biases and gains are not decayed: they do not multiply features, and shrinking them only moves the mean.
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    # The fused update passes over the weights once; a Fourier layer has millions of them.
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=options.lr, weight_decay=options.weight_decay, fused=True
    )


def _advance(state: TrainState, metrics: StepMetrics) -> TrainState:
    if not metrics.skipped:
        return replace(state, batches=state.batches + 1, skipped_in_a_row=0)
    in_a_row = state.skipped_in_a_row + 1
    logger.warning("batch %d skipped: loss %g, gradient norm %g", metrics.batch, metrics.loss, metrics.gradient_norm)
    if in_a_row >= state.options.bad_batches:
        raise RunError(
            f"{in_a_row} batches in a row up to batch {metrics.batch} had a loss of {metrics.loss:g} and a gradient "
            f"norm of {metrics.gradient_norm:g}: training has diverged; lower learner.lr = {state.options.lr:g} or "
            f"learner.clip = {state.options.clip}, or use learner.precision = 'float32', and resume"
        )
    return replace(state, batches=state.batches + 1, skipped=state.skipped + 1, skipped_in_a_row=in_a_row)

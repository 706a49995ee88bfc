"""What `forebay check` prints: the plan, with expected rates and the expected bottleneck."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table

from forebay.cluster.cluster_size import LEAST_STORE, SPARE, object_store_bytes
from forebay.cluster.security import inside_cluster
from forebay.cluster.terminal import make_console
from forebay.pipeline.plan import available_cores

if TYPE_CHECKING:
    from forebay.cluster.launch import Prepared
    from forebay.cluster.specs import RunSpec

DIRECT_SECONDS_4096 = 1.5e-3
"""Sampling, assembly and direct solve of a 64 x 64 five-point system on one core of 2020s server hardware."""
NEWTON_SECONDS_1000 = 1e-2
"""Law, assembly and factorisation of a solid of 1,000 unknowns, once."""
NEWTON_ITERATIONS = 3
"""A step."""
REDUCED_SHARE = 0.15
"""Of the full cost, over a stream in which most samples stay reduced."""
TRAIN_FLOPS_PER_S = 4.0e10
"""Sustained float32 rate of one core in a training step."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """Rates that follow from sizes alone; `benchmarks/overlap.py` measures them."""

    unknowns: int
    solves_per_s: float
    learner_frames_per_s: float
    model_parameters: int


def forecast(prepared: Prepared) -> Forecast:
    """Estimate rates: nested dissection costs n^1.5 in two dimensions; a training step three forward passes."""
    from forebay.learners.cost import forward_flops
    from forebay.learners.surrogate import IOSpec, Surrogate, SurrogateConfig

    spec = prepared.spec
    unknowns, one = _sample(prepared)
    model = spec.study.learner.model
    surrogate = Surrogate(SurrogateConfig(IOSpec.from_schema(spec.learned), model.name, model.options))
    rate = spec.plan.learner_threads * TRAIN_FLOPS_PER_S / (3 * forward_flops(surrogate))
    return Forecast(unknowns, spec.plan.solvers / one, rate, surrogate.weights_count)


def _sample(prepared: Prepared) -> tuple[int, float]:
    """Unknowns, and seconds of one sample on one core."""
    from forebay.solvers.problems.solid import is_solid

    spec, problem = prepared.spec, prepared.problem
    if is_solid(problem):
        unknowns = int(np.prod(spec.schema.outputs[0].shape))
        whole = NEWTON_SECONDS_1000 * (unknowns / 1000) ** 1.3 * NEWTON_ITERATIONS * int(problem.stored_steps[-1])
        return unknowns, whole * (REDUCED_SHARE if spec.study.solver.method == "rom" else 1.0)
    unknowns = len(problem.pattern()[0]) - 1
    if len(spec.schema.times):
        return unknowns, 1e-4 * spec.schema.steps * unknowns / 4096  # factorised once: two triangular solves a step
    return unknowns, DIRECT_SECONDS_4096 * (unknowns / 4096) ** 1.5


def print_plan(prepared: Prepared) -> None:
    """One table, and a sentence on what will be slow."""
    plan, schema, study = prepared.spec.plan, prepared.spec.schema, prepared.spec.study
    expected = forecast(prepared)
    table = Table(title=f"{study.name}: {study.problem.name}, valid", show_header=False)
    for key, value in (
        ("unknowns", f"{expected.unknowns:,}"),
        ("samples", f"{study.samples:,} in {plan.chunks['train'].chunks} blocks of {plan.chunks['train'].size}"),
        ("frames per sample", f"{schema.steps:,}"),
        ("validation samples", f"{study.validation.samples:,}, solved first"),
        ("block", _block_words(prepared.spec)),
        ("data set", f"{plan.dataset_bytes / 2**30:.2f} GiB"),
        ("ring", _ring_words(prepared.spec)),
        ("first draw after", f"{plan.threshold:,} frames"),
        ("batches", f"{plan.batches:,} of {study.learner.batch_size}; each frame used {plan.mean_uses:.1f} times"),
        ("model", f"{study.learner.model.name}, {expected.model_parameters:,} parameters"),
        ("credits", _credit_words(prepared.spec)),
        ("object store", _store_words(prepared.spec)),
        ("cores", _core_words(prepared.spec)),
        ("solves (estimate)", f"{expected.solves_per_s:,.0f} per second"),
        ("training (estimate)", f"{expected.learner_frames_per_s:,.0f} frames per second"),
    ):
        table.add_row(key, value)
    console = make_console()
    console.print(table)
    console.print(_bottleneck(prepared, expected), highlight=False)
    if crowd := _crowd(prepared.spec):
        console.print(crowd, style="yellow", highlight=False)


def _block_words(spec: RunSpec) -> str:
    train, wanted = spec.plan.chunks["train"], spec.study.dataset.block_mib
    sample = spec.plan.block_bytes // train.size
    return (
        f"{_size(spec.plan.block_bytes)}: {train.size} samples of {_size(sample)} "
        f"(dataset.block_samples, by default what fits into dataset.block_mib = {wanted:g})"
    )


def _ring_words(spec: RunSpec) -> str:
    plan, ranks = spec.plan, spec.study.learner.ranks
    words = (
        f"{plan.capacity:,} frames of {_size(plan.frame_bytes)}, {_size(plan.ring_bytes)}, {spec.study.buffer.policy}"
    )
    if ranks == 1:
        return words
    share = plan.capacity // ranks
    return f"{words}; each of {ranks} learners holds {share:,} frames, {_size(share * plan.frame_bytes)}"


def _credit_words(spec: RunSpec) -> str:
    plan = spec.plan
    if spec.study.run.executor == "local":
        return f"1 block at a time, {_size(plan.block_bytes)}: one process solves and trains in turn"
    credits = spec.study.run.blocks_in_flight
    total = credits * plan.solvers
    return (
        f"{credits} blocks a solver not yet both stored and handed to the learner (run.blocks_in_flight): {total} in "
        f"all, {_size(total * plan.block_bytes)}"
    )


def _store_words(spec: RunSpec) -> str:
    if spec.study.run.executor == "local":
        return "none: blocks do not leave the process"
    credits = spec.study.run.blocks_in_flight
    needed = spec.plan.solvers * credits * spec.plan.block_bytes
    least = f"; {_size(LEAST_STORE)} at least" if SPARE * needed < LEAST_STORE else ""
    whose = "of every node; that of a running cluster stays as it was started" if inside_cluster() else "of this run"
    return f"{_size(object_store_bytes(spec.plan, credits))} {whose} ({SPARE} x all blocks in flight{least})"


def _core_words(spec: RunSpec) -> str:
    plan, ranks, learners = spec.plan, spec.study.solver.rom.ranks, spec.study.learner.ranks
    solvers = f"{plan.solvers} solver(s)" + (f" of {ranks} ranks" if ranks > 1 else "")
    return f"{plan.cores}: {solvers}, {learners} learner(s) of {plan.learner_threads} thread(s)"


def _crowd(spec: RunSpec) -> str:
    """A warning where processes would take turns with the cores."""
    plan, study = spec.plan, spec.study
    if study.run.executor == "local":
        return ""
    busy = plan.solvers * study.solver.rom.ranks + study.learner.ranks * plan.learner_threads
    cores = plan.cores if inside_cluster() else min(plan.cores, available_cores())
    if busy <= cores + 1:  # a learner hardly slows a solver that it shares a core with for a while
        return ""
    return (
        f"warning: solvers and learners would keep {busy:,} cores busy, and there are {cores:,}: they take turns, and "
        f"each process needs memory; lower solver.actors = {plan.solvers:,}, solver.rom.ranks or learner.ranks"
    )


def _size(count: float) -> str:
    """Bytes in the unit in which they are short."""
    for unit, power in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if count >= 2**power:
            return f"{count / 2**power:.3g} {unit}" if count < 1000 * 2**power else f"{count / 2**power:,.0f} {unit}"
    return f"{count:.0f} B"


def _bottleneck(prepared: Prepared, expected: Forecast) -> str:
    plan = prepared.spec.plan
    solving = prepared.spec.study.samples / expected.solves_per_s
    training = plan.frames_drawn / expected.learner_frames_per_s
    slow, fast = ("the learner", "solvers") if training > solving else ("solving", "learner")
    return (
        f"expected bottleneck: {slow} (about {solving:,.0f} s of solving, {training:,.0f} s of training; "
        f"estimates from sizes, good to a factor of three); the {fast} will wait"
    )

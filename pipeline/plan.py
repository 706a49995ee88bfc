"""From a study and its problem's schema to numbers: blocks, buffer, batches, cores."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from forebay.pipeline.errors import StudyError
from forebay.pipeline.records import ChunkPlan, Schema, Split
from forebay.pipeline.study import Study


@dataclass(frozen=True, slots=True)
class Plan:
    """Every size that a run needs; a pure function of the study, the schema and the number of cores."""

    chunks: Mapping[Split, ChunkPlan]
    frames: int
    """Training frames of the whole study."""
    frame_bytes: int
    """Bytes of one frame in the ring: float32 inputs, outputs, parameters, time."""
    capacity: int
    threshold: int
    batches: int
    cores: int
    solvers: int
    learner_threads: int
    learner_threads_after: int
    block_bytes: int

    @property
    def ring_bytes(self) -> int:
        """Memory of the learner's ring."""
        return self.capacity * self.frame_bytes

    @property
    def dataset_bytes(self) -> int:
        """Bytes of the training fields on disk."""
        train = self.chunks["train"]
        return self.block_bytes * train.chunks

    @property
    def mean_uses(self) -> float:
        """How often a frame is trained on if nothing is dropped."""
        return self.frames_drawn / self.frames

    @property
    def frames_drawn(self) -> int:
        """Frames that training consumes."""
        return self.batches * self._batch_size

    _batch_size: int = 1


def make_plan(study: Study, schema: Schema, *, cores: int | None = None, node_cores: int | None = None) -> Plan:
    """Resolve what the study leaves open; on a cluster of `cores` cores the learner has the `node_cores` of one node.

    Raises:
        StudyError: sizes that cannot work together (a buffer that never fills a batch, no core left for a solver).
    """
    cores = cores or study.run.cores or available_cores()
    size = study.dataset.block_samples or max(1, int(study.dataset.block_mib * 2**20 // schema.sample_nbytes))
    size = min(size, study.samples)
    train = ChunkPlan("train", study.samples, size)
    validation = ChunkPlan("validation", study.validation.samples, min(size, study.validation.samples))
    frames = study.samples * schema.steps
    scalars = len(schema.parameters) + (1 if schema.times else 0)
    frame_bytes = sum(f.nbytes for f in (*schema.inputs, *_learned(study, schema).outputs)) + 4 * scalars
    capacity, threshold = _buffer_sizes(study, frames, frame_bytes)
    node_cores = min(node_cores or cores, cores)
    threads = min(study.learner.threads, node_cores)
    ranks = study.learner.ranks
    if study.learner.batch_size % ranks:
        raise StudyError(
            f"learner.batch_size = {study.learner.batch_size} cannot be shared by learner.ranks = {ranks}; use a "
            f"multiple of it, such as {-(-study.learner.batch_size // ranks) * ranks}"
        )
    if ranks > 1 and study.run.executor == "local":
        raise StudyError(f"learner.ranks = {ranks} needs a process each, and run.executor = 'local' has one; use 'ray'")
    return Plan(
        chunks={"train": train, "validation": validation},
        frames=frames,
        frame_bytes=frame_bytes,
        capacity=capacity,
        threshold=threshold,
        batches=study.learner.batches or max(1, frames // study.learner.batch_size),
        cores=cores,
        solvers=study.solver.actors or _actors(cores, node_cores, threads * ranks, study.solver.rom.ranks),
        learner_threads=threads,
        learner_threads_after=min(
            study.learner.threads_after_production or max(threads, node_cores // ranks), node_cores
        ),
        block_bytes=size * schema.sample_nbytes,
        _batch_size=study.learner.batch_size,
    )


def _actors(cores: int, node_cores: int, threads: int, ranks: int) -> int:
    """Solver actors that fit beside the learner, each with all of its ranks on one node."""
    elsewhere = cores - node_cores
    if ranks > 1:
        elsewhere = elsewhere // node_cores * (node_cores // ranks)
    return max(1, ((node_cores - threads) // ranks if node_cores > threads else 0) + elsewhere)


def _learned(study: Study, schema: Schema) -> Schema:
    try:
        return schema.only(study.learner.fields)
    except KeyError as error:
        raise StudyError(
            f"learner.fields names {error.args[0]!r}, which the problem does not put out; it has "
            f"{', '.join(item.name for item in schema.outputs)}"
        ) from None


def _buffer_sizes(study: Study, frames: int, frame_bytes: int) -> tuple[int, int]:
    batch = study.learner.batch_size
    affordable = int(study.buffer.memory_gib * 2**30 // frame_bytes)
    if affordable <= batch:
        raise StudyError(
            f"buffer.memory_gib = {study.buffer.memory_gib} holds {affordable} frames of {frame_bytes} bytes, not more "
            f"than one batch of {batch}; give at least {math.ceil(20 * batch * frame_bytes / 2**30 * 100) / 100}"
        )
    capacity = study.buffer.capacity or min(frames, affordable)
    if capacity * frame_bytes > study.buffer.memory_gib * 2**30:
        raise StudyError(
            f"buffer.capacity = {capacity} needs {capacity * frame_bytes / 2**30:.2f} GiB, above buffer.memory_gib = "
            f"{study.buffer.memory_gib}; lower the capacity to {affordable} or allow more memory"
        )
    if capacity < batch:
        raise StudyError(
            f"buffer.capacity = {capacity} is below learner.batch_size = {batch}: no batch is ever full; "
            f"raise the capacity (or `samples`) or lower the batch size"
        )
    threshold = study.buffer.threshold
    if threshold is None:
        held = min(capacity, frames)
        threshold = 0 if study.buffer.policy == "fifo" else max(0, min(held // 4, 16 * batch, held - batch))
    if threshold >= capacity:
        raise StudyError(
            f"buffer.threshold = {threshold} must be below the capacity of {capacity} frames; "
            f"use at most {capacity - 1}"
        )
    if threshold >= frames:
        raise StudyError(
            f"buffer.threshold = {threshold} is never exceeded by the {frames} frames of the study, so training would "
            f"begin when the last sample is solved; use at most {frames - 1}, or more `samples`"
        )
    if study.buffer.policy == "fifo" and threshold:
        raise StudyError(f"buffer.threshold = {threshold} has no meaning for the policy fifo; leave it out")
    if study.buffer.policy != "reservoir" and capacity - threshold < batch:
        raise StudyError(
            f"buffer.threshold = {threshold} leaves {capacity - threshold} of {capacity} frames to draw from, below "
            f"learner.batch_size = {batch}; with firo use at most {capacity - batch}"
        )
    return capacity, threshold


def resolved(study: Study, plan: Plan) -> dict[str, Any]:
    """The study as plain values with every gap filled by the plan; validates to an equal run."""
    tree = study.model_dump(mode="json")
    tree["solver"]["actors"] = plan.solvers
    tree["buffer"] |= {"capacity": plan.capacity, "threshold": plan.threshold}
    tree["learner"] |= {
        "batches": plan.batches,
        "threads": plan.learner_threads,
        "threads_after_production": plan.learner_threads_after,
    }
    tree["dataset"]["block_samples"] = plan.chunks["train"].size
    tree["run"]["cores"] = plan.cores
    return tree


def available_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0))

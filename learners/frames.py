"""Blocks of samples as frames: the unit of training, one (sample, time step) pair each."""

from __future__ import annotations

import numpy as np
import torch

from forebay.pipeline.records import Block, Schema

Spec = tuple[tuple[int, ...], torch.dtype]
"""Shape and type of one frame's array."""


def ring_specs(schema: Schema) -> dict[str, Spec]:
    """What `frames_of` gives for one frame: every field, "parameters" (p,) and, for problems in time, "time" (1,)."""
    specs: dict[str, Spec] = {field.name: (field.shape, torch.float32) for field in (*schema.inputs, *schema.outputs)}
    specs["parameters"] = ((len(schema.parameters),), torch.float32)
    if schema.times:
        specs["time"] = ((1,), torch.float32)
    return specs


def frames_of(block: Block, schema: Schema) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The frames of a block's valid samples: keys int64 (n,) and float32 arrays (n, *shape), n = samples · steps.

    Key = sample id · steps + step; frames are ordered by sample, then step.  Fields of a stationary problem are views
    when every sample is valid; outputs in time are views too, inputs and parameters are repeated for each step.  "time"
    is physical, [s].  Samples that are not valid have no frames.
    """
    rows = block.valid_rows
    steps = schema.steps
    ids = block.sample_ids[rows].astype(np.int64)
    keys = (ids[:, None] * steps + np.arange(steps)).reshape(-1)
    constant = {field.name: _pick(block.arrays[field.name], rows) for field in schema.inputs}
    constant["parameters"] = _pick(block.arrays["parameters"], rows).astype(np.float32)
    arrays = {name: np.repeat(a, steps, axis=0) if schema.times else a for name, a in constant.items()}
    for field in schema.outputs:
        arrays[field.name] = _pick(block.arrays[field.name], rows).reshape(len(keys), *field.shape)
    if schema.times:
        arrays["time"] = np.tile(np.asarray(schema.times, np.float32), len(rows))[:, None]
    return keys, arrays


def _pick(array: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return array if len(rows) == len(array) else array[rows]

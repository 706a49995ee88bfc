"""Blocks of samples as frames: the unit of training, one (sample, time step) pair each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from forebay.pipeline.messages import BlockKey
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


def frames_of(block: Block, schema: Schema, device: torch.device | None = None) -> tuple[np.ndarray, dict[str, Any]]:
    """The frames of a block's valid samples: keys int64 (n,) and float32 arrays (n, *shape), n = samples · steps.

    Key = sample id · steps + step; frames are ordered by sample, then step.  Fields of a stationary problem are views
    when every sample is valid; outputs in time are views too, inputs and parameters are repeated for each step.  "time"
    is physical, [s].  Samples that are not valid have no frames.  Arrays are numpy's, but outputs that lie on `device`
    already (`Block.resident`) are its tensors.
    """
    rows = block.valid_rows
    steps = schema.steps
    ids = block.sample_ids[rows].astype(np.int64)
    keys = (ids[:, None] * steps + np.arange(steps)).reshape(-1)
    constant = {field.name: _pick(block.arrays[field.name], rows) for field in schema.inputs}
    constant["parameters"] = _pick(block.arrays["parameters"], rows).astype(np.float32)
    arrays = {name: np.repeat(a, steps, axis=0) if schema.times else a for name, a in constant.items()}
    for field in schema.outputs:
        whole = block.resident.get(field.name)
        if whole is None or whole.device != device:
            whole = block.arrays[field.name]
        arrays[field.name] = _pick(whole, rows).reshape(len(keys), *field.shape)
    if schema.times:
        arrays["time"] = np.tile(np.asarray(schema.times, np.float32), len(rows))[:, None]
    return keys, arrays


def frames_by_key(
    load: Callable[[BlockKey], Block], schema: Schema, samples_per_chunk: int
) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """A function from keys of training frames to their arrays, (n, *shape) each, which reads chunk by chunk."""
    size = samples_per_chunk * schema.steps

    def fetch(keys: np.ndarray) -> dict[str, np.ndarray]:
        rows: dict[str, np.ndarray] = {}
        for chunk in np.unique(keys // size):
            have, arrays = frames_of(load(("train", int(chunk))), schema)
            want = np.flatnonzero(keys // size == chunk)
            source = np.searchsorted(have, keys[want])
            for name, array in arrays.items():
                rows.setdefault(name, np.empty((len(keys), *array.shape[1:]), array.dtype))[want] = array[source]
        return rows

    return fetch


def tensor_of(array: Any) -> torch.Tensor:
    """A tensor as it is; of a numpy array one that shares its memory, read-only or not."""
    return array if isinstance(array, torch.Tensor) else torch.from_numpy(_writable(array))


def _pick(array: Any, rows: np.ndarray) -> Any:
    return array if len(rows) == len(array) else array[rows]


class _Alias:
    """Gives numpy the memory of a read-only array as if it were writable, and keeps the array alive."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.__array_interface__ = {**array.__array_interface__, "data": (array.ctypes.data, False)}


def _writable(array: np.ndarray) -> np.ndarray:
    # torch.from_numpy warns, once a process, when the memory is read-only, as that of Ray's object store is.  We only
    # read; the alternatives are a copy of every block or a warnings filter, which is not thread-safe.
    return array if array.flags.writeable else np.asarray(_Alias(array))

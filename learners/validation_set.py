"""The frames that a surrogate is judged on."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from forebay.learners.evaluate import Evaluation, examples
from forebay.learners.frames import frames_of, tensor_of
from forebay.learners.surrogate import Surrogate
from forebay.pipeline.errors import RunError
from forebay.pipeline.records import Block, Schema


@dataclass(slots=True, eq=False)
class ValidationSet:
    """Blocks of the validation split, kept on the learner's device."""

    schema: Schema
    device: torch.device
    samples: int
    """As many as the study asks for."""
    _parts: dict[int, tuple[np.ndarray, dict[str, torch.Tensor]]] = field(default_factory=dict, init=False)

    def add(self, block: Block) -> None:
        """Keep a block; the same chunk twice is kept once."""
        keys, arrays = frames_of(block, self.schema, self.device)
        self._parts[block.chunk] = keys, {n: tensor_of(a).to(self.device, copy=True) for n, a in arrays.items()}

    def frames(self) -> tuple[np.ndarray, dict[str, torch.Tensor]]:
        """Keys and arrays of all valid frames, in the order of samples.

        Raises:
            RunError: no sample is valid.
        """
        parts = [self._parts[chunk] for chunk in sorted(self._parts)]
        if not sum(len(keys) for keys, _ in parts):
            raise RunError(
                f"none of the {self.samples} validation samples is valid, so nothing can be judged; see the outcomes "
                f"of the dropped samples"
            )
        keys = np.concatenate([k for k, _ in parts])
        return keys, {name: torch.cat([arrays[name] for _, arrays in parts]) for name in parts[0][1]}

    def keep_examples(self, path: Path, surrogate: Surrogate, evaluation: Evaluation) -> None:
        """Leave some predictions beside the truth, as .npz, for the report."""
        keys, data = self.frames()
        shown = examples(surrogate, data, evaluation)
        steps = self.schema.steps
        extra: dict[str, Any] = shown | {"sample_ids": keys[shown["rows"]] // steps}
        if self.schema.times:
            extra["time"] = np.asarray(self.schema.times)[keys[shown["rows"]] % steps]
        for coordinate in self.schema.coordinates:
            extra[f"coordinates/{coordinate.name}"] = coordinate.values
        np.savez_compressed(path, **extra)

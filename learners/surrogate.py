"""What a learner is told of a problem (`IOSpec`), and what a user ships (`Surrogate`)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from forebay.learners.models import build_model
from forebay.learners.normalise import Normaliser
from forebay.pipeline.errors import ProblemError

if TYPE_CHECKING:
    from forebay.pipeline.records import Schema

FrameBatch = Mapping[str, Tensor]
"""Frames by name: fields (b, *shape), "parameters" (b, p), and "time" (b, 1) when the problem is transient."""

_MESH_AXES = frozenset({"node", "cell", "element", "facet", "dof", "point"})
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One field of a frame: name, axes, shape without batch and time, units."""

    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    units: str = "1"

    @property
    def size(self) -> int:
        """Values in one frame."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class IOSpec:
    """What goes into a surrogate and what comes out of it.

    Input fields that live on the outputs' grid become channels; others (a coefficient per cell beside a solution per
    node, a boundary trace) are flattened and join the scalars.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parameters: tuple[str, ...]
    times: tuple[float, ...] = ()
    """Physical times of the frames, [s]; empty for a stationary problem."""
    spacing: tuple[float, ...] | None = None
    """Distance between neighbours along every axis of the grid; None on a mesh or where it varies."""
    structured: bool = True
    """Are the outputs on a grid of one or more axes, rather than on the nodes of a mesh?"""

    @classmethod
    def from_schema(cls, schema: Schema) -> IOSpec:
        """Read the interface off a problem's schema.

        Raises:
            ProblemError: no output field, or output fields on different grids.
        """
        inputs = tuple(TensorSpec(f.name, f.dims, f.shape, f.units) for f in schema.inputs)
        outputs = tuple(TensorSpec(f.name, f.dims, f.shape, f.units) for f in schema.outputs)
        if not outputs:
            raise ProblemError("the schema has no output field, so there is nothing to learn; name one in `outputs`")
        if len({(f.dims, f.shape) for f in outputs}) > 1:
            grids = ", ".join(f"{f.name!r} on {dict(zip(f.dims, f.shape, strict=True))}" for f in outputs)
            raise ProblemError(
                f"output fields {grids} differ in their grids; one surrogate predicts fields of one grid: "
                "choose some by learner.fields, or interpolate them to a common grid in the problem's `fields`"
            )
        dims = outputs[0].dims
        return cls(
            inputs=inputs,
            outputs=outputs,
            parameters=tuple(p.name for p in schema.parameters),
            times=tuple(schema.times),
            spacing=_spacing(schema, dims),
            structured=_is_structured(schema, dims),
        )

    @property
    def grid(self) -> tuple[int, ...]:
        """Shape of every output field."""
        return self.outputs[0].shape

    @property
    def transient(self) -> bool:
        """Is there a time among the scalars?"""
        return bool(self.times)

    @property
    def channels(self) -> tuple[TensorSpec, ...]:
        """Input fields on the outputs' grid; C of them."""
        return tuple(f for f in self.inputs if self._on_grid(f))

    @property
    def vectors(self) -> tuple[TensorSpec, ...]:
        """Input fields elsewhere."""
        return tuple(f for f in self.inputs if not self._on_grid(f))

    @property
    def scalars(self) -> int:
        """S = parameters + time + values of flattened fields."""
        return len(self.parameters) + int(self.transient) + sum(f.size for f in self.vectors)

    def _on_grid(self, item: TensorSpec) -> bool:
        return item.dims == self.outputs[0].dims and item.shape == self.grid

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        as_list = {key: [_tensor_dict(f) for f in getattr(self, key)] for key in ("inputs", "outputs")}
        return as_list | {
            "parameters": list(self.parameters),
            "times": list(self.times),
            "spacing": None if self.spacing is None else list(self.spacing),
            "structured": self.structured,
        }

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> IOSpec:
        """The inverse of `to_dict`."""
        return cls(
            inputs=tuple(_tensor_spec(f) for f in tree["inputs"]),
            outputs=tuple(_tensor_spec(f) for f in tree["outputs"]),
            parameters=tuple(tree["parameters"]),
            times=tuple(tree["times"]),
            spacing=None if tree["spacing"] is None else tuple(tree["spacing"]),
            structured=tree["structured"],
        )


@dataclass(frozen=True, slots=True)
class SurrogateConfig:
    """Everything needed to build a surrogate again, without its weights."""

    io: IOSpec
    model: str = "fno"
    options: Mapping[str, Any] = field(default_factory=dict)
    """The table `[learner.model]` without its name."""
    freeze_after: int = 1000
    """Frames after which the normaliser no longer moves."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "format": _FORMAT,
            "model": self.model,
            "options": {key: list(v) if isinstance(v, tuple) else v for key, v in self.options.items()},
            "freeze_after": self.freeze_after,
            "io": self.io.to_dict(),
        }

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> SurrogateConfig:
        """The inverse of `to_dict`.

        Raises:
            ValueError: written by a later version.
        """
        if tree["format"] != _FORMAT:
            raise ValueError(
                f"surrogate format {tree['format']} is not {_FORMAT}; read it with the version that wrote it"
            )
        return cls(IOSpec.from_dict(tree["io"]), tree["model"], tree["options"], tree["freeze_after"])


class Surrogate(nn.Module):
    """Normaliser and model: physical inputs to physical outputs.

        û = μ_u + σ_u · M((a - μ_a) / σ_a, (θ - μ_θ) / σ_θ)

    Args:
        config: interface, architecture, options.
        seed: of the initial weights; the global generator is left alone.

    Raises:
        StudyError: an option that the architecture refuses, or an architecture that this problem cannot have.
    """

    def __init__(self, config: SurrogateConfig, *, seed: int = 2026) -> None:
        super().__init__()
        self.config = config
        self.io = config.io
        self.normaliser = Normaliser(config.io, freeze_after=config.freeze_after)
        self.model = build_model(config.model, config.options, config.io, seed=seed)

    def forward(self, batch: FrameBatch) -> dict[str, Tensor]:
        """Every output field (b, *grid) by name, in physical units."""
        channels = self.normaliser.restore(self.model(*self.normaliser.encode(batch)))
        return {item.name: channels[:, i] for i, item in enumerate(self.io.outputs)}

    def observe(self, arrays: Mapping[str, Any]) -> bool:
        """Let the normaliser learn from valid samples or frames; False once it is frozen."""
        return self.normaliser.update(arrays)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.normaliser.moments.device

    @property
    def weights_count(self) -> int:
        """Number of trained values."""
        return sum(p.numel() for p in self.model.parameters())

    @torch.no_grad()
    def predict(self, inputs: Mapping[str, np.ndarray], *, batch_size: int = 64) -> dict[str, np.ndarray]:
        """Outputs (n, *grid), float32, for inputs of n frames given as numpy arrays.

        `inputs` has every input field (n, *shape), "parameters" (n, p) when there are any, and "time" (n, 1), [s], when
        the problem is transient.  An architecture that is not bound to its training grid (`any_grid`) takes fields of
        another resolution.

        Raises:
            ValueError: a missing array or a wrong shape.
        """
        tensors = {name: torch.as_tensor(np.asarray(array, np.float32)) for name, array in inputs.items()}
        self._check(tensors)
        count = next(iter(tensors.values())).shape[0]
        was_training = self.training
        self.eval()
        parts = []
        for start in range(0, count, batch_size):
            part = {name: t[start : start + batch_size].to(self.device) for name, t in tensors.items()}
            parts.append({name: t.cpu().numpy() for name, t in self(part).items()})
        self.train(was_training)
        return {item.name: np.concatenate([part[item.name] for part in parts]) for item in self.io.outputs}

    def _check(self, tensors: Mapping[str, Tensor]) -> None:
        expected: dict[str, tuple[int, ...]] = {f.name: f.shape for f in self.io.inputs}
        if self.io.parameters:
            expected["parameters"] = (len(self.io.parameters),)
        if self.io.transient:
            expected["time"] = (1,)
        free = {f.name for f in self.io.channels} if getattr(self.model, "any_grid", False) else set()
        missing = [name for name in expected if name not in tensors]
        if missing:
            raise ValueError(f"inputs lack {missing}; give every one of {list(expected)}")
        counts = {tensors[name].shape[0] for name in expected if tensors[name].ndim}
        for name, shape in expected.items():
            got = tuple(tensors[name].shape)
            same = len(got) == len(shape) + 1 and (name in free or got[1:] == shape)
            if not same or len(counts) > 1 or 0 in counts:
                wanted = ", ".join(["n >= 1", *map(str, shape)])
                raise ValueError(
                    f"input {name!r} has shape {got}; it should be ({wanted}) with the same n for all inputs"
                )

    def save(self, folder: Path | str) -> Path:
        """Write `weights.safetensors` and `surrogate.json`; the folder is complete or absent."""
        from forebay.learners.weights import save_surrogate

        return save_surrogate(self, Path(folder))

    @classmethod
    def load(cls, folder: Path | str, *, device: str | torch.device = "cpu") -> Surrogate:
        """Read what `save` wrote, or the newest state of a checkpoint folder."""
        from forebay.learners.weights import load_surrogate

        return load_surrogate(Path(folder), device=device)


def _tensor_dict(item: TensorSpec) -> dict[str, Any]:
    return {"name": item.name, "dims": list(item.dims), "shape": list(item.shape), "units": item.units}


def _tensor_spec(tree: Mapping[str, Any]) -> TensorSpec:
    return TensorSpec(tree["name"], tuple(tree["dims"]), tuple(tree["shape"]), tree["units"])


def _is_structured(schema: Schema, dims: tuple[str, ...]) -> bool:
    if _MESH_AXES.intersection(dims):
        return False
    # Several coordinates along the only axis (x and y of every point) mean scattered points, whatever its name.
    return len(dims) > 1 or sum(c.dims == dims for c in schema.coordinates) <= 1


def _spacing(schema: Schema, dims: tuple[str, ...]) -> tuple[float, ...] | None:
    if not _is_structured(schema, dims):
        return None
    axes = {c.name: np.asarray(c.values, np.float64) for c in schema.coordinates if c.dims == (c.name,)}
    steps = [np.diff(axes[dim]) if dim in axes else np.empty(0) for dim in dims]
    uniform = all(step.size and np.allclose(step, step[0], rtol=1e-4, atol=0) for step in steps)
    return tuple(float(abs(step.mean())) for step in steps) if uniform else None


def config_json(config: SurrogateConfig) -> str:
    """The configuration as indented JSON."""
    return json.dumps(config.to_dict(), indent=2)

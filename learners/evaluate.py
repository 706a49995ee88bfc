"""How good a surrogate is on frames that it was not trained on."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from forebay.learners.losses import relative_l2
from forebay.learners.surrogate import FrameBatch, Surrogate


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """Relative L2 errors ‖û - u‖₂ / ‖u‖₂ in physical units, dimensionless."""

    errors: np.ndarray
    """(n,) float64: every frame's error, mean over the output fields; inf where a prediction is not finite."""
    by_output: Mapping[str, np.ndarray]
    """The same for every output field."""
    seconds: float
    """Wall time of predicting and comparing."""

    @property
    def mean(self) -> float:
        """Mean over frames."""
        return float(self.errors.mean())

    @property
    def p99(self) -> float:
        """99th percentile over frames: an error that one frame in a hundred reaches (no interpolation)."""
        return float(np.percentile(self.errors, 99, method="higher"))

    @property
    def max(self) -> float:
        """Worst frame."""
        return float(self.errors.max())

    @property
    def representatives(self) -> dict[str, int]:
        """Positions of the best, the median (lower of two) and the worst frame."""
        order = np.argsort(self.errors, kind="stable")
        return {"best": int(order[0]), "median": int(order[(len(order) - 1) // 2]), "worst": int(order[-1])}

    def summary(self) -> dict[str, float]:
        """Numbers for metrics and reports."""
        return {
            "relative_l2": self.mean,
            "relative_l2_p99": self.p99,
            "relative_l2_max": self.max,
            "frames": float(len(self.errors)),
            "seconds": self.seconds,
        }


@torch.no_grad()
def evaluate(surrogate: Surrogate, data: FrameBatch, batch_size: int = 64) -> Evaluation:
    """Compare predictions with the reference for all frames of `data`.

    Predictions are made in float32 whatever precision training uses.  A reference that is zero everywhere has no
    relative error; it is measured against 1e-6 of the field's deviation, so it shows as a large value.

    Raises:
        ValueError: no frames, or an output field missing from `data`.
    """
    started = time.perf_counter()
    count = _frames(surrogate, data)
    scale = surrogate.normaliser.output_scale
    columns: dict[str, list[Tensor]] = {item.name: [] for item in surrogate.io.outputs}
    was_training = surrogate.training
    surrogate.eval()
    for start in range(0, count, batch_size):
        batch = _slice(data, slice(start, start + batch_size), surrogate.device)
        for name, field in surrogate(batch).items():
            columns[name].append(relative_l2(field.double(), batch[name].double(), scale(name).double()).cpu())
    surrogate.train(was_training)
    by_output = {name: _finite(torch.cat(parts).numpy()) for name, parts in columns.items()}
    errors = np.mean(list(by_output.values()), axis=0)
    return Evaluation(errors, by_output, time.perf_counter() - started)


@torch.no_grad()
def examples(surrogate: Surrogate, data: FrameBatch, evaluation: Evaluation) -> dict[str, np.ndarray]:
    """The best, the median and the worst frame as arrays with a leading axis of length 3.

    "labels", "rows" (positions in `data`), "errors", "input/<name>", "reference/<name>", "prediction/<name>", and
    "parameters" and "time" where the problem has them; fields in physical units.
    """
    chosen = evaluation.representatives
    rows = np.array(list(chosen.values()))
    batch = {name: values[torch.from_numpy(rows)].to(surrogate.device) for name, values in data.items()}
    predictions = surrogate(batch)
    arrays = {f"input/{item.name}": batch[item.name] for item in surrogate.io.inputs}
    for item in surrogate.io.outputs:
        arrays[f"reference/{item.name}"] = batch[item.name]
        arrays[f"prediction/{item.name}"] = predictions[item.name]
    arrays |= {name: batch[name] for name in ("parameters", "time") if name in batch}
    shown = {name: values.cpu().numpy() for name, values in arrays.items()}
    return {"labels": np.array(list(chosen)), "rows": rows, "errors": evaluation.errors[rows]} | shown


def _frames(surrogate: Surrogate, data: FrameBatch) -> int:
    missing = [item.name for item in surrogate.io.outputs if item.name not in data]
    if missing:
        raise ValueError(f"evaluation data lack the output fields {missing}; they have {sorted(data)}")
    count = data[surrogate.io.outputs[0].name].shape[0]
    if not count:
        raise ValueError("evaluation data have no frames; a validation set needs at least one valid sample")
    return count


def _slice(data: FrameBatch, rows: slice, device: torch.device) -> dict[str, Tensor]:
    return {name: values[rows].to(device) for name, values in data.items()}


def _finite(errors: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(errors), errors, np.inf)

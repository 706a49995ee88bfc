"""What is kept of a learner: safetensors and JSON, never pickle.

A checkpoint is a folder `batch_0000001200/`:

    weights.safetensors     the surrogate's state dict: weights, and the normaliser's moments in float64
    optimiser.safetensors   AdamW's moments by weight name, generator states as bytes
    state.json              counters, options, architecture, interface, what the caller adds, and both files' SHA-256

It is written under another name, flushed to disk and renamed, so a reader finds a whole checkpoint or none.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from forebay.learners.step import TrainOptions, TrainState, make_state
from forebay.learners.surrogate import FrameBatch, Surrogate, SurrogateConfig, config_json
from forebay.pipeline.errors import RunError

logger = logging.getLogger(__name__)

_WEIGHTS = "weights.safetensors"
_OPTIMISER = "optimiser.safetensors"
_STATE = "state.json"
_SURROGATE = "surrogate.json"
_NAME = re.compile(r"batch_(\d{10})")
_INCOMING = ".incoming-"
_RETIRED = ".retired-"
_FORMAT = 1


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """A restored state and what the caller had stored with it."""

    path: Path
    state: TrainState
    extra: Mapping[str, Any]
    """JSON values, for example the state of the ring."""
    generators: Mapping[str, Tensor]
    """States for `torch.Generator.set_state`."""


def save_checkpoint(
    root: Path,
    state: TrainState,
    *,
    extra: Mapping[str, Any] | None = None,
    generators: Mapping[str, torch.Generator] | None = None,
    keep: int = 2,
) -> Path:
    """Write a checkpoint into `root`, durable on return, then remove all but the newest `keep`.

    Raises:
        RunError: the file system refuses; earlier checkpoints are untouched.
    """
    target = root / f"batch_{state.batches:010d}"

    def fill(folder: Path) -> None:
        weights = _contiguous(state.surrogate.state_dict())
        moments = _optimiser_tensors(state) | {f"generator.{n}": g.get_state() for n, g in (generators or {}).items()}
        save_file(weights, folder / _WEIGHTS)
        save_file(moments, folder / _OPTIMISER)
        tree = _state_tree(state, extra or {}) | {"sha256": {n: _digest(folder / n) for n in (_WEIGHTS, _OPTIMISER)}}
        (folder / _STATE).write_text(json.dumps(tree, indent=2), encoding="utf-8")

    _publish(target, fill)
    _prune(root, keep)
    return target


def load_checkpoint(
    path: Path,
    *,
    device: str | torch.device = "cpu",
    options: TrainOptions | None = None,
    wrap: Callable[[Surrogate], Callable[[FrameBatch], dict[str, Tensor]] | None] = lambda surrogate: None,
) -> Checkpoint:
    """Rebuild surrogate, optimiser and counters; on the CPU training goes on bit for bit as if it had not stopped.

    Args:
        path: one checkpoint's folder.
        device: where the weights go.
        options: training options in place of the stored ones (a longer schedule, say).
        wrap: what training calls in the surrogate's place, as `forward` of `step.make_state`.

    Raises:
        RunError: the checkpoint is incomplete or damaged.
    """
    fault = find_fault(path)
    if fault:
        raise RunError(f"checkpoint {path} cannot be used: {fault}; use an earlier one")
    tree = json.loads((path / _STATE).read_text(encoding="utf-8"))
    surrogate = _restore_surrogate(SurrogateConfig.from_dict(tree["surrogate"]), path / _WEIGHTS, device)
    state = make_state(surrogate, options or TrainOptions.from_table(tree["options"]), forward=wrap(surrogate))
    tensors = load_file(path / _OPTIMISER)
    _load_optimiser(state, tensors)
    counters = {key: tree[key] for key in ("batches", "skipped", "skipped_in_a_row")}
    generators = {n.removeprefix("generator."): t for n, t in tensors.items() if n.startswith("generator.")}
    return Checkpoint(path, replace(state, **counters), tree["extra"], generators)


def latest_checkpoint(root: Path) -> Path | None:
    """The newest whole checkpoint of a folder; torn ones are passed over with a warning."""
    for path in reversed(_checkpoints(root)):
        fault = find_fault(path)
        if fault is None:
            return path
        logger.warning("checkpoint %s is ignored: %s", path, fault)
    return None


def find_fault(path: Path) -> str | None:
    """Why a checkpoint cannot be trusted, or None."""
    try:
        tree = json.loads((path / _STATE).read_text(encoding="utf-8"))
        if tree["format"] != _FORMAT:
            return f"its format is {tree['format']}, this version reads {_FORMAT}"
        for name, digest in tree["sha256"].items():
            if _digest(path / name) != digest:
                return f"{name} does not match its checksum"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        return f"{_STATE} is damaged ({error!r})"
    return None


def save_surrogate(surrogate: Surrogate, folder: Path) -> Path:
    """Write what a user ships: `weights.safetensors` and `surrogate.json`, replacing an earlier one of the same folder.

    Raises:
        RunError: the file system refuses, or the folder holds something else.
    """
    if folder.exists() and not (folder / _SURROGATE).exists() and any(folder.iterdir()):
        raise RunError(f"folder {folder} holds other files, a surrogate would replace them; name a new folder")

    def fill(incoming: Path) -> None:
        save_file(_contiguous(surrogate.state_dict()), incoming / _WEIGHTS)
        (incoming / _SURROGATE).write_text(config_json(surrogate.config), encoding="utf-8")

    _publish(folder, fill)
    return folder


def same_weights(first: Path, second: Path) -> bool | None:
    """Do two folders of shipped surrogates hold the same tensors, bit for bit?  None where one holds none."""
    if not all((folder / _WEIGHTS).exists() for folder in (first, second)):
        return None
    a, b = load_file(first / _WEIGHTS), load_file(second / _WEIGHTS)
    return a.keys() == b.keys() and all(a[name].equal(b[name]) for name in a)


def load_surrogate(folder: Path, *, device: str | torch.device = "cpu") -> Surrogate:
    """Read a shipped surrogate, a checkpoint, or the newest of a folder of checkpoints.

    Raises:
        RunError: nothing of the kind there.
    """
    if (folder / _SURROGATE).exists():
        config = SurrogateConfig.from_dict(json.loads((folder / _SURROGATE).read_text(encoding="utf-8")))
        return _restore_surrogate(config, folder / _WEIGHTS, device)
    path = folder if (folder / _STATE).exists() else latest_checkpoint(folder)
    if path is None:
        raise RunError(
            f"{folder} holds neither a surrogate nor a checkpoint; name the folder that `save` or a run wrote"
        )
    return load_checkpoint(path, device=device).state.surrogate


def _restore_surrogate(config: SurrogateConfig, weights: Path, device: str | torch.device) -> Surrogate:
    surrogate = Surrogate(config)
    surrogate.load_state_dict(load_file(weights))
    return surrogate.to(device)


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _state_tree(state: TrainState, extra: Mapping[str, Any]) -> dict[str, Any]:
    normaliser = state.surrogate.normaliser
    return {
        "format": _FORMAT,
        "batches": state.batches,
        "skipped": state.skipped,
        "skipped_in_a_row": state.skipped_in_a_row,
        "options": asdict(state.options),
        "surrogate": state.surrogate.config.to_dict(),
        "normaliser": {
            "frames": int(normaliser.frames),
            "frozen": bool(normaliser.frozen),
            "statistics": normaliser.statistics(),
        },
        "extra": dict(extra),
    }


def _optimiser_tensors(state: TrainState) -> dict[str, Tensor]:
    moments = state.optimiser.state
    tensors = {
        f"{kind}.{name}": value
        for name, weight in state.surrogate.model.named_parameters()
        for kind, value in moments.get(weight, {}).items()
    }
    return _contiguous(tensors)


def _load_optimiser(state: TrainState, tensors: Mapping[str, Tensor]) -> None:
    names = {weight: name for name, weight in state.surrogate.model.named_parameters()}
    tree = state.optimiser.state_dict()
    ordered = [weight for group in state.optimiser.param_groups for weight in group["params"]]
    kinds = ("step", "exp_avg", "exp_avg_sq")
    tree["state"] = {
        i: {kind: tensors[f"{kind}.{names[weight]}"] for kind in kinds}
        for i, weight in enumerate(ordered)
        if f"step.{names[weight]}" in tensors
    }
    state.optimiser.load_state_dict(tree)


def _publish(target: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` write into a new folder, then put it in the place of `target`."""
    incoming = target.with_name(_INCOMING + target.name)
    retired = target.with_name(_RETIRED + target.name)
    try:
        for leftover in (incoming, retired):
            shutil.rmtree(leftover, ignore_errors=True)
        incoming.mkdir(parents=True)
        fill(incoming)
        for path in (*incoming.iterdir(), incoming):
            _flush(path)
        if target.exists():
            target.rename(retired)
        incoming.rename(target)
        _flush(target.parent)
        shutil.rmtree(retired, ignore_errors=True)
    except (OSError, SafetensorError) as error:  # safetensors wraps the system's errors in its own
        shutil.rmtree(incoming, ignore_errors=True)
        if retired.exists() and not target.exists():
            retired.rename(target)
        reason = getattr(error, "strerror", None) or error
        raise RunError(
            f"{target} could not be written: {reason}; free space or check permissions, then resume: "
            "what was saved before is untouched"
        ) from error


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _checkpoints(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if _NAME.fullmatch(p.name)) if root.is_dir() else []


def _prune(root: Path, keep: int) -> None:
    """Remove old checkpoints, and what killed processes left behind; the run's one learner is the only writer."""
    leftovers = [path for path in root.iterdir() if path.name.startswith((_INCOMING, _RETIRED))]
    for path in _checkpoints(root)[: -max(keep, 1)] + leftovers:
        shutil.rmtree(path)

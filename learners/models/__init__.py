"""Architectures by name.

A model maps normalised fields (b, C, *grid) and scalars (b, S) to normalised outputs (b, O, *grid).  Each is made from
a frozen dataclass of options, which checks itself against a problem (`check`) before anything is built (`build`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from forebay.learners.models.fno import FNOOptions
from forebay.learners.models.mlp import MLPOptions
from forebay.learners.models.unet import UNetOptions
from forebay.learners.options import OptionCard, describe_options, read_options
from forebay.pipeline.errors import StudyError

if TYPE_CHECKING:
    from forebay.learners.surrogate import IOSpec


class ModelOptions(Protocol):
    """Options of one architecture."""

    def check(self, io: IOSpec) -> None:
        """Raise StudyError when the architecture cannot serve this problem."""
        ...

    def build(self, io: IOSpec) -> nn.Module:
        """The network with fresh weights."""
        ...


@dataclass(frozen=True, slots=True)
class ModelCard:
    """One architecture as the command line shows it."""

    name: str
    summary: str
    options: tuple[OptionCard, ...]


MODELS: Mapping[str, type[ModelOptions]] = {"fno": FNOOptions, "mlp": MLPOptions, "unet": UNetOptions}
"""What `learner.model.name` may say."""


def check_model(name: str, options: Mapping[str, Any], io: IOSpec) -> ModelOptions:
    """Validate options against a problem without building anything.

    Raises:
        StudyError: unknown name or key, a value out of range, or an architecture that does not fit the problem's grid.
    """
    if name not in MODELS:
        raise StudyError(f"learner.model.name = {name!r} is not a known model; choose one of {', '.join(MODELS)}")
    config = read_options(MODELS[name], options, where="learner.model")
    config.check(io)
    return config


def build_model(name: str, options: Mapping[str, Any], io: IOSpec, *, seed: int = 2026) -> nn.Module:
    """A network with weights drawn from `seed`; torch's global generator is left as it was.

    Raises:
        StudyError: as `check_model`.
    """
    config = check_model(name, options, io)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return config.build(io)


def describe_models() -> tuple[ModelCard, ...]:
    """Every architecture with its options."""
    return tuple(
        ModelCard(name, (cls.__doc__ or "").strip().splitlines()[0], describe_options(cls))
        for name, cls in MODELS.items()
    )

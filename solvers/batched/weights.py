"""Which weights a study means: none, those shipped, a file, or the latest version that the run has trained."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forebay.pipeline.errors import StudyError

ONLINE, SHIPPED = "online", "shipped"
NAMED_WEIGHTS = ("", ONLINE, SHIPPED)
"""What `solver.learned` may say besides a file."""


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights and the name that records give them."""

    value: Any
    """A `kernels.grid_weights.GridWeights`, or a `kernels.amg.weights.AmgWeights`."""
    name: str
    """"learned-v0003" of a version, "learned-shipped", else "learned-" and the head of the digest; one word."""


def load_weights(learned: str, dimension: int) -> Weights | None:
    """What `solver.learned` names for grids of that dimension; None for none, and for those still to be trained.

    Raises:
        StudyError: the file is missing, damaged, or of another version or dimension.
    """
    if learned in ("", ONLINE):
        return None
    from forebay.kernels.grid_weights import GridWeights
    from forebay.kernels.weight_file import WeightsError

    try:
        value = GridWeights.shipped(dimension) if learned == SHIPPED else GridWeights.load(Path(learned))
        value.require_dimension(dimension)
    except (WeightsError, OSError) as error:
        raise StudyError(f"solver.learned = {learned!r} cannot be used: {error}{_hint(learned)}") from error
    return Weights(value, "learned-shipped" if learned == SHIPPED else _name(value))


def load_aggregation_weights(learned: str) -> Weights | None:
    """What `solver.learned` names for smoothed aggregation, what a run's training begins with included; None for none.

    Raises:
        StudyError: the file is missing, damaged, or of another kind or version.
    """
    if not learned:
        return None
    from forebay.kernels.amg.weights import AmgWeights
    from forebay.kernels.weight_file import WeightsError

    try:
        value = AmgWeights.shipped() if learned in (SHIPPED, ONLINE) else AmgWeights.load(Path(learned))
    except (WeightsError, OSError) as error:
        raise StudyError(f"solver.learned = {learned!r} cannot be used: {error}{_hint(learned)}") from error
    return Weights(value, "learned-shipped" if learned in (SHIPPED, ONLINE) else _name(value))


def _hint(learned: str) -> str:
    """The name that a file which is not there may have been meant for; its folder is the study's, not the user's."""
    path = Path(learned)
    near = [] if path.exists() else difflib.get_close_matches(path.name, (ONLINE, SHIPPED), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _name(value: Any) -> str:
    return f"learned-v{value.version:04d}" if value.version else f"learned-{value.digest[:8]}"


@dataclass(slots=True)
class WeightsFolder:
    """Versions vNNNN.safetensors that a trainer publishes while the run goes on; the largest number is the latest."""

    path: Path
    load: Callable[[str], Weights | None]
    """Reads a file, by its name."""
    _seen: int = 0

    def newer(self) -> Weights | None:
        """The latest version if it is newer than the one returned before, else None.

        Raises:
            StudyError: it cannot be used.
        """
        from forebay.kernels.weight_file import latest_version

        latest = latest_version(self.path)
        if latest is None or latest[0] <= self._seen:
            return None
        self._seen = latest[0]
        return self.load(str(latest[1]))

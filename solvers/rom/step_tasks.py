"""A sample some of whose steps are solved in full: its full half, in this process or as MPI tasks on several.

`Adaptation` is collective over the model's communicator.  `solve_step` and `finish_steps` have the signature of an MPI
task (`cluster.mpi`); between them the ranks keep the adaptation, and sleep.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from forebay.pipeline.stages import Draw
from forebay.solvers.fem.solid_types import SolveError
from forebay.solvers.materials.history import History
from forebay.solvers.materials.law import Law
from forebay.solvers.rom.basis import Settings
from forebay.solvers.rom.errors import Judgement, judge_steps
from forebay.solvers.rom.full_steps import FullSteps
from forebay.solvers.rom.growth import Growth, Place
from forebay.solvers.rom.library import Library
from forebay.solvers.rom.march import Decision, FullHalf, Kept, March, Refused, Scales, Taught, Tolerance
from forebay.solvers.rom.offline import CubatureError
from forebay.solvers.rom.package import RomPackage
from forebay.solvers.rom.tasks import FullSample, FullSolveError, history_of, in_order, model_of, told_of_history

if TYPE_CHECKING:
    from forebay.solvers.fem.solid import SolidModel

_adaptations: dict[str, Adaptation] = {}
"""The one that these ranks are at, by its token."""


@dataclass(frozen=True, slots=True, eq=False)
class SteppedSample:
    """What is left when the last step is known."""

    fields: FullSample
    """Iterations and residual are those of the full steps."""
    sizes: np.ndarray
    """L2 norms of displacement and p at all times, (s + 1, 2)."""


class FullHalfOfSample(FullHalf, Protocol):
    """The full half of one sample, wherever it is."""

    def finish(self, kept: Kept) -> SteppedSample:
        """Publish the version that knows the full steps; `kept` are the reduced ones after the last of them.

        Raises:
            FullSolveError: the fields could not be had.
            CubatureError: the enriched cubature misses its tolerance.
        """
        ...


class Adaptation:
    """Full steps of one sample, and the version that they lead to; collective.

    Raises:
        HistoryError: the sample's history is at fault.
        RunError: the version's basis has been removed, or is damaged.
    """

    def __init__(self, model: SolidModel, growth: Growth, draw: Draw, base: Place) -> None:
        self._model, self._growth, self._draw, self._base = model, growth, draw, base
        history = history_of(growth.problem, draw)
        self._steps = FullSteps(model, growth.known(model, base), growth.origin(base.version), history)

    def solve(self, k: int, kept: Kept, refused: Refused | None, peak: float, *, enrich: bool = True) -> Taught:
        """As `FullSteps.solve`.

        Raises:
            FullSolveError: the full model fails.
            HistoryError, CubatureError: as `tasks.solve_and_learn`.
        """
        with _told_of_failure(), told_of_history():
            return self._steps.solve(k, kept, refused, peak, enrich=enrich)

    def finish(self, kept: Kept) -> SteppedSample:
        """As `FullHalfOfSample.finish`; arrays of the fields are None but on the first process."""
        steps, model = self._steps, self._model
        steps.extend(kept)
        steps.settle()
        sizes = steps.sizes()
        version = self._growth.learn_steps(model, self._draw, steps, self._base)
        displacement = in_order(model, np.array(steps.displacement), model.dof_ids)
        p = in_order(model, np.array(steps.p), model.point_ids)
        return SteppedSample(FullSample(displacement, p, steps.iterations, steps.residual, version), sizes)


@dataclass(frozen=True, slots=True, eq=False)
class AdaptedSample:
    """A sample that was solved step by step."""

    judgement: Judgement
    fields: FullSample | None
    """None where no step was solved in full."""
    decisions: tuple[Decision, ...]

    @property
    def full_steps(self) -> int:
        """How many of its steps the full model solved."""
        return sum(not decision.reduced for decision in self.decisions)

    @property
    def iterations(self) -> int:
        """Newton corrections of full and reduced steps."""
        full = 0 if self.fields is None else self.fields.iterations
        return full + sum(decision.iterations for decision in self.decisions)

    @property
    def residual(self) -> float:
        """The largest relative one of the equations that were solved, full or reduced."""
        full = 0.0 if self.fields is None else self.fields.residual
        return max(full, *(decision.residual for decision in self.decisions))

    @property
    def text(self) -> str:
        """Which steps were solved in full: "2 of 40 steps in full (7, 31)"."""
        full = [decision.step for decision in self.decisions if not decision.reduced]
        numbers = f" ({', '.join(map(str, full))})" if full else ""
        return f"{len(full)} of {len(self.decisions)} steps in full{numbers}"


def adapted(
    full: FullHalfOfSample,
    package: RomPackage,
    history: History,
    law: Law,
    tolerance: Tolerance,
    scales: Scales | None,
    *,
    rtol: float = 1e-6,
) -> AdaptedSample:
    """One sample, its reduced half in this process; `law` is that of the training, `rtol` bounds reduced residuals.

    Raises:
        FullSolveError, CubatureError, HistoryError: as `full`.
    """
    march = March(package, law, history, tolerance, full, scales=scales, hurry=True, rtol=rtol)
    for k in range(1, history.steps + 1):
        march.step(k)
    decisions = tuple(march.decisions)
    if not march.full_steps:
        return AdaptedSample(Judgement(math.inf, math.inf, math.inf), None, decisions)
    found = full.finish(march.kept)
    return AdaptedSample(judge_steps(decisions, found.sizes), found.fields, decisions)


def solve_step(
    comm: Any, arrays: Mapping[str, np.ndarray], options: Mapping[str, Any]
) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """`Adaptation.solve` as an MPI task.

    Arrays: `packed` kept and refused steps, and the draw, its names after "draw_".  Options: those of
    `tasks.full_sample`, token, first (begin a new adaptation), version and cluster, step, peak, enrich, and
    indicators of the refused step or None.  Where the full model fails the value is {"failure": why, "kind": of error}.
    """
    adaptation = _adaptation(comm, arrays, options)
    refused = None
    if options["indicators"] is not None:
        refused = Refused(arrays["refused"], arrays["refused_p"], *options["indicators"])
    try:
        taught = adaptation.solve(
            options["step"], _unpacked(arrays), refused, options["peak"], enrich=options["enrich"]
        )
    except (FullSolveError, CubatureError) as error:
        return {}, _failure(error)
    if comm.rank:
        return None
    state = taught.state
    package = np.frombuffer(taught.package.to_bytes(), np.uint8)
    found = {"package": package, "coefficients": state.coefficients, "stress": state.stress}
    return found | {"variables": state.variables}, {"peak": state.peak}


def finish_steps(
    comm: Any, arrays: Mapping[str, np.ndarray], options: Mapping[str, Any]
) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """`Adaptation.finish` as an MPI task; arrays and options as in `solve_step`."""
    adaptation = _adaptation(comm, arrays, options)
    del _adaptations[options["token"]]
    try:
        found = adaptation.finish(_unpacked(arrays))
    except CubatureError as error:
        return {}, _failure(error)
    fields = found.fields
    if fields.displacement is None or fields.p is None:
        return None
    facts = {"iterations": fields.iterations, "residual": fields.residual, "version": fields.version}
    return {"displacement": fields.displacement, "p": fields.p, "sizes": found.sizes}, facts


def packed(kept: Kept) -> dict[str, np.ndarray]:
    """Reduced steps as arrays of a task."""
    return {"kept": kept.coefficients, "kept_p": kept.p_coefficients}


def refuse_failure(value: Any) -> None:
    """Raise what a task left as its value instead.

    Raises:
        FullSolveError, CubatureError: as on the ranks.
    """
    if isinstance(value, Mapping) and "failure" in value:
        raise (CubatureError if value["kind"] == CubatureError.__name__ else FullSolveError)(value["failure"])


def _failure(error: Exception) -> dict[str, Any]:
    return {"failure": str(error), "kind": type(error).__name__}


def _unpacked(arrays: Mapping[str, np.ndarray]) -> Kept:
    return Kept(arrays["kept"], arrays["kept_p"])


def _adaptation(comm: Any, arrays: Mapping[str, np.ndarray], options: Mapping[str, Any]) -> Adaptation:
    token = options["token"]
    if options["first"]:
        problem, model = model_of(comm, options)
        growth = Growth(Library(Path(options["library"])), Settings(**options["settings"]), options["problem"], problem)
        draw = {name.removeprefix("draw_"): array for name, array in arrays.items() if name.startswith("draw_")}
        _adaptations.clear()
        _adaptations[token] = Adaptation(model, growth, draw, Place(options["version"], options["cluster"]))
    if token not in _adaptations:
        raise RuntimeError(f"these ranks know nothing of adaptation {token}: they were started anew under it")
    return _adaptations[token]


@contextmanager
def _told_of_failure() -> Iterator[None]:
    try:
        yield
    except SolveError as error:
        raise FullSolveError(str(error)) from error

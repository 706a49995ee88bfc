"""Full samples and full steps of a solid as MPI tasks of a solver actor, on ranks that live as long as it does."""

from __future__ import annotations

import itertools
import logging
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from forebay.cluster.mpi import MpiCancelled, MpiError, MpiService, MpiUnavailable
from forebay.cluster.mpi_service import MpiResult
from forebay.pipeline.errors import RunError
from forebay.pipeline.stages import Draw
from forebay.solvers.compose import SolidStudy, learns_by
from forebay.solvers.problems.solid import SolidProblem
from forebay.solvers.rom.growth import Place
from forebay.solvers.rom.local_full import LocalFull
from forebay.solvers.rom.march import Kept, Refused, Taught
from forebay.solvers.rom.package import RomPackage
from forebay.solvers.rom.step_tasks import SteppedSample, packed, refuse_failure
from forebay.solvers.rom.tasks import FullSample, FullSolveError, HistoryError
from forebay.solvers.rom.trajectory import ReducedState

if TYPE_CHECKING:
    from forebay.solvers.fem.solid import SolidModel

log = logging.getLogger(__name__)

SAMPLE = "forebay.solvers.rom.tasks:full_sample"
STEP = "forebay.solvers.rom.step_tasks:solve_step"
FINISH = "forebay.solvers.rom.step_tasks:finish_steps"


class RanksError(FullSolveError):
    """An MPI task failed otherwise than the full model can; the text has the failing rank's traceback."""


class MpiFull:
    """Solves and learns on R ranks; where these fail, in this process, and new ranks take the next sample."""

    def __init__(self, problem: SolidProblem, study: SolidStudy) -> None:
        self._study = study
        self._here = LocalFull(problem, name=study.name, rtol=study.table.rtol, learn=learns_by(study))
        self._service = MpiService(study.table.rom.ranks)
        self._tokens = itertools.count(1)

    @property
    def model(self) -> SolidModel:
        """Of this process alone."""
        return self._here.model

    @cached_property
    def _options(self) -> dict[str, Any]:
        study = self._study
        return {
            "problem": study.name,
            "problem_options": dict(study.options),
            "folder": str(study.study_folder),
            "rtol": study.table.rtol,
        }

    @property
    def _learning(self) -> dict[str, Any]:
        return self._options | {"library": str(self._study.library), "settings": self._study.settings}

    def solve(self, draw: Draw, *, learn: bool) -> FullSample:
        """One sample; the same in this process where a rank raises or dies, with a note of why.

        Raises:
            FullSolveError: the full model fails.
            HistoryError: the sample's history is at fault.
            RunError: MPI cannot be used here.
        """
        try:
            result = self.run(SAMPLE, draw, self._learning if learn else self._options)
        except RanksError as error:
            return self._instead(draw, str(error), learn=learn)
        refuse_failure(result.value)
        return FullSample(result.arrays["displacement"], result.arrays["p"], **result.value)

    def adapt(self, draw: Draw, base: Place) -> MpiSteps:
        """Full steps of one sample."""
        options = self._learning | {"version": base.version, "cluster": base.cluster, "token": str(next(self._tokens))}
        return MpiSteps(self, draw, options)

    def close(self) -> None:
        """End the ranks."""
        self._service.close()
        self._here.close()

    def run(self, task: str, arrays: Draw, options: dict[str, Any]) -> MpiResult:
        """A task on the ranks.

        Raises:
            RanksError: it failed, or a rank died; told in the log, too.
            RunError: MPI cannot be used here.
        """
        try:
            return self._service.run(task, arrays, options)
        except MpiUnavailable as error:
            raise RunError(f"solver.rom.ranks = {self._service.size}: {error}") from error
        except MpiCancelled as error:
            raise FullSolveError(str(error)) from error
        except MpiError as error:
            traceback = f"\n{error.traceback}" if error.traceback else ""
            text = f"MPI task on {self._service.size} ranks: {error}{traceback}".rstrip()
            log.error("%s", text)
            raise RanksError(text) from error

    def _instead(self, draw: Draw, failure: str, *, learn: bool) -> FullSample:
        """The sample in this process."""
        try:
            found = self._here.solve(draw, learn=learn)
        except (FullSolveError, HistoryError) as error:
            raise type(error)(f"{error}; before that, {failure}") from error
        note = f"solved in the solver's own process, for the ranks failed: {failure}"
        return FullSample(found.displacement, found.p, found.iterations, found.residual, found.version, note)


class MpiSteps:
    """`step_tasks.Adaptation` on the ranks of an `MpiFull`, which sleep between two full steps."""

    def __init__(self, ranks: MpiFull, draw: Draw, options: dict[str, Any]) -> None:
        self._ranks, self._options = ranks, options
        self._draw = {f"draw_{name}": value for name, value in draw.items()}
        self._begun = False

    def solve(self, k: int, kept: Kept, refused: Refused | None, peak: float, *, enrich: bool = True) -> Taught:
        """As `Adaptation.solve`.

        Raises:
            RanksError: a rank raised or died.
            FullSolveError, CubatureError, RunError: as `Adaptation.solve` and `MpiFull.solve`.
        """
        arrays = packed(kept)
        indicators = None
        if refused is not None:
            indicators = [refused.gappy, refused.equilibrium]
            arrays |= {"refused": refused.coefficients, "refused_p": refused.p_coefficients}
        result = self._run(STEP, arrays, {"step": k, "peak": peak, "indicators": indicators, "enrich": enrich})
        found = result.arrays
        state = ReducedState(
            found["coefficients"], found["variables"], found["stress"], peak=float(result.value["peak"])
        )
        return Taught(RomPackage.from_bytes(found["package"].tobytes()), state)

    def finish(self, kept: Kept) -> SteppedSample:
        """As `Adaptation.finish`; raises as `solve`."""
        found = self._run(FINISH, packed(kept), {})
        sample = FullSample(found.arrays["displacement"], found.arrays["p"], **found.value)
        return SteppedSample(sample, np.asarray(found.arrays["sizes"]))

    def _run(self, task: str, arrays: dict[str, np.ndarray], options: dict[str, Any]) -> MpiResult:
        options = self._options | {"first": not self._begun} | options
        result = self._ranks.run(task, self._draw | arrays, options)
        refuse_failure(result.value)
        self._begun = True
        return result

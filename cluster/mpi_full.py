"""Full samples of a solid as MPI tasks of a solver actor, on ranks that live as long as it does."""

from __future__ import annotations

import logging
from functools import cached_property
from typing import TYPE_CHECKING, Any

from forebay.cluster.mpi import MpiError, MpiService
from forebay.pipeline.stages import Draw
from forebay.solvers.compose import SolidStudy
from forebay.solvers.problems.solid import SolidProblem
from forebay.solvers.rom.local_full import LocalFull
from forebay.solvers.rom.tasks import FullSample, FullSolveError

if TYPE_CHECKING:
    from forebay.solvers.fem.solid import SolidModel

log = logging.getLogger(__name__)

TASK = "forebay.solvers.rom.tasks:full_sample"


class MpiFull:
    """Solves and learns on R ranks; a rank that dies costs the sample, and new ranks take the next."""

    def __init__(self, problem: SolidProblem, study: SolidStudy) -> None:
        self._study = study
        self._here = LocalFull(problem, name=study.name, rtol=study.table.rtol, learn=None)
        self._service = MpiService(study.table.rom.ranks)

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

    def solve(self, draw: Draw, *, learn: bool) -> FullSample:
        """One sample.

        Raises:
            FullSolveError: the full model fails, or a rank dies.
        """
        options = self._options
        if learn:
            options = options | {"library": str(self._study.library), "settings": self._study.settings}
        try:
            result = self._service.run(TASK, draw, options)
        except MpiError as error:
            log.warning("a full sample on %d MPI ranks failed: %s", self._study.table.rom.ranks, error)
            raise FullSolveError(f"MPI task on {self._study.table.rom.ranks} ranks: {error}") from error
        if "failure" in result.value:
            raise FullSolveError(result.value["failure"])
        return FullSample(result.arrays["displacement"], result.arrays["p"], **result.value)

    def close(self) -> None:
        """End the ranks."""
        self._service.close()
        self._here.close()

"""What the two ways of `forebay submit` share: the request, and the check that nothing of the run is going on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from forebay.cluster.batch_script import System
from forebay.cluster.submission import read_submission
from forebay.cluster.whereabouts import ENDED, state_of
from forebay.pipeline.errors import RunError, StudyError


@dataclass(frozen=True, slots=True)
class Request:
    """What the command line said."""

    what: Path
    """A study, or a run folder to go on with."""
    overrides: tuple[str, ...] = ()
    folder: Path | None = None
    include: tuple[Path, ...] = ()
    """Files beside the study that travel with it."""
    allow_setup: bool = False

    @property
    def is_run(self) -> bool:
        """Is there a run to go on with?"""
        return self.what.is_dir()

    @property
    def set_words(self) -> list[str]:
        """The overrides as words of the command line."""
        return [word for override in self.overrides for word in ("--set", override)]


def check_resumable(request: Request) -> None:
    """A run that goes on is as it was, and nobody else goes on with it.

    Raises:
        StudyError: options that only a new run can have.
        RunError: a job or process of the run that has not ended.
    """
    if request.overrides or request.folder:
        raise StudyError(
            f"{request.what} is a run, which goes on as it began: leave --set and --folder out, or name its study"
        )
    submission = read_submission(request.what)
    if submission is not None and (state := state_of(submission)) not in ENDED:
        raise RunError(f"{submission} is {state} and works on {request.what}; forebay stop {request.what} ends it")


def choose(request: Request, *, ray: str | None, systems: Mapping[System, bool], print_only: bool, follow: bool) -> int:
    """Carry out the one way of submitting that was asked for; the exit status.

    Raises:
        StudyError: none, or several.
    """
    chosen = [name for name, asked in systems.items() if asked]
    if len(chosen) + (ray is not None) != 1:
        raise StudyError("submit where? choose one of --ray ADDRESS, --slurm, --pbs and --lsf")
    if ray is not None:
        if print_only:
            raise StudyError("--print shows a batch script, and --ray sends none; leave one of them out")
        from forebay.cluster.submit_ray import submit_ray

        return submit_ray(request, ray, follow=follow)
    if request.include:
        raise StudyError("--include is for --ray: a batch job reads the study's files where they are")
    from forebay.cluster.submit_batch import print_script, submit_slurm

    if chosen == ["slurm"] and not print_only:
        return submit_slurm(request)
    return print_script(request, chosen[0])

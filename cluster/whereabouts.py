"""`forebay stop`, and the part of `forebay status` that asks where a run's process or job is."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

from forebay.cluster.known import check_known
from forebay.cluster.submission import Submission, birth, read_submission
from forebay.pipeline.errors import RunError

OF_RAY = ("SUCCEEDED", "STOPPED", "FAILED")
OF_SLURM = ("COMPLETED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", "BOOT_FAIL", "DEADLINE")
ENDED = ("ended", "gone", *OF_RAY, *OF_SLURM)
WAIT_S = 660.0
"""How long an ending is waited for."""
POLL_S = 1.0
LAST_LINES = 20


def tell_whereabouts(run: Path) -> bool:
    """Print how a batch job fares, or the end of a Ray job's output; is there nothing else to tell about here?"""
    submission = read_submission(run)
    if submission is None or submission.kind == "process":
        return False
    answered = True
    try:
        print(f"{submission}: {state_of(submission)}")
    except RunError as error:
        answered = False
        print(f"{submission}: {error}")
    if (run / "study.json").exists():
        return False
    if submission.kind == "ray" and answered:
        from forebay.cluster.jobs import last_lines

        print(
            f"run folder on the cluster: {submission.folder}",
            *last_lines(submission.address, submission.job, LAST_LINES),
            sep="\n",
        )
    return True


def state_of(submission: Submission) -> str:
    """One word.

    Raises:
        RunError: whoever knows cannot be asked from here.
    """
    match submission.kind:
        case "process":
            return "running" if submission.born and birth(_here(submission)) == submission.born else "ended"
        case "slurm":
            from forebay.cluster import slurm

            return slurm.job_state(submission.job)
        case "ray":
            from forebay.cluster import jobs

            check_known(submission.address)
            return jobs.job_state(submission.address, submission.job)


def stop(run: Path, *, wait: bool = True) -> int:
    """Ask a run to save its checkpoint and end, and wait until it has; the exit status.

    Raises:
        RunError: no run, or one that was started elsewhere.
    """
    submission = read_submission(run)
    if submission is None:
        raise RunError(f"{run} does not say how it was started: it has no submission.json; is it a run folder?")
    before = state_of(submission)
    if before in ENDED:
        print(f"{submission} has ended already; nothing to stop")
        return 0
    _ask(submission)
    print(f"{submission} was asked to stop: it finishes the step and saves a checkpoint")
    if not wait or _wait(lambda: state_of(submission) in ENDED):
        return 0
    print(f"it has not ended after {WAIT_S:g} s; look again with: forebay status {run}")
    return 1


def _ask(submission: Submission) -> None:
    match submission.kind:
        case "process":
            os.kill(_here(submission), signal.SIGTERM)
        case "slurm":
            from forebay.cluster import slurm

            slurm.stop_job(submission.job)
        case "ray":
            from forebay.cluster import jobs

            jobs.stop_job(submission.address, submission.job)


def _here(submission: Submission) -> int:
    """The process id, if it is one of this machine.

    Raises:
        RunError: another machine's, or none at all: kill(2) takes -1 and 0 for many processes.
    """
    if not re.fullmatch(r"[1-9][0-9]{0,9}", submission.job):
        raise RunError(f"{submission.job!r} is no process id; look at submission.json of the run folder")
    if submission.host != socket.gethostname():
        raise RunError(f"the run is {submission}, and this is {socket.gethostname()}; run this command there")
    return int(submission.job)


def _wait(ended: Callable[[], bool]) -> bool:
    end = time.monotonic() + WAIT_S
    while not ended():
        if time.monotonic() > end:
            return False
        time.sleep(POLL_S)
    return True

"""Slurm by its own commands: submit a script, tell a job's state, end a job gracefully."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from forebay.pipeline.errors import RunError

WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", "CONFIGURING", "RESV_DEL_HOLD", "REQUEUE_FED")
GONE = "gone"
"""Slurm no longer knows the job: it ended minutes ago."""


def sbatch(script: Path) -> str:
    """Submit a script; the job's id, with "@CLUSTER" where Slurm has several.

    Raises:
        RunError: Slurm's own words.
    """
    job, _, cluster = _slurm(["sbatch", "--parsable", str(script)]).strip().partition(";")
    return f"{job}@{cluster}" if cluster else job


def job_state(job: str) -> str:
    """Slurm's word for the state of a job, such as RUNNING; `GONE` where it knows none."""
    try:
        return _slurm(["squeue", "--noheader", "--format=%T", *_cluster(job), f"--jobs={_number(job)}"]).strip() or GONE
    except RunError as error:
        if "Invalid job id" in str(error):
            return GONE
        raise


def stop_job(job: str) -> str:
    """Let a running job save its checkpoint and end, or take a waiting one from the queue; the state it was in."""
    state = job_state(job)
    if state in WAITING:
        _slurm(["scancel", *_cluster(job), _number(job)])
    elif state != GONE:
        # To the script alone, which passes it on to the run: a signal to every process would end Ray first.
        _slurm(["scancel", "--signal=TERM", "--batch", *_cluster(job), _number(job)])
    return state


def _number(job: str) -> str:
    number = job.partition("@")[0]
    if not re.fullmatch(r"\d+(_\d+)?", number):
        raise RunError(f"{job!r} is no job id of Slurm; look at submission.json of the run folder")
    return number


def _cluster(job: str) -> list[str]:
    cluster = job.partition("@")[2]
    return [f"--clusters={cluster}"] if cluster else []


def _slurm(words: Sequence[str]) -> str:
    try:
        result = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    except FileNotFoundError:
        raise RunError(
            f"{words[0]} is not on PATH; go to a login node of the cluster, or load its module, or use --print"
        ) from None
    except subprocess.TimeoutExpired:
        raise RunError(f"{words[0]} has not answered within 60 s; try again when Slurm's controller does") from None
    if result.returncode:
        raise RunError(f"{words[0]}: {(result.stderr or result.stdout).strip()}")
    return result.stdout

"""Ray jobs: a study sent to a cluster's dashboard, followed, told about, and ended gracefully."""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from forebay.cluster.package import project_modules
from forebay.cluster.security import is_loopback, secure_ray
from forebay.cluster.submission import VARIABLE
from forebay.pipeline.errors import RunError

STOP_WAIT_S = 600
"""How long a stopped job may take to save its checkpoint; Ray itself would kill it after 3 s."""
EXIT_INTERRUPTED = 130
OVERRIDING = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
"""Variables that Ray's client would obey instead of the address that it is given."""


@dataclass(frozen=True, slots=True)
class RayJob:
    """What is sent."""

    id: str
    words: Sequence[str]
    """After `forebay`."""
    python: str
    """On the cluster."""
    files: Path | None = None
    """Folder with the study and what it names; it becomes the working folder of the job."""


def dashboard_url(address: str) -> str:
    """The address as a URL.

    Raises:
        RunError: no dashboard's address, or one with a password in it, which would end up in files.
    """
    url = address if "://" in address else f"http://{address}"
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.hostname == "auto":
        raise RunError(f"--ray {address!r} is no dashboard; give its address, such as http://127.0.0.1:8265")
    if parts.username or parts.password:
        raise RunError("--ray: leave user and password out of the address; the token is in RAY_AUTH_TOKEN_PATH")
    return url.rstrip("/")


def default_python(address: str) -> str:
    """On this machine the Python that runs now, else the one that the cluster finds."""
    return sys.executable if is_loopback(address) else "python"


def send(address: str, job: RayJob) -> None:
    """Submit a job.

    Raises:
        RunError: the cluster's own words.
    """
    variables = {
        "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S),
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # an actor of no GPU of its own still sees them
        VARIABLE: f"ray:{job.id}@{address}",
    }
    environment: dict[str, Any] = {"env_vars": variables}
    if job.files is not None:
        environment["working_dir"] = str(job.files)
    if modules := project_modules():
        environment["py_modules"] = modules
    # `exec`: the signal of a stop is for Python, and a shell in between would die of it first.
    entrypoint = "exec " + shlex.join([job.python, "-P", "-m", "forebay.cluster.cli", *job.words])
    client = _client(address)
    try:
        client.submit_job(entrypoint=entrypoint, submission_id=job.id, runtime_env=environment)
    except (RuntimeError, ValueError) as error:
        raise RunError(f"the Ray at {address} does not take the job: {error}") from None


def follow(address: str, job: str, hint: str) -> int:
    """Print what the job prints until it ends; its exit status.  Ctrl-C ends the following alone."""
    client = _client(address)
    try:
        asyncio.run(_print_output(client, job))
    except KeyboardInterrupt:
        print(f"\nno longer followed; the job goes on: {hint}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except (OSError, RuntimeError) as error:
        raise RunError(f"the connection to {address} was lost ({error}); the job goes on: {hint}") from None
    return exit_status(client.get_job_info(job))


def exit_status(info: Any) -> int:
    """That of `forebay run`: 0 also for a run that was stopped, which has saved its checkpoint."""
    match str(getattr(info.status, "value", info.status)):
        case "SUCCEEDED" | "STOPPED":
            return 0
        case _:
            if info.driver_exit_code is None:  # the run never began; Ray says why
                print(f"forebay: {info.message}", file=sys.stderr)
            return info.driver_exit_code or 1


def job_state(address: str, job: str) -> str:
    """Ray's word for the state of a job, such as RUNNING."""
    try:
        return str(_client(address).get_job_status(job).value)
    except RuntimeError as error:
        raise RunError(f"the Ray at {address} does not know {job}: {error}") from None


def last_lines(address: str, job: str, count: int) -> list[str]:
    """The end of what a job has printed."""
    text: str = _client(address).get_job_logs(job)
    return text.splitlines()[-count:]


def stop_job(address: str, job: str) -> str:
    """Let a job save its checkpoint and end; the state it was in."""
    state = job_state(address, job)
    _client(address).stop_job(job)
    return state


async def _print_output(client: Any, job: str) -> None:
    async for text in client.tail_job_logs(job):
        print(text, end="", flush=True)


def _client(address: str) -> Any:
    secure_ray(address)
    from ray.job_submission import JobSubmissionClient

    hidden = {key: os.environ.pop(key) for key in OVERRIDING if key in os.environ}
    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError) as error:
        raise RunError(
            f"no Ray dashboard answers at {address}: {error}; check the address, and the token in RAY_AUTH_TOKEN_PATH "
            f"with RAY_AUTH_MODE=token"
        ) from None
    finally:
        os.environ.update(hidden)

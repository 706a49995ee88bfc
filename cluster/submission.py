"""How a run was started, kept in its folder, so that `forebay status` and `forebay stop` find it again.

`submission.json` holds no token and nothing else that would let its reader in.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from forebay.pipeline.errors import RunError
from forebay.pipeline.text_file import replace_text

FILE = "submission.json"
FILES = (FILE, "job.sh", "logs")
"""What a run folder may hold before its run begins."""
VARIABLE = "FOREBAY_SUBMISSION"
"""Tells a run which job it is part of: "slurm:1234", or "ray:ID@ADDRESS"."""
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

Kind = Literal["process", "slurm", "ray"]


@dataclass(frozen=True, slots=True)
class Submission:
    """One attempt at a run: a process of some machine, a job of Slurm, or a job of a Ray."""

    kind: Kind
    job: str
    """Process id, job id of Slurm, or submission id of Ray."""
    host: str = ""
    """Of a process."""
    born: str = ""
    """Of a process: boot id and start time, since process ids are used again."""
    address: str = ""
    """Of a Ray: its dashboard."""
    folder: str = ""
    """Run folder on the cluster, where that may be another machine's."""

    def write(self, run: Path) -> None:
        """Replace what the run folder says."""
        replace_text(run / FILE, json.dumps({k: v for k, v in asdict(self).items() if v}, indent=2))

    def __str__(self) -> str:
        match self.kind:
            case "process":
                return f"process {self.job} on {self.host}"
            case "slurm":
                return f"Slurm job {self.job}"
            case "ray":
                return f"Ray job {self.job} at {self.address}"


def read_submission(run: Path) -> Submission | None:
    """What the run folder says; None where it was started before there was such a file.

    Raises:
        RunError: a damaged file.
    """
    try:
        kept = json.loads((run / FILE).read_text(encoding="utf-8"))
        if not all(isinstance(value, str) for value in kept.values()):
            raise TypeError("a value that is no text")
        submission = Submission(**kept)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, AttributeError):
        raise RunError(f"{run / FILE} is damaged; end the run's job by hand, then `forebay resume {run}`") from None
    if submission.kind not in get_args(Kind):
        raise RunError(f"{run / FILE} has kind = {submission.kind!r}, which this version does not know")
    return submission


def this_attempt(environment: Mapping[str, str] = os.environ) -> Submission:
    """The job that this process is the driver of, else this process."""
    kind, _, rest = environment.get(VARIABLE, "").partition(":")
    job, _, address = rest.partition("@")
    if kind == "slurm":
        return Submission("slurm", job)
    if kind == "ray":
        return Submission("ray", job, address=address)
    return Submission("process", str(os.getpid()), host=socket.gethostname(), born=birth(os.getpid()))


def birth(pid: int) -> str:
    """What tells a process from an earlier or later one with its id; empty when there is none."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return "" if status[0] == "Z" else f"{BOOT_ID.read_text(encoding='utf-8').strip()}:{status[19]}"
    except (FileNotFoundError, ProcessLookupError):
        return ""

"""How MPI ranks are started on this machine: which mpiexec, with which environment, and where its output goes."""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import forebay
from forebay.cluster.mpi_errors import MpiCancelled, MpiTimeout, MpiUnavailable

log = logging.getLogger(__name__)

POLL_S = 0.05
"""How late a cancellation, a time limit or a dead mpiexec may be noticed; messages wake the waiting thread at once."""
TAIL_BYTES = 65536
TAIL_SHOWN = 2000
"""Characters of the ranks' output in an error's text; `MpiError.output` has TAIL_BYTES."""

FOREIGN_PREFIXES = ("SLURM_", "PMI", "HYDRA_", "OMPI_", "PRTE_", "MPI_LOCAL")
"""Variables of an outer launcher, which mpiexec or MPI_Init would obey: under Slurm the ranks die of them."""
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")

_FROM_A_RANK = re.compile(r"^\[\d+\] .*$", re.MULTILINE)
_ABORT = re.compile(r"Abort\((-?\d+)\) on node (\d+) ")


def find_mpiexec() -> Path:
    """The `mpiexec` beside this Python (the wheel `mpich` puts it there), else the one on PATH.

    Raises:
        MpiUnavailable: there is none, or mpi4py is missing.
    """
    beside = Path(sys.executable).with_name("mpiexec")
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which("mpiexec")
    if found is None:
        raise MpiUnavailable(
            f"mpiexec is neither beside {sys.executable} nor on PATH; on Linux x86-64 run `pip install mpich mpi4py`, "
            f"elsewhere install MPICH from conda-forge or load the site's module"
        )
    if importlib.util.find_spec("mpi4py") is None:
        raise MpiUnavailable(f"mpi4py is missing from {sys.prefix}; run `pip install mpi4py`")
    return Path(found)


def available() -> bool:
    """Can this machine start MPI ranks?"""
    try:
        find_mpiexec()
    except MpiUnavailable:
        return False
    return True


def start_mpiexec(name: str, count: int, threads: int) -> subprocess.Popen[bytes]:
    """`count` processes of `forebay.cluster.mpi_task` that will call the socket `name`; stdout and stderr in one pipe.

    Raises:
        MpiUnavailable: no mpiexec here.
    """
    # "fork" and "user": no ssh, and no asking the batch system, which would start ranks elsewhere.
    options = ["-launcher", "fork", "-rmk", "user", "-hosts", "localhost", "-prepend-rank"]
    rank = [sys.executable, "-P", "-m", "forebay.cluster.mpi_task", name]
    return subprocess.Popen(
        [str(find_mpiexec()), *options, "-n", str(count), *rank],
        env=rank_environment(os.environ, threads),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C is for the caller, which ends the ranks in order
    )


def rank_environment(outer: Mapping[str, str], threads: int) -> dict[str, str]:
    """The outer environment without its launchers' variables, with this package importable and threads limited."""
    kept = {key: value for key, value in outer.items() if not key.startswith(FOREIGN_PREFIXES)}
    root = str(Path(forebay.__file__).parent.parent)
    kept["PYTHONPATH"] = os.pathsep.join(filter(None, [kept.get("PYTHONPATH"), root]))
    return kept | dict.fromkeys(THREAD_VARIABLES, str(threads))


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a wait may last, and who may end it earlier."""

    what: str
    """Begins the error's text."""
    limit_s: float | None
    cancel: threading.Event | None
    began: float = field(default_factory=time.monotonic)

    def slice_s(self) -> float:
        """How long to wait before `slice_s` is asked again.

        Raises:
            MpiTimeout, MpiCancelled: not at all.
        """
        if self.cancel is not None and self.cancel.is_set():
            raise MpiCancelled(f"{self.what} was cancelled")
        if self.limit_s is None:
            return POLL_S
        left = self.began + self.limit_s - time.monotonic()
        if left <= 0:
            raise MpiTimeout(f"{self.what} did not end within {self.limit_s:g} s; raise timeout_s, or give less work")
        return min(POLL_S, left)


class Tail:
    """The end of what a process writes; a thread reads it all, so that the process never waits for us."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._kept = b""
        self._thread = threading.Thread(target=self._read, name="mpi-output", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with self._stream:
            while chunk := os.read(self._stream.fileno(), TAIL_BYTES):
                self._kept = (self._kept + chunk)[-TAIL_BYTES:]
                log.debug("%s", chunk)

    def clear(self) -> None:
        """Forget what was written so far."""
        self._kept = b""

    def text(self, *, complete_within_s: float = 0.0) -> str:
        """What is kept; waits for the end of the stream where there is going to be one."""
        self._thread.join(complete_within_s)
        return self._kept.decode(errors="replace").strip()


def shown(output: str) -> str:
    """The last lines of an error's text: what the ranks wrote, without what mpiexec says of their end."""
    lines = "\n".join(_FROM_A_RANK.findall(output))
    return f"; the ranks' last output:\n{lines[-TAIL_SHOWN:]}" if lines else ""


def how_it_ended(rank: int, status: int | None, output: str) -> tuple[int, str]:
    """Which rank ended first, and how: as MPI_Abort says, which ends all ranks, else as the rank's wait status says."""
    if abort := _ABORT.search(output):
        return int(abort[2]), f"called MPI_Abort with {abort[1]}"
    if status is None:
        return rank, "ended without an answer"
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return rank, f"left with exit status {code} and without an answer"
    hint = "; memory may have run out" if -code == signal.SIGKILL else ""
    return rank, f"was killed by signal {-code} ({signal.strsignal(-code)}{hint})"

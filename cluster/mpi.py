"""Run a Python function on MPI ranks of this machine, from a process that is no MPI process itself.

`run_mpi` starts R ranks for one task; `MpiService` keeps them for many.  The function is named "module:function" (as it
is importable here) or "path/file.py:function", and is called on every rank as

    function(comm, arrays, options) -> (mapping of names to arrays, value for JSON)   # of rank 0; others' are ignored

with `comm` an mpi4py communicator of exactly the R ranks, `arrays` read-only views of the caller's arrays (one copy for
all ranks), and `options` what JSON made of the caller's.

    starter ── task as JSON + descriptor of nameless memory ──► socket of rank 0 … R-1      (idle ranks block in a read)
            ◄── done | raised | refused, from rank 0 + descriptor of its arrays ──┘
            ── pipe, never written to: when it closes, the kernel kills the rank

What happens when something fails:

| what happened | what the caller gets | the ranks |
|---|---|---|
| no mpiexec, no mpi4py | `MpiUnavailable`: what to install | |
| ranks end before they are up | `MpiError` with what they and mpiexec wrote | gone |
| arguments that cannot be sent; no such file | `ValueError` | as before |
| no such module or function; a result that cannot be sent | `MpiError`: why, on which rank | live on |
| every rank raises | `MpiError`: rank, exception, whole traceback of the first | live on, with a fresh `comm` |
| some ranks raise, the others return or wait for them | the same, `GRACE_S` later at most | killed |
| a rank dies (signal, `os._exit`, out of memory) | `MpiError`: rank, signal or exit status, last output | killed |
| the function calls `comm.Abort` | as for a rank that dies, MPI's own words in the output | killed |
| time limit | `MpiTimeout`; the output ends with every rank's Python stack | killed |
| cancellation, `close` from another thread | `MpiCancelled` | killed |
| arrays that fit neither memory nor disk | `MpiError`: both sizes | as before |
| the starter ends, by SIGKILL too | | killed by the kernel |

"Killed" means with everything that they have started, and the next `run` of a service starts new ones.  Nothing is left
behind in any of these cases: arrays have no names, and the names of MPICH's shared memory are removed as soon as every
rank has attached to it.  A process that was forked off the starter without exec holds the pipes too, and with them the
ranks until it ends.

Needs Linux and an mpiexec of the Hydra family (MPICH, Intel MPI).  What a user must know: a service imports a module
once (files are read anew when they change), and one task runs at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import closing
from typing import Any

from forebay.cluster.mpi_errors import MpiCancelled, MpiError, MpiTimeout, MpiUnavailable
from forebay.cluster.mpi_launch import available, find_mpiexec
from forebay.cluster.mpi_service import MpiResult, MpiService

__all__ = [
    "MpiCancelled",
    "MpiError",
    "MpiResult",
    "MpiService",
    "MpiTimeout",
    "MpiUnavailable",
    "available",
    "find_mpiexec",
    "run_mpi",
]


def run_mpi(
    function: str,
    arrays: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    *,
    ranks: int,
    timeout_s: float | None = None,
    threads: int = 1,
    cancel: threading.Event | None = None,
) -> MpiResult:
    """Start `ranks` ranks with `threads` OpenMP and BLAS threads each, call the function on them, and end them.

    Good values: ranks × threads at most the free cores, since waiting MPI ranks spin.  For tasks of less than a few
    seconds keep an `MpiService`.

    Raises:
        ValueError: an argument that cannot be sent, or a number out of range.
        MpiError, MpiUnavailable, MpiTimeout, MpiCancelled: the table above says when.
    """
    with closing(MpiService(ranks, threads=threads)) as service:
        return service.run(function, arrays, options, timeout_s=timeout_s, cancel=cancel)

"""What can go wrong with a task on MPI ranks; `cluster/mpi.py` has the table."""

from __future__ import annotations

from forebay.pipeline.errors import ForebayError


class MpiError(ForebayError):
    """A task that failed on its ranks, or ranks that could not be started; the text names rank, cause and remedy."""

    def __init__(self, message: str, *, rank: int | None = None, traceback: str = "", output: str = "") -> None:
        super().__init__(message)
        self.rank = rank
        """The rank that failed (first), where it is known."""
        self.traceback = traceback
        """The whole Python traceback of that rank; empty when none was raised there."""
        self.output = output
        """The end of what all ranks wrote to stdout and stderr, each line with its rank in front."""


class MpiTimeout(MpiError):
    """The time limit passed; the ranks were killed."""


class MpiCancelled(MpiError):
    """The caller cancelled the task, or closed the service under it; the ranks were killed."""


class MpiUnavailable(MpiError):
    """There is no `mpiexec` or no mpi4py here; the text says what to install."""

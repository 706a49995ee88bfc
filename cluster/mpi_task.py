"""An MPI rank (`python -m forebay.cluster.mpi_task SOCKET`): a process that works, and one that tells how it died.

mpiexec's own word on that is lost in one case of ten, because it may break off while it tells the other ranks.  Both
processes live as long as the starter: the kernel kills them when the starter's pipe closes, whatever they do.
"""

from __future__ import annotations

import fcntl
import importlib
import os
import select
import signal
import socket
import sys

from forebay.cluster.mpi_channel import receive, send


def main(name: str) -> None:
    """Call the starter, then work in a child and wait for its end."""
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    channel.connect(f"\0{name}")
    _, lifeline = receive(channel)
    _, epitaph = receive(channel)
    assert lifeline is not None
    assert epitaph is not None
    die_with(lifeline)
    worker = os.fork()  # before numpy and MPI are loaded, whose threads would not come along
    if worker:
        channel.close()  # what the starter sees is the end of the worker's
        os._exit(wait_for(worker, epitaph))
    os.close(epitaph)
    send(channel, {"pid": os.getpid()})
    importlib.import_module("forebay.cluster.mpi_worker").work(channel)


def die_with(lifeline: int) -> None:
    """Let the kernel send SIGKILL to this process group when the other end of the pipe closes.

    A thread that waited for it would not do: native code that holds the interpreter's lock keeps it from running.
    """
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([lifeline], [], [], 0)[0]:
        raise SystemExit("the starter was gone before this rank was up")


def wait_for(worker: int, epitaph: int) -> int:
    """Write the worker's wait status; the exit code with which mpiexec leaves the other ranks alone."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # mpiexec tells of the deaths of other ranks with it
    _, status = os.waitpid(worker, 0)
    os.write(epitaph, str(status).encode())
    return int(status != 0)


if __name__ == "__main__":
    main(sys.argv[1])

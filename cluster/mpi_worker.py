"""The working process of an MPI rank: one task after another from the starter; a read that blocks in between."""

from __future__ import annotations

import faulthandler
import importlib
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from forebay.cluster.mpi_arrays import Packed, pack, view
from forebay.cluster.mpi_channel import receive, send
from forebay.cluster.mpi_errors import MpiError
from forebay.pipeline.user_file import execute_file

Function = Callable[[Any, dict[str, Any], dict[str, Any]], Any]


def work(channel: socket.socket) -> None:
    """Initialise MPI, and serve until told to leave."""
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)  # the starter asks for stacks before it kills ranks at a time limit
    # A function that leaves its print in the buffer and dies would leave no word.
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    world = importlib.import_module("mpi4py.MPI").COMM_WORLD
    comm = world.Dup()
    comm.Barrier()  # every rank has attached to the shared memory, whose name the starter now removes
    send(channel, {"rank": comm.rank, "size": comm.size})
    serve(channel, world, comm)


def serve(channel: socket.socket, world: Any, comm: Any) -> None:
    """Carry out tasks; a task that all ranks failed is followed by one with a fresh communicator."""
    while True:
        message, descriptor = receive(channel)
        if message["kind"] == "exit":
            return
        if message["renew"]:  # the old one is never freed: MPI would give its number, and its messages, to the next
            comm = world.Dup()
        answer(channel, comm, message, descriptor)


def answer(channel: socket.socket, comm: Any, message: Mapping[str, Any], descriptor: int | None) -> None:
    """Carry out one task and say how it went."""
    sys.path.extend(entry for entry in message["path"] if entry not in sys.path)
    try:
        arrays = view(descriptor, message["layout"])
        function = load_function(message["function"])
    except Exception as error:
        send(channel, _failure("refused", f"cannot load it: {_text(error)}", error))
        return
    began = time.perf_counter()
    try:
        returned = function(comm, arrays, message["options"])
    except BaseException as error:  # SystemExit too: a rank that left would strand the others
        send(channel, _failure("raised", f"raised {_text(error)}", error))
        return
    finally:
        sys.stdout.flush()
    done = {"kind": "done", "seconds": time.perf_counter() - began, "value": None, "layout": []}
    if comm.rank > 0:
        send(channel, done)
        return
    try:
        value, packed = checked(returned)
        with packed:
            send(channel, {**done, "value": value, "layout": packed.layout}, packed.descriptor)
    except (MpiError, TypeError, ValueError) as error:
        send(channel, _failure("refused", f"returned what cannot be sent: {error}", error))


def checked(returned: Any) -> tuple[Any, Packed]:
    """The value and the packed arrays of what a function returned on rank 0.

    Raises:
        TypeError, ValueError: it is not a pair of a mapping of arrays and a value.
    """
    if not isinstance(returned, tuple) or len(returned) != 2 or not isinstance(returned[0], Mapping):
        raise TypeError(
            f"a {type(returned).__name__}; rank 0 returns a pair (mapping of names to arrays, value for JSON), "
            f"({{}}, None) at the least"
        )
    return returned[1], pack(returned[0])


def load_function(name: str) -> Function:
    """The function that "module:function" or "/path/file.py:function" names.

    A file is executed once for each content it had, so that an edit reaches ranks that are up; it may import modules
    beside it.

    Raises:
        MpiError: the module has no such function.
    """
    home, _, attribute = name.rpartition(":")
    module = execute_file(Path(home), "forebay_mpi") if home.endswith(".py") else importlib.import_module(home)
    found: Function | None = getattr(module, attribute, None)
    if not callable(found):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise MpiError(f"{home} has no function {attribute!r}; it has {', '.join(known) or 'none'}")
    return found


def _failure(kind: str, text: str, error: BaseException) -> dict[str, Any]:
    # Every rank's clock is the machine's: the smallest `at` is the first failure.
    whole = "".join(traceback.format_exception(error))
    return {"kind": kind, "text": text, "traceback": whole, "at": time.monotonic()}


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"

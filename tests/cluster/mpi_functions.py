"""Functions that the tests of `forebay.cluster.mpi` run on ranks."""

import atexit
import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

kept = []


def total(comm, arrays, options):
    """One allreduce of numbers and one of an array."""
    whole = np.empty_like(arrays["x"])
    comm.Allreduce(arrays["x"] * (comm.rank + 1), whole)
    return {"whole": whole * options["factor"]}, {"ranks": comm.allreduce(1), "numbers": comm.allgather(comm.rank)}


def nothing(comm, arrays, options):
    return {}, None


def echo(comm, arrays, options):
    return dict(arrays), {"options": options, "writable": [name for name in arrays if arrays[name].flags.writeable]}


def environment(comm, arrays, options):
    """What MPI and the thread libraries could see."""
    prefixes = ("SLURM_", "OMPI_", "HYDRA_", "OMP_", "PMI_RANK", "PMI_SIZE")
    own = {key: value for key, value in os.environ.items() if key.startswith(prefixes)}
    return {}, comm.gather(own)


def count_calls(comm, arrays, options):
    kept.append(comm.rank)
    return {}, len(kept)


def leave_word(comm, arrays, options):
    """At the orderly end of the process."""
    atexit.register(Path(f"{options['sign']}{comm.rank}").touch)
    return {}, None


def one_raises(comm, arrays, options):
    if comm.rank == 1:
        raise ZeroDivisionError("no pivot in row 7")
    comm.Barrier()
    return {}, None


def all_raise(comm, arrays, options):
    """Rank 0 last, and with a message under way that nobody has received."""
    if comm.rank == 0:
        comm.send("stale", dest=1)
        time.sleep(0.2)
    raise KeyError(f"no material {comm.rank}")


def leave(comm, arrays, options):
    sys.exit("enough")


def messages(comm, arrays, options):
    """Is there one from an earlier task?  MPI looks at what has arrived while it is at work."""
    found = False
    for _ in range(10):
        comm.Barrier()
        found = found or comm.iprobe()
    return {}, comm.gather(found)


def wait(comm, arrays, options):
    """Say that the ranks are here, then wait in a collective, which spins, or as told."""
    print(f"rank {comm.rank} is waiting")
    comm.Barrier()
    if comm.rank == 0:
        Path(options["sign"]).touch()
    if "child" in options:
        subprocess.Popen(["sleep", "600"])
    match options["how"]:
        case "in a collective":
            if comm.rank == 0:
                comm.recv(source=1)
            else:
                time.sleep(600)
        case "holding the lock of the interpreter":
            ctypes.PyDLL(None).sleep(600)


def end(comm, arrays, options):
    """One rank ends, the others wait for it."""
    print(f"rank {comm.rank} has something to say")
    if comm.rank == options["rank"]:
        match options["how"]:
            case "segfault":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "exit":
                os._exit(3)
            case "silent exit":
                os._exit(0)
            case "abort":
                comm.Abort(7)
    comm.Barrier()


def flood(comm, arrays, options):
    """Megabytes on both streams."""
    for stream in (sys.stdout, sys.stderr):
        stream.write(("x" * 999 + "\n") * 2000)
    print("the last line")
    if options.get("raise"):
        raise ValueError("after the flood")
    return {}, None


def hand_back(comm, arrays, options):
    """What rank 0 must not return."""
    return {
        "no pair": 7,
        "a set": ({}, {1, 2}),
        "a numpy integer": ({}, np.int64(7)),
        "an array of objects": ({"bad": np.array([None, 1])}, None),
        "a list of arrays": ([np.zeros(2)], None),
    }[options["what"]]


def sleep_then_number(comm, arrays, options):
    time.sleep(0.1)
    return {"x": np.full(3, options["number"])}, options["number"]

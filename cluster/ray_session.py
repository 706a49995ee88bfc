"""An embedded Ray on this machine, or the cluster that this process was submitted to.

Whoever imports this module, and Ray with it, has called `security.secure_ray` before.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from forebay.cluster.cluster_size import Cores, object_store_bytes
from forebay.cluster.security import inside_cluster, private_folder
from forebay.cluster.shared_folder import check_shared_folder
from forebay.pipeline.errors import RunError
from forebay.pipeline.plan import Plan

JOIN_S = 60.0
"""How long a cluster may take to be there, unless FOREBAY_JOIN_S says otherwise."""
POLL_S = 0.5


def start_ray(plan: Plan, *, ranks: int, blocks_in_flight: int, folder: Path) -> None:
    """Connect to the cluster named by RAY_ADDRESS, else start a private Ray that ends with this process.

    `ranks` are the cores of a solver actor.  The object store is sized for every block that may be in flight, four
    times over; the dashboard stays off.

    Raises:
        RunError: a cluster that is not there, whose nodes have not joined, or do not all see the run folder.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # num_gpus=0 must not hide a GPU
    if inside_cluster():
        connect()
        if len(nodes := alive_nodes()) > 1:
            check_shared_folder(folder, nodes)
    if ray.is_initialized():
        return
    with _own_signals(hold=False):
        ray.init(
            address="local",
            num_cpus=max(plan.cores, plan.solvers * ranks),
            include_dashboard=False,
            object_store_memory=object_store_bytes(plan, blocks_in_flight),
            log_to_driver=False,
            logging_level="warning",
            _temp_dir=str(private_folder()),
        )


def connect() -> None:
    """Connect to the cluster named by RAY_ADDRESS once as many nodes as FOREBAY_NODES have joined it; harmless again.

    Raises:
        RunError: nobody listens there, or nodes are missing after FOREBAY_JOIN_S seconds.
    """
    if ray.is_initialized():
        return
    limit_s = float(os.environ.get("FOREBAY_JOIN_S", JOIN_S))
    end = time.monotonic() + limit_s
    address = os.environ["RAY_ADDRESS"]
    _wait_for_port(address, end, limit_s)
    # The address of this node that the batch script chose: with several networks Ray would guess another.
    node = os.environ.get("FOREBAY_NODE_ADDRESS")
    options = {"_node_ip_address": node} if node else {}
    try:
        with _own_signals(hold=True):
            ray.init(log_to_driver=False, logging_level="warning", **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise RunError(
            f"the Ray at {address} cannot be joined: {str(error).strip().splitlines()[0]}; "
            f"look at its logs, and at RAY_AUTH_TOKEN_PATH"
        ) from None
    wanted = int(os.environ.get("FOREBAY_NODES", 1))
    while len(joined := alive_nodes()) < wanted:
        if time.monotonic() > end:
            names = ", ".join(sorted(n["NodeManagerAddress"] for n in joined))
            raise RunError(
                f"{len(joined)} of {wanted} nodes have joined within {limit_s:g} s ({names}); look at logs/ray-*.out "
                f"in the run folder, and raise join_s of the site file where nodes are slow to start"
            )
        time.sleep(POLL_S)


@contextmanager
def _own_signals(*, hold: bool) -> Iterator[None]:
    """Keep this process's handlers, which Ray replaces while it starts.

    With `hold` signals that come meanwhile wait; the processes of a private Ray would inherit that and never end.
    """
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    signal.pthread_sigmask(signal.SIG_BLOCK, kept if hold else ())
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler or signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, kept if hold else ())


def _wait_for_port(address: str, end: float, limit_s: float) -> None:
    """A cluster that is still starting is waited for; addresses without a port are Ray's to resolve."""
    host, _, port = address.rpartition(":")
    if not port.isdigit() or "/" in host:
        return
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=2).close()
        except OSError as error:
            if time.monotonic() > end:
                raise RunError(
                    f"no Ray listens at RAY_ADDRESS = {address} after {limit_s:g} s ({error}); start it, or unset "
                    f"RAY_ADDRESS to run on this machine alone"
                ) from None
            time.sleep(POLL_S)
        else:
            return


def alive_nodes() -> list[dict[str, Any]]:
    """The cluster's nodes that have cores."""
    return [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]


def cluster_cores() -> Cores:
    """Cores of the cluster that this process is connected to."""
    cores = [int(node["Resources"]["CPU"]) for node in alive_nodes()]
    return Cores(sum(cores), min(cores))

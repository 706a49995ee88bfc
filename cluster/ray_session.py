"""An embedded Ray on this machine, or the cluster that this process was submitted to."""

from __future__ import annotations

import logging
import os

import ray
from ray._private.internal_api import node_stats

from forebay.pipeline.plan import Plan


def start_ray(plan: Plan, *, blocks_in_flight: int) -> None:
    """Connect to the cluster named by RAY_ADDRESS, else start a private Ray that ends with this process.

    The object store is sized for every block that may be in flight, four times over; the dashboard stays off.
    """
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # num_gpus=0 must not hide a GPU
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False, logging_level="warning")
        return
    # Ray turns its token authentication on by itself, as we want, and warns that it has.  RAY_AUTH_MODE=token would
    # silence it, but has to be set before ray is imported, else client and server disagree.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    ray.init(
        address="local",
        num_cpus=max(plan.cores, plan.solvers),
        include_dashboard=False,
        object_store_memory=max(256 * 2**20, 4 * plan.solvers * blocks_in_flight * plan.block_bytes),
        log_to_driver=False,
        logging_level="warning",
    )


def spilled_bytes() -> int:
    """Bytes that the object stores of all nodes have moved to disk since they were started; Ray does so silently."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    stats = [node_stats(n["NodeManagerAddress"], n["NodeManagerPort"], include_memory_info=False) for n in alive]
    return sum(int(s.store_stats.spilled_bytes_total) for s in stats)

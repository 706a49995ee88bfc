"""One node of a job's own Ray, from its start to the removal of its last file; batch scripts run it on every node.

    python -m forebay.cluster.ray_node endpoint  [--address-command C]                  prints ADDRESS:PORT, a free one
    python -m forebay.cluster.ray_node head|worker --at ADDRESS:PORT --cpus N ...       until SIGTERM; token on stdin

Token, sockets and Ray's logs live in a folder of this node and process, mode 0700, which is gone afterwards.  Nothing
here imports Ray, so that no node waits for that twice.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from forebay.cluster.security import MPI_ON_ONE_HOST

ROUTE_TO = ("192.0.2.1", 9)
"""An address of documentation: the kernel tells by which of its own it would go there, and nothing is sent."""
NODE_ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # an actor of no GPU of its own still sees them
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # when a node is to end, the run has ended
}
POLL_S = 0.2
END_S = 20.0
"""How long Ray may take to end before it is killed."""


@dataclass(frozen=True, slots=True)
class NodeOptions:
    """What one node brings into the Ray."""

    role: str
    """"head" or "worker"."""
    endpoint: str
    """Address and port of the head."""
    cpus: int
    gpus: int
    object_store_bytes: int
    memory_bytes: int
    """0 lets Ray look at the machine."""
    job: str
    tmp: Path
    join_s: float
    address_command: str


def main(words: Sequence[str] | None = None) -> int:
    """Entry point; the process's exit status."""
    arguments = _parser().parse_args(words)
    if arguments.role == "endpoint":
        address = node_address(arguments.address_command)
        print(f"{address}:{free_port(address)}")
        return 0
    options = NodeOptions(
        arguments.role,
        arguments.at,
        arguments.cpus,
        arguments.gpus,
        arguments.object_store_bytes,
        arguments.memory_bytes,
        arguments.job,
        arguments.tmp,
        arguments.join_s,
        arguments.address_command,
    )
    return serve(options, sys.stdin.read().strip())


def serve(options: NodeOptions, token: str) -> int:
    """Run this node's Ray until SIGTERM or until Ray ends by itself; the process's exit status."""
    if not re.fullmatch(r"[A-Za-z0-9_-]{32,}", token):
        print("ray_node: no token on stdin; give the job's token file as standard input", file=sys.stderr)
        return 2
    folder = Path(tempfile.mkdtemp(prefix=f"fb{options.job}-", dir=options.tmp))
    child: subprocess.Popen[bytes] | None = None
    stopping = False

    def stop(number: int, frame: object) -> None:
        nonlocal stopping
        stopping = True
        if child is not None:
            child.terminate()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    try:
        environment = node_environment(folder, token, os.environ)
        if options.role == "worker" and not _wait_for_head(options, lambda: stopping):
            return 1
        if stopping:
            return 0
        child = subprocess.Popen(ray_command(options, folder), env=environment, stdin=subprocess.DEVNULL)
        while not stopping and child.poll() is None:
            time.sleep(POLL_S)
        _end(child)
        return 0 if stopping else child.returncode
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def node_environment(folder: Path, token: str, outer: Mapping[str, str]) -> dict[str, str]:
    """The environment of this node's Ray, with the token in a file of mode 0600."""
    path = folder / "token"
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
        file.write(token)
    kept = {k: v for k, v in outer.items() if k not in ("RAY_ADDRESS", "RAY_AUTH_TOKEN")}
    return MPI_ON_ONE_HOST | kept | NODE_ENVIRONMENT | {"RAY_AUTH_TOKEN_PATH": str(path)}


def ray_command(options: NodeOptions, folder: Path) -> list[str]:
    """`ray start` for this node, with ports of this job alone: nodes may be shared."""
    address = node_address(options.address_command)
    words = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", f"--node-ip-address={address}"]
    if options.role == "head":
        port = options.endpoint.rpartition(":")[2]
        words += ["--head", f"--port={port}", "--include-dashboard=false", "--disable-usage-stats"]
        words += [f"--ray-client-server-port={free_port(address)}"]
    else:
        words += [f"--address={options.endpoint}"]
    words += [f"--num-cpus={options.cpus}", f"--num-gpus={options.gpus}"]
    words += [
        f"--object-store-memory={options.object_store_bytes}",
        f"--temp-dir={folder / 'ray'}",  # which Ray opens to everybody; `folder` around it stays closed
    ]
    words += ["--min-worker-port=0", "--max-worker-port=0", f"--dashboard-agent-listen-port={free_port(address)}"]
    return words + ([f"--memory={options.memory_bytes}"] if options.memory_bytes else [])


def node_address(command: str = "") -> str:
    """Address of this node: what the site's command prints, else the one by which it reaches others."""
    if command:
        found = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=30, check=False)
        words = found.stdout.split()
        if found.returncode or not words:
            raise SystemExit(f"ray_node: the site's address command {command!r} printed no address: {found.stderr}")
        return words[0]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(ROUTE_TO)
        except OSError:  # a node without a way out
            return socket.gethostbyname(socket.gethostname())
        return str(probe.getsockname()[0])


def free_port(address: str) -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def _wait_for_head(options: NodeOptions, stopped: Callable[[], bool]) -> bool:
    host, _, port = options.endpoint.rpartition(":")
    end = time.monotonic() + options.join_s
    while time.monotonic() < end and not stopped():
        try:
            socket.create_connection((host, int(port)), timeout=2).close()
        except OSError:
            time.sleep(POLL_S)
        else:
            return True
    print(f"ray_node: nothing listens at {options.endpoint} after {options.join_s:g} s", file=sys.stderr)
    return stopped()


def _end(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(END_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="forebay.cluster.ray_node", description=__doc__)
    roles = parser.add_subparsers(dest="role", required=True)
    for role in ("endpoint", "head", "worker"):
        words = roles.add_parser(role)
        words.add_argument("--address-command", default="")
        if role != "endpoint":
            words.add_argument("--at", required=True)
            words.add_argument("--cpus", type=int, required=True)
            words.add_argument("--gpus", type=int, default=0)
            words.add_argument("--object-store-bytes", type=int, required=True)
            words.add_argument("--memory-bytes", type=int, default=0)
            words.add_argument("--job", required=True)
            words.add_argument("--tmp", type=Path, default=Path("/tmp"))
            words.add_argument("--join-s", type=float, default=300.0)
    return parser


if __name__ == "__main__":
    sys.exit(main())

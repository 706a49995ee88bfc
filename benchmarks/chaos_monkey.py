"""Kills parts of a run at random times, brings it back whenever it ends, and checks what is left in the end.

    cluster (a head without cores, worker nodes) ◄── forebay run / resume (the driver)
         ▲ kill -9                                        ▲ kill -9
         └────────────────────── Monkey ──────────────────┘

The monkey knows the run by its processes and its journal alone.  A kill counts when its victim was alive and the run
was under way.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xarray

VICTIMS = ("solver", "learner", "writer", "driver", "node")
_ACTORS = {"solver": "ray::SolverActor", "learner": "ray::LearnerActor", "writer": "ray::WriterActor"}
PATIENCE_S = 180.0
"""Time without a new line in the journal after which the run counts as stuck."""
COMES_UP_S = 30.0
"""Time within which a lost actor is there again."""


@dataclass(frozen=True, slots=True)
class Kill:
    """One kill, and how long it took until the run stored or trained on again."""

    victim: str
    at_s: float
    stored: int
    """Blocks in the journal at that moment."""
    recovery_s: float


@dataclass(slots=True)
class Outcome:
    """What the whole thing came to."""

    kills: list[Kill] = field(default_factory=list)
    attempts: int = 0
    seconds: float = 0.0
    lost: int = 0
    """Samples that had been committed and are not there, or are not the same."""
    doubled: int = 0
    """Samples that were counted twice."""
    missing: int = 0
    """Samples that were asked for and are not there."""
    faults: list[str] = field(default_factory=list)
    """Broken invariants."""


class Nodes:
    """A Ray of several nodes on this machine: a head without cores, and workers of two cores each."""

    def __init__(self, workers: int, store_bytes: int = 150 * 2**20) -> None:
        from ray.cluster_utils import Cluster

        self._store = store_bytes
        head = {"num_cpus": 0, "object_store_memory": store_bytes, "include_dashboard": False}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self.workers: list[Any] = []
        for _ in range(workers):
            self.add()

    @property
    def address(self) -> str:
        """For RAY_ADDRESS."""
        return self._cluster.address

    @property
    def environment(self) -> dict[str, str]:
        """Of a process that is to run there."""
        return os.environ | {"RAY_ADDRESS": self.address, "FOREBAY_RAY_WITHOUT_TOKEN": "1"}

    def add(self, cores: int = 2) -> None:
        """One more worker."""
        self.workers.append(self._cluster.add_node(num_cpus=cores, object_store_memory=self._store))

    def kill(self, number: int) -> None:
        """Take a worker away with everything on it, at once."""
        self._cluster.remove_node(self.workers.pop(number), allow_graceful=False)

    def processes(self, numbers: Sequence[int] | None = None) -> list[int]:
        """Process ids of everything that runs on those workers, by default on all and on the head.

        Actors that ask for no cores, which are learner and writer, may be on the head as well.
        """
        everywhere = [self._cluster.head_node, *self.workers]
        chosen = everywhere if numbers is None else [self.workers[number] for number in numbers]
        return _with_descendants([entry[1].pid for worker in chosen for entry in worker.live_processes()])

    def hosts(self, actor: str) -> list[int]:
        """Numbers of the workers on which such an actor lives ("solver", "learner", "writer")."""
        return [
            number
            for number in range(len(self.workers))
            if any(_command(pid).startswith(_ACTORS[actor]) for pid in self.processes([number]))
        ]

    def close(self) -> None:
        """Take the cluster down."""
        self._cluster.shutdown()


@dataclass(slots=True)
class Monkey:
    """Runs a study to its end under fire."""

    study: Path
    run: Path
    nodes: Nodes
    rng: random.Random
    pause_s: tuple[float, float] = (0.5, 3.0)
    """Between signs of life after a kill and the next kill."""
    outcome: Outcome = field(default_factory=Outcome)
    _driver: subprocess.Popen[str] | None = None
    _log: Any = None

    def rampage(self, victims: Sequence[str], then: Callable[[], None] = lambda: None) -> Outcome:
        """Kill these in turn, call `then`, and let the run complete.

        Raises:
            RuntimeError: the run is stuck, or over before all victims are dead.
        """
        begun = time.monotonic()
        with (self.run.parent / "driver.log").open("a") as self._log:
            for victim in victims:
                self._ensure_driver()
                self._wait_for_life()
                time.sleep(self.rng.uniform(*self.pause_s))
                if self._complete:
                    raise RuntimeError(f"the run was complete after {len(self.outcome.kills)} kills; make it longer")
                self._strike(victim, time.monotonic() - begun)
            then()
            self._finish()
        self.outcome.seconds = time.monotonic() - begun
        return self.outcome

    def _strike(self, victim: str, at_s: float) -> None:
        before = len(self._stored())
        start = time.monotonic()
        if victim == "node":
            self.nodes.kill(self.rng.randrange(len(self.nodes.workers)))
            self.nodes.add()
        elif victim == "driver":
            assert self._driver is not None
            self._driver.kill()
            self._driver.wait(timeout=60)
        elif not self._kill_actor(victim):
            return self._strike("driver", at_s)  # that actor does not come up; the driver always is
        self._wait_for_life()
        self.outcome.kills.append(Kill(victim, at_s, before, time.monotonic() - start))
        return None

    def _kill_actor(self, victim: str) -> bool:
        """Kill one of its kind, once there is one: after the kill before, it may still be on its way."""
        end = time.monotonic() + COMES_UP_S
        while not (alive := self._alive(victim)) and not self._complete and time.monotonic() < end:
            self._ensure_driver()
            time.sleep(0.05)
        if alive:
            os.kill(self.rng.choice(alive), signal.SIGKILL)
        return bool(alive)

    def _alive(self, victim: str) -> list[int]:
        return [pid for pid in self.nodes.processes() if _command(pid).startswith(_ACTORS[victim])]

    def _finish(self) -> None:
        while not self._complete:
            self._ensure_driver()
            assert self._driver is not None
            try:
                self._driver.wait(timeout=600)
            except subprocess.TimeoutExpired:
                raise RuntimeError(f"the run does not end; see {self.run.parent}/driver.log") from None
            if self._driver.returncode and not self._complete and self.outcome.attempts > 200:
                raise RuntimeError("the run fails again and again")
        assert self._driver is not None
        self._driver.wait(timeout=120)

    def _ensure_driver(self) -> None:
        if self._complete or (self._driver is not None and self._driver.poll() is None):
            return
        words = ["resume", self.run] if self.run.exists() else ["run", self.study, "--folder", self.run]
        self._driver = subprocess.Popen(
            [sys.executable, "-m", "forebay.cluster.cli", *map(str, words)],
            env=self.nodes.environment | {"OMP_NUM_THREADS": "1"},
            stdout=self._log,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.outcome.attempts += 1

    def _wait_for_life(self) -> None:
        lines = self._progress()
        self._wait_until(lambda: self._progress() > lines or self._complete)

    def _wait_until(self, condition: Any) -> None:
        end = time.monotonic() + PATIENCE_S
        while not condition():
            if time.monotonic() > end:
                raise RuntimeError(f"nothing has happened for {PATIENCE_S:.0f} s; see {self.run.parent}/driver.log")
            self._ensure_driver()
            time.sleep(0.05)

    def _progress(self) -> int:
        """Blocks stored and batches drawn so far, a number that grows while the run lives."""
        drawn = self.run / "draws.jsonl"
        return len(self._stored()) + (drawn.read_bytes().count(b"\n") if drawn.exists() else 0)

    def _stored(self) -> list[tuple[str, int]]:
        return [(e["split"], e["chunk"]) for e in journal(self.run) if e["event"] == "block_stored"]

    @property
    def _complete(self) -> bool:
        return any(e["event"] == "run_finished" and e["status"] == "complete" for e in journal(self.run))


def journal(run: Path) -> list[dict[str, Any]]:
    """Whole lines of the journal so far."""
    path = run / "journal.jsonl"
    if not path.exists():
        return []
    *complete, _ = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in complete]


def inspect(run: Path, undisturbed: Path, outcome: Outcome) -> None:
    """Compare with a run of the same study that nobody disturbed, and fill in what is lost, doubled and missing.

    Solves are deterministic, so every sample has to be the same bit for bit.
    """
    events = journal(run)
    stored = Counter((e["split"], e["chunk"]) for e in events if e["event"] == "block_stored")
    sizes = {(e["split"], e["chunk"]): len(e["records"]["sample_id"]) for e in events if e["event"] == "block_stored"}
    outcome.doubled = sum((count - 1) * sizes[key] for key, count in stored.items())
    for name, split in (("dataset.zarr", "train"), ("validation.zarr", "validation")):
        ours, theirs = (xarray.open_zarr(folder / name).load() for folder in (run, undisturbed))
        outcome.missing += max(0, theirs.sizes["sample"] - ours.sizes["sample"])
        outcome.lost += _different(ours, theirs)
        if ours.sizes["sample"] != sum(size for (s, _), size in sizes.items() if s == split):
            outcome.faults.append(f"{name} has {ours.sizes['sample']} samples, the journal another number")
    _check_training(run, outcome)


def _different(ours: xarray.Dataset, theirs: xarray.Dataset) -> int:
    """Samples that are not the same in both."""
    count = min(ours.sizes["sample"], theirs.sizes["sample"])
    equal = np.ones(count, bool)
    for name in theirs.data_vars:
        if "sample" in theirs[name].dims and name not in ("seconds", "method"):
            a, b = (np.asarray(d[name].values[:count]).reshape(count, -1) for d in (ours, theirs))
            equal &= ((a == b) | ((a != a) & (b != b))).all(axis=1)
    return int((~equal).sum())


def _check_training(run: Path, outcome: Outcome) -> None:
    from forebay.learners.schedule import read_schedule

    study = json.loads((run / "study.json").read_text())["study"]
    schedule = read_schedule(run / "draws.jsonl")
    if len(schedule) != study["learner"]["batches"]:
        outcome.faults.append(f"{len(schedule)} batches count, {study['learner']['batches']} were asked for")
    samples = xarray.open_zarr(run / "dataset.zarr").sizes["sample"]
    strange = [batch.number for batch in schedule if batch.keys.min() < 0 or batch.keys.max() >= samples]
    if strange:
        outcome.faults.append(f"batches {strange} have frames that the data set lacks")
    if not (run / "surrogate" / "weights.safetensors").exists():
        outcome.faults.append("there is no surrogate")
    if not (run / "report.html").exists():
        outcome.faults.append("there is no report")


def _with_descendants(pids: list[int]) -> list[int]:
    listing = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = {int(a): int(b) for a, b in (line.split() for line in listing.splitlines())}
    found = list(pids)
    for parent in found:
        found += [child for child, ppid in parents.items() if ppid == parent]
    return found


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except (FileNotFoundError, ProcessLookupError):
        return ""

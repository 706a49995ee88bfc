"""Where the processor time of a run's processes goes, read from /proc while it runs (Linux)."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
ROLES = {"SolverActor": "solver", "LearnerActor": "learner", "WriterActor": "writer"}
"""What the command line of a Ray worker holds."""
EVERY_S = 0.25


@dataclass(slots=True)
class ProcessorTime:
    """Samples the processor seconds of a process and of all that descend from it, inside a `with`."""

    root: int
    _seen: list[tuple[float, dict[str, float]]] = field(default_factory=list)
    _done: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> ProcessorTime:
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        if self._thread is not None:
            self._thread.join()

    def between(self, begin: float, end: float) -> dict[str, float]:
        """Processor seconds by role between two times since the epoch: solver, learner, writer, driver, Ray, others.

        `others` is what this machine did besides, and what its host took from it.
        """
        first, last = self._nearest(begin), self._nearest(end)
        return {role: spent - first.get(role, 0.0) for role, spent in last.items()}

    def _nearest(self, when: float) -> dict[str, float]:
        return min(self._seen, key=lambda seen: abs(seen[0] - when))[1]

    def _watch(self) -> None:
        spent: dict[int, tuple[str, float]] = {}
        while not self._done.is_set():
            spent |= processes_under(self.root)
            totals: dict[str, float] = {}
            for role, seconds in spent.values():
                totals[role] = totals.get(role, 0.0) + seconds
            totals["others"] = machine_seconds() - sum(totals.values())
            self._seen.append((time.time(), totals))
            self._done.wait(EVERY_S)


def machine_seconds() -> float:
    """Processor seconds that the machine has spent on anything, or that its host withheld, since it was started."""
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / TICKS_PER_S


def processes_under(root: int) -> dict[int, tuple[str, float]]:
    """Role and processor seconds by process id, of `root` and its descendants."""
    parents: dict[int, int] = {}
    seconds: dict[int, float] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                values = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it ended meanwhile
                continue
            parents[int(folder.name)] = int(values[1])
            seconds[int(folder.name)] = (int(values[11]) + int(values[12])) / TICKS_PER_S
    family = {root} & seconds.keys()
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
    return {pid: ("driver" if pid == root else _role(pid), seconds[pid]) for pid in family}


def _role(pid: int) -> str:
    try:
        line = Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    except OSError:  # it ended meanwhile
        return "Ray"
    return next((role for name, role in ROLES.items() if name in line), "Ray")

"""What a group of MPI ranks leaves on the machine: processes, shared memory, descriptors; whether it is all gone."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from running import wait_for_exit


@dataclass(frozen=True)
class Traces:
    """Of ranks that are up."""

    pids: list[int]
    """Ranks, their launcher's processes, and what the ranks have started."""
    started: list[int]
    """The last of these alone."""
    segments: set[str]
    """Shared memory that the ranks have mapped, with a name or without."""

    @classmethod
    def of(cls, ranks: tuple[int, ...]) -> Traces:
        """Look at ranks by process id."""
        above = {parent for pid in ranks for parent in launchers_of(pid)}
        below = [pid for pid in everybody() if parent_of(pid) in ranks]
        mapped = "".join(Path(f"/proc/{pid}/maps").read_text() for pid in ranks)
        return cls([*ranks, *above, *below], below, set(re.findall(r"(/dev/shm/mpich\S*)", mapped)))

    def assert_gone(self, timeout: float = 5) -> None:
        """Within seconds, and without a name in /dev/shm."""
        assert wait_for_exit(self.pids, timeout) == []
        assert self.segments, "two ranks share memory"
        assert not [name for name in self.segments if Path(name).exists()]
        assert not [name for name in os.listdir("/dev/shm") if "forebay" in name]


def launchers_of(rank: int) -> list[int]:
    """The process that waits for a rank, the proxy of mpiexec, and mpiexec."""
    waiting = parent_of(rank)
    proxy = parent_of(waiting)
    found = [waiting, proxy, parent_of(proxy)]
    assert min(found) > 1, "the rank is an orphan: nobody may send signals to these"
    return found


def open_files() -> int:
    """Descriptors of this process."""
    return len(os.listdir("/proc/self/fd"))


def everybody() -> list[int]:
    """Process ids."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def parent_of(pid: int) -> int:
    """Process id of the parent; 0 when the process is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def cpu_seconds(pid: int) -> float:
    """User and system time so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

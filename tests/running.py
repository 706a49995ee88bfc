"""Helpers of the tests that run the `forebay` command for real."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}

POLL = threading.Event()
"""Never set: its timed wait leaves the core to the run that is being watched."""

BRAKED = Path(__file__).parent / "cluster" / "problems" / "braked.py"
TINY = """
name = "tiny"
seed = 314
samples = {samples}
[problem]
name = "darcy"
size = 32
[solver]
actors = 1
[validation]
samples = 12
every = 10
[buffer]
threshold = 8
[learner]
batch_size = 8
batches = {batches}
lr = 2e-3
threads_after_production = 1
freeze_normaliser_after = 16
[learner.model]
name = "fno"
width = 8
modes = 4
layers = 2
[dataset]
block_samples = 8
[run]
executor = "{executor}"
cores = 2
checkpoint_every_s = {checkpoint_every_s}
publish_every_s = 0.2
"""


def write_tiny(folder: Path, *, executor: str, samples: int = 40, batches: int = 30, checkpoint_every_s: float = 60):
    """A study that runs in seconds."""
    path = folder / f"tiny-{executor}.toml"
    path.write_text(
        TINY.format(executor=executor, samples=samples, batches=batches, checkpoint_every_s=checkpoint_every_s)
    )
    return path


def brake_of(study: Path, pause_s: float = 0.25) -> Path:
    """Make the problem of a tiny study one that is slow for as long as a file is there; that file, which is not yet."""
    shutil.copy(BRAKED, study.parent)
    brake = study.parent / "brake"
    problem = f'name = "braked.py:Braked"\nbrake = "{brake}"\npause_s = {pause_s}'
    study.write_text(study.read_text().replace('name = "darcy"\nsize = 32', problem))
    return brake


def forebay(*words: object, timeout: float = 200, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "forebay.cluster.cli", *map(str, words)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=cwd,
        check=False,
    )


def start(*words: object) -> subprocess.Popen[str]:
    """Begin to run the command, in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "forebay.cluster.cli", *map(str, words)],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def events(run: Path, name: str) -> list[dict]:
    """Journal lines of one kind so far; an incomplete last line does not count yet."""
    path = run / "journal.jsonl"
    if not path.exists():
        return []
    *complete, _ = path.read_text().split("\n")
    return [line for line in map(json.loads, complete) if line["event"] == name]


def wait_for_exit(pids: list[int], timeout: float) -> list[int]:
    """Processes of a list that are still there after a while."""
    end = time.monotonic() + timeout
    while (left := [pid for pid in pids if is_alive(pid)]) and time.monotonic() < end:
        POLL.wait(0.2)
    return left


def is_alive(pid: int) -> bool:
    """Does the process exist, other than as a zombie?

    Its first thread may be a zombie already while others, which have not been scheduled since the signal, still hold
    its files open.
    """
    process = Path(f"/proc/{pid}")
    try:
        first_ended = (process / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
        return not first_ended or len(list((process / "task").iterdir())) > 1
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition, process: subprocess.Popen[str], timeout: float = 120) -> None:
    """Poll until something is true; fails with the output when the process ends first."""
    end = time.monotonic() + timeout
    while not condition():
        if process.poll() is not None:
            raise AssertionError(f"the run ended before that: {process.communicate()[0]}")
        if time.monotonic() > end:
            raise AssertionError("not within the time limit")
        POLL.wait(0.02)

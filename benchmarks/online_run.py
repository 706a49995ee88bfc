"""One `forebay run` in a process of its own, and what its run folder says about where the time went."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from processes import ProcessorTime

from forebay.pipeline.run_log import read_run
from forebay.pipeline.summary import summarise


@dataclass(frozen=True, slots=True)
class OnlineRun:
    """Seconds."""

    streaming: float
    """From the first training block that was requested to the end of training and storing."""
    process: float
    """From the command to the first line of the journal: interpreter, imports, checks of the study."""
    actors: float
    """Ray's start, and the actors': imports, set-up."""
    validation: float
    """Solving, storing and handing over the validation set."""
    closing: float
    """From the end of streaming to the end of the process: card, report."""
    solver_busy: float
    solver_idle: float
    """Production time in which the solver had no request, or its answer was on the way."""
    writer_busy: float
    learner_wait: float
    learner_draw: float
    learner_step: float
    evaluation: float
    tail: float
    """From the last stored block to the end of training."""
    processor: dict[str, float]
    """Processor seconds while streaming, by process."""


def run_online(study: Path, folder: Path, executor: str = "ray") -> OnlineRun:
    """Do the run.

    Raises:
        RuntimeError: it failed; its output.
    """
    begun = time.time()
    command = [sys.executable, "-m", "forebay.cluster.cli", "run", str(study), "--folder", str(folder)]
    process = subprocess.Popen(
        [*command, "--executor", executor], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    with ProcessorTime(process.pid) as watch:
        text, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"the run ended with status {process.returncode}:\n{text}")
    return _read(folder, begun, time.time(), watch)


def _read(folder: Path, begun: float, ended: float, watch: ProcessorTime) -> OnlineRun:
    summary, log = summarise(folder), read_run(folder)
    asked = [event for event in log.events if event["event"] == "block_requested"]
    first, train = asked[0]["t"], next(event["t"] for event in asked if event["split"] == "train")
    solvers, writer, learner = (summary.stage(name) for name in ("solvers", "writer", "learner"))
    started, newest = log.attempts[0].start_t, log.train[-1]
    end = train + summary.streaming_s
    return OnlineRun(
        streaming=summary.streaming_s,
        process=started - begun,
        actors=first - started,
        validation=train - first,
        closing=ended - end,
        solver_busy=solvers.busy_s,
        solver_idle=solvers.waiting_s,
        writer_busy=writer.busy_s,
        learner_wait=learner.waiting_s,
        learner_draw=newest["draw_s"],
        learner_step=newest["step_s"],
        evaluation=summary.stage("evaluation").busy_s,
        tail=end - max(block.t for block in log.blocks),
        processor=watch.between(train, end),
    )

"""One stage of a run in a process of its own, as the run would have it, without the other stages.

The parent pickles a `RunSpec`, starts this file with the stage's environment, and waits for the line "ready": imports,
set-up and reading are over.  It then writes a line, and the stage answers with one line of JSON when it is done.

    python benchmarks/alone.py solver SPEC BLOCKS     solves every block, and puts into the folder BLOCKS what it lacks
    python benchmarks/alone.py learner SPEC BLOCKS    trains the planned number of batches from a full ring
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from forebay.cluster.specs import RunSpec
    from forebay.pipeline.records import Block, Split

SOLVER_PARTS = ("draw", "assemble", "solve", "certify", "keep")


@dataclass(slots=True)
class Stage:
    """A started stage; `with Stage.start(...) as stage` waits until it is ready and ends it whatever happens."""

    process: subprocess.Popen[str]

    @classmethod
    def start(cls, name: str, spec: Path, blocks: Path, environment: Mapping[str, str]) -> Stage:
        command = [sys.executable, __file__, name, str(spec), str(blocks)]
        full = {**os.environ, **environment}
        return cls(subprocess.Popen(command, text=True, env=full, stdin=subprocess.PIPE, stdout=subprocess.PIPE))

    def __enter__(self) -> Stage:
        line = self._line()
        if line != "ready":
            raise RuntimeError(f"the stage answered {line!r} instead of 'ready'; its messages are above")
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def go(self) -> None:
        """Let it work; does not wait."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def result(self) -> dict[str, float]:
        """Wait for the figures."""
        line = self._line()
        if not line:
            raise RuntimeError("the stage ended without figures; its messages are above")
        return json.loads(line)

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


def environment_of(stage: str, spec: RunSpec) -> dict[str, str]:
    """What the Ray executor gives the stage's actor."""
    from forebay.cluster.ray_executor import LEARNER_ENVIRONMENT, SOLVER_ENVIRONMENT

    if stage == "solver":
        return dict(SOLVER_ENVIRONMENT)
    threads = str(spec.plan.learner_threads_after)
    return {**LEARNER_ENVIRONMENT, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}


def solver(spec: RunSpec, blocks: Path) -> dict[str, float]:
    """Seconds of making all training blocks, in total and by part; each is let go of at once, as in the run."""
    from forebay.cluster.specs import make_solver

    made = make_solver(spec)
    for chunk in range(spec.plan.chunks["validation"].chunks):
        _keep(blocks, made.solve_block("validation", chunk))
    before, seconds, processor = replace(made.timings), 0.0, 0.0
    _wait_for_go()
    for chunk in range(spec.plan.chunks["train"].chunks):
        start, spent = time.perf_counter(), time.process_time()
        block = made.solve_block("train", chunk)
        seconds += time.perf_counter() - start
        processor += time.process_time() - spent
        _keep(blocks, block)
    parts = {name: getattr(made.timings, name) - getattr(before, name) for name in SOLVER_PARTS}
    return {"seconds": seconds, "processor": processor, **parts}


def learner(spec: RunSpec, blocks: Path) -> dict[str, float]:
    """Seconds of training all planned batches with every frame in the ring, the last evaluation and saving included."""
    from forebay.cluster.specs import make_learner
    from forebay.pipeline.run_log import read_run

    with tempfile.TemporaryDirectory(prefix="forebay-alone-") as folder:
        made = make_learner(replace(spec, folder=Path(folder)), clock_zero=time.time(), resume=False)
        for block in _kept(blocks, "validation", spec):
            made.add_validation(block)
        for block in _kept(blocks, "train", spec):
            made.ingest(block)
        made.end_production()
        _wait_for_go()
        start, processor = time.perf_counter(), time.process_time()
        made.train()
        seconds, processor = time.perf_counter() - start, time.process_time() - processor
        made.metrics.close()
        (Path(folder) / "journal.jsonl").touch()  # what makes it a run folder
        log = read_run(Path(folder))
        newest = log.train[-1]
        return {
            "seconds": seconds,
            "processor": processor,
            "draw": newest["draw_s"],
            "step": newest["step_s"],
            "evaluation": sum(line["seconds"] for line in log.validation),
            "ingest": made.ring.statistics(with_uses=False).ingest_s,
        }


def _keep(folder: Path, block: Block) -> None:
    path = folder / f"{block.split}-{block.chunk}.pickle"
    if not path.exists():
        path.write_bytes(pickle.dumps(block))


def _kept(folder: Path, split: Split, spec: RunSpec) -> Any:
    for chunk in range(spec.plan.chunks[split].chunks):
        yield pickle.loads((folder / f"{split}-{chunk}.pickle").read_bytes())


def _wait_for_go() -> None:
    print("ready", flush=True)
    if not sys.stdin.readline():
        sys.exit("the parent is gone")


if __name__ == "__main__":
    work = {"solver": solver, "learner": learner}[sys.argv[1]]
    print(json.dumps(work(pickle.loads(Path(sys.argv[2]).read_bytes()), Path(sys.argv[3]))), flush=True)

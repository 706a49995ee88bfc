"""Run folders with known figures, written line by line as the stages write them."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from forebay.pipeline.journal import JsonLines, records_to_columns
from forebay.pipeline.records import Outcome, SolveRecord

T0 = 1_790_000_000.0
STREAM_S = 6.5
"""Start-up and validation set: the first training block is requested that long after the start."""
BLOCK, CHUNKS, BLOCK_S = 40, 6, 0.5
BATCH_SIZE, LOG_EVERY, BATCH_S = 16, 5, 0.25

STUDY = {
    "name": "darcy-test",
    "seed": 2027,
    "samples": BLOCK * CHUNKS,
    "problem": {"name": "darcy", "size": 16},
    "validation": {"samples": 30, "every": 20},
    "learner": {"batches": 80, "batch_size": BATCH_SIZE, "model": {"name": "fno", "width": 8}},
}
BROKEN = {3: Outcome.MAX_ITERATIONS, 57: Outcome.PROBLEM_RAISED, 58: Outcome.PROBLEM_RAISED}
"""Training samples that did not converge."""
RESIDUALS = {Outcome.MAX_ITERATIONS: 0.25, Outcome.PROBLEM_RAISED: float("nan")}
MESSAGES = {57: "ValueError: conductivity < 0 & not finite", 58: "ValueError: the same again"}


class FakeRun:
    """Writes a run folder; each method appends what one stage would."""

    def __init__(self, folder: Path, study: dict | None = None) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.study = STUDY | (study or {})
        resolved = {
            "study": self.study,
            "versions": {"forebay": "0.1.0", "python": "3.12.7", "numpy": "2.5.0"},
            "commit": "5630696abcde",
            "problem_summary": "-div(a grad u) = f on the unit square",
            "hardware": {"processor": "Test CPU", "cores": 2, "memory_gib": 7.8},
        }
        (folder / "study.json").write_text(json.dumps(resolved), encoding="utf-8")
        self.journal = JsonLines(folder / "journal.jsonl")
        self.metrics = JsonLines(folder / "metrics.jsonl")
        self.start = T0

    def close(self) -> None:
        self.journal.close()
        self.metrics.close()

    def event(self, name: str, after_s: float, **fields) -> None:
        self.journal.append({"event": name, "t": self.start + after_s, **fields})

    def measure(self, name: str, after_s: float, **fields) -> None:
        t = self.start + after_s
        self.metrics.append({"event": name, "t": t, "wall_s": t - T0, **fields})

    def begin(self, attempt: int = 1, at_s: float = 0.0, solvers: int = 1) -> None:
        self.start = T0 + at_s
        command = "forebay run darcy.toml" if attempt == 1 else "forebay resume runs/darcy-test"
        self.event(
            "run_started",
            0.0,
            executor="ray",
            command=command,
            attempt=attempt,
            cores=2,
            solvers=solvers,
            learner_threads=1,
        )

    def validation_set(self) -> None:
        self.event("block_requested", 6.0, split="validation", chunk=0, solver="solver-0")
        self._store("validation", 0, np.arange(30), 6.25)
        self.event("block_ingested", 6.25, split="validation", chunk=0, frames=0)

    def produce(self, chunks: range, begin_s: float = STREAM_S, block_s: float = BLOCK_S) -> None:
        """One block every second, of which the solver works `block_s`."""
        for place, chunk in enumerate(chunks):
            asked = begin_s + place
            ids = np.arange(chunk * BLOCK, (chunk + 1) * BLOCK)
            valid = sum(int(i) not in BROKEN for i in ids)
            self.event("block_requested", asked, split="train", chunk=chunk, solver="solver-0")
            self._store("train", chunk, ids, asked + 1.0, block_s)
            self.event("block_ingested", asked + 1.0, split="train", chunk=chunk, frames=valid)

    def train(self, first: int, last: int, begin_s: float = STREAM_S + 1.0, batch_s: float = BATCH_S) -> None:
        """Batches first + 1 to last, one line every LOG_EVERY of them and an evaluation every 20."""
        for batch in range(first + LOG_EVERY, last + 1, LOG_EVERY):
            after = begin_s + (batch - first) * batch_s
            self.measure("train", after, **training_line(batch))
            if batch % 20 == 0:
                self.measure("validation", after, **validation_line(batch))
                self.measure("reuse", after, batch=batch, histogram=[7, 30, 200 - batch, batch])

    def flow(self, after_s: float, **fields) -> None:
        self.measure("flow", after_s, **fields)

    def complete(self) -> "FakeRun":
        """A whole run: 240 samples in 6 s, 80 batches in 20 s, 27.75 s in all."""
        self.begin()
        self.validation_set()
        self.produce(range(CHUNKS))
        self.flow(12.0, solved=240, stored=240, ingested=237, solver_busy_s=3.0, writer_busy_s=0.75, spilled_bytes=0)
        self.event("production_ended", 12.5)
        self.train(0, 80)
        self.event("checkpoint", 27.5, batch=80, path="checkpoints/000080")
        self.event("training_ended", 27.5, batches=80)
        self.event("run_finished", 27.75, status="complete", reason="")
        self.close()
        return self

    def choose(self, chunk: int, after_s: float, solver: str, path: tuple[float, float], choices: list[dict]) -> None:
        """One training block of a solver that chooses its methods and sorts its samples."""
        ids = np.arange(chunk * BLOCK, (chunk + 1) * BLOCK)
        self._store("train", chunk, ids, after_s, solver=solver, choices=choices, path=path)

    def _store(
        self, split: str, chunk: int, ids: np.ndarray, after_s: float, seconds: float = BLOCK_S, **fields: Any
    ) -> None:
        columns = records_to_columns([record(int(i), split) for i in ids])
        fields = {"solver": "solver-0", "seconds": seconds, "records": columns} | fields
        self.event("block_stored", after_s, split=split, chunk=chunk, **fields)


def record(sample_id: int, split: str = "train") -> SolveRecord:
    """The record that a sample has in every fake run."""
    outcome = BROKEN.get(sample_id, Outcome.CONVERGED) if split == "train" else Outcome.CONVERGED
    iterative = sample_id % 4 == 3
    return SolveRecord(
        sample_id=sample_id,
        seed=2**63 + sample_id,
        outcome=outcome,
        method="cg+gamg" if iterative else "direct:petsc-cholesky",
        iterations=10 + sample_id % 8 if iterative else 0,
        residual=RESIDUALS.get(outcome, 1e-12 * (1 + sample_id)),
        seconds=0.016 if iterative else 0.008,
        message=MESSAGES.get(sample_id, ""),
    )


def arm(method: str, solved: int, failures: int, cut_offs: int, median_s: float | None) -> dict:
    """What a solver has learned about one method."""
    return {"method": method, "solved": solved, "failures": failures, "cut_offs": cut_offs, "median_s": median_s}


def training_line(batch: int) -> dict:
    return {
        "batch": batch,
        "loss": 0.9 * 0.96**batch + 0.01,
        "lr": 1e-3,
        "frames": batch * BATCH_SIZE,
        "wait_s": 1.0,
        "draw_s": 0.0125 * batch,
        "step_s": 0.2 * batch,
        "unseen": max(0, 237 - 4 * batch),
        "seen": min(237, 4 * batch),
        "capacity": 240,
    }


def validation_line(batch: int) -> dict:
    mean = 0.025 + 0.4 * 0.95**batch
    return {"batch": batch, "mean": mean, "p99": 2 * mean, "max": 2.5 * mean, "seconds": 0.125}


def write_predictions(folder: Path, kind: str) -> None:
    """predictions.npz of best, median and worst sample: "grid", "line", "nodes" or "parameters"."""
    rng = np.random.default_rng(20277)
    arrays: dict[str, np.ndarray] = {
        "labels": np.array(["best", "median", "worst"]),
        "sample_ids": np.array([4, 17, 29]),
        "errors": np.array([0.0123, 0.0271, 0.0842]),
    }
    if kind == "grid":
        x = (np.arange(16) + 0.5) / 16
        shape = np.outer(np.sin(np.pi * x), np.sin(2 * np.pi * x))
        arrays |= {"coordinates/x": x, "coordinates/y": x}
        arrays["input/a"] = np.where(rng.normal(size=(3, 16, 16)) > 0, 12.0, 3.0)
    elif kind == "line":
        x = np.linspace(0, 1, 33)
        shape = np.sin(np.pi * x)
        arrays |= {"coordinates/x": x, "time": np.array([0.1, 0.5, 1.0]), "input/u0": np.tile(np.cos(x), (3, 1))}
    else:
        points, triangles = ring_mesh()
        shape = points[:, 0] * points[:, 1]
        arrays |= {"coordinates/node_x": points[:, 0], "coordinates/node_y": points[:, 1], "triangles": triangles}
        arrays["input/parameters"] = np.arange(6.0).reshape(3, 2)
    scale = np.array([1.0, 2.0, 3.0]).reshape(3, *[1] * shape.ndim)
    arrays["reference/u"] = scale * shape
    arrays["prediction/u"] = arrays["reference/u"] + 0.05 * rng.normal(size=(3, *shape.shape))
    np.savez_compressed(folder / "predictions.npz", **arrays)


def ring_mesh(around: int = 24, layers: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """An annulus 0.5 <= r <= 1, whose hole must stay empty in a picture."""
    angle = 2 * np.pi * np.arange(around) / around
    radius = np.linspace(0.5, 1.0, layers)
    points = np.array([(r * np.cos(a), r * np.sin(a)) for r in radius for a in angle])
    corner = np.array([(i, j) for i in range(layers - 1) for j in range(around)])
    a, b = corner[:, 0] * around + corner[:, 1], corner[:, 0] * around + (corner[:, 1] + 1) % around
    return points, np.concatenate([np.stack([a, b, a + around], 1), np.stack([b, b + around, a + around], 1)])

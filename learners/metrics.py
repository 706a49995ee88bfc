"""What training tells the world: JSON lines for our own tools, TensorBoard scalars for everybody's."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from forebay.learners.evaluate import Evaluation
from forebay.pipeline.journal import Journal, JsonLines


class MetricsLog:
    """Appends to metrics.jsonl, draws.jsonl and tensorboard/ of a run folder; wall times count all attempts.

    Of several learners each has its own draws, and the first speaks for all.
    """

    def __init__(self, folder: Path, clock_zero: float, rank: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._clock_zero = clock_zero
        self._metrics = Journal(folder / "metrics.jsonl")
        self._draws = JsonLines(draws_file(folder, rank))
        self._board = SummaryWriter(str(folder / "tensorboard"), flush_secs=10)

    @property
    def wall_s(self) -> float:
        """Seconds of the run, over all attempts."""
        return time.time() - self._clock_zero

    def train(self, *, batch: int, loss: float, lr: float, **counters: float) -> None:
        """One line for a few batches."""
        self._metrics.append("train", wall_s=self.wall_s, batch=batch, loss=loss, lr=lr, **counters)
        self._board.add_scalar("train/loss", loss, batch)
        self._board.add_scalar("train/lr", lr, batch)

    def validation(self, batch: int, evaluation: Evaluation, uses: Sequence[int]) -> None:
        """One line an evaluation, and how often the frames have been used."""
        errors = {"mean": evaluation.mean, "p99": evaluation.p99, "max": evaluation.max}
        self._metrics.append("validation", wall_s=self.wall_s, batch=batch, seconds=evaluation.seconds, **errors)
        self._metrics.append("reuse", wall_s=self.wall_s, batch=batch, histogram=uses)
        for name, value in errors.items():
            self._board.add_scalar(f"validation/{name}", value, batch)
        self._board.flush()

    def begin(self, batch: int, normalised: Iterable[int]) -> None:
        """Training begins after that batch, with those chunks in its normaliser; takes back what was drawn beyond."""
        self._draws.append({"begin": batch, "normalised": sorted(normalised)})

    def normalised(self, chunk: int) -> None:
        """The normaliser has taken in a chunk, between the batch drawn last and the next."""
        self._draws.append({"normalised": chunk})

    def draw(self, batch: int, keys: np.ndarray, threads: int) -> None:
        """Which frames a batch consists of; `schedule.py` reads all this back, to replay the training."""
        self._draws.append({"batch": batch, "threads": threads, "keys": keys.tolist()})

    def close(self) -> None:
        """Write what is buffered and give up the files; harmless when repeated."""
        self._metrics.close()
        self._draws.close()
        self._board.close()


def draws_file(folder: Path, rank: int) -> Path:
    """Where the learner of that rank writes its draws."""
    return folder / (f"draws-{rank}.jsonl" if rank else "draws.jsonl")

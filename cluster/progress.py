"""Shows a run as it goes: live on a terminal, plain lines elsewhere.  Reads metrics.jsonl, where every stage writes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from forebay.cluster.tail import Tail
from forebay.cluster.terminal import make_console
from forebay.pipeline.messages import (
    BlockLost,
    BlockSolved,
    Event,
    Finish,
    LearnerLost,
    LearnerReady,
    SolverLost,
    StageFailed,
    WriterLost,
)
from forebay.pipeline.plan import Plan

if TYPE_CHECKING:
    from forebay.pipeline.summary import Summary

LINE_EVERY_S = 10.0


class Progress:
    """An observer of the run's events."""

    def __init__(self, folder: Path, plan: Plan, executor: str) -> None:
        self._console = make_console()
        self._folder = folder
        self._plan = plan
        self._metrics = Tail(folder / "metrics.jsonl")
        self._solved = {"validation": 0, "train": 0}
        self._batch, self._loss, self._error = 0, float("nan"), float("nan")
        self._line_s = time.monotonic()
        self._bars = self._tasks = None
        self._console.print(f"run folder {folder}", soft_wrap=True, highlight=False)
        self._console.print(
            f"{executor} executor on {plan.cores} cores: {_sharing(executor, plan)}",
            highlight=False,
        )
        if self._console.is_terminal:
            self._bars, self._tasks = self._make_bars()
            self._bars.start()

    def observe(self, event: Event) -> None:
        """Update the display."""
        match event:
            case BlockSolved(key=(split, _)):
                self._solved[split] += len(event.records)
            case SolverLost(solver=solver, reason=reason, sample=sample):
                where = f" at sample {sample[1]} of the {sample[0]} split" if sample else ""
                self._say(f"{solver} was lost{where} and is started again: {reason.splitlines()[0]}")
            case WriterLost(reason=reason):
                self._say(f"the writer was lost and is started again: {reason.splitlines()[0]}")
            case LearnerLost(reason=reason):
                self._say(f"the learner was lost and goes on from its latest checkpoint: {reason.splitlines()[0]}")
            case LearnerReady(batches=batches):
                self._say(f"the learner is back at batch {batches}")
            case BlockLost(key=(split, chunk), reason=reason):
                self._say(f"block {chunk} of the {split} split was lost and is made again: {reason.splitlines()[0]}")
            case StageFailed(stage=stage, reason=reason):
                self._say(f"{stage} failed: {reason}")
        self._read_metrics()
        if self._bars is not None and self._tasks is not None:
            self._bars.update(self._tasks[0], completed=self._solved["train"])
            self._bars.update(self._tasks[1], completed=self._batch, note=self._note())
        elif time.monotonic() - self._line_s >= LINE_EVERY_S:
            self._line_s = time.monotonic()
            self._say(
                f"solved {self._solved['train']}/{self._plan.chunks['train'].samples}  "
                f"batch {self._batch}/{self._plan.batches}  {self._note()}"
            )

    def close(self) -> None:
        """Give the terminal back; harmless when repeated."""
        if self._bars is not None:
            self._bars.stop()

    def conclude(self, ending: Finish, summary: Summary, report: str) -> None:
        """Last words: how it ended, the figures, the report."""
        from forebay.pipeline.summary import status_text

        self.close()
        self._console.print(status_text(summary))
        if ending.status != "complete":
            self._console.print(f"{ending.status}: {ending.reason}", style="bold", highlight=False, soft_wrap=True)
            self._console.print(f"continue with: forebay resume {self._folder}", highlight=False, soft_wrap=True)
        self._console.print(f"report: {report}", highlight=False, soft_wrap=True)

    def _make_bars(self) -> tuple[Bars, tuple[TaskID, TaskID]]:
        bars = Bars(
            TextColumn("{task.description:8}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=self._console,
        )
        samples = bars.add_task("samples", total=self._plan.chunks["train"].samples, note="")
        batches = bars.add_task("batches", total=self._plan.batches, note="")
        return bars, (samples, batches)

    def _read_metrics(self) -> None:
        for line in self._metrics.lines():
            match line["event"]:
                case "train":
                    self._batch, self._loss = line["batch"], line["loss"]
                case "validation":
                    self._error = line["mean"]

    def _note(self) -> str:
        return f"loss {self._loss:.4f}  validation relative L2 {100 * self._error:.2f} %"

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


def _sharing(executor: str, plan: Plan) -> str:
    """Who gets which core, and why."""
    if executor == "local":
        return f"solving and training in turn, training with {plan.learner_threads_after} thread(s)"
    return (
        f"{plan.solvers} solver(s) of one thread and a learner of {plan.learner_threads}, so that neither slows the "
        f"other; when the last sample is solved the learner may take {plan.learner_threads_after}"
    )

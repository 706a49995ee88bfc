"""Runs with different numbers of actors, each between two of the solver alone."""

from __future__ import annotations

import os
import pickle
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from alone import Stage, environment_of
from common import Measured, cores
from online_run import OnlineRun, run_online
from processes import ProcessorTime

from forebay.cluster.launch import prepare

DISTURBED = 0.05
"""Share of the processors that others use or the host withholds, above which the figures are theirs as well."""
ENOUGH = 3
"""Undisturbed runs that may stand for all."""
ALONE_BLOCKS = {"sleep": 4, "real": 40}
"""Enough to know what a sample takes."""
PART = {"sleep": "sleeping.py:Sleeping", "real": "darcy"}
STUDY = """
name = "scaling"
seed = 7
samples = {samples}
[problem]
name = "{problem}"
{options}
[solver]
actors = {actors}
[validation]
samples = {block}
every = 1000000
[buffer]
policy = "fifo"
[learner]
batch_size = {block}
threads = 1
threads_after_production = 1
[learner.model]
name = "mlp"
hidden = [4]
[dataset]
block_samples = {block}
[run]
cores = {cores}
"""
"""First in, first out, every frame once: training ends right after the last block is in."""


@dataclass(frozen=True, slots=True)
class Alone:
    """What the solver does without a pipeline."""

    seconds: float
    """Of a sample."""
    others: float
    """Share of the processors that was somebody else's meanwhile."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """Runs that differ in the number of actors."""

    kind: str
    options: Mapping[str, object]
    block: int
    """Samples of a block."""
    blocks: int
    """Of each actor."""
    actors: int = 1

    @property
    def samples(self) -> int:
        return self.block * self.blocks * self.actors

    def write(self, folder: Path) -> Path:
        """The study's file."""
        path = folder / "study.toml"
        own = {**self.options, "block": self.block} if self.kind == "sleep" else self.options
        options = "\n".join(f"{key} = {value}" for key, value in own.items())
        fields = {"samples": self.samples, "problem": PART[self.kind], "options": options, "actors": self.actors}
        path.write_text(STUDY.format(**fields, block=self.block, cores=self.actors + 1), encoding="utf-8")
        shutil.copy(Path(__file__).with_name("sleeping.py"), folder)
        return path

    def online(self, folder: Path) -> OnlineRun:
        """The run."""
        try:
            return run_online(self.write(folder), folder / "run")
        finally:
            shutil.rmtree(folder / "run", ignore_errors=True)

    def alone(self, folder: Path) -> Alone:
        """One solver without a pipeline."""
        one = replace(self, actors=1, blocks=min(self.blocks, ALONE_BLOCKS[self.kind]))
        spec = prepare(one.write(folder), folder=folder / "never").spec
        (folder / "spec").write_bytes(pickle.dumps(spec))
        (folder / "blocks").mkdir()
        try:
            with Stage.start("solver", folder / "spec", folder / "blocks", environment_of("solver", spec)) as stage:
                with ProcessorTime(os.getpid()) as watch:
                    begun = time.time()
                    stage.go()
                    seconds = stage.result()["seconds"]
                    ended = time.time()
                others = watch.between(begun, ended)["others"] / (cores() * (ended - begun))
                return Alone(seconds / one.samples, others)
        finally:
            shutil.rmtree(folder / "blocks")


@dataclass(frozen=True, slots=True)
class Between:
    """A run, with what surrounds it: the machine's speed changes from minute to minute."""

    run: OnlineRun
    before: Alone
    after: Alone

    @property
    def alone_s(self) -> float:
        """Of a sample."""
        return (self.before.seconds + self.after.seconds) / 2

    @property
    def others(self) -> float:
        """The largest share of the processors that was somebody else's."""
        return max(self.run.processor["others"] / (cores() * self.run.streaming), self.before.others, self.after.others)


@dataclass(slots=True)
class Row:
    """All repetitions of one number of actors."""

    case: Case
    taken: list[Between] = field(default_factory=list)

    @property
    def undisturbed(self) -> list[Between]:
        return [between for between in self.taken if between.others <= DISTURBED]

    @property
    def counted(self) -> list[Between]:
        """The undisturbed ones where there are enough, else all."""
        return self.undisturbed if len(self.undisturbed) >= ENOUGH else self.taken

    @property
    def runs(self) -> list[OnlineRun]:
        return [between.run for between in self.counted]

    @property
    def alone(self) -> Measured:
        return Measured(tuple(between.alone_s for between in self.counted))

    @property
    def streaming(self) -> Measured:
        return Measured(tuple(run.streaming for run in self.runs))

    @property
    def ideal(self) -> Measured:
        return Measured(tuple(self._ideal(between) for between in self.counted))

    @property
    def efficiency(self) -> float:
        """Median over the runs that count, each against what surrounds it."""
        return self._median(self.counted, lambda ideal, streaming: ideal / streaming)

    @property
    def efficiency_of_all(self) -> float:
        return self._median(self.taken, lambda ideal, streaming: ideal / streaming)

    @property
    def lost_ms(self) -> float:
        """Of one actor's time, for each of its samples; median over the runs."""
        lost = self._median(self.counted, lambda ideal, streaming: streaming - ideal)
        return 1e3 * lost / (self.case.samples / self.case.actors)

    def processor_ms(self, role: str) -> float:
        """A block, median of the repetitions."""
        blocks = self.case.samples / self.case.block
        return 1e3 * statistics.median(run.processor.get(role, 0.0) for run in self.runs) / blocks

    @property
    def disturbance(self) -> float:
        """Share of the processors that was somebody else's in the worst of what counts."""
        return max(between.others for between in self.counted)

    def _ideal(self, between: Between) -> float:
        return between.alone_s * self.case.samples / self.case.actors

    def _median(self, taken: Sequence[Between], of: Callable[[float, float], float]) -> float:
        return statistics.median(of(self._ideal(between), between.run.streaming) for between in taken)


def measure(case: Case, actors: Sequence[int], repeats: int, most: int = 0) -> list[Row]:
    """Runs in turn, every second round backwards; up to `most` of them until `repeats` were undisturbed."""
    rows = {count: Row(replace(case, actors=count)) for count in actors}
    with tempfile.TemporaryDirectory(prefix="forebay-scaling-") as temporary:
        folder = Path(temporary)
        before = case.alone(folder)
        for turn in range(max(repeats, most)):
            for count in actors if turn % 2 == 0 else reversed(actors):
                row = rows[count]
                if turn >= repeats and len(row.undisturbed) >= repeats:
                    continue
                run = row.case.online(folder)
                after = case.alone(folder)
                row.taken.append(Between(run, before, after))
                before = after
    return list(rows.values())

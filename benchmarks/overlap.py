"""Claim: an online run on two cores takes hardly longer than the slower of its two stages would take alone.

Darcy 64 x 64 and a Fourier neural operator, one solver process and one learner process through the Ray executor, as
`forebay run` starts it.  The run's streaming time (first training block requested to training and storing ended) stands
against these for the same samples and batches:

- one core each: max(solver alone, learner alone), each in a process of its own with the run's environment while the
  other core idles.  This is the ideal that the target is about.  Writing and handing over are in neither;
- both alone at once: what this machine allows without any hand-over, since two busy cores share memory and clock;
- work / 2: what nothing on two cores can beat, whoever does which part.

Cases: `balanced`, where both stages need the same time (hardest, and the one that counts); `learner-bound`, the main
job's network; `second core`, the same with the default that the learner takes the solver's core over once production is
over: there the ideal is the solver's time, and then the rest of the batches at the learner's speed on two cores.
"""

from __future__ import annotations

import math
import pickle
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from alone import SOLVER_PARTS, Stage, environment_of
from common import Report, arguments, cores, number, table
from online_run import OnlineRun, run_online

from forebay.cluster.launch import prepare
from forebay.cluster.specs import RunSpec

TARGET = 1.10
THRESHOLD = 64
"""Frames before the first batch, four batches: the least that the buffer recommends."""
DISTURBED = 0.05
"""Share of the processors that others use while the run streams, above which its figures mean little."""
STUDY = """
name = "overlap-{name}"
seed = 20233
samples = {samples}
[problem]
name = "darcy"
size = {size}
[solver]
actors = 1
[validation]
samples = 64
every = {every}
[buffer]
policy = "reservoir"
threshold = {threshold}
[learner]
batch_size = 16
batches = {batches}
threads = 1
threads_after_production = {threads_after}
[learner.model]
name = "fno"
width = {width}
modes = {modes}
layers = {layers}
projection = {projection}
[run]
cores = 2
"""


@dataclass(frozen=True, kw_only=True)
class Network:
    width: int
    modes: int
    layers: int
    projection: int


@dataclass(frozen=True, kw_only=True)
class Case:
    """One study."""

    name: str
    samples: int
    network: Network
    size: int = 64
    seconds: float | None = None
    """What the learner alone shall take; None: as long as the solver alone."""
    threads_after: int = 1

    def study(self, batches: int) -> str:
        network = {key: getattr(self.network, key) for key in ("width", "modes", "layers", "projection")}
        return STUDY.format(
            name=self.name.replace(" ", "-"),
            samples=self.samples,
            size=self.size,
            threshold=THRESHOLD,
            threads_after=self.threads_after,
            batches=batches,
            every=max(50, batches // 4),
            **network,
        )


@dataclass(frozen=True, kw_only=True)
class Plan:
    cases: tuple[Case, ...]
    repeats: int
    trial_batches: int
    """Batches from which the learner's speed is estimated."""
    together: bool = True
    """Also run both stages at the same time, without any hand-over."""
    executor: str = "ray"


SMALL = Network(width=12, modes=8, layers=2, projection=16)
MAIN_JOB = Network(width=32, modes=12, layers=4, projection=64)
FULL = Plan(
    cases=(
        Case(name="balanced", samples=12_288, network=SMALL),
        Case(name="learner-bound", samples=2048, network=MAIN_JOB, seconds=20.0),
        Case(name="second core", samples=4096, network=MAIN_JOB, seconds=20.0, threads_after=2),
    ),
    repeats=3,
    trial_batches=80,
)
QUICK = Plan(cases=(Case(name="balanced", samples=2560, network=SMALL),), repeats=1, trial_batches=60, together=False)


# -- contenders --------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Bench:
    """One case with its files: study, specification, blocks, run folders."""

    case: Case
    folder: Path
    executor: str
    batches: int

    @property
    def blocks(self) -> Path:
        return self.folder / "blocks"

    def write_study(self) -> Path:
        path = self.folder / "study.toml"
        path.write_text(self.case.study(self.batches), encoding="utf-8")
        return path

    def spec(self, *, learner_threads: int = 1) -> RunSpec:
        """What the run's actors are built from, but for the learner's threads."""
        spec = prepare(self.write_study(), folder=self.folder / "never").spec
        return replace(spec, plan=replace(spec.plan, learner_threads_after=learner_threads))

    @contextmanager
    def stage(self, name: str, *, learner_threads: int = 1) -> Iterator[Stage]:
        spec, path = self.spec(learner_threads=learner_threads), self.folder / f"{name}.spec"
        path.write_bytes(pickle.dumps(spec))
        with Stage.start(name, path, self.blocks, environment_of(name, spec)) as stage:
            yield stage

    def alone(self, name: str, *, learner_threads: int = 1) -> dict[str, float]:
        with self.stage(name, learner_threads=learner_threads) as stage:
            stage.go()
            return stage.result()

    def together(self) -> dict[str, float]:
        """Both stages at the same time, without a word between them: seconds of each, and of the slower."""
        with self.stage("learner") as learner, self.stage("solver") as solver:
            learner.go()
            solver.go()
            found = {"solver": solver.result()["seconds"], "learner": learner.result()["seconds"]}
        return {**found, "seconds": max(found.values())}

    def online(self) -> OnlineRun:
        folder = self.folder / "run"
        try:
            return run_online(self.write_study(), folder, self.executor)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class Result:
    """All repetitions of one case."""

    bench: Bench
    solver: Sequence[dict[str, float]]
    learner: Sequence[dict[str, float]]
    learner_on_two: Sequence[dict[str, float]]
    """On two cores; empty where the learner never has them."""
    together: Sequence[dict[str, float]]
    """Empty where they were not measured."""
    online: Sequence[OnlineRun]

    def median(self, name: str, part: str = "seconds") -> float:
        values = [found[part] for found in getattr(self, name)]
        return statistics.median(values) if values else math.nan

    @property
    def streaming(self) -> float:
        return statistics.median(run.streaming for run in self.online)

    @property
    def typical(self) -> OnlineRun:
        """The run of median streaming time (lower of two)."""
        return sorted(self.online, key=lambda run: run.streaming)[(len(self.online) - 1) // 2]

    @property
    def ideal(self) -> float:
        """One core each, or, where the learner takes the second core over, as the module says."""
        solver, learner = self.median("solver"), self.median("learner")
        if not self.learner_on_two or learner <= solver:
            return max(solver, learner)
        return solver + (1 - solver / learner) * self.median("learner_on_two")

    @property
    def half(self) -> float:
        return (self.median("solver") + self.median("learner")) / 2

    @property
    def ratio(self) -> float:
        return self.streaming / self.ideal

    @property
    def disturbance(self) -> float:
        """Share of two processors that anybody else used while the runs streamed; the largest over the runs."""
        return max(run.processor["others"] / (2 * run.streaming) for run in self.online)


def measure(case: Case, folder: Path, plan: Plan) -> Result:
    """Choose the number of batches, then measure the contenders in turn, every second round backwards."""
    bench = Bench(case, folder, plan.executor, plan.trial_batches)
    bench.blocks.mkdir()
    first = bench.alone("solver")
    # Processor time: calibrated by the clock, a disturbed trial would unbalance every repetition.
    wanted = case.seconds or first["processor"]
    bench.batches = max(plan.trial_batches, round(wanted * plan.trial_batches / bench.alone("learner")["processor"]))
    contenders: dict[str, Callable[[], Any]] = {
        "solver": lambda: bench.alone("solver"),
        "learner": lambda: bench.alone("learner"),
        "online": bench.online,
    }
    if plan.together:
        contenders["together"] = bench.together
    if case.threads_after > 1:
        contenders["learner_on_two"] = lambda: bench.alone("learner", learner_threads=case.threads_after)
    found: dict[str, list[Any]] = {"learner": [], "learner_on_two": [], "together": [], "online": [], "solver": [first]}
    for turn in range(plan.repeats):
        for name in list(contenders) if turn % 2 == 0 else reversed(list(contenders)):
            if turn or name != "solver":
                found[name].append(contenders[name]())
    return Result(bench=bench, **found)


# -- what it says ------------------------------------------------------------------------------------------------------

CASE_COLUMNS = (
    "case, seconds",
    "samples",
    "batches",
    "solver alone",
    "learner alone",
    "ideal",
    "both alone at once",
    "work / 2",
    "online",
    "spread",
    "online / ideal",
    "online / at once",
)
PART_COLUMNS = ("seconds", "alone", "both alone at once", "online", "note")


def case_row(result: Result) -> list[str]:
    streams = [run.streaming for run in result.online]
    seconds = (
        result.median("solver"),
        result.median("learner"),
        result.ideal,
        result.median("together"),
        result.half,
        result.streaming,
    )
    return [
        result.bench.case.name,
        f"{result.bench.case.samples}",
        f"{result.bench.batches}",
        *map(shown, seconds),
        f"±{50 * (max(streams) - min(streams)) / result.streaming:.0f} %",
        f"{result.ratio:.2f}",
        shown(result.streaming / result.median("together")),
    ]


def part_rows(result: Result) -> list[list[str]]:
    """Stage by stage; the run is the one of median streaming time."""
    run, solver = result.typical, result.solver[0]
    parts = ", ".join(f"{name} {number(solver[name])}" for name in SOLVER_PARTS)
    rows: list[tuple[str, float, float, float, str]] = [
        ("solver, busy", result.median("solver"), result.median("together", "solver"), run.solver_busy, parts),
        ("solver, without a request", math.nan, math.nan, run.solver_idle, "hand-over, the driver's turns, credits"),
        ("learner, drawing", result.median("learner", "draw"), math.nan, run.learner_draw, "the ring's lock included"),
        ("learner, training steps", result.median("learner", "step"), math.nan, run.learner_step, ""),
        ("learner, evaluations", result.median("learner", "evaluation"), math.nan, run.evaluation, ""),
        ("learner, waiting for data", math.nan, math.nan, run.learner_wait, "the first blocks above all"),
        ("learner, all", result.median("learner"), result.median("together", "learner"), run.streaming, ""),
        (
            "ring, copying blocks in",
            result.median("learner", "ingest"),
            math.nan,
            math.nan,
            "a second thread of the learner; as one go, before",
        ),
        ("writer, busy", math.nan, math.nan, run.writer_busy, "waits for the disk, mostly"),
        ("after the last stored block", math.nan, math.nan, run.tail, "rest of the batches, last evaluation, saving"),
    ]
    return [[name, *map(shown, values), note] for name, *values, note in rows]


def shown(seconds: float) -> str:
    return "" if math.isnan(seconds) else number(seconds)


def phase_rows(result: Result) -> list[list[str]]:
    """The whole command; only streaming is compared."""
    run = result.typical
    phases = {
        "interpreter, imports, checks of the study": run.process,
        "Ray and the actors": run.actors,
        "validation set: solved, stored, handed over": run.validation,
        "streaming": run.streaming,
        "data-set card, report, exit": run.closing,
    }
    return [[name, number(seconds)] for name, seconds in phases.items()]


def missing(result: Result) -> str:
    """Where the run loses against the ideal, in words."""
    run = result.typical
    stages = {role: run.processor.get(role, 0.0) for role in ("solver", "learner")}
    helpers = {role: spent for role, spent in sorted(run.processor.items()) if role not in (*stages, "others")}
    share = 100 * sum(helpers.values()) / (2 * run.streaming)
    machine = result.median("together") - max(result.median("solver"), result.median("learner"))
    both = "" if math.isnan(machine) else f"Two busy cores cost {machine:+.2f} s without any hand-over.  "
    return (
        f"What is missing, {result.bench.case.name}: {result.streaming - result.ideal:+.2f} s against the ideal.  "
        f"{both}The learner waits {run.learner_wait:.2f} s for "
        f"data, most of it for the first {THRESHOLD} frames; the solver is {run.solver_idle:.2f} s without a request; "
        f"training goes on for {run.tail:.2f} s after the last block is stored.  Processor seconds while streaming: "
        f"{spoken(stages)}; beside them {spoken(helpers)}, {share:.1f} % of two cores, for which the stages make room."
    )


def spoken(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {seconds:.2f}" for name, seconds in values.items())


def run_benchmark(plan: Plan, report: Report) -> float:
    """Measure and print all cases; the first one's ratio."""
    results = []
    for case in plan.cases:
        with tempfile.TemporaryDirectory(prefix="forebay-overlap-") as name:
            results.append(measure(case, Path(name), plan))
    report.say(table(CASE_COLUMNS, [case_row(result) for result in results]))
    counted = results[0]
    report.say(f"\n## {counted.bench.case.name}, part by part\n")
    report.say(table(PART_COLUMNS, part_rows(counted)))
    report.say("\n## The whole command\n")
    report.say(table(("phase", "seconds"), phase_rows(counted)))
    for result in results:
        report.say("\n" + missing(result))
        if result.disturbance > DISTURBED:
            report.say(
                f"Others used {100 * result.disturbance:.0f} % of two cores during a run: repeat on a quiet machine."
            )
    return counted.ratio


def main(argv: Sequence[str] | None = None) -> int:
    options = arguments(__doc__ or "", argv)
    report = Report("overlap", options, ("torch", "ray", "numpy", "zarr"))
    if cores() < 2:
        report.say("This process may use one core only; the figure says nothing about overlap.\n")
    ratio = run_benchmark(QUICK if options.quick else FULL, report)
    return report.finish(f"{ratio:.2f}", f"<= {TARGET:.2f}", ok=ratio <= TARGET)


if __name__ == "__main__":
    sys.exit(main())

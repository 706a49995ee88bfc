"""Claim: with the same number of batches, training online on new simulations beats training on a stored few.

What decides is the number of unique simulations, not streaming as such, so every comparison has three rows, with the
same network, initial weights, loss, schedule, batches and validation set:

- offline, storage budget: the first N simulations, shuffled anew in every epoch;
- online: all simulations streamed once through a Reservoir in the order in which they are solved;
- offline, the online run's own data: all of them on disk, shuffled anew in every epoch, as if storage were free.

The first to the second row is the gain of going online, the second to the third is its price.  The claim needs both.

Cases: `heat`, the transient of Meyer et al. (SC 2023, arXiv 2309.16743) with a multi-layer perceptron; `darcy` with a
Fourier neural operator.  Data come from the project's solvers, the online row is the project's learner (`offer` and
`advance` as an executor calls them) in one process and one thread, so each figure follows from its seed.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from common import Report, arguments, number, table

from forebay.cluster.specs import RunSpec, make_solver
from forebay.learners.evaluate import evaluate
from forebay.learners.learner import StreamLearner
from forebay.learners.metrics import draws_file
from forebay.learners.ring import frames_of
from forebay.learners.schedule import read_schedule
from forebay.learners.step import TrainOptions, make_state, train_step
from forebay.learners.surrogate import IOSpec, Surrogate, SurrogateConfig
from forebay.pipeline.buffer import Policy
from forebay.pipeline.plan import make_plan
from forebay.pipeline.records import Block
from forebay.pipeline.sampling import sample_seed
from forebay.pipeline.study import study_from_dict
from forebay.solvers.problems import load_problem

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
STORED, STREAMED, OWN = "offline, storage budget", "online", "offline, the online run's own data"


@dataclass(frozen=True, kw_only=True)
class Stream:
    """How an online row gets its data."""

    label: str
    share: float
    """Ring's capacity as a share of all frames."""
    pace: Literal["solver first", "evenly"]
    """`solver first`: blocks come as fast as the ring takes them.  `evenly`: production lasts as long as training."""
    policy: Policy = "reservoir"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One comparison."""

    problem: str
    options: Mapping[str, Any] = field(default_factory=dict)
    stored: int
    """N, the storage budget in simulations."""
    streamed: int
    block: int
    """Simulations that arrive together."""
    learner: Mapping[str, Any]
    validation: int
    stream: Stream
    others: tuple[Stream, ...] = ()
    """Further online rows, for comparison only."""
    gain: float
    """Least reduction of the error against the storage budget."""
    price: float | None = None
    """Largest excess over the third row; None: none is asked for."""
    metric: Literal["mse", "relative"]
    """Of `Trained`: which error is compared."""
    units: str

    def spec(self, seed: int, stream: Stream, folder: Path) -> RunSpec:
        """A run of all simulations."""
        problem = load_problem(self.problem, self.options, folder=folder)
        frames = self.streamed * problem.schema.steps
        tree = {
            "name": f"online-{self.problem}",
            "seed": seed,
            "samples": self.streamed,
            "problem": {"name": self.problem, **self.options},
            "validation": {"samples": self.validation, "every": 10**9},
            "buffer": {"policy": stream.policy, "capacity": round(stream.share * frames)},
            "learner": self.learner,
            "dataset": {"block_samples": self.block},
        }
        study = study_from_dict(tree)
        return RunSpec(study, make_plan(study, problem.schema, cores=1), problem.schema, folder, folder)

    @property
    def streams(self) -> tuple[Stream, ...]:
        """All online rows, the one that is judged first."""
        return (self.stream, *self.others)

    @property
    def metric_name(self) -> str:
        return {"mse": "mean square error", "relative": "relative L2 error"}[self.metric]


# -- the rows ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Trained:
    """What one row came to with one seed."""

    mse: float
    """Mean over validation frames and points of (û - u)², in the field's units squared."""
    relative: float
    """Mean relative L2 error."""
    unique: int
    """Simulations that were drawn at least once."""
    seconds: float


@dataclass(frozen=True, slots=True, eq=False)
class Data:
    """What every row of one seed shares."""

    spec: RunSpec
    train: Sequence[Block]
    validation: Sequence[Block]

    @classmethod
    def solve(cls, spec: RunSpec) -> Data:
        """All blocks of both splits, in the order in which one solver makes them."""
        solver = make_solver(spec)
        blocks = {
            split: [solver.solve_block(split, chunk) for chunk in range(plan.chunks)]
            for split, plan in spec.plan.chunks.items()
        }
        return cls(spec, blocks["train"], blocks["validation"])

    def first(self, samples: int) -> Sequence[Block]:
        """The blocks of the first samples."""
        size = self.spec.plan.chunks["train"].size
        if samples % size:
            raise ValueError(f"a storage budget of {samples} samples is not a multiple of the block of {size}")
        return self.train[: samples // size]


def frames(blocks: Sequence[Block], spec: RunSpec) -> dict[str, torch.Tensor]:
    """All frames as tensors, one row a frame."""
    parts = [frames_of(block, spec.schema)[1] for block in blocks]
    return {name: torch.cat([torch.from_numpy(part[name]) for part in parts]) for name in parts[0]}


def train_online(data: Data, spec: RunSpec, stream: Stream) -> tuple[Surrogate, int]:
    """The project's learner, fed in the order of production; the surrogate, and the simulations that it has seen."""
    seen: set[int] = set()
    with tempfile.TemporaryDirectory(prefix="forebay-online-") as folder:
        learner = StreamLearner.open(
            spec.schema,
            spec.study.learner,
            spec.plan,
            policy=stream.policy,
            validate_every=spec.study.validation.every,
            seed=spec.study.seed,
            folder=Path(folder),
            clock_zero=time.time(),
            keep_checkpoints=1,
            load=lambda key: data.train[key[1]],
            resume=False,
        )
        for block in data.train:
            while not learner.offer(block) and learner.advance(1):
                pass
            while stream.pace == "evenly" and learner.behind:
                learner.advance(1)
        learner.end_production()
        while not learner.ended:
            if not learner.advance(1000):
                raise RuntimeError(f"training stopped after {learner.batches} of {spec.plan.batches} batches")
        learner.metrics.close()
        for batch in read_schedule(draws_file(Path(folder), 0)):
            seen.update((batch.keys // spec.schema.steps).tolist())
    return learner.state.surrogate, len(seen)


def train_offline(blocks: Sequence[Block], spec: RunSpec) -> Surrogate:
    """The same network and schedule on stored frames, which every epoch goes through in a new order."""
    table, seed = spec.study.learner, spec.study.seed
    config = SurrogateConfig(
        IOSpec.from_schema(spec.schema), table.model.name, table.model.options, table.freeze_normaliser_after
    )
    surrogate = Surrogate(config, seed=sample_seed(seed, "weights", 0) % 2**63)
    for block in blocks:
        if not surrogate.observe(frames_of(block, spec.schema)[1]):
            break  # the normaliser stands still: it has seen the same first frames as the online learner's
    stored = frames(blocks, spec)
    state = make_state(surrogate, TrainOptions.from_study(table, batches=spec.plan.batches))
    order = epochs(len(next(iter(stored.values()))), sample_seed(seed, "shuffle", 0))
    while state.batches < spec.plan.batches:
        rows = torch.tensor([next(order) for _ in range(table.batch_size)])
        state, _ = train_step(state, {name: values[rows] for name, values in stored.items()})
    return surrogate


def epochs(count: int, seed: int) -> Iterator[int]:
    """One random order of all frames after the other."""
    rng = np.random.default_rng(seed)
    while True:
        yield from rng.permutation(count).tolist()


def judge(surrogate: Surrogate, data: Data) -> tuple[float, float]:
    """Mean square error and mean relative L2 error on the validation frames."""
    held_out = frames(data.validation, data.spec)
    arrays = {name: values.numpy() for name, values in held_out.items()}
    predicted = surrogate.predict(arrays)
    squares = [np.square(predicted[name] - arrays[name], dtype=np.float64).mean() for name in predicted]
    return float(np.mean(squares)), evaluate(surrogate, held_out).mean


# -- the comparison ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Comparison:
    """All rows of one case; every list has one entry a seed."""

    case: Case
    batches: int
    rows: Mapping[str, Sequence[Trained]]

    def errors(self, row: str) -> list[float]:
        return [getattr(trained, self.case.metric) for trained in self.rows[row]]

    def against(self, row: str, other: str) -> float:
        """Median over the seeds of error / error of the other row with the same seed, less 1."""
        pairs = zip(self.errors(row), self.errors(other), strict=True)
        return statistics.median(mine / others for mine, others in pairs) - 1

    @property
    def gain(self) -> float:
        """Of the online row against the storage budget, negative when it is better."""
        return self.against(STREAMED, STORED)

    @property
    def price(self) -> float:
        """Of the online row against the same data offline, positive when it is worse."""
        return self.against(STREAMED, OWN)

    @property
    def ok(self) -> bool:
        return self.gain <= -self.case.gain and (self.case.price is None or self.price <= self.case.price)

    @property
    def figure(self) -> str:
        return f"{self.case.problem} {100 * self.gain:+.0f} %, {100 * self.price:+.0f} %"

    @property
    def target(self) -> str:
        price = "" if self.case.price is None else f", +{100 * self.case.price:.0f} %"
        return f"{self.case.problem} -{100 * self.case.gain:.0f} %{price}"


def compare(case: Case, seeds: Sequence[int]) -> Comparison:
    """Train every row with every seed; a seed sets the simulations, the initial weights and all draws."""
    rows: dict[str, list[Trained]] = {}
    batches = 0
    for seed in seeds:
        with tempfile.TemporaryDirectory(prefix="forebay-offline-") as folder:
            specs = {stream.label: case.spec(seed, stream, Path(folder)) for stream in case.streams}
        data = Data.solve(specs[STREAMED])
        batches = data.spec.plan.batches
        for label, trained in train_rows(case, data, specs):
            rows.setdefault(label, []).append(trained)
    return Comparison(case, batches, rows)


def train_rows(case: Case, data: Data, specs: Mapping[str, RunSpec]) -> Iterator[tuple[str, Trained]]:
    """The three rows, then the further ones."""
    torch.set_num_threads(1)
    for label, blocks in ((STORED, data.first(case.stored)), (OWN, data.train)):
        start = time.perf_counter()
        surrogate = train_offline(blocks, data.spec)
        seconds = time.perf_counter() - start
        yield label, Trained(*judge(surrogate, data), sum(len(block.records) for block in blocks), seconds)
    for stream in case.streams:
        start = time.perf_counter()
        surrogate, unique = train_online(data, specs[stream.label], stream)
        seconds = time.perf_counter() - start
        yield stream.label, Trained(*judge(surrogate, data), unique, seconds)


def columns(case: Case) -> tuple[str, ...]:
    return (
        "row",
        "simulations",
        f"mean square error {case.units}",
        "spread",
        "relative L2 %",
        "against the budget",
        "against own data",
        "s",
    )


def row(comparison: Comparison, label: str) -> list[str]:
    trained = comparison.rows[label]
    squares = [one.mse for one in trained]
    middle = statistics.median(squares)
    return [
        label,
        number(statistics.median(one.unique for one in trained)),
        number(middle),
        f"±{50 * (max(squares) - min(squares)) / middle:.0f} %",
        number(100 * statistics.median(one.relative for one in trained)),
        "" if label == STORED else f"{100 * comparison.against(label, STORED):+.0f} %",
        "" if label == OWN else f"{100 * comparison.against(label, OWN):+.0f} %",
        number(statistics.median(one.seconds for one in trained)),
    ]


def say(report: Report, comparison: Comparison, seeds: Sequence[int]) -> None:
    """One case's table and what it is made from."""
    case = comparison.case
    options = "".join(f", {key} {value}" for key, value in case.options.items())
    learner = ", ".join(f"{key} {value}" for key, value in case.learner.items())
    report.say(f"\n## {case.problem}{options}\n")
    report.say(
        f"{learner}; {comparison.batches} batches in every row; {case.validation} validation simulations; medians of "
        f"{len(seeds)} seeds, the last two percentages of the same seed's {case.metric_name}; blocks of {case.block}\n"
    )
    labels = [STORED, STREAMED, OWN, *(stream.label for stream in case.others)]
    report.say(table(columns(case), [row(comparison, label) for label in labels]))


# -- cases -------------------------------------------------------------------------------------------------------------

# A quarter of all frames is what the buffer recommends; a ring as large as the storage budget mixes too few of them.
QUARTER = Stream(label=STREAMED, share=0.25, pace="solver first")
HEAT_LEARNER = {"model": {"name": "mlp"}, "loss": "mse", "batch_size": 10, "lr": 2e-3, "weight_decay": 0.0}
DARCY_LEARNER = {
    "model": {"name": "fno", "width": 24, "modes": 12, "layers": 4, "projection": 48},
    "loss": "relative_l2",
    "batch_size": 16,
    "lr": 2e-3,
}
HEAT = Case(
    problem="heat",
    stored=25,
    streamed=500,
    block=5,
    learner=HEAT_LEARNER,
    validation=64,
    stream=QUARTER,
    others=(
        Stream(label="online, ring of the storage budget", share=0.05, pace="solver first"),
        Stream(label="online, solver as slow as the learner", share=0.25, pace="evenly"),
        Stream(label="online, ring of all frames (the default)", share=1.0, pace="evenly"),
        Stream(label="online, FIFO", share=0.25, pace="solver first", policy="fifo"),
    ),
    gain=0.68,
    price=0.10,
    metric="mse",
    units="K²",
)
DARCY = Case(
    problem="darcy",
    options={"size": 32},
    stored=1000,
    streamed=24_000,
    block=50,
    learner=DARCY_LEARNER,
    validation=256,
    stream=Stream(label=STREAMED, share=1 / 24, pace="solver first"),
    gain=0.16,
    metric="relative",
    units="",
)
FULL = ((HEAT, (20_231, 20_233, 20_235, 20_237, 20_239)), (DARCY, (20_231, 20_233, 20_235)))
QUICK = (
    (replace(HEAT, options={"size": 16, "steps": 50}, stored=10, streamed=200, others=()), (20_231, 20_233, 20_235)),
    (
        replace(
            DARCY,
            stored=50,
            streamed=4800,
            validation=64,
            stream=replace(DARCY.stream, share=1 / 16),
            learner={
                **DARCY_LEARNER,
                "model": {"name": "fno", "width": 16, "modes": 8, "layers": 3, "projection": 16},
                "lr": 4e-3,
            },
        ),
        (20_231,),
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    options = arguments(__doc__ or "", argv)
    report = Report("online_vs_offline", options, ("torch", "numpy"))
    done = []
    for case, seeds in QUICK if options.quick else FULL:
        done.append(compare(case, seeds))
        say(report, done[-1], seeds)
    report.say("\nAgainst the storage budget, and against the online run's own data offline:")
    figure, target = "; ".join(one.figure for one in done), "; ".join(one.target for one in done)
    return report.finish(figure, target, ok=all(one.ok for one in done))


if __name__ == "__main__":
    if not ONE_THREAD.items() <= os.environ.items():  # read when the libraries are loaded, which has happened
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ONE_THREAD})
    sys.exit(main())

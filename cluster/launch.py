"""The composition root: from a study file to a finished run folder."""

from __future__ import annotations

import json
import logging
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forebay.cluster.faults import decide
from forebay.cluster.history import History, read_history
from forebay.cluster.package import keep_package
from forebay.cluster.provenance import provenance
from forebay.cluster.security import inside_cluster, secure_ray
from forebay.cluster.specs import DATASETS, RunSpec
from forebay.cluster.submission import FILES, this_attempt
from forebay.pipeline.controller import Controller
from forebay.pipeline.errors import RunError
from forebay.pipeline.losses import Losses
from forebay.pipeline.messages import Event, Finish, StopRequested
from forebay.pipeline.plan import make_plan, resolved
from forebay.pipeline.study import Study, load_study, study_from_dict

if TYPE_CHECKING:
    from forebay.cluster.cluster_size import Cores
    from forebay.cluster.local_executor import LocalExecutor
    from forebay.cluster.ray_executor import RayExecutor
    from forebay.pipeline.dataset import DatasetCoordinator
    from forebay.pipeline.records import Split

log = logging.getLogger(__name__)

EXIT_STATUS = {"complete": 0, "stopped": 0, "failed": 1}


@dataclass(frozen=True, slots=True)
class Prepared:
    """A study that has passed every check."""

    spec: RunSpec
    executor: str
    problem: Any
    summary: str
    """First paragraph of the problem's documentation."""
    source: Path


def prepare(
    path: Path,
    overrides: Sequence[str] = (),
    executor: str | None = None,
    folder: Path | None = None,
    cores: Cores | None = None,
) -> Prepared:
    """Read and validate everything that can be validated without solving or training.

    `cores` are of the cluster that the run is for: by default of the one that RAY_ADDRESS names, or of this machine.

    Raises:
        StudyError, ProblemError: with key, value, constraint and remedy.
    """
    study = load_study(path, [*overrides, *([f'run.executor="{executor}"'] if executor else [])])
    folder = folder or Path("runs") / f"{study.name}-{datetime.now():%Y%m%d-%H%M%S}"
    return _prepare(study, path.resolve().parent, folder.resolve(), path, cores or _cluster_cores(study))


def _cluster_cores(study: Study) -> Cores | None:
    if study.run.executor != "ray" or study.run.cores is not None or not inside_cluster():
        return None
    secure_ray()
    from forebay.cluster.ray_session import cluster_cores, connect

    connect()
    return cluster_cores()


def _prepare(study: Study, study_folder: Path, folder: Path, source: Path, cores: Cores | None = None) -> Prepared:
    from forebay.learners.device import learner_device
    from forebay.learners.losses import make_loss
    from forebay.learners.models import check_model
    from forebay.learners.step import TrainOptions
    from forebay.learners.surrogate import IOSpec
    from forebay.solvers.compose import Place, check_solver
    from forebay.solvers.problems import check_contract, load_problem

    problem = load_problem(study.problem.name, study.problem.options, folder=study_folder)
    check_contract(problem)
    check_solver(problem, study.solver, Place(study_folder))
    schema = problem.schema
    sizes = {"cores": cores.total, "node_cores": cores.of_a_node} if cores else {}
    plan = make_plan(study, schema, **sizes)
    io = IOSpec.from_schema(schema.only(study.learner.fields))
    check_model(study.learner.model.name, study.learner.model.options, io)
    make_loss(TrainOptions.from_study(study.learner, batches=plan.batches).loss, io)
    if study.run.executor == "local":  # elsewhere the learner's own process says whether it sees the device
        learner_device(study.learner.device)
    spec = RunSpec(study_from_dict(resolved(study, plan)), plan, schema, folder, study_folder)
    return Prepared(spec, study.run.executor, problem, _first_paragraph(problem), source)


def launch(path: Path, overrides: Sequence[str], executor: str | None, folder: Path | None) -> int:
    """Start a run in a new folder; the process's exit status."""
    prepared, study = begin_folder(prepare(path, overrides, executor, folder))
    datasets = _create_datasets(prepared, study)
    return _drive(prepared, datasets, History(), ["run", str(path), *_override_words(overrides)])


def begin_folder(prepared: Prepared) -> tuple[Prepared, dict[str, Any]]:
    """Make the run folder with its study.json, from which `relaunch` can begin or go on; what the file holds."""
    run_folder = prepared.spec.folder
    _make_folder(run_folder)
    kept = keep_package(prepared.spec.study_folder, run_folder)
    prepared = replace(prepared, spec=replace(prepared.spec, study_folder=kept))
    study = {
        "study": prepared.spec.study.model_dump(mode="json"),
        "study_folder": str(prepared.spec.study_folder),
        "source": str(prepared.source),
        "problem_summary": prepared.summary,
        **provenance(),
    }
    try:
        _write_atomically(run_folder / "study.json", json.dumps(study, indent=2))
    except OSError as error:
        raise RunError(
            f"{run_folder}/study.json cannot be written: {error.strerror}; choose another --folder"
        ) from None
    return prepared, study


def relaunch(run_folder: Path) -> int:
    """Continue a run; the process's exit status."""
    from forebay.pipeline.dataset import DatasetCoordinator

    run_folder = run_folder.resolve()
    prepared = reopen(run_folder)
    if read_history(run_folder).complete:
        print(f"{run_folder} is complete; nothing to resume")
        return 0
    datasets: dict[Split, DatasetCoordinator] = {}
    for split in DATASETS:
        path = prepared.spec.dataset(split)
        if not path.exists():  # submitted and not begun, or killed before the first block
            study = json.loads((run_folder / "study.json").read_text(encoding="utf-8")) | provenance()
            _write_atomically(run_folder / "study.json", json.dumps(study, indent=2))
            datasets |= _create_datasets(prepared, study, only=split)
            continue
        datasets[split] = DatasetCoordinator.open(path, prepared.spec.schema, prepared.spec.plan.chunks[split])
    history = read_history(run_folder)  # again, now that the data sets' locks keep any other attempt out
    for (split, chunk), (records, parameters) in history.stored.items():
        datasets[split].commit(chunk, records, parameters)
    for dataset in datasets.values():
        dataset.publish()  # the learner reads stored blocks back
    return _drive(prepared, datasets, history, ["resume", str(run_folder)])


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        used = any(entry.name not in FILES for entry in folder.iterdir())
    except OSError as error:
        raise RunError(
            f"run folder {folder} cannot be made: {error.strerror}; choose a --folder that can be written"
        ) from None
    if used:
        raise RunError(f"run folder {folder} is not empty; choose another --folder, or `forebay resume {folder}`")


def reopen(run_folder: Path) -> Prepared:
    """The study of an existing run folder, checked again."""
    try:
        kept = json.loads((run_folder / "study.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"{run_folder} is no run folder: it has no study.json; start one with `forebay run`") from None
    study = study_from_dict(kept["study"], source=f"{run_folder}/study.json")
    return _prepare(study, Path(kept["study_folder"]), run_folder, Path(kept["source"]))


def _drive(
    prepared: Prepared, datasets: dict[Split, DatasetCoordinator], history: History, words: Sequence[str]
) -> int:
    """Put the stages together, run them, and write the report."""
    from forebay.cluster.progress import Progress
    from forebay.pipeline.flow import FlowMeter
    from forebay.pipeline.journal import Journal
    from forebay.pipeline.keeper import Keeper
    from forebay.pipeline.run import run

    spec = prepared.spec
    this_attempt().write(spec.folder)
    clock_zero = time.time() - history.wall_s
    journal = Journal(spec.folder / "journal.jsonl")
    metrics = Journal(spec.folder / "metrics.jsonl")
    journal.append(
        "run_started",
        executor=prepared.executor,
        command="forebay " + shlex.join(words),
        attempt=history.attempts + 1,
        cores=spec.plan.cores,
        solvers=spec.plan.solvers,
        learner_threads=spec.plan.learner_threads,
        learner_threads_after=spec.plan.learner_threads_after,
    )
    keeper = Keeper(journal, datasets, spec.study.run.publish_every_s)
    progress = Progress(spec.folder, spec.plan, prepared.executor)
    try:
        with _signals(_stop_early):
            executor, ready = _executor(prepared, clock_zero, resume=history.attempts > 0)
    except StoppedEarly as stop:
        ending = Finish("stopped", str(stop))
        keeper.note(ending)
        keeper.close(ending)
        return _conclude(prepared, ending, progress)
    except BaseException:
        progress.close()
        keeper.close(None)
        raise
    flow = FlowMeter(
        metrics,
        lambda: time.time() - clock_zero,
        writer_busy_s=lambda: executor.writer_busy_s,
        spilled_bytes=lambda: executor.spilled_bytes,
        blocks_near=lambda: executor.blocks_near,
    )
    controller = Controller(
        spec.plan.chunks,
        _solver_names(prepared),
        credits=1 if prepared.executor == "local" else spec.study.run.blocks_in_flight,
        losses=Losses(partial(decide, spec.study.faults), dict(history.care)),
        ready=ready,
        stored=set(history.stored),
        ingested=history.ingested,
        batches_ended=history.training_ended,
        checkpoint_every_s=spec.study.run.checkpoint_every_s,
    )

    observers = [flow.observe, progress.observe]

    def observe(event: Event) -> None:
        for tell in observers:
            tell(event)

    with ExitStack() as closing:
        closing.callback(progress.close)
        if prepared.executor == "ray":
            from forebay.cluster.metrics_export import MetricsExport

            export = MetricsExport(spec.folder, ready, controller, executor)
            closing.callback(export.close)
            observers.append(export.observe)
        with metrics, _signals(lambda name: executor.post(StopRequested(name))):
            ending = run(controller, executor, keeper, observe=observe)
            if ending.status != "failed":  # of which a full disk may be the cause
                flow.write()  # what came after the last tick
    return _conclude(prepared, ending, progress)


def _solver_names(prepared: Prepared) -> list[str]:
    return [f"solver-{i}" for i in range(1 if prepared.executor == "local" else prepared.spec.plan.solvers)]


def _executor(prepared: Prepared, clock_zero: float, *, resume: bool) -> tuple[LocalExecutor | RayExecutor, list[str]]:
    """What carries the run out, and the solvers that can work already."""
    spec = prepared.spec
    if prepared.executor == "local":
        from forebay.cluster.local_executor import LocalExecutor
        from forebay.cluster.preconditioner import PreconditionerTrainer
        from forebay.cluster.specs import load_block, make_learner, make_sinks, make_solver, trains_preconditioner

        # PETSc before torch: the order in which both load is tested.  Solving and training take turns with the cores.
        solver = make_solver(spec, threads=spec.plan.cores, keep_resident=True)
        alternating = replace(spec.plan, learner_threads=spec.plan.learner_threads_after)
        learner = make_learner(replace(spec, plan=alternating), clock_zero=clock_zero, resume=resume)
        local = LocalExecutor(
            solver,
            make_sinks(spec),
            learner,
            lambda key: load_block(spec, key),
            lambda: time.time() - clock_zero,
            PreconditionerTrainer(spec).learn if trains_preconditioner(spec) else None,
        )
        return local, _solver_names(prepared)
    secure_ray()
    from forebay.cluster.ray_executor import RayExecutor
    from forebay.cluster.ray_session import start_ray

    study = spec.study
    start_ray(spec.plan, ranks=study.solver.rom.ranks, blocks_in_flight=study.run.blocks_in_flight, folder=spec.folder)
    remote = RayExecutor(spec, lambda: time.time() - clock_zero, clock_zero, resume)
    return remote, remote.start(_solver_names(prepared))


def _conclude(prepared: Prepared, ending: Finish, progress: Any) -> int:
    from forebay.pipeline.dataset_card import write_card
    from forebay.pipeline.report import write_report
    from forebay.pipeline.summary import summarise

    folder = prepared.spec.folder
    if ending.status == "complete" and prepared.spec.study.solver.method == "rom":
        _judge_bases(prepared.spec)
    summary = summarise(folder)
    try:
        _write_atomically(folder / "summary.json", summary.to_json())
        for split in DATASETS:
            write_card(prepared.spec.dataset(split))
        report = str(write_report(folder))
    except OSError as error:
        report = f"could not be written ({error.strerror}); make room, then `forebay report {folder}`"
    progress.conclude(ending, summary, report)
    return EXIT_STATUS[ending.status]


def _judge_bases(spec: RunSpec) -> None:
    """Leave in the journal whether the run used several reduced bases, or should have, and why."""
    from forebay.pipeline.dataset_reader import DatasetReader
    from forebay.pipeline.journal import Journal
    from forebay.solvers.compose import LIBRARY
    from forebay.solvers.rom.library import Library
    from forebay.solvers.rom.local_models import verdict_of
    from forebay.solvers.rom.run_gain import judge_run

    decision = verdict_of(Library(spec.folder / LIBRARY))
    if decision is None:
        decision = judge_run(DatasetReader(spec.dataset("train")), spec.schema.outputs[0].name)
    journal = Journal(spec.folder / "journal.jsonl")
    journal.append("local_bases", decision=decision)
    journal.close()


def _create_datasets(
    prepared: Prepared, attributes: dict[str, Any], only: Split | None = None
) -> dict[Split, DatasetCoordinator]:
    from forebay.pipeline.dataset import DatasetCoordinator

    spec = prepared.spec
    return {
        split: DatasetCoordinator.create(spec.dataset(split), spec.schema, spec.plan.chunks[split], attributes)
        for split in DATASETS
        if only in (None, split)
    }


class StoppedEarly(Exception):
    """A signal came while the stages were starting: nothing is lost, and there is nothing to save."""


def _stop_early(name: str) -> None:
    raise StoppedEarly(name)


@contextmanager
def _signals(post: Callable[[str], None]) -> Iterator[None]:
    """SIGTERM and Ctrl-C ask the run to stop; a second Ctrl-C interrupts at once."""
    seen: list[int] = []

    def handler(number: int, frame: Any) -> None:
        seen.append(number)
        if len(seen) > 1 and number == signal.SIGINT:
            raise KeyboardInterrupt
        name = signal.Signals(number).name
        print(f"\n{name}: finishing the step and saving a checkpoint (Ctrl-C again to abort)", file=sys.stderr)
        post(name)

    before = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def _write_atomically(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _first_paragraph(problem: Any) -> str:
    return (type(problem).__doc__ or type(problem).__name__).strip().split("\n\n")[0]


def _override_words(overrides: Sequence[str]) -> list[str]:
    return [word for override in overrides for word in ("--set", override)]

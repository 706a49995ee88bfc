"""From a prepared run with its data sets to its end: puts the stages together and lets them run."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from forebay.cluster.conclude import conclude
from forebay.cluster.faults import decide
from forebay.cluster.history import History
from forebay.cluster.progress import Progress
from forebay.cluster.security import secure_ray
from forebay.cluster.signals import StoppedEarly, stop_early, stop_signals
from forebay.cluster.submission import this_attempt
from forebay.pipeline.controller import Controller
from forebay.pipeline.dataset import DatasetCoordinator
from forebay.pipeline.flow import FlowMeter
from forebay.pipeline.journal import Journal
from forebay.pipeline.keeper import Keeper
from forebay.pipeline.losses import Losses
from forebay.pipeline.messages import Event, Finish, StopRequested
from forebay.pipeline.records import Split
from forebay.pipeline.run import run

if TYPE_CHECKING:
    from forebay.cluster.launch import Prepared
    from forebay.cluster.local_executor import LocalExecutor
    from forebay.cluster.ray_executor import RayExecutor
    from forebay.cluster.specs import RunSpec

    type Executor = LocalExecutor | RayExecutor


def drive(
    prepared: Prepared, datasets: Mapping[Split, DatasetCoordinator], history: History, words: Sequence[str]
) -> int:
    """Run the stages to their end, and write the report; the process's exit status.

    Args:
        prepared: the study and its plan.
        datasets: of this run folder, with everything committed that `history` has.
        history: what earlier attempts have done.
        words: of the command line, for the journal.
    """
    spec = prepared.spec
    this_attempt().write(spec.folder)
    clock_zero = time.time() - history.wall_s
    metrics = Journal(spec.folder / "metrics.jsonl")
    keeper = Keeper(_begin_journal(prepared, history, words), datasets, spec.study.run.publish_every_s)
    progress = Progress(spec.folder, spec.plan, prepared.executor)
    try:
        with stop_signals(stop_early):
            executor, ready = _start(prepared, clock_zero, resume=history.attempts > 0)
    except StoppedEarly as stop:
        return conclude(spec, _end_early(keeper, str(stop)), progress)
    except BaseException:
        progress.close()
        keeper.close(None)
        raise
    controller = _controller(prepared, history, ready)
    with ExitStack() as closing:
        closing.callback(progress.close)
        flow = _flow(metrics, executor, clock_zero)
        observers = [flow.observe, progress.observe, *_export(prepared, executor, controller, ready, closing)]
        closing.enter_context(metrics)
        closing.enter_context(stop_signals(lambda name: executor.post(StopRequested(name))))
        ending = run(controller, executor, keeper, observe=_each(observers))
        if ending.status != "failed":  # of which a full disk may be the cause
            flow.write()  # what came after the last tick
    return conclude(spec, ending, progress)


def _begin_journal(prepared: Prepared, history: History, words: Sequence[str]) -> Journal:
    plan = prepared.spec.plan
    journal = Journal(prepared.spec.folder / "journal.jsonl")
    journal.append(
        "run_started",
        executor=prepared.executor,
        command="forebay " + shlex.join(words),
        attempt=history.attempts + 1,
        cores=plan.cores,
        solvers=plan.solvers,
        learner_threads=plan.learner_threads,
        learner_threads_after=plan.learner_threads_after,
    )
    return journal


def _end_early(keeper: Keeper, reason: str) -> Finish:
    ending = Finish("stopped", reason)
    keeper.note(ending)
    keeper.close(ending)
    return ending


def _start(prepared: Prepared, clock_zero: float, *, resume: bool) -> tuple[Executor, Sequence[str]]:
    """What carries the run out, and the solvers that can work already."""
    if prepared.executor == "local":
        return _start_local(prepared.spec, clock_zero, resume), _solver_names(prepared)
    remote = _connect_ray(prepared.spec, clock_zero, resume)
    return remote, remote.start(_solver_names(prepared))


def _start_local(spec: RunSpec, clock_zero: float, resume: bool) -> LocalExecutor:
    from forebay.cluster.local_executor import LocalExecutor
    from forebay.cluster.preconditioner import PreconditionerTrainer
    from forebay.cluster.specs import load_block, make_learner, make_sinks, make_solver, trains_preconditioner

    # PETSc before torch: the order in which both load is tested.  Solving and training take turns with the cores.
    solver = make_solver(spec, threads=spec.plan.cores, keep_resident=True)
    alternating = replace(spec.plan, learner_threads=spec.plan.learner_threads_after)
    learner = make_learner(replace(spec, plan=alternating), clock_zero=clock_zero, resume=resume)
    return LocalExecutor(
        solver,
        make_sinks(spec),
        learner,
        partial(load_block, spec),
        partial(_wall_s, clock_zero),
        PreconditionerTrainer(spec).learn if trains_preconditioner(spec) else None,
    )


def _connect_ray(spec: RunSpec, clock_zero: float, resume: bool) -> RayExecutor:
    secure_ray()
    from forebay.cluster.ray_executor import RayExecutor
    from forebay.cluster.ray_session import start_ray

    study = spec.study
    start_ray(spec.plan, ranks=study.solver.rom.ranks, blocks_in_flight=study.run.blocks_in_flight, folder=spec.folder)
    return RayExecutor(spec, partial(_wall_s, clock_zero), clock_zero, resume)


def _solver_names(prepared: Prepared) -> list[str]:
    return [f"solver-{i}" for i in range(1 if prepared.executor == "local" else prepared.spec.plan.solvers)]


def _controller(prepared: Prepared, history: History, ready: Sequence[str]) -> Controller:
    study = prepared.spec.study
    return Controller(
        prepared.spec.plan.chunks,
        _solver_names(prepared),
        credits=1 if prepared.executor == "local" else study.run.blocks_in_flight,
        losses=Losses(partial(decide, study.faults), dict(history.care)),
        ready=ready,
        stored=set(history.stored),
        ingested=history.ingested,
        batches_ended=history.training_ended,
        checkpoint_every_s=study.run.checkpoint_every_s,
    )


def _flow(metrics: Journal, executor: Executor, clock_zero: float) -> FlowMeter:
    return FlowMeter(
        metrics,
        partial(_wall_s, clock_zero),
        writer_busy_s=lambda: executor.writer_busy_s,
        spilled_bytes=lambda: executor.spilled_bytes,
        blocks_near=lambda: executor.blocks_near,
    )


def _export(
    prepared: Prepared, executor: Executor, controller: Controller, ready: Sequence[str], closing: ExitStack
) -> list[Callable[[Event], None]]:
    """What tells Prometheus, where there is a Ray to do that."""
    if prepared.executor != "ray":
        return []
    from forebay.cluster.metrics_export import MetricsExport

    export = MetricsExport(prepared.spec.folder, ready, controller, executor)
    closing.callback(export.close)
    return [export.observe]


def _each(observers: Sequence[Callable[[Event], None]]) -> Callable[[Event], None]:
    def observe(event: Event) -> None:
        for tell in observers:
            tell(event)

    return observe


def _wall_s(clock_zero: float) -> float:
    """Wall time of all attempts."""
    return time.time() - clock_zero

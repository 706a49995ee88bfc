"""The composition root: from a study file to a finished run folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forebay.cluster.history import History, read_history
from forebay.cluster.package import keep_package
from forebay.cluster.provenance import provenance
from forebay.cluster.security import inside_cluster, secure_ray
from forebay.cluster.specs import DATASETS, RunSpec
from forebay.cluster.submission import FILES
from forebay.pipeline.errors import RunError
from forebay.pipeline.plan import make_plan, resolved
from forebay.pipeline.study import Study, load_study, study_from_dict
from forebay.pipeline.study_trust import read_stored
from forebay.pipeline.text_file import replace_text

if TYPE_CHECKING:
    from forebay.cluster.cluster_size import Cores
    from forebay.pipeline.dataset import DatasetCoordinator
    from forebay.pipeline.records import Split


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
    from forebay.cluster.drive import drive

    prepared, study = begin_folder(prepare(path, overrides, executor, folder))
    datasets = _create_datasets(prepared, study)
    return drive(prepared, datasets, History(), ["run", str(path), *_override_words(overrides)])


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
        replace_text(run_folder / "study.json", json.dumps(study, indent=2))
    except OSError as error:
        raise RunError(
            f"{run_folder}/study.json cannot be written: {error.strerror}; choose another --folder"
        ) from None
    return prepared, study


def relaunch(run_folder: Path) -> int:
    """Continue a run; the process's exit status."""
    from forebay.cluster.drive import drive
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
            study = read_stored(run_folder) | provenance()
            replace_text(run_folder / "study.json", json.dumps(study, indent=2))
            datasets |= _create_datasets(prepared, study, only=split)
            continue
        datasets[split] = DatasetCoordinator.open(path, prepared.spec.schema, prepared.spec.plan.chunks[split])
    history = read_history(run_folder)  # again, now that the data sets' locks keep any other attempt out
    for (split, chunk), (records, parameters) in history.stored.items():
        datasets[split].commit(chunk, records, parameters)
    for dataset in datasets.values():
        dataset.publish()  # the learner reads stored blocks back
    return drive(prepared, datasets, history, ["resume", str(run_folder)])


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
    kept = read_stored(run_folder)
    study = study_from_dict(kept["study"], source=f"{run_folder}/study.json")
    return _prepare(study, Path(kept["study_folder"]), run_folder, Path(kept["source"]))


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


def _first_paragraph(problem: Any) -> str:
    return (type(problem).__doc__ or type(problem).__name__).strip().split("\n\n")[0]


def _override_words(overrides: Sequence[str]) -> list[str]:
    return [word for override in overrides for word in ("--set", override)]

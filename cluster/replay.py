"""`forebay replay`: train once more on what a run solved, in the order in which it was drawn then.

Nothing is solved.  The question that it answers: how would another model, loss or learning rate have done on the same
batches?  Without any change it answers whether the run can be reproduced, weight for weight.
"""

from __future__ import annotations

import copy
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forebay.pipeline.errors import RunError, StudyError
from forebay.pipeline.study import Study, overridden, study_from_dict

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

    from forebay.cluster.specs import RunSpec
    from forebay.learners.evaluate import Evaluation
    from forebay.learners.replay import Replay
    from forebay.learners.schedule import ScheduledBatch
    from forebay.pipeline.run_log import RunLog

FIXED = ("batch_size", "ranks", "freeze_normaliser_after", "threads", "threads_after_production")
"""Keys of `[learner]` that the recorded batches have settled."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """What came out."""

    folder: Path
    batches: int
    seconds: float
    online: float | None
    """The run's last validation error, relative L2; None if it never validated."""
    evaluation: Evaluation
    equal: bool | None
    """Are the weights those of the run, bit for bit?  None where something was changed, or the run has not ended."""


def replay(run: Path, overrides: Sequence[str] = (), folder: Path | None = None) -> Replayed:
    """Train along the run's schedule; an interrupted replay of the same name goes on where it was.

    Raises:
        StudyError: a change of something that is not the learner's, or that the recorded batches have settled.
        RunError: no such run, no batches, or a folder that holds a replay with other changes.
    """
    from forebay.cluster.launch import reopen
    from forebay.learners.weights import same_weights
    from forebay.pipeline.run_log import read_run

    run = run.resolve()
    spec = reopen(run).spec
    study = changed(spec.study, overrides)
    ranks = spec.study.learner.ranks
    log = read_run(run)
    schedule = _schedule(run, spec, log, study)
    folder = (folder or run / "replays" / _name(study, overrides)).resolve()
    _claim(folder, study, overrides)
    start = time.monotonic()
    made = _make(spec, study, schedule, folder)
    with _bars() as bars:
        task = bars.add_task("batches", total=len(schedule), completed=made.state.batches, note="")
        evaluation = made.run(lambda batch, loss: bars.update(task, completed=batch, note=f"loss {loss:.4f}"))
    made.metrics.close()
    # Gradients that several learners averaged are those of the whole batch within rounding alone.
    equal = same_weights(run / "surrogate", folder / "surrogate") if not overrides and ranks == 1 else None
    result = Replayed(folder, len(schedule), time.monotonic() - start, _online_error(log), evaluation, equal)
    _write(folder, result)
    return result


def changed(study: Study, overrides: Sequence[str]) -> Study:
    """The study with changes to its learner.

    Raises:
        StudyError: as `replay`.
    """
    for override in overrides:
        key = override.partition("=")[0].strip()
        table, _, name = key.partition(".")
        if table != "learner" and key != "validation.every":
            raise StudyError(
                f"--set {override!r}: a replay trains on the samples and batches of the run, so only learner.* and "
                f"validation.every can be changed; for anything else start a new run"
            )
        if name in FIXED:
            raise StudyError(f"--set {override!r}: the recorded batches have settled learner.{name}; leave it out")
    tree = study.model_dump(mode="json")
    if any(item.partition("=")[0].strip() == "learner.model.name" for item in overrides):
        tree["learner"]["model"] = {}  # options of one architecture mean nothing to another
    made = study_from_dict(overridden(copy.deepcopy(tree), overrides), source="replay")
    most = study.learner.batches
    if most is not None and (made.learner.batches or most) > most:
        raise StudyError(f"learner.batches = {made.learner.batches}: the run has drawn at most {most}; use no more")
    return made


def describe(result: Replayed) -> str:
    """The result in a few lines."""
    online = "–" if result.online is None else f"{100 * result.online:.3f} %"
    lines = [
        f"replayed {result.batches} batches in {result.seconds:.1f} s: {result.folder}",
        f"validation relative L2: {100 * result.evaluation.mean:.3f} % (p99 {100 * result.evaluation.p99:.3f} %), "
        f"the run's own {online}",
    ]
    if result.equal is not None:
        verdict = (
            "equal the run's, bit for bit" if result.equal else "differ from the run's: another processor or torch?"
        )
        lines.append(f"weights {verdict}")
    return "\n".join(lines)


def _schedule(run: Path, spec: RunSpec, log: RunLog, study: Study) -> list[ScheduledBatch]:
    """The batches to train on, all of which the data set has frames for."""
    from forebay.learners.schedule import read_team_schedule
    from forebay.pipeline.dataset import check_same

    found = read_team_schedule(run, spec.study.learner.ranks)
    ended = log.last("training_ended")
    wanted = min(ended["batches"] if ended else len(found), study.learner.batches or len(found))
    if not found:
        raise RunError(f"{run} has drawn no whole batch yet, so there is nothing to replay; `forebay resume` goes on")
    if len(found) < wanted:
        raise RunError(
            f"{run} was trained on {ended and ended['batches']} batches, of which draws.jsonl has the first "
            f"{len(found)}; restore it from a copy, or say --set learner.batches={len(found)}"
        )
    for split, plan in spec.plan.chunks.items():
        check_same(spec.dataset(split), spec.schema, plan)
    train, schedule = spec.plan.chunks["train"], found[: study.learner.batches]
    frames = train.samples * spec.schema.steps
    for batch in schedule:
        odd = [int(key) for key in batch.keys if not 0 <= key < frames]
        if odd or any(not 0 <= chunk < train.chunks for chunk in batch.normalised):
            what = f"frame {odd[0]} of {frames}" if odd else f"chunks {batch.normalised} of {train.chunks}"
            raise RunError(
                f"batch {batch.number} of {run} needs {what}, which the study does not have; draws.jsonl or study.json "
                f"was changed: restore both from a copy"
            )
    return schedule


def _make(spec: RunSpec, study: Study, schedule: list[ScheduledBatch], folder: Path) -> Replay:
    from forebay.cluster.specs import load_block
    from forebay.learners.device import learner_device
    from forebay.learners.losses import make_loss
    from forebay.learners.metrics import MetricsLog
    from forebay.learners.models import check_model
    from forebay.learners.replay import FrameStore, Replay, validation_arrays
    from forebay.learners.step import TrainOptions, make_state
    from forebay.learners.surrogate import IOSpec, Surrogate, SurrogateConfig
    from forebay.pipeline.sampling import sample_seed

    schema = spec.schema.only(study.learner.fields)
    options, io = study.learner, IOSpec.from_schema(schema)
    check_model(options.model.name, options.model.options, io)
    training = TrainOptions.from_study(options, batches=options.batches or spec.plan.batches)
    make_loss(training.loss, io)
    device = learner_device(options.device)
    config = SurrogateConfig(io, options.model.name, options.model.options, options.freeze_normaliser_after)
    surrogate = Surrogate(config, seed=sample_seed(study.seed, "weights", 0) % 2**63).to(device)
    frames = FrameStore(
        lambda chunk: load_block(spec, ("train", chunk)),
        schema,
        spec.plan.chunks["train"].size,
        schedule,
        memory_bytes=study.buffer.memory_gib * 2**30,
    )
    blocks = (load_block(spec, ("validation", chunk)) for chunk in range(spec.plan.chunks["validation"].chunks))
    validation = {name: array.to(device) for name, array in validation_arrays(blocks, schema).items()}
    return Replay(
        make_state(surrogate, training),
        schedule,
        frames,
        validation,
        folder,
        MetricsLog(folder, time.time()),
        study.validation.every,
        study.run.checkpoint_every_s,
    )


def _name(study: Study, overrides: Sequence[str]) -> str:
    """The same for the same changes, so that an interrupted replay is found again."""
    digest = hashlib.sha256("\n".join(sorted(overrides)).encode()).hexdigest()[:8]
    return f"{study.learner.model.name}-{digest}" if overrides else "same"


def _claim(folder: Path, study: Study, overrides: Sequence[str]) -> None:
    """Make the folder, or find it as a replay with the same changes left it."""
    told = folder / "replay.json"
    tree = {"overrides": list(overrides), "learner": study.learner.model_dump(mode="json")}
    if told.exists():
        kept = _told(told)
        if kept["learner"] != tree["learner"]:
            raise RunError(f"{folder} holds a replay with other changes ({kept['overrides']}); choose another --folder")
        return
    if folder.exists() and any(folder.iterdir()):
        raise RunError(f"{folder} is not empty and holds no replay; choose another --folder")
    folder.mkdir(parents=True, exist_ok=True)
    told.write_text(json.dumps(tree, indent=2), encoding="utf-8")


def _told(path: Path) -> dict[str, Any]:
    try:
        tree: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        _ = tree["learner"], tree["overrides"]
    except (ValueError, TypeError, KeyError):
        raise RunError(f"{path} is damaged; remove its folder, or choose another --folder") from None
    return tree


def _bars() -> Bars:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from forebay.cluster.terminal import make_console

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=make_console(),
    )


def _online_error(log: RunLog) -> float | None:
    lines = log.validation
    return float(lines[-1]["mean"]) if lines else None


def _write(folder: Path, result: Replayed) -> None:
    told = folder / "replay.json"
    tree = _told(told)
    tree["result"] = {
        "batches": result.batches,
        "seconds": result.seconds,
        "online": result.online,
        "weights_equal": result.equal,
        **result.evaluation.summary(),
    }
    told.write_text(json.dumps(tree, indent=2), encoding="utf-8")

"""What is made of a run that has ended: the verdict on its reduced bases, its summary, data set cards and report."""

from __future__ import annotations

from forebay.cluster.progress import Progress
from forebay.cluster.specs import DATASETS, RunSpec
from forebay.pipeline.dataset_card import write_card
from forebay.pipeline.dataset_reader import DatasetReader
from forebay.pipeline.journal import Journal
from forebay.pipeline.messages import Finish
from forebay.pipeline.report import write_report
from forebay.pipeline.summary import summarise
from forebay.pipeline.text_file import replace_text

EXIT_STATUS = {"complete": 0, "stopped": 0, "failed": 1}


def conclude(spec: RunSpec, ending: Finish, progress: Progress) -> int:
    """Write what tells of the run, and show where it is; the process's exit status."""
    folder = spec.folder
    if ending.status == "complete" and spec.study.solver.method == "rom":
        _judge_bases(spec)
    summary = summarise(folder)
    try:
        replace_text(folder / "summary.json", summary.to_json())
        for split in DATASETS:
            write_card(spec.dataset(split))
        report = str(write_report(folder))
    except OSError as error:
        report = f"could not be written ({error.strerror}); make room, then `forebay report {folder}`"
    progress.conclude(ending, summary, report)
    return EXIT_STATUS[ending.status]


def _judge_bases(spec: RunSpec) -> None:
    """Leave in the journal whether the run used several reduced bases, or should have, and why."""
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

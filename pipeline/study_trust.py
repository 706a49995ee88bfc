"""What in a stored study would run code, or touch files, that Forebay did not bring.

A study is data, with two exceptions: a problem by file is executed, and raw PETSc options can load Python classes and
write files.  Whoever starts a run has named them; whoever merely looks at a run that came from somewhere has not.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from forebay.pipeline.dataset_trust import read_json
from forebay.pipeline.errors import RunError
from forebay.pipeline.study import Study, study_from_dict


def stored_study(run: Path) -> Study:
    """The study of a run folder, parsed; nothing that it names is loaded.

    Raises:
        RunError: as `read_stored`.
        StudyError: the study is not valid.
    """
    return study_from_dict(read_stored(run)["study"], source=str(run / "study.json"))


def read_stored(run: Path) -> dict[str, Any]:
    """What the study.json of a run folder holds: "study", "study_folder", "source" and where it was made.

    Raises:
        RunError: no study.json there, or not one that `forebay run` writes.
        DatasetError: it is no JSON.
    """
    path = run / "study.json"
    try:
        kept: dict[str, Any] = read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        raise RunError(f"{run} is no run folder: it has no study.json; start one with `forebay run`") from None
    kinds = {"study": dict, "study_folder": str, "source": str}
    if not isinstance(kept, dict) or not all(isinstance(kept.get(name), kind) for name, kind in kinds.items()):
        raise RunError(f"{path} holds no study; restore it from a copy")
    return kept


def foreign_code(study: Study) -> tuple[str, ...]:
    """What of a study must be trusted before anything is solved by it, each in a few words; empty for pure data."""
    return tuple(_found(study))


def _found(study: Study) -> Iterator[str]:
    if ".py" in study.problem.name or ":" in study.problem.name:
        yield f"problem.name = {study.problem.name!r}, which is a file to be executed"
    if study.solver.options:
        yield f"solver.options = {dict(study.solver.options)}, which go to PETSc as they are"
    for arm in study.solver.arms:
        if arm.options:
            yield f"options = {dict(arm.options)} of an arm of the solver, which go to PETSc as they are"

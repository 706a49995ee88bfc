"""What travels to a cluster with a job: the study, the files that it names, and Forebay where it is no wheel."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import forebay
from forebay.pipeline.errors import StudyError

UNPACKED = "working_dir_files"
"""In the path of a folder that Ray unpacked for a job, and removes after it."""


def pack(study: Path, tree: Mapping[str, Any], include: Sequence[Path], folder: Path) -> Path:
    """Copy the study and its files into an empty folder, at the places that they have beside the study.

    Files are those that a value of the study names ("my_problem.py:Heat", "weights.safetensors"), and `include`, for
    example modules that the problem imports.  The path of the study's copy.

    Raises:
        StudyError: a file that is not there, or above the study's folder.
    """
    study = _plain(study)
    root = study.parent
    for path in dict.fromkeys([study, *map(_plain, _named_files(tree, root)), *_included(include)]):
        if not path.is_relative_to(root):
            raise StudyError(f"{path} is not below {root}, where the study is; put a copy or a link beside the study")
        target = folder / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            shutil.copytree(path, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(path, target)
    return folder / study.name


def project_modules() -> list[str]:
    """The package's folder when it runs from a checkout; nothing when it is installed, as the cluster's is then."""
    folder = Path(forebay.__file__).parent
    return [] if "site-packages" in folder.parts else [str(folder)]


def keep_package(study_folder: Path, run_folder: Path) -> Path:
    """Where the study's files stay: in the run folder if Ray unpacked them for this job alone, else where they are."""
    if UNPACKED not in study_folder.parts:
        return study_folder
    kept = run_folder / "study"
    shutil.copytree(study_folder, kept, ignore=shutil.ignore_patterns("__pycache__"))
    return kept


def _included(include: Sequence[Path]) -> list[Path]:
    for path in include:
        if not path.exists():
            raise StudyError(f"--include {path} does not exist")
    return [_plain(path) for path in include]


def _plain(path: Path) -> Path:
    """Absolute, without dots; links stay what they are, so that a linked file keeps its place beside the study."""
    return Path(os.path.abspath(path))


def _named_files(tree: object, root: Path) -> Iterator[Path]:
    """Relative names of existing files among the values of a tree."""
    if isinstance(tree, Mapping):
        for value in tree.values():
            yield from _named_files(value, root)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from _named_files(value, root)
    elif isinstance(tree, str) and tree and not Path(tree).is_absolute():
        name = tree.rpartition(":")[0] if ".py:" in tree else tree
        if (root / name).is_file():
            yield root / name

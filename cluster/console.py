"""What the verbs print that neither solve nor train."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table
from rich.text import Text

from forebay.cluster.specs import DATASETS
from forebay.cluster.terminal import make_console
from forebay.pipeline.dataset_layout import dataset_folders
from forebay.pipeline.dataset_trust import printable
from forebay.pipeline.errors import RunError

if TYPE_CHECKING:
    from forebay.pipeline.records import Split
    from forebay.solvers.block_solver import BlockSolver
    from forebay.solvers.rom.block_solver import SolidBlockSolver


def print_status(run: Path) -> None:
    """Summary of a run folder, whatever state it is in."""
    from forebay.pipeline.summary import status_text, summarise

    if not (run / "study.json").exists():
        raise RunError(f"{run} is no run folder: it has no study.json; start one with `forebay run`")
    make_console().print(status_text(summarise(run)))


def print_problems() -> None:
    """Name, equation and options of each built-in problem."""
    from forebay.solvers.problems import describe_problems

    for card in describe_problems():
        _print_card(card.name, card.summary, [(o.name, o.default, o.type) for o in card.options])
    print('your own: name = "my_problem.py:MyProblem", see docs/own_problem.md')


def print_models() -> None:
    """Name, purpose and options of each architecture."""
    from forebay.learners.models import describe_models

    for card in describe_models():
        _print_card(card.name, card.summary, [(o.key, repr(o.default), o.constraint) for o in card.options])


def _print_card(name: str, summary: str, options: Sequence[tuple[str, str, str]]) -> None:
    console = make_console()
    console.print(f"[bold]{name}[/bold]  ", end="")
    console.print(summary, highlight=False, markup=False)
    for option, default, constraint in options:
        console.print(f"    {option} = {default}    {constraint}", highlight=False, markup=False)


def print_dataset_info(path: Path) -> None:
    """Sizes, outcomes and methods of one data set, or of both of a run folder."""
    from forebay.pipeline.verify import dataset_info

    console = make_console()
    for folder in dataset_folders(path):
        info = dataset_info(folder)
        table = Table(title=str(folder), show_header=False)
        for key, value in info.rows():
            table.add_row(key, Text(printable(value)))  # plain: units in brackets are no markup
        console.print(table)


def print_verification(path: Path, *, samples: int, rtol: float, seed: int, trust_study: bool = False) -> int:
    """Verify one data set, or both of a run folder; 1 when anything is wrong.

    Samples are solved again only if the study beside the data runs no code of its own, or with `trust_study`.
    """
    from forebay.cluster.launch import reopen
    from forebay.cluster.specs import make_solver
    from forebay.pipeline.dataset_reader import DatasetReader
    from forebay.pipeline.verify import verify

    status = 0
    for name in DATASETS.values() if (path / "study.json").exists() else ():
        if not (path / name / "zarr.json").exists():
            print(f"{path / name}: is missing or has no zarr.json, while the run has a study; restore it from a copy")
            status = 1
    for folder in dataset_folders(path):
        resolve: Callable[[int], Mapping[str, np.ndarray]] | None = None
        solver: BlockSolver | SolidBlockSolver | None = None
        unsolved = _reason_not_to_solve(folder.parent, trust_study)
        if samples and not unsolved:
            solver = make_solver(reopen(folder.parent.resolve()).spec)
            split: Split = next(s for s, name in DATASETS.items() if name == folder.name)

            seeds = DatasetReader(folder).column("seed").tolist()

            def again(
                sample_id: int,
                solver: BlockSolver | SolidBlockSolver = solver,
                split: Split = split,
                seeds: Sequence[int] = seeds,
            ) -> Mapping[str, np.ndarray]:
                return solver.resolve(split, sample_id, seeds[sample_id])[0]

            resolve = again

        try:
            report = verify(folder, resolve, samples=samples, rtol=rtol, seed=seed)
        finally:
            if solver is not None:
                solver.destroy()
        for line in report.lines():
            print(printable(line))
        if resolve is None and samples:
            print(f"{folder}: {printable(unsolved)}, so no sample was solved again; the files were checked")
        status = max(status, 0 if report.ok else 1)
    return status


def _reason_not_to_solve(run: Path, trust_study: bool) -> str:
    from forebay.pipeline.study_trust import foreign_code, stored_study

    if not (run / "study.json").exists():
        return "no study.json beside it"
    if not trust_study and (found := foreign_code(stored_study(run))):
        return f"its study has {found[0]} (with --trust-study it is, if you know where it comes from)"
    return ""

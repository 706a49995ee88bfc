"""The `forebay` command.  Only the standard library and cyclopts are imported before a verb is chosen."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

app = App(
    name="forebay",
    help="Turns PDE solvers into trained surrogates while they run.",
    version_flags=["--version"],
    help_flags=["--help", "-h"],
)
dataset = App(name="dataset", help="Look at, and check, the data set of a run.")
app.command(dataset)

Overrides = Annotated[tuple[str, ...], Parameter(name="--set", negative="")]
Executor = Annotated[Literal["ray", "local"] | None, Parameter(name="--executor")]


def main() -> None:
    """Entry point: errors that a user can mend are one message on stderr and exit status 2."""
    from forebay.pipeline.errors import ForebayError

    try:
        sys.exit(app() or 0)
    except ForebayError as error:
        print(f"forebay: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:  # a second Ctrl-C, or one before the run has begun
        print("forebay: interrupted at once; what was journaled is kept, `forebay resume` goes on", file=sys.stderr)
        sys.exit(130)


@app.command
def init(path: Path = Path("study.toml"), /, *, problem: str = "darcy") -> int:
    """Write a commented study to start from.

    Args:
        path: file to write; an existing file is never overwritten.
        problem: a name that `forebay problems` lists.
    """
    from forebay.cluster.templates import write_study

    write_study(path, problem)
    print(f"wrote {path}; next: forebay check {path}, then forebay run {path}")
    return 0


@app.command
def check(study: Path, /, *, overrides: Overrides = (), executor: Executor = None) -> int:
    """Validate a study without solving anything, and print the plan.

    Args:
        study: TOML file.
        overrides: table.key=value, repeatable.
        executor: run with Ray actors or in one process.
    """
    from forebay.cluster.launch import prepare
    from forebay.cluster.plan_text import print_plan

    print_plan(prepare(study, overrides, executor))
    return 0


@app.command
def run(study: Path, /, *, folder: Path | None = None, overrides: Overrides = (), executor: Executor = None) -> int:
    """Solve, stream, train, keep and report.

    Args:
        study: TOML file.
        folder: run folder to create; by default runs/NAME-DATE-TIME.
        overrides: table.key=value, repeatable.
        executor: run with Ray actors or in one process.
    """
    from forebay.cluster.launch import launch

    return launch(study, overrides, executor, folder)


@app.command
def resume(run: Path, /) -> int:
    """Continue a run after any stop or kill.

    Args:
        run: run folder.
    """
    from forebay.cluster.launch import relaunch

    return relaunch(run)


@app.command
def status(run: Path, /) -> int:
    """Tell what is going on in a run, or how it ended.

    Args:
        run: run folder.
    """
    from forebay.cluster.console import print_status

    print_status(run)
    return 0


@app.command
def report(run: Path, /) -> int:
    """Write report.html anew from what the run folder holds.

    Args:
        run: run folder.
    """
    from forebay.pipeline.report import write_report

    print(write_report(run))
    return 0


@app.command
def problems() -> int:
    """List the built-in problems and their options."""
    from forebay.cluster.console import print_problems

    print_problems()
    return 0


@app.command
def models() -> int:
    """List the architectures and their options."""
    from forebay.cluster.console import print_models

    print_models()
    return 0


@dataset.command(name="info")
def dataset_info(path: Path, /) -> int:
    """Print what a data set holds.

    Args:
        path: a dataset.zarr, validation.zarr, or run folder.
    """
    from forebay.cluster.console import print_dataset_info

    print_dataset_info(path)
    return 0


@dataset.command(name="verify")
def dataset_verify(path: Path, /, *, samples: int = 8, rtol: float = 1e-5, seed: int = 7) -> int:
    """Check completeness and finiteness, and solve some samples again to compare; exit status 1 when anything differs.

    Args:
        path: a dataset.zarr, validation.zarr, or run folder.
        samples: how many random samples to solve again; 0 checks the files alone.
        rtol: largest relative L2 difference of a field, stored in float32.
        seed: of the choice of samples.
    """
    from forebay.cluster.console import print_verification

    return print_verification(path, samples=samples, rtol=rtol, seed=seed)


if __name__ == "__main__":
    main()

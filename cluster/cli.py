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
Flag = Annotated[bool, Parameter(negative="")]
Executor = Annotated[Literal["ray", "local"] | None, Parameter(name="--executor")]


def main() -> None:
    """Entry point: errors that a user can mend are one message on stderr and exit status 2."""
    from forebay.pipeline.errors import ForebayError

    try:
        sys.exit(app() or 0)
    except ForebayError as error:
        print(f"forebay: {error}", file=sys.stderr)
        sys.exit(2)
    except (PermissionError, NotADirectoryError, IsADirectoryError) as error:
        if error.filename is None:
            raise
        remedy = "choose another path, or change its permissions"
        print(f"forebay: {error.filename}: {error.strerror}; {remedy}", file=sys.stderr)
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
def submit(
    what: Path,
    /,
    *,
    ray: str | None = None,
    slurm: Flag = False,
    pbs: Flag = False,
    lsf: Flag = False,
    print_only: Annotated[bool, Parameter(name="--print", negative="")] = False,
    follow: bool = True,
    folder: Path | None = None,
    overrides: Overrides = (),
    include: Annotated[tuple[Path, ...], Parameter(negative="")] = (),
    allow_setup: Flag = False,
) -> int:
    """Run a study on a cluster, or go on with a run there.

    Nodes, cores, time and the like come from --set cluster.key=value, else from the study's [cluster] table, else from
    ~/.config/forebay/cluster.toml (or the file that FOREBAY_CLUSTER names).

    Args:
        what: TOML file, or the folder of a run that has stopped.
        ray: address of a Ray dashboard; the study and its files travel there as a Ray job.
        slurm: queue a batch job here.
        pbs: print a script for PBS Professional; it has never run.
        lsf: print a script for LSF; it has never run.
        print_only: print the script instead of queueing it.
        follow: print what a Ray job prints until it ends, and end with its exit status.
        folder: run folder to create; with --ray a path of the cluster, seen by all of its nodes.
        overrides: table.key=value, repeatable.
        include: file beside the study that travels with a Ray job, besides those that the study names; repeatable.
        allow_setup: run the lines of cluster.setup and cluster.extra of this study.
    """
    from forebay.cluster.submit import Request, choose

    return choose(
        Request(what, overrides, folder, include, allow_setup),
        ray=ray,
        systems={"slurm": slurm, "pbs": pbs, "lsf": lsf},
        print_only=print_only,
        follow=follow,
    )


@app.command
def status(run: Path, /, *, watch: Flag = False) -> int:
    """Tell what is going on in a run, or how it ended.

    Args:
        run: run folder.
        watch: go on telling, once a second, until the run ends; Ctrl-C leaves the run alone.
    """
    from forebay.cluster.whereabouts import tell_whereabouts

    if tell_whereabouts(run):
        return 0
    if watch:
        from forebay.cluster.watch import watch as follow

        follow(run)
    else:
        from forebay.cluster.console import print_status

        print_status(run)
    return 0


@app.command
def stop(run: Path, /, *, wait: bool = True) -> int:
    """Let a run finish its step, save a checkpoint and end, wherever it is; `forebay resume` or `submit` goes on.

    Args:
        run: run folder.
        wait: return when the run has ended.
    """
    from forebay.cluster.whereabouts import stop

    return stop(run, wait=wait)


@app.command
def replay(run: Path, /, *, folder: Path | None = None, overrides: Overrides = ()) -> int:
    """Train once more on the batches of a run, with another model or learning rate, say; nothing is solved.

    Without any change the weights should come out as the run's own, bit for bit, and the last line says whether.

    Args:
        run: run folder.
        folder: where the replay goes; by default RUN/replays/NAME. An interrupted one goes on.
        overrides: learner.key=value or validation.every=value, repeatable.
    """
    from forebay.cluster.replay import describe
    from forebay.cluster.replay import replay as train_again

    print(describe(train_again(run, overrides, folder)))
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
def dataset_verify(
    path: Path, /, *, samples: int = 8, rtol: float = 1e-5, seed: int = 7, trust_study: bool = False
) -> int:
    """Check completeness and finiteness, and solve some samples again to compare; exit status 1 when anything differs.

    Samples of a study that names a problem file or raw PETSc options are solved again only with --trust-study, because
    that runs whatever the study names.

    Args:
        path: a dataset.zarr, validation.zarr, or run folder.
        samples: how many random samples to solve again; 0 checks the files alone.
        rtol: largest relative L2 difference of a field, stored in float32.
        seed: of the choice of samples.
        trust_study: run the code that the study names.
    """
    from forebay.cluster.console import print_verification

    return print_verification(path, samples=samples, rtol=rtol, seed=seed, trust_study=trust_study)


@dataset.command(name="stats")
def dataset_stats(path: Path, /, *, as_json: Annotated[bool, Parameter(name="--json", negative="")] = False) -> int:
    """Print statistics of fields, parameters and outcomes, and the spectra of fields on grids.

    Args:
        path: a dataset.zarr, validation.zarr, or run folder.
        as_json: one JSON document instead of tables.
    """
    from forebay.cluster.dataset_console import print_stats

    print_stats(path, as_json=as_json)
    return 0


@dataset.command(name="export")
def dataset_export(
    path: Path,
    /,
    *,
    to: Path,
    format: Literal["well", "icechunk", "repacked"],
    everything: Annotated[bool, Parameter(name="--all", negative="")] = False,
    chunk_samples: int | None = None,
    shard_samples: int | None = None,
    compression: Literal["none", "zstd", "gzip", "blosc"] = "none",
    level: int | None = None,
    boundary: Literal["wall", "open", "periodic"] = "wall",
) -> int:
    """Copy a data set into another format; an existing folder is never overwritten.

    Args:
        path: a dataset.zarr, validation.zarr, or run folder.
        to: folder to create.
        format: The Well's HDF5, an Icechunk repository, or Zarr v3 with other chunks and compression.
        everything: also the samples that are not valid, with their outcomes.
        chunk_samples: Zarr: samples in a chunk.
        shard_samples: Zarr: samples in a file of several chunks.
        compression: Zarr: of the fields.
        level: of the compression.
        boundary: The Well: what the sides of the domain are.
    """
    from forebay.cluster.dataset_console import export_dataset
    from forebay.pipeline.dataset_export import ExportOptions

    options = ExportOptions(format, everything, chunk_samples, shard_samples, compression, level, boundary)
    export_dataset(path, to, options)
    return 0


if __name__ == "__main__":
    main()

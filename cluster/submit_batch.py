"""`forebay submit --slurm`, and the scripts that are printed only."""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path

from forebay.cluster import slurm
from forebay.cluster.batch_script import COMMANDS, System, batch_script
from forebay.cluster.cluster_size import Cores, object_store_bytes
from forebay.cluster.launch import Prepared, begin_folder, prepare, reopen
from forebay.cluster.site import ClusterOptions, cluster_options, read_site
from forebay.cluster.submission import Submission
from forebay.cluster.submit import Request, check_resumable
from forebay.pipeline.errors import RunError, StudyError
from forebay.pipeline.study import load_study


def submit_slurm(request: Request) -> int:
    """Make the run folder, with the study as it is now and the script, and queue the script."""
    prepared, options = _prepare(request)
    folder = prepared.spec.folder
    script = _script("slurm", prepared, options, request)  # refused before a folder is made
    if not request.is_run:
        begin_folder(prepared)
    (folder / "logs").mkdir(exist_ok=True)
    (folder / "job.sh").write_text(script, encoding="utf-8")
    try:
        job = slurm.sbatch(folder / "job.sh")
    except RunError as error:
        raise RunError(f"{error}\nnothing is queued; once that is mended: forebay submit --slurm {folder}") from None
    Submission("slurm", job).write(folder)
    print(
        f"Slurm job {job}; run folder {folder}\nforebay status {folder}, forebay stop {folder}; logs in {folder}/logs"
    )
    return 0


def print_script(request: Request, system: System) -> int:
    """Print the script that would be queued; no folder is made."""
    prepared, options = _prepare(request)
    print(_script(system, prepared, options, request), end="")
    if system != "slurm":
        print(
            f"not submitted: scripts for {system.upper()} have never run; read it, then {COMMANDS[system]}",
            file=sys.stderr,
        )
    return 0


def _prepare(request: Request) -> tuple[Prepared, ClusterOptions]:
    site = read_site()
    if request.is_run:
        check_resumable(request)
        prepared = reopen(request.what.resolve())
        return prepared, cluster_options(prepared.spec.study.cluster, site, allow_setup=request.allow_setup)
    study = load_study(request.what, request.overrides)
    options = cluster_options(study.cluster, site, allow_setup=request.allow_setup)
    if study.run.executor != "ray":
        raise StudyError(
            "run.executor = 'local' runs in one process, and a batch job is a Ray; add --set run.executor=ray"
        )
    cores = Cores(options.nodes * options.cores_per_node, options.cores_per_node)
    folder = request.folder or Path("runs") / f"{study.name}-{datetime.now():%Y%m%d-%H%M%S}"
    return prepare(request.what, request.overrides, None, folder, cores), options


def _script(system: System, prepared: Prepared, options: ClusterOptions, request: Request) -> str:
    spec = prepared.spec
    begin = ["resume", str(spec.folder)]
    if not request.is_run:
        begin = ["run", str(request.what.resolve()), "--folder", str(spec.folder), *request.set_words]
    return batch_script(
        system,
        spec.study.name,
        spec.folder,
        begin,
        options,
        python=options.python or sys.executable,
        store=object_store_bytes(spec.plan, spec.study.run.blocks_in_flight),
    )

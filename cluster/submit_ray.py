"""`forebay submit --ray`: the study and its files travel to the cluster, where `forebay run` is the job's driver."""

from __future__ import annotations

import secrets
import tempfile
from datetime import datetime
from pathlib import Path

from forebay.cluster import jobs
from forebay.cluster.cluster_size import Cores
from forebay.cluster.known import remember
from forebay.cluster.launch import prepare
from forebay.cluster.package import pack
from forebay.cluster.security import is_loopback
from forebay.cluster.site import read_site, site_file
from forebay.cluster.submission import Submission, read_submission
from forebay.cluster.submit import Request, check_resumable
from forebay.pipeline.errors import RunError, StudyError
from forebay.pipeline.study import load_study


def submit_ray(request: Request, address: str, *, follow: bool) -> int:
    """Send a Ray job and, with `follow`, print its output to its end; the exit status."""
    url = jobs.dashboard_url(address)
    remember(url)
    handle, folder = _go_on(request) if request.is_run else _begin(request, url)
    job = f"forebay-{Path(folder).name}-{secrets.token_hex(3)}"
    python = read_site().python or jobs.default_python(url)
    with tempfile.TemporaryDirectory(prefix="forebay-") as files:
        if request.is_run:
            ray_job = jobs.RayJob(job, ["resume", folder], python)
        else:
            study = load_study(request.what, request.overrides)
            copy = pack(request.what, study.model_dump(mode="json"), request.include, Path(files))
            words = ["run", copy.name, "--folder", folder, *request.set_words]
            ray_job = jobs.RayJob(job, words, python, Path(files))
        jobs.send(url, ray_job)
    handle.mkdir(parents=True, exist_ok=True)
    Submission("ray", job, address=url, folder=folder).write(handle)
    print(f"Ray job {job} at {url}\nrun folder on the cluster: {folder}", flush=True)
    hint = f"forebay status {handle}, forebay stop {handle}"
    if not follow:
        print(hint)
        return 0
    return jobs.follow(url, job, hint)


def _begin(request: Request, url: str) -> tuple[Path, str]:
    """The folder here that stands for a new run, and the run folder on the cluster."""
    prepared = prepare(request.what, request.overrides, cores=Cores(1, 1))  # mistakes are told here, not on the cluster
    if prepared.executor != "ray":
        raise StudyError("run.executor = 'local' uses one process of the cluster; add --set run.executor=ray")
    name = f"{prepared.spec.study.name}-{datetime.now():%Y%m%d-%H%M%S}"
    if is_loopback(url):
        folder = (request.folder or Path("runs") / name).resolve()
        return folder, str(folder)
    parent = read_site().folder
    if request.folder is not None and not request.folder.is_absolute():
        raise StudyError(
            f"--folder {request.folder} is a path of the cluster and has to be absolute, so begin it with /"
        )
    if request.folder is None and parent is None:
        raise StudyError(
            f"--folder is missing: {url} is another machine; name an absolute path that all nodes of the cluster see, "
            f"or set folder in {site_file()}"
        )
    return Path("runs") / name, str(request.folder or f"{parent}/{name}")


def _go_on(request: Request) -> tuple[Path, str]:
    check_resumable(request)
    submission = read_submission(request.what)
    if submission is not None and submission.folder:
        return request.what, submission.folder
    if not (request.what / "study.json").exists():
        raise RunError(f"{request.what} is no run folder: it has neither study.json nor submission.json")
    return request.what, str(request.what.resolve())

"""Nodes of a cluster: how each is started, how all are waited for, what they must share, and who gets which core."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.exceptions import NodeDiedError, RayError, TaskUnschedulableError
from running import ENVIRONMENT, POLL

from forebay.cluster import shared_folder
from forebay.cluster.cluster_size import LEAST_STORE, object_store_bytes
from forebay.cluster.package import keep_package, pack, project_modules
from forebay.cluster.ray_node import NodeOptions, free_port, node_address, node_environment, ray_command
from forebay.pipeline.errors import RunError, StudyError
from forebay.pipeline.plan import make_plan
from forebay.pipeline.study import study_from_dict
from forebay.solvers.problems import load_problem

TOKEN = "ab" * 32


def options(role="worker", **changes):
    values = {
        "role": role,
        "endpoint": "127.0.0.1:7777",
        "cpus": 3,
        "gpus": 1,
        "object_store_bytes": 5,
        "memory_bytes": 0,
        "job": "13",
        "tmp": Path("/tmp"),
        "join_s": 1.0,
        "address_command": "echo 127.0.0.9",
    }
    return NodeOptions(**values | changes)


def test_the_head_listens_on_the_jobs_port_and_a_worker_joins_it():
    head = ray_command(options("head"), Path("/f"))
    worker = ray_command(options(memory_bytes=11), Path("/f"))
    for words in (head, worker):
        assert {"--block", "--node-ip-address=127.0.0.9", "--num-cpus=3", "--num-gpus=1"} <= set(words)
        assert {"--object-store-memory=5", "--temp-dir=/f/ray", "--min-worker-port=0"} <= set(words)
    assert {"--head", "--port=7777", "--include-dashboard=false"} <= set(head)
    assert "--memory=11" in worker
    assert "--address=127.0.0.1:7777" in worker
    assert not [word for word in head if word.startswith(("--memory", "--address"))]


def test_the_token_of_a_node_is_in_a_closed_file_and_in_no_variable(tmp_path):
    found = node_environment(tmp_path, TOKEN, {"RAY_ADDRESS": "x", "RAY_AUTH_TOKEN": "y", "PATH": "p", "UCX_TLS": "rc"})
    assert found["RAY_AUTH_TOKEN_PATH"] == str(tmp_path / "token")
    assert (tmp_path / "token").read_text() == TOKEN
    assert stat.S_IMODE((tmp_path / "token").stat().st_mode) == 0o600
    assert found["RAY_AUTH_MODE"] == "token"
    assert found["PATH"] == "p"
    assert found["UCX_TLS"] == "rc", "what the site says of MPI's transports holds"
    assert not {"RAY_ADDRESS", "RAY_AUTH_TOKEN"} & set(found)


def test_the_address_of_a_node_is_what_the_sites_command_prints_or_else_its_own():
    assert node_address("echo 10.0.0.3 10.0.0.4") == "10.0.0.3"
    with socket.socket() as probe:
        probe.bind((node_address(), 0))
    with pytest.raises(SystemExit, match="address command 'false' printed no address"):
        node_address("false")


def start_node(tmp_path, *words):
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "forebay.cluster.ray_node", *words, "--tmp", str(tmp_path)],
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


WORKER = ("worker", "--cpus", "1", "--object-store-bytes", "1", "--job", "13")


def test_a_worker_whose_head_never_comes_says_so_and_leaves_nothing(tmp_path):
    at = f"127.0.0.1:{free_port('127.0.0.1')}"
    node = start_node(tmp_path, *WORKER, "--at", at, "--join-s", "0.3")
    _, said = node.communicate(TOKEN, timeout=30)
    assert node.returncode == 1
    assert f"nothing listens at {at} after 0.3 s" in said
    assert list(tmp_path.iterdir()) == []


def test_a_worker_that_still_waits_ends_when_told_and_leaves_nothing(tmp_path):
    node = start_node(tmp_path, *WORKER, "--at", f"127.0.0.1:{free_port('127.0.0.1')}", "--join-s", "60")
    node.stdin.write(TOKEN)
    node.stdin.close()
    node.stdin = None
    while not list(tmp_path.glob("fb13-*/token")):
        assert node.poll() is None
        POLL.wait(0.05)
    (folder,) = tmp_path.iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    node.send_signal(signal.SIGTERM)
    node.communicate(timeout=30)
    assert list(tmp_path.iterdir()) == []


def test_a_node_without_a_token_does_not_start(tmp_path):
    node = start_node(tmp_path, *WORKER, "--at", "127.0.0.1:1")
    _, said = node.communicate("short", timeout=30)
    assert node.returncode == 2
    assert "no token on stdin" in said


# -- connecting --------------------------------------------------------------------------------------------------------


def test_a_cluster_that_is_not_there_is_named_after_the_time_limit(tmp_path):
    study = tmp_path / "s.toml"
    study.write_text('name = "s"\n[problem]\nname = "darcy"\n')
    at = f"127.0.0.1:{free_port('127.0.0.1')}"
    result = subprocess.run(
        [sys.executable, "-m", "forebay.cluster.cli", "check", str(study)],
        env=ENVIRONMENT | {"RAY_ADDRESS": at, "FOREBAY_JOIN_S": "0.2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2, result.stdout
    assert f"no Ray listens at RAY_ADDRESS = {at} after 0.2 s" in result.stderr
    assert "unset RAY_ADDRESS to run on this machine alone" in result.stderr


# -- the run folder ----------------------------------------------------------------------------------------------------


class Tasks:
    """Stands in for Ray: a task runs here at once, on a node that may see other files."""

    def __init__(self, blind=(), elsewhere=(), late=(), gone=None):
        self.blind, self.elsewhere, self.late, self.gone = blind, elsewhere, late, gone or {}

    def remote(self, **options):
        assert options["num_cpus"] == 0
        return lambda function: SimpleNamespace(
            options=lambda scheduling_strategy: self.on(scheduling_strategy, function)
        )

    def on(self, strategy, function):
        assert not strategy.soft

        def run(question, path, seen_s):
            if strategy.node_id in self.gone:
                return self.gone[strategy.node_id]
            if strategy.node_id in self.blind:
                question = Path("/nowhere") / question.name
            if strategy.node_id in self.elsewhere:
                path = path.parent.parent / path.name
            told = function(question, path, seen_s)
            if strategy.node_id in self.late:
                path.write_text("")  # the name of a file is seen before what is in it
            return told

        return SimpleNamespace(remote=run)

    def get(self, value):
        if isinstance(value, Exception):
            raise value
        return value


def nodes(*names):
    return [{"NodeID": n * 28, "NodeManagerHostname": f"host-{n}", "NodeManagerAddress": f"10.0.0.{n}"} for n in names]


def test_nodes_that_share_the_run_folder_leave_no_trace_in_it(tmp_path, monkeypatch):
    monkeypatch.setattr(shared_folder, "ray", Tasks())
    shared_folder.check_shared_folder(tmp_path, nodes("01", "02"), seen_s=0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("blind", "No such file or directory: '?/nowhere"),
        ("elsewhere", "what it writes there does not appear here"),
        ("late", "what it writes"),
    ],
)
def test_a_node_that_does_not_share_the_run_folder_is_named(tmp_path, monkeypatch, fault, reason):
    monkeypatch.setattr(shared_folder, "ray", Tasks(**{fault: ["02" * 28]}))
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(
        RunError, match=rf"not shared by all nodes of the cluster: host-02 \(10.0.0.02\): {reason}.*mounts"
    ) as caught:
        shared_folder.check_shared_folder(run, nodes("01", "02"), seen_s=0)
    assert "host-01" not in str(caught.value)
    assert list(run.iterdir()) == []


@pytest.mark.parametrize("error", [NodeDiedError("its node has died"), TaskUnschedulableError("no such node")])
def test_a_node_that_leaves_meanwhile_is_passed_over_with_a_word(tmp_path, monkeypatch, caplog, error):
    monkeypatch.setattr(shared_folder, "ray", Tasks(gone={"02" * 28: error}))
    shared_folder.check_shared_folder(tmp_path, nodes("01", "02"), seen_s=0)
    assert "node 10.0.0.02 left the cluster while the run began" in caplog.text
    monkeypatch.setattr(shared_folder, "ray", Tasks(gone={"02" * 28: error}, blind=["01" * 28]))
    with pytest.raises(RunError, match=r"not shared by all nodes of the cluster: host-01 \(10.0.0.01\): No such file"):
        shared_folder.check_shared_folder(tmp_path, nodes("01", "02"), seen_s=0)


def test_a_node_that_cannot_be_asked_is_named_with_the_first_line_of_why(tmp_path, monkeypatch):
    crashed = RayError("the worker died\nand this is its log")
    monkeypatch.setattr(shared_folder, "ray", Tasks(gone={"02" * 28: crashed}))
    with pytest.raises(RunError, match=r"host-02 \(10.0.0.02\): it could not be asked: the worker died; name"):
        shared_folder.check_shared_folder(tmp_path, nodes("01", "02"), seen_s=0)


# -- cores -------------------------------------------------------------------------------------------------------------


def plan_of(cores=None, node_cores=None, **tables):
    study = study_from_dict({"name": "s", "problem": {"name": "darcy"}, **tables})
    return make_plan(study, load_problem("darcy", {}, folder=Path()).schema, cores=cores, node_cores=node_cores)


def test_the_learner_has_the_cores_of_one_node_and_solvers_all_others():
    plan = plan_of(cores=48, node_cores=16, learner={"threads": 4})
    assert (plan.cores, plan.solvers, plan.learner_threads, plan.learner_threads_after) == (48, 44, 4, 16)


def test_the_learner_never_has_more_threads_than_its_node():
    plan = plan_of(cores=6, node_cores=2, learner={"threads": 5, "threads_after_production": 6})
    assert (plan.solvers, plan.learner_threads, plan.learner_threads_after) == (4, 2, 2)


def test_ranks_of_a_solver_are_on_one_node():
    plan = plan_of(cores=16, node_cores=4, solver={"rom": {"ranks": 3}})
    assert plan.solvers == 4, "one a node: 16 - 1 cores would hold five, but not within nodes"


def test_a_node_of_its_own_is_as_before():
    assert plan_of(cores=8) == plan_of(cores=8, node_cores=8)
    assert plan_of(run={"cores": 5}).cores == 5


def test_the_object_store_holds_every_block_in_flight():
    assert object_store_bytes(SimpleNamespace(solvers=10, block_bytes=2**24), 4) == 4 * 10 * 4 * 2**24
    assert object_store_bytes(SimpleNamespace(solvers=1, block_bytes=1), 1) == LEAST_STORE


# -- what travels ------------------------------------------------------------------------------------------------------


@pytest.fixture
def study_folder(tmp_path):
    folder = tmp_path / "here"
    (folder / "data").mkdir(parents=True)
    for name in ("s.toml", "p.py", "data/mesh.npz", "helper.py", "secret.txt"):
        (folder / name).write_text(name)
    return folder


def packed(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_the_study_and_the_files_that_it_names_travel_and_nothing_else(study_folder, tmp_path):
    tree = {"problem": {"name": "p.py:P", "mesh": "data/mesh.npz", "size": 3}, "arms": [{"learned": "none.st"}]}
    target = tmp_path / "there"
    target.mkdir()
    assert pack(study_folder / "s.toml", tree, [], target) == target / "s.toml"
    assert packed(target) == ["data/mesh.npz", "p.py", "s.toml"]


def test_included_files_and_folders_travel_too(study_folder, tmp_path):
    target = tmp_path / "there"
    target.mkdir()
    pack(study_folder / "s.toml", {}, [study_folder / "helper.py", study_folder / "data"], target)
    assert packed(target) == ["data/mesh.npz", "helper.py", "s.toml"]


def test_a_linked_file_travels_as_what_it_leads_to(study_folder, tmp_path):
    (tmp_path / "far.npz").write_text("far")
    (study_folder / "near.npz").symlink_to(tmp_path / "far.npz")
    target = tmp_path / "there"
    target.mkdir()
    pack(study_folder / "s.toml", {"mesh": "near.npz"}, [], target)
    assert (target / "near.npz").read_text() == "far"
    assert not (target / "near.npz").is_symlink()


def test_a_file_above_the_study_or_missing_is_refused(study_folder, tmp_path):
    (tmp_path / "above.py").touch()
    with pytest.raises(StudyError, match=r"above\.py is not below .*; put a copy or a link beside the study"):
        pack(study_folder / "s.toml", {"name": "../above.py:P"}, [], tmp_path / "there")
    with pytest.raises(StudyError, match=r"--include .*none does not exist"):
        pack(study_folder / "s.toml", {}, [study_folder / "none"], tmp_path / "there")


def test_a_checkout_travels_and_an_installed_wheel_does_not(monkeypatch):
    import forebay

    assert project_modules() == [str(Path(forebay.__file__).parent)]
    monkeypatch.setattr(forebay, "__file__", "/env/lib/python3.12/site-packages/forebay/__init__.py")
    assert project_modules() == []


def test_files_that_ray_unpacked_for_one_job_are_kept_in_the_run_folder(tmp_path, study_folder):
    assert keep_package(study_folder, tmp_path) == study_folder
    unpacked = tmp_path / "working_dir_files" / "_ray_pkg_1"
    unpacked.mkdir(parents=True)
    (unpacked / "p.py").touch()
    kept = keep_package(unpacked, tmp_path / "run")
    assert kept == tmp_path / "run" / "study"
    assert os.listdir(kept) == ["p.py"]

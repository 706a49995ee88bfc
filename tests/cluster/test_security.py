"""Who may talk to a run's Ray: loopback, tokens, and files that nobody else can read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from running import ENVIRONMENT

from forebay.cluster.security import (
    LOOPBACK_ONLY,
    WITHOUT_TOKEN,
    check_token_file,
    is_loopback,
    private_folder,
    secure_ray,
)
from forebay.pipeline.errors import RunError

FAR = "10.1.2.3:6379"


@pytest.mark.parametrize("address", ["127.0.0.1:6379", "http://localhost:8265", "[::1]:6379", "127.0.0.7:1"])
def test_addresses_of_this_machine_are_loopback(address):
    assert is_loopback(address)


@pytest.mark.parametrize("address", [FAR, "auto", "http://head:8265", "ray://10.0.0.1:10001", "0.0.0.0:6379", ""])
def test_every_other_address_is_not(address):
    assert not is_loopback(address)


@pytest.fixture
def without_ray(monkeypatch):
    """As in a process that has not imported Ray."""
    monkeypatch.delitem(sys.modules, "ray", raising=False)


def test_what_ray_has_read_already_is_not_changed_under_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", sys)
    environment = {}
    secure_ray(environment=environment)
    assert environment == {}


@pytest.mark.usefixtures("without_ray")
def test_a_private_ray_has_a_token_of_its_own_that_no_file_holds():
    first, second = {}, {"RAY_ADDRESS": "local"}
    secure_ray(environment=first)
    secure_ray(environment=second)
    assert first["RAY_AUTH_MODE"] == "token"
    assert first[LOOPBACK_ONLY] == "0"
    assert len(first["RAY_AUTH_TOKEN"]) == 64
    assert first["RAY_AUTH_TOKEN"] != second["RAY_AUTH_TOKEN"]
    assert "RAY_AUTH_TOKEN_PATH" not in first


def test_a_ray_on_loopback_is_taken_as_it_was_started():
    environment = {"RAY_ADDRESS": "127.0.0.1:6379"}
    secure_ray(environment=environment)
    assert environment == {"RAY_ADDRESS": "127.0.0.1:6379"}


def test_a_ray_beyond_loopback_needs_a_token_file_that_is_there(tmp_path):
    environment = {"RAY_ADDRESS": FAR, "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    with pytest.raises(RunError, match=r"10\.1\.2\.3:6379 is not on loopback and needs a token.*--generate"):
        secure_ray(environment=environment)
    (tmp_path / "token").touch(0o600)
    secure_ray(environment=environment)
    assert environment["RAY_AUTH_MODE"] == "token"


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o602, 0o610])
def test_a_token_file_that_others_have_a_right_to_is_refused_with_the_remedy(tmp_path, mode):
    path = tmp_path / "token"
    path.touch()
    path.chmod(mode)
    with pytest.raises(RunError, match=rf"has mode {mode:04o}.*run `chmod 600 {path}`"):
        check_token_file(path, FAR)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
def test_a_token_file_of_another_user_is_refused(tmp_path):
    path = tmp_path / "token"
    path.touch(0o600)
    os.chown(path, 12345, -1)
    with pytest.raises(RunError, match=r"belongs to another user \(id 12345\)"):
        check_token_file(path, FAR)


def test_authentication_cannot_be_off_beyond_loopback_unless_the_user_says_so_by_name():
    environment = {"RAY_ADDRESS": FAR, "RAY_AUTH_MODE": "disabled"}
    with pytest.raises(RunError, match=f"RAY_AUTH_MODE = 'disabled'.*set {WITHOUT_TOKEN}=1"):
        secure_ray(environment=environment)
    secure_ray(environment=environment | {WITHOUT_TOKEN: "1"})


def test_the_command_says_so_before_ray_is_imported(tmp_path):
    study = tmp_path / "s.toml"
    study.write_text('name = "s"\n[problem]\nname = "darcy"\n')
    code = (
        "import sys, forebay.cluster.cli as c\ntry:\n c.main()\nfinally:\n print('ray' in sys.modules, file=sys.stderr)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, "check", str(study)],
        env=ENVIRONMENT | {"RAY_ADDRESS": FAR, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2, result.stdout
    assert "needs a token" in result.stderr
    assert result.stderr.endswith("False\n")


def test_the_folder_of_a_private_ray_is_closed_to_others(tmp_path):
    folder = private_folder(tmp_path)
    assert folder.parent.stat().st_mode & 0o777 == 0o700
    assert private_folder(tmp_path) == folder
    folder.parent.chmod(0o755)
    with pytest.raises(RunError, match=r"is not a folder of this user alone \(mode 0700\)"):
        private_folder(tmp_path)


def test_a_link_in_place_of_that_folder_is_refused(tmp_path):
    (tmp_path / "target").mkdir(mode=0o700)
    (tmp_path / f"forebay-{os.getuid()}").symlink_to(tmp_path / "target")
    with pytest.raises(RunError, match="is not a folder of this user alone"):
        private_folder(tmp_path)


EMBEDDED = """
import json, os, sys
from pathlib import Path
from types import SimpleNamespace
from forebay.cluster.security import secure_ray
secure_ray()
from forebay.cluster.ray_session import start_ray
import psutil, ray
start_ray(SimpleNamespace(cores=2, solvers=1, block_bytes=1), ranks=1, blocks_in_flight=1, folder=Path())
def mpi():
    from forebay.solvers.petsc import petsc
    petsc()
    return listening()
def listening():
    me = psutil.Process()
    return [(process.name(), c.laddr.ip) for process in [me, *me.children(recursive=True)]
            for c in process.net_connections("inet") if c.status == "LISTEN"]
inside = ray.get(ray.remote(num_cpus=1)(mpi).remote())
session = Path(ray._private.worker._global_node.get_session_dir_path())
token = os.environ["RAY_AUTH_TOKEN"].encode()
told = [str(p) for p in session.rglob("*") if p.is_file() and token in p.read_bytes()]
print(json.dumps([inside + listening(), told, str(session)]))
"""


@pytest.mark.ray
def test_no_process_of_an_embedded_ray_listens_beyond_loopback_and_no_log_has_its_token(tmp_path):
    plain = {k: v for k, v in ENVIRONMENT.items() if not k.startswith("RAY_")}
    result = subprocess.run(
        [sys.executable, "-c", EMBEDDED], env=plain, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    sockets, told, session = json.loads(result.stdout.splitlines()[-1])
    assert len(sockets) > 4
    assert [socket for socket in sockets if socket[1].removeprefix("::ffff:") not in ("127.0.0.1", "::1")] == []
    assert told == []
    assert Path(session).is_relative_to(f"/tmp/forebay-{os.getuid()}")

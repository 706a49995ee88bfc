"""Who may talk to a Ray: settled in the environment, which Ray reads once, when it is imported.

| RAY_ADDRESS | what holds |
|---|---|
| unset, or "local" | a private Ray: every socket on loopback, and a token of this process that no file ever holds |
| on loopback | as that Ray was started |
| anything else | token authentication, with the token in RAY_AUTH_TOKEN or in a file that nobody else can read |
"""

from __future__ import annotations

import ipaddress
import os
import secrets
import stat
import sys
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from urllib.parse import urlsplit

from forebay.pipeline.errors import RunError

WITHOUT_TOKEN = "FOREBAY_RAY_WITHOUT_TOKEN"
"""Set to 1 by a user whose network already keeps everybody else away from a Ray without tokens."""
LOOPBACK_ONLY = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Off: Ray takes 127.0.0.1 for the address of this node, and then listens there only.  Its name says where that is the
default; on Linux it is not, and every other address makes Ray listen on all interfaces."""


MPI_ON_ONE_HOST = {"UCX_TLS": "self,sm"}
"""Every MPI of a run stays on its host; by default MPICH's transport listens on the network all the same."""
PRIVATE = ("", "local")


def inside_cluster(environment: Mapping[str, str] = os.environ) -> bool:
    """Is there a cluster to connect to, or is Ray this run's own?"""
    return environment.get("RAY_ADDRESS", "") not in PRIVATE


def secure_ray(address: str | None = None, environment: MutableMapping[str, str] = os.environ) -> None:
    """Settle the authentication of the Ray at `address` (by default RAY_ADDRESS); call it before `import ray`.

    Raises:
        RunError: a Ray beyond loopback without token authentication, or a token that others can read.
    """
    if address is None:
        address = environment.get("RAY_ADDRESS", "")
    if address in PRIVATE:
        if "ray" in sys.modules:  # too late: client and server would disagree
            return
        environment.update(MPI_ON_ONE_HOST | dict(environment))
        environment.setdefault(LOOPBACK_ONLY, "0")
        environment.setdefault("RAY_AUTH_MODE", "token")
        if "RAY_AUTH_TOKEN_PATH" not in environment:
            environment.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    elif not is_loopback(address):
        _require_token(address, environment)


def private_folder(base: Path = Path("/tmp")) -> Path:
    """Where a private Ray may keep its sockets and logs: Ray opens that folder to everybody, and the one around it not.

    Raises:
        RunError: somebody else has made the folder.
    """
    folder = base / f"forebay-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise RunError(f"{folder} is not a folder of this user alone (mode 0700), so Ray's sockets are not put there")
    return folder / "ray"


def is_loopback(address: str) -> bool:
    """Does an address ("host:port", or a URL) lead back to this machine?  "auto" may lead anywhere."""
    host = urlsplit(address if "://" in address else f"//{address}").hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _require_token(address: str, environment: MutableMapping[str, str]) -> None:
    if environment.get(WITHOUT_TOKEN) == "1":
        return
    mode = environment.setdefault("RAY_AUTH_MODE", "token")
    if mode != "token":
        raise RunError(
            f"RAY_AUTH_MODE = {mode!r}, but the Ray at {address} is not on loopback: whoever reaches it can run code "
            f"as you; start it with RAY_AUTH_MODE=token, or, where nobody else can reach it, set {WITHOUT_TOKEN}=1"
        )
    if not environment.get("RAY_AUTH_TOKEN"):
        check_token_file(Path(environment.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token"), address)


def check_token_file(path: Path, address: str) -> None:
    """A token file that is there, is the user's own and that nobody else can read.

    Raises:
        RunError: it is not.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise RunError(
            f"the Ray at {address} is not on loopback and needs a token, but {path} cannot be read: {error.strerror}; "
            f"make one with `ray get-auth-token --generate`, or name the cluster's with RAY_AUTH_TOKEN_PATH"
        ) from None
    if found.st_uid != os.getuid():
        raise RunError(f"the token file {path} belongs to another user (id {found.st_uid}); make a copy of your own")
    if mode := stat.S_IMODE(found.st_mode) & 0o077:
        raise RunError(
            f"the token file {path} has mode {stat.S_IMODE(found.st_mode):04o}, so that others have {mode:03o} of it; "
            f"run `chmod 600 {path}`"
        )

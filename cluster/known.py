"""The Rays that this user has named.  A run folder may be somebody else's, and its address is not sent a token."""

from __future__ import annotations

import os
from pathlib import Path

from forebay.cluster.security import is_loopback
from forebay.pipeline.errors import RunError

FILE = Path(".config") / "forebay" / "known_rays"


def remember(address: str) -> None:
    """The user has named this address."""
    path = Path.home() / FILE
    if address in _known(path):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "a", encoding="utf-8") as file:
        file.write(f"{address}\n")


def check_known(address: str) -> None:
    """May an address that a file names be asked, with the user's token?

    Raises:
        RunError: the user never named it.
    """
    path = Path.home() / FILE
    if not is_loopback(address) and address not in _known(path):
        raise RunError(
            f"the run folder names the Ray at {address}, to which you have not submitted from here; it is not sent "
            f"your token.  If it is yours, add that line to {path}"
        )


def _known(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []

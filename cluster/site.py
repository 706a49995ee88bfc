"""What this site's clusters are like, and what a study may ask of them.

One file per user, `~/.config/forebay/cluster.toml` or what FOREBAY_CLUSTER names, has the keys of a study's `[cluster]`
table at its top level, and `SiteTable`'s own.  Of each key the first holds that is given:

    --set cluster.key=value   ►   [cluster] of the study   ►   site file   ►   default

`setup` and `extra` are run as they are, so they come from the site file: in a study, which may be somebody else's, they
are refused unless the user allows them.
"""

from __future__ import annotations

import os
import stat
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from forebay.pipeline.errors import StudyError
from forebay.pipeline.study import ClusterTable, Count

VARIABLE = "FOREBAY_CLUSTER"
DEFAULT_FILE = Path(".config") / "forebay" / "cluster.toml"
SafePath = Annotated[str, Field(pattern=r"^/[A-Za-z0-9_./+@:=,-]*$")]
CODE = ("setup", "extra")
"""Keys whose value is run."""


class SiteTable(ClusterTable):
    """The site file."""

    python: SafePath | None = None
    """Python of an environment with Forebay, as the nodes see it; by default the one that submits."""
    address: str = ""
    """Shell command that prints a node's address in the network that Ray is to use, for example that of ib0."""
    tmp: Annotated[SafePath, Field(max_length=20)] = "/tmp"
    """Folder on each node's own disk for token and sockets, whose paths must stay short."""
    join_s: Count = 300
    """Seconds within which all nodes must have joined."""
    folder: SafePath | None = None
    """Where `submit --ray` makes run folders: a path of the cluster, seen by all of its nodes."""


@dataclass(frozen=True, slots=True)
class ClusterOptions:
    """Everything a batch script needs to know of the cluster, without gaps."""

    nodes: int
    cores_per_node: int
    gpus_per_node: int
    memory_gib: float | None
    time_s: int | None
    partition: str | None
    account: str | None
    qos: str | None
    signal_s: int
    requeues: int
    setup: tuple[str, ...]
    extra: tuple[str, ...]
    python: str | None
    address: str
    tmp: str
    join_s: int


def site_file() -> Path:
    """Where the site file is, or would be."""
    named = os.environ.get(VARIABLE)
    return Path(named) if named else Path.home() / DEFAULT_FILE


def read_site() -> SiteTable:
    """The user's site file; all defaults where there is none.

    Raises:
        StudyError: named and not there, writable by everybody, or with a value that breaks its constraint.
    """
    path = site_file()
    try:
        found = path.stat()
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        if os.environ.get(VARIABLE):
            raise StudyError(f"{VARIABLE} names {path}, which does not exist; make it, or unset {VARIABLE}") from None
        return SiteTable()
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(f"site file {path} cannot be read: {error}") from None
    if found.st_mode & stat.S_IWOTH or found.st_uid not in (0, os.getuid()):
        raise StudyError(
            f"site file {path} could be changed by others, and its lines are run in your jobs; make it your own and "
            f"run `chmod o-w {path}`"
        )
    try:
        return SiteTable.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise StudyError(f"site file {path} is not valid TOML: {error}") from None
    except ValidationError as error:
        raise StudyError(f"site file {path}: " + "; ".join(_explain(dict(fault)) for fault in error.errors())) from None


def cluster_options(study: ClusterTable, site: SiteTable, *, allow_setup: bool = False) -> ClusterOptions:
    """Join what the study asks for with what the site has.

    Raises:
        StudyError: code in the study that nobody allowed, no number of cores, or a limit too short for its signal.
    """
    table = site.model_dump() | {key: value for key, value in study.model_dump().items() if value not in (None, ())}
    for key in CODE:
        if getattr(study, key) and not allow_setup:
            raise StudyError(
                f"cluster.{key} of a study would be run as it is, and a study may be somebody else's: move it to "
                f"{site_file()}, or say --allow-setup after reading it"
            )
        _check_lines(key, table[key])
    if table["cores_per_node"] is None:
        raise StudyError(
            f"cluster.cores_per_node is missing; say in [cluster] of the study or in {site_file()} how many cores of "
            f"each node the job may have"
        )
    time_s = _seconds(table["time"]) if table["time"] else None
    signal_s = table["signal_s"] or 120
    if time_s is not None and time_s <= signal_s:
        raise StudyError(
            f"cluster.time = {table['time']!r} is not longer than cluster.signal_s = {signal_s}, so the job would save "
            f"its checkpoint at once; raise the time or lower signal_s"
        )
    return ClusterOptions(
        nodes=table["nodes"] or 1,
        cores_per_node=table["cores_per_node"],
        gpus_per_node=table["gpus_per_node"] or 0,
        time_s=time_s,
        signal_s=signal_s,
        requeues=16 if table["requeues"] is None else table["requeues"],
        **{key: table[key] for key in ("memory_gib", "partition", "account", "qos", "setup", "extra")},
        **{key: table[key] for key in ("python", "address", "tmp", "join_s")},
    )


def _check_lines(key: str, lines: tuple[str, ...]) -> None:
    for line in lines:
        if "\n" in line or "\r" in line:
            raise StudyError(f"cluster.{key} has a line break in {line!r}; write one line each")
        if key == "extra" and not line.startswith("-"):
            raise StudyError(f'cluster.extra has {line!r}, which is no option; write it as "--name=value"')


def _seconds(time: str) -> int:
    days, _, clock = time.rpartition("-")
    hours, minutes, seconds = (int(part) for part in clock.split(":"))
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def _explain(fault: dict[str, Any]) -> str:
    key = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        return f"{key} is not a known key; known keys: {', '.join(sorted(SiteTable.model_fields))}"
    return f"{key} = {fault['input']!r} is not allowed: {fault['msg']}"

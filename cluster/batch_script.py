"""The scripts that batch systems run: Slurm's is tested on a real one, those for PBS and LSF have never run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from jinja2 import Environment, PackageLoader, StrictUndefined

from forebay.cluster.site import ClusterOptions
from forebay.pipeline.errors import RunError

System = Literal["slurm", "pbs", "lsf"]
COMMANDS = {"slurm": "sbatch", "pbs": "qsub", "lsf": "bsub <"}
STORE_SHARE = 0.3
"""Most of a node's memory that blocks in flight may take, as in Ray's own default."""
_PLAIN = re.compile(r"/[A-Za-z0-9_./+@:=,-]*")


def batch_script(
    system: System, name: str, run: Path, begin: Sequence[str], options: ClusterOptions, *, python: str, store: int
) -> str:
    """The script of one run.

    `begin` are the words after `forebay` that begin the run; a run folder that holds one already is resumed.  `store`
    are the bytes that blocks in flight take on a node.  Whatever is not checked to be a plain word is quoted; `setup`
    and `extra` alone are the user's own shell text.

    Raises:
        RunError: a path that a batch system would not take as it is.
    """
    for path in (str(run), python):
        if not _PLAIN.fullmatch(path):
            raise RunError(
                f"{path!r} has a character that batch systems interpret; use a path of letters, digits and _ . / + @ : "
                f"= , - alone (--folder names the run folder)"
            )
    memory = int((options.memory_gib or 0) * 2**30)
    if memory:
        store = min(store, int(STORE_SHARE * memory))
    return (
        _environment()
        .get_template(f"{system}.sh.j2")
        .render(
            name=name,
            title=f"{name}: {options.nodes} node(s) of {options.cores_per_node} core(s)",
            command=COMMANDS[system],
            run=str(run),
            script=str(run / "job.sh"),
            begin=list(begin),
            options=options,
            python=python,
            object_store_bytes=store,
            memory_bytes=max(0, memory - store),
        )
    )


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("forebay.cluster", "batch"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        comment_start_string="<#",  # {# begins an expression of bash
        comment_end_string="#>",
        autoescape=False,  # shell, not HTML: the filters below quote
    )
    environment.filters |= {"sh": shlex.quote, "words": _words, "clock": _clock, "hours": _hours}
    return environment


def _words(words: Sequence[str]) -> str:
    return f"({shlex.join(words)})"


def _clock(seconds: int) -> str:
    days, rest = divmod(seconds, 86400)
    return f"{days}-{_hours(rest)}" if days else _hours(rest)


def _hours(seconds: int) -> str:
    minutes, seconds = divmod(seconds, 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{seconds:02d}"

"""Does every node of a cluster see the run folder, and the same one?  Told before anything is solved."""

from __future__ import annotations

import logging
import os
import secrets
import time
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import NodeDiedError, RayError, TaskUnschedulableError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from forebay.pipeline.errors import RunError

log = logging.getLogger(__name__)

POLL_S = 0.5
SEEN_S = 20.0
"""How long a file may take to appear on another node: network file systems keep the answer "not there" for seconds."""


def check_shared_folder(folder: Path, nodes: list[dict[str, Any]], *, seen_s: float = SEEN_S) -> None:
    """Let every node of `ray.nodes()` read a file of the folder and write one there.

    Raises:
        RunError: with the nodes that do not see the folder, or see another one.
    """
    question = folder / f".shared-{secrets.token_hex(8)}"
    word = secrets.token_hex(8)
    question.write_text(word, encoding="ascii")
    task = ray.remote(num_cpus=0, max_retries=0)(answer)
    asked = [(node, Path(f"{question}-{node['NodeID']}")) for node in nodes]
    try:
        answers = [task.options(scheduling_strategy=_on(node)).remote(question, path, seen_s) for node, path in asked]
        reasons = [
            (node, _reason(node, told, path, word, seen_s)) for (node, path), told in zip(asked, answers, strict=True)
        ]
    finally:
        for path in folder.glob(f"{question.name}*"):
            path.unlink()
    blind = [f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']}): {why}" for node, why in reasons if why]
    if blind:
        raise RunError(
            f"the run folder {folder} is not shared by all nodes of the cluster: {'; '.join(blind)}; name a --folder "
            f"on a file system that every node mounts under the same path"
        )


def answer(question: Path, path: Path, seen_s: float) -> str:
    """On a node: write down again what the driver wrote; the reason if that fails."""
    end = time.monotonic() + seen_s
    while True:
        try:
            os.listdir(question.parent)  # refreshes what a network file system remembers of the folder
            path.write_text(question.read_text(encoding="ascii"), encoding="ascii")
        except OSError as error:
            if time.monotonic() > end:
                return f"{error.strerror}: {error.filename}"
            time.sleep(POLL_S)
        else:
            return ""


def _reason(node: dict[str, Any], told: Any, path: Path, word: str, seen_s: float) -> str:
    """Why a node does not see the folder; "" where it does, and for a node that is gone by now."""
    try:
        return ray.get(told) or _reason_unseen(path, word, seen_s)
    except (NodeDiedError, TaskUnschedulableError):
        log.warning("node %s left the cluster while the run began; it goes on without it", node["NodeManagerAddress"])
        return ""
    except RayError as error:
        return f"it could not be asked: {str(error).splitlines()[0]}"


def _on(node: dict[str, Any]) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)


def _reason_unseen(path: Path, word: str, seen_s: float) -> str:
    end = time.monotonic() + seen_s
    while True:
        os.listdir(path.parent)
        if path.exists() and path.read_text(encoding="ascii") == word:
            return ""
        if time.monotonic() > end:
            return "what it writes there does not appear here"
        time.sleep(POLL_S)

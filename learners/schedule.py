"""What a learner did, read back from `draws.jsonl`: which frames made which batch, and what was normalised by then.

| line                                   | meaning                                                                  |
|----------------------------------------|--------------------------------------------------------------------------|
| {"begin": b, "normalised": [...]}      | an attempt begins after batch b; later batches of earlier ones are void  |
| {"normalised": c}                      | the normaliser takes in chunk c before the next batch                    |
| {"batch": b, "threads": n, "keys": []} | batch b, counted from 1, of those frames, computed with n threads        |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from forebay.learners.metrics import draws_file
from forebay.pipeline.errors import RunError
from forebay.pipeline.journal import read_lines


@dataclass(frozen=True, slots=True, eq=False)
class ScheduledBatch:
    """One training step as it was done."""

    number: int
    """From 1."""
    keys: np.ndarray
    """int64 (b,): sample id · steps + step, in the order of the batch."""
    threads: int
    normalised: tuple[int, ...]
    """Chunks that the normaliser takes in before it, in order."""


def read_team_schedule(run: Path, ranks: int) -> list[ScheduledBatch]:
    """The whole batches of a run's learners: the shares of all ranks, one after the other.

    Batches that not all ranks have written down are left out: the run was killed within one.

    Raises:
        RunError: as `read_schedule`.
    """
    shares = [read_schedule(draws_file(run, rank)) for rank in range(ranks)]
    return [
        ScheduledBatch(
            batches[0].number,
            np.concatenate([batch.keys for batch in batches]),
            batches[0].threads,
            tuple(chunk for batch in batches for chunk in batch.normalised),
        )
        for batches in zip(*shares, strict=False)
    ]


def read_schedule(path: Path) -> list[ScheduledBatch]:
    """The batches of a run, those that a killed attempt had drawn in vain left out.

    Raises:
        RunError: there is no such file, a line is missing, or the run is of a version that did not keep all of this.
    """
    if not path.exists():
        raise RunError(f"{path} does not exist: the run has drawn no batch yet, so there is nothing to replay")
    lines: list[Mapping[str, Any]] = []
    for line in read_lines(path):
        if "begin" in line:
            known = set(line["normalised"])
            lines = [entry for entry in lines if _stands(entry, line["begin"], known)]
        else:
            lines.append(line)
    return _batches(lines, path)


def _stands(entry: Mapping[str, Any], batches: int, known: set[int]) -> bool:
    return entry["normalised"] in known if "normalised" in entry else entry.get("batch", 0) <= batches


def _batches(lines: list[Mapping[str, Any]], path: Path) -> list[ScheduledBatch]:
    batches: list[ScheduledBatch] = []
    fresh: list[int] = []
    for line in lines:
        if "normalised" in line:
            fresh.append(line["normalised"])
            continue
        if line.get("batch") != len(batches) + 1 or "threads" not in line or "keys" not in line:
            raise RunError(
                f"{path}: batch {len(batches) + 1} is missing or incomplete (found {line.get('batch')}); the run was "
                f"made by another version, or the file was changed"
            )
        keys = np.asarray(line["keys"], np.int64)
        batches.append(ScheduledBatch(len(batches) + 1, keys, line["threads"], tuple(fresh)))
        fresh = []
    return batches

"""Append-only JSON lines: what a run decided (`journal.jsonl`) and what it measured (`metrics.jsonl`).

Strict JSON (RFC 8259) has no NaN and no infinity, so a non-finite float is written as the string "nan", "inf" or
"-inf"; `float(value)` brings each of them back, which is why a reader needs no special case where it expects a number.

One line is one `write` to a file opened with O_APPEND, so a killed process leaves at most one torn line, and only at
the end.  `read_lines` leaves it out, and the next writer cuts it off before it appends.
"""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from forebay.pipeline.errors import RunError
from forebay.pipeline.records import Outcome, SolveRecord

log = logging.getLogger(__name__)

DURABLE_EVENTS = frozenset({"block_stored", "checkpoint", "run_finished"})
"""Events after which others act on what is recorded: the append returns once the line is on the disk."""

_NEEDED = {
    "block_stored": ("split", "chunk", "records"),
    "block_ingested": ("split", "chunk", "frames"),
    "training_ended": ("batches",),
    "run_finished": ("status",),
}
"""Without which the rest of a line says nothing."""
_COLUMNS = ("sample_id", "seed", "outcome", "method", "iterations", "residual", "seconds", "message")
_REDUCED = ("indicator", "estimate", "full_steps")
"""Columns that are written only where a reduced model filled one of them."""


class JsonLines:
    """A file of JSON objects, one a line; several processes and threads may append at a time.

    Every writer holds a shared advisory lock (`flock`) that the kernel releases when its process ends, however it ends;
    that is how `is_being_written` tells a running run from a killed one.

    Raises:
        RunError: the file cannot be opened, or the disk is full.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        except OSError as error:
            raise RunError(f"{str(path)!r} cannot be opened for appending: {error.strerror}") from None
        self._mutex = threading.Lock()
        try:
            if self._is_only_writer():  # another one would have cut the tail already
                self._cut_torn_tail()
            fcntl.flock(self._descriptor, fcntl.LOCK_SH)
        except BaseException:
            self.close()
            raise

    def append(self, record: Mapping[str, Any], *, durable: bool = False) -> None:
        """Write one object as one line; `durable` waits until it is on the disk.

        Raises:
            RunError: the line could not be written (full disk); the file ends with the last whole line.
            TypeError: a value that JSON does not have.
            ValueError: the file is closed.
        """
        line = json.dumps(_strict(record), allow_nan=False, separators=(",", ":")).encode() + b"\n"
        with self._mutex:
            if self._descriptor < 0:
                raise ValueError(f"{str(self.path)!r} is closed")
            self._write(line)
            if durable:
                os.fsync(self._descriptor)

    def close(self) -> None:
        """Give up the file and its lock; harmless when repeated."""
        with self._mutex:
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _is_only_writer(self) -> bool:
        # `is_being_written` holds the lock for an instant, so one refusal does not yet mean another writer.
        for pause_s in (0.0, 0.01, 0.02):
            time.sleep(pause_s)
            if _lock_alone(self._descriptor):
                return True
        return False

    def _write(self, line: bytes) -> None:
        try:
            written = os.write(self._descriptor, line)
            reason = "the disk is full"
        except OSError as error:
            written, reason = 0, error.strerror or str(error)
        if written == len(line):
            return
        end = os.lseek(self._descriptor, 0, os.SEEK_CUR)
        if written and end == os.fstat(self._descriptor).st_size:  # nobody appended after the torn line
            os.ftruncate(self._descriptor, end - written)
        raise RunError(
            f"{str(self.path)!r}: a line of {len(line)} bytes could not be appended ({reason}); make room and resume"
        )

    def _cut_torn_tail(self) -> None:
        data = self.path.read_bytes()
        end = data.rfind(b"\n") + 1
        start = data.rfind(b"\n", 0, max(end - 1, 0)) + 1
        # A power failure can leave a whole line of zero bytes: its length was on the disk before its contents.
        if end and _parse(data[start:end]) is None:
            end = start
        if end < len(data):
            log.warning("%s: cut a torn last line of %d bytes", self.path, len(data) - end)
            os.ftruncate(self._descriptor, end)


class Journal:
    """`journal.jsonl`: every decision of a run, in the order in which it was made.

    Each line holds "event", "t" (seconds since the epoch) and the fields of that event.  Lines of `DURABLE_EVENTS` are
    on the disk when `append` returns.  Raises as `JsonLines`.
    """

    def __init__(self, path: Path) -> None:
        self._lines = JsonLines(path)

    def append(self, event: str, **fields: Any) -> None:
        """Record an event now."""
        self._lines.append({"event": event, "t": round(time.time(), 3), **fields}, durable=event in DURABLE_EVENTS)

    def close(self) -> None:
        """Give up the file and its lock; harmless when repeated."""
        self._lines.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file of JSON lines, in order; none if the file does not exist.

    A torn last line is left out, with a warning in the log.

    Raises:
        RunError: a line before the last one is not a JSON object, so the file was changed by something else.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return
    *lines, rest = data.split(b"\n")
    for number, line in enumerate(lines, start=1):
        record = _parse(line)
        if record is not None:
            yield record
        elif number == len(lines) and not rest:
            log.warning("%s: left out a torn last line of %d bytes", path, len(line))
        else:
            raise RunError(
                f"{str(path)!r}, line {number} is not a JSON object although lines follow it; "
                f"restore the file from a copy, it was changed after it was written"
            )
    if rest:
        log.warning("%s: left out a torn last line of %d bytes", path, len(rest))


def read_journal(path: Path) -> Iterator[dict[str, Any]]:
    """The events of a journal, in order; as `read_lines`, and every line must have an "event".

    Raises:
        RunError: a damaged line, or one without an event.
    """
    for number, record in enumerate(read_lines(path), start=1):
        if not isinstance(record.get("event"), str):
            raise RunError(f'{str(path)!r}, entry {number} has no "event"; this file is not a run\'s journal')
        yield record


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """As `read_journal`, and events that say what is solved and done are whole.

    Raises:
        RunError: as `read_journal`, or an event without what it is to tell.
    """
    for record in read_journal(path):
        if missing := [key for key in _NEEDED.get(record["event"], ()) if key not in record]:
            raise RunError(
                f"{str(path)!r} has an event {record['event']} without {missing[0]!r}; restore the file from a copy, "
                f"it was changed after it was written"
            )
        yield record


def is_being_written(path: Path) -> bool:
    """Does some process on this machine hold the file open for appending?"""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        return not _lock_alone(descriptor)
    finally:
        os.close(descriptor)


def records_to_columns(records: Sequence[SolveRecord]) -> dict[str, list[Any]]:
    """Solve records as columns, a third of the bytes of objects; outcomes by name, which outlives a renumbering."""
    columns: dict[str, list[Any]] = {name: [getattr(record, name) for record in records] for name in _COLUMNS}
    columns["outcome"] = [record.outcome.name for record in records]
    for name in _REDUCED:
        values = [getattr(record, name) for record in records]
        if any(value is not None for value in values):
            columns[name] = values
    return columns


def records_from_columns(columns: Mapping[str, Sequence[Any]]) -> list[SolveRecord]:
    """The inverse of `records_to_columns`, also after a journey through JSON.

    Raises:
        RunError: a column is missing or shorter than the others, or an outcome is unknown to this version.
    """
    names = (*_COLUMNS, *(name for name in _REDUCED if name in columns))
    lengths = {name: len(columns.get(name, ())) for name in names}
    if len(set(lengths.values())) != 1:
        raise RunError(f"solve records have columns of unequal length {lengths}; the journal line is damaged")
    return [_record(dict(zip(names, row, strict=True))) for row in zip(*(columns[name] for name in names), strict=True)]


def _record(row: Mapping[str, Any]) -> SolveRecord:
    outcome = row["outcome"]
    if outcome not in Outcome.__members__:
        raise RunError(
            f"outcome {outcome!r} of sample {row['sample_id']} is unknown, this version knows "
            f"{', '.join(Outcome.__members__)}; read the run with the version that wrote it"
        )
    return SolveRecord(
        sample_id=int(row["sample_id"]),
        seed=int(row["seed"]),
        outcome=Outcome[outcome],
        method=row["method"],
        iterations=int(row["iterations"]),
        residual=float(row["residual"]),
        seconds=float(row["seconds"]),
        message=row["message"],
        indicator=_or_none(row.get("indicator")),
        estimate=_or_none(row.get("estimate")),
        full_steps=None if row.get("full_steps") is None else int(row["full_steps"]),
    )


def _or_none(value: Any) -> float | None:
    return None if value is None else float(value)


def _lock_alone(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _strict(value: Any) -> Any:
    """The value in terms of what strict JSON has."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return value

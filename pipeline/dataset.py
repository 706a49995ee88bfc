"""The data set of a run: many processes write fields, one process decides what readers see.

    any process      DatasetWriter.store(block)        field chunk files, each durable before it has its name
    one process      DatasetCoordinator.commit(...)    records of a stored block, in memory
                     DatasetCoordinator.publish()      1. record arrays   2. array metadata   3. the group's metadata
    anybody          DatasetReader, xarray, dask, tensorstore, zarr

Readers see the contiguous prefix of committed blocks.  The group's metadata document carries the metadata of all arrays
and is replaced by one rename, so all arrays grow at the same instant; whatever it shows was durable before.  A process
killed at any instant leaves a data set that is consistent and can be continued.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from forebay.pipeline.chunks import (
    chunk_bytes,
    chunk_parts,
    leftovers,
    read_chunk,
    write_all_atomically,
    write_atomically,
)
from forebay.pipeline.dataset_layout import (
    FIELD_DTYPE,
    OURS,
    ROWS,
    SELECTION,
    UNSOLVED,
    Layout,
    array_chunk_file,
    arrays_of,
    check_layout,
    columns_of,
    is_raw,
    method_flags,
    methods_of,
    read_document,
)
from forebay.pipeline.dataset_reader import DatasetReader
from forebay.pipeline.errors import DatasetError
from forebay.pipeline.records import Block, ChunkPlan, Schema, SolveRecord

__all__ = ["DatasetCoordinator", "DatasetReader", "DatasetWriter"]

LOCK = ".forebay.lock"
"""File in the group whose flock the coordinator holds; the lock goes with the process, the file stays."""

_logger = logging.getLogger(__name__)


class DatasetWriter:
    """Writes the fields of blocks as chunk files; a `Sink` for any number of processes at once.

    Two writers never share a file unless they store the same block, and then the later one replaces the earlier
    atomically.  Records and parameters are the coordinator's.
    """

    def __init__(self, path: Path, schema: Schema, plan: ChunkPlan) -> None:
        self._path = Path(path)
        self._layout = Layout(schema, plan)

    def store(self, block: Block) -> None:
        """Make the block's fields durable: one chunk file for each field, the last block padded with NaN.

        Raises:
            DatasetError: the block is not one of this data set's, a field has the wrong shape or is not float32, the
                data set does not exist, or the disk is full.
        """
        layout, plan = self._layout, self._layout.plan
        ids = plan.sample_ids(block.chunk) if block.split == plan.split and 0 <= block.chunk < plan.chunks else None
        if ids is None or not np.array_equal(ids, block.sample_ids):
            raise DatasetError(
                f"block {block.chunk} of split {block.split!r} with {len(block.sample_ids)} samples is not one of the "
                f"{plan.chunks} blocks of {self._path} ({plan.samples} samples of split {plan.split!r}, "
                f"{plan.size} a block); make blocks from the same ChunkPlan"
            )
        for name in layout.fields:
            self._check(block, name, len(ids))
        files = [(layout.chunk_file(self._path, name, block.chunk), block.arrays[name]) for name in layout.fields]
        write_all_atomically([(file, chunk_parts(array, rows=plan.size, path=file)) for file, array in files])

    def _check(self, block: Block, name: str, count: int) -> None:
        expected = (count, *self._layout.schema.sample_shape(name))
        array = block.arrays.get(name)
        if array is None or array.shape != expected or array.dtype != FIELD_DTYPE:
            found = "nothing" if array is None else f"{array.dtype} of shape {array.shape}"
            raise DatasetError(
                f"block {block.chunk} holds {found} as field {name!r}; the data set stores float32 of shape {expected}"
            )
        if not (self._path / name / "zarr.json").is_file():
            raise DatasetError(f"{self._path} has no array {name!r}; create the data set before storing into it")


class DatasetCoordinator:
    """Commits and publishes; at most one for a data set at a time, and not thread-safe.

    Use `create` or `open`, and `close` (or `with`) at the end.
    """

    def __init__(self, path: Path, layout: Layout, document: dict[str, Any], lock: int) -> None:
        self.path = path
        self.layout = layout
        self._document = document
        self._lock: int | None = lock
        self._columns = {c.name: np.full(layout.padded_rows, c.fill, c.dtype) for c in columns_of(document)}
        if layout.schema.parameters:
            self._columns["parameters"] = np.full((layout.padded_rows, len(layout.schema.parameters)), np.nan)
        self._committed = np.zeros(layout.plan.chunks, dtype=bool)
        self._dirty: set[int] = set()
        self._published = int(arrays_of(document)["sample_id"]["shape"][0])
        self._methods = list(methods_of(arrays_of(document)))
        self._named_methods = len(self._methods)

    @classmethod
    def create(cls, path: Path, schema: Schema, plan: ChunkPlan, attributes: Mapping[str, Any]) -> Self:
        """Create an empty data set and open it.

        `attributes` are JSON values that go into the group's attributes.  Known to other parts: "study", "versions",
        "problem_summary", "initial_conditions", "residual_tolerance" (largest residual of a valid sample).

        Raises:
            DatasetError: the folder is not empty, a name cannot be stored, an attribute is no JSON value.
        """
        # Only creation needs the zarr library; writers and readers of raw chunks start faster without it.
        from forebay.pipeline.dataset_create import create_group

        layout = Layout(schema, plan)
        check_layout(layout)
        create_group(Path(path), layout, attributes)
        return cls.open(path)

    @classmethod
    def open(cls, path: Path, schema: Schema | None = None, plan: ChunkPlan | None = None) -> Self:
        """Open a data set to continue it: every block that was committed and published once is known again.

        With `schema` and `plan`, refuse a data set that was made for others.  Start writers afterwards: files that
        killed writers left half-written are removed here.

        Raises:
            DatasetError: no data set, another coordinator has it, it was made for another study, or it is damaged.
        """
        path = Path(path)
        read_document(path)
        lock = _lock(path)
        try:
            document = read_document(path)
            layout = Layout.from_json(path, document["attributes"][OURS], arrays_of(document))
            _check_continuable(path, document)
            _check_equal(path, layout, Layout(schema or layout.schema, plan or layout.plan))
            for file in leftovers(path):
                _logger.info("removing %s, which a killed writer left behind", file)
                file.unlink()
            coordinator = cls(path, layout, document, lock)
            coordinator._restore()
        except BaseException:
            os.close(lock)
            raise
        return coordinator

    @property
    def published(self) -> int:
        """Samples that readers see."""
        return self._published

    @property
    def committed(self) -> np.ndarray:
        """Numbers of the committed blocks, ascending, int64."""
        return np.flatnonzero(self._committed)

    def is_committed(self, chunk: int) -> bool:
        """Has this block been committed, now or in an earlier process?"""
        return bool(self._committed[chunk])

    def commit(self, chunk: int, records: Sequence[SolveRecord], parameters: np.ndarray) -> bool:
        """Take over the records and parameters (k, p) of a stored block; visible at the next `publish`.

        A second commit of the same block changes nothing and returns False, so that a journal can simply be replayed.

        Raises:
            DatasetError: the block's files are not there, or records and parameters do not belong to its samples.
        """
        ids = self.layout.plan.sample_ids(chunk)
        values = np.asarray(parameters, dtype=np.float64)
        expected = (len(ids), len(self.layout.schema.parameters))
        if [r.sample_id for r in records] != ids.tolist() or (expected[1] and values.shape != expected):
            raise DatasetError(
                f"commit of block {chunk} of {self.path} with {len(records)} records and parameters of shape "
                f"{values.shape}; due are the records of samples {ids[0]} to {ids[-1]} in order and shape {expected}"
            )
        if self._committed[chunk]:
            return False
        self._check_stored(chunk)
        rows = self.layout.rows(chunk)
        entries = self._entries(records) | ({"parameters": values} if expected[1] else {})
        for name, column in self._columns.items():
            column[rows] = entries[name]
        self._committed[chunk] = True
        self._dirty.update(range(rows.start // ROWS, (rows.stop - 1) // ROWS + 1))
        return True

    def publish(self) -> int:
        """Show the contiguous prefix of committed blocks to readers; returns how many samples that are.

        Costs one small file per record array and one per array's metadata, whatever the size of the data set; does
        nothing when nothing was committed since.  Records of blocks beyond the prefix are stored too, so that a later
        process can read these blocks; only the arrays' lengths hide them.

        Raises:
            DatasetError: the disk is full; what was published before stays readable, and publishing can be repeated.
        """
        samples = self._prefix()
        if not self._dirty and samples == self._published:
            return samples
        if len(self._methods) > self._named_methods:
            # A code must have its meaning before any row uses it, otherwise a crash between would lose the method.
            arrays_of(self._document)["method"]["attributes"].update(method_flags(self._methods))
            self._write_documents()
            self._named_methods = len(self._methods)
        # The outcome comes last: it is what tells a later process that a row's other records are there.
        self._write_tails(name for name in self._columns if name != "outcome")
        self._write_tails(["outcome"])
        if samples != self._published:
            for array in arrays_of(self._document).values():
                if array["dimension_names"][0] == "sample":
                    array["shape"][0] = samples
            self._write_documents()
        self._dirty.clear()
        self._published = samples
        return samples

    def close(self) -> None:
        """Publish what is committed and release the data set; closing twice is harmless."""
        if self._lock is None:
            return
        try:
            self.publish()
        finally:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _prefix(self) -> int:
        gaps = np.flatnonzero(~self._committed)
        chunks = int(gaps[0]) if len(gaps) else len(self._committed)
        return min(chunks * self.layout.plan.size, self.layout.plan.samples)

    def _entries(self, records: Sequence[SolveRecord]) -> dict[str, np.ndarray]:
        # Complete before anything is entered: a record that does not fit its column must leave no trace.
        return {
            "seed": np.array([r.seed for r in records], dtype=np.uint64),
            "outcome": np.array([int(r.outcome) for r in records], dtype=np.int8),
            "method": np.array([self._method_code(r.method) for r in records], dtype=np.int16),
            "iterations": np.array([r.iterations for r in records], dtype=np.int32),
            "residual": np.array([r.residual for r in records], dtype=np.float64),
            "seconds": np.array([r.seconds for r in records], dtype=np.float64),
            "indicator": _with_gaps([r.indicator for r in records]),
            "estimate": _with_gaps([r.estimate for r in records]),
            "valid": np.array([r.valid for r in records], dtype=bool),
        }

    def _method_code(self, method: str) -> int:
        if not method:
            return -1
        if len(method.split()) != 1 or method != method.strip():
            raise DatasetError(f"method {method!r} holds blanks, which separate CF flag meanings; write it as one word")
        if method not in self._methods:
            self._methods.append(method)
        return self._methods.index(method)

    def _write_tails(self, names: Iterable[str]) -> None:
        files = []
        for name in names:
            column = self._columns[name]
            for k in sorted(self._dirty):
                file = array_chunk_file(self.path, name, (k,) if column.ndim == 1 else (k, 0))
                files.append((file, chunk_parts(column[k * ROWS : (k + 1) * ROWS], path=file)))
        if files:
            write_all_atomically(files)

    def _check_stored(self, chunk: int) -> None:
        for name in self.layout.fields:
            file = self.layout.chunk_file(self.path, name, chunk)
            expected = chunk_bytes(FIELD_DTYPE, self.layout.chunk_shape(name))
            size = file.stat().st_size if file.is_file() else None
            if size != expected:
                found = "is missing" if size is None else f"has {size} bytes"
                raise DatasetError(
                    f"block {chunk} cannot be committed: {file} {found}, due are {expected}; store the block first"
                )

    def _write_documents(self) -> None:
        growing = {n: a for n, a in arrays_of(self._document).items() if a["dimension_names"][0] == "sample"}
        write_all_atomically(
            [
                (self.path / name / "zarr.json", [json.dumps(array, indent=2).encode()])
                for name, array in growing.items()
            ]
        )
        write_atomically(self.path / "zarr.json", [json.dumps(self._document, indent=2).encode()])

    def _restore(self) -> None:
        """Read the record arrays back, also the rows beyond the published prefix."""
        for name, column in self._columns.items():
            for k in range(len(column) // ROWS):
                file = array_chunk_file(self.path, name, (k,) if column.ndim == 1 else (k, 0))
                if file.exists():
                    column[k * ROWS : (k + 1) * ROWS] = read_chunk(file, column.dtype, (ROWS, *column.shape[1:]))
        outcome = self._columns["outcome"]
        for chunk in range(self.layout.plan.chunks):
            self._committed[chunk] = bool((outcome[self.layout.rows(chunk)] != UNSOLVED).all())
        if self._prefix() < self._published:
            raise DatasetError(
                f"{self.path} shows {self._published} samples but has records of {self._prefix()}: files below "
                f"{self.path / 'outcome'} are missing; restore them from a copy"
            )


def _with_gaps(values: Sequence[float | None]) -> np.ndarray:
    return np.array([math.nan if value is None else value for value in values], dtype=np.float64)


def _lock(path: Path) -> int:
    descriptor = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise DatasetError(
                f"another process is writing {path}; wait for that run to end, or stop it (a killed one holds no lock)"
            ) from None
        raise DatasetError(
            f"cannot lock {path}: {error.strerror}; put the run on a file system that supports flock"
        ) from error
    return descriptor


def _check_continuable(path: Path, document: Mapping[str, Any]) -> None:
    packed = [name for name, array in arrays_of(document).items() if not is_raw(array)]
    if packed or SELECTION in document["attributes"]:
        raise DatasetError(
            f"{path} is an exported copy ({', '.join(packed) or document['attributes'][SELECTION]}), which nothing can "
            f"be added to; continue the run that it was exported from"
        )


def check_same(path: Path, schema: Schema, plan: ChunkPlan) -> None:
    """Refuse a data set that was made for another schema or plan, or none.

    Raises:
        DatasetError: as `DatasetCoordinator.open`.
    """
    document = read_document(path)
    stored = Layout.from_json(path, document["attributes"][OURS], arrays_of(document))
    _check_equal(path, stored, Layout(schema, plan))


def _check_equal(path: Path, stored: Layout, wanted: Layout) -> None:
    before, now = (json.loads(json.dumps(layout.to_json())) for layout in (stored, wanted))
    for key in before:
        if before[key] != now[key]:
            raise DatasetError(
                f"{path} was made with {key} = {before[key]!r}, the study now asks for {now[key]!r}; "
                f"start a new run, or resume with the study that the run folder holds"
            )

"""Reads a data set: by block, by sample, by frame; also as a map-style data set for a torch DataLoader.

Fast path: chunk files that are raw are mapped into memory and rows are copied out of the maps.  General path: an array
that somebody repacked (compressed, sharded) goes through the zarr library.  Both return the same bits.
"""

from __future__ import annotations

import resource
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from forebay.pipeline.chunks import read_chunk
from forebay.pipeline.dataset_layout import (
    OURS,
    ROWS,
    UNSOLVED,
    Layout,
    array_chunk_file,
    arrays_of,
    columns_of,
    is_raw,
    methods_of,
    read_document,
    read_whole,
)
from forebay.pipeline.dataset_trust import check_array, check_links, check_memory, read_json
from forebay.pipeline.errors import DatasetError
from forebay.pipeline.records import Block, ChunkPlan, Outcome, Schema, SolveRecord

MAPS = 4096
"""Chunk files mapped at a time, at most; each costs a file descriptor, of which a reader takes a quarter."""
AT_ONCE = 256
"""Rows that are copied in one go; as many more chunk files may be mapped meanwhile."""
COPY_EACH = 2048
"""Rows of at least that many bytes are copied one by one; for shorter ones a call each costs more than it saves."""


class RowSource(Protocol):
    """One array, by rows."""

    def gather(self, rows: np.ndarray, out: np.ndarray, steps: np.ndarray | None = None) -> None:
        """Copy `array[rows[k]]`, or `array[rows[k], steps[k]]`, to `out[k]`."""
        ...


class DatasetReader:
    """The published samples of one data set.

    Rows are sample ids.  A *frame* is one (sample, time step) pair of a valid sample, its key is
    `sample id * steps + step`; a stationary problem has one frame per sample.  As a sequence the reader holds frames:

        loader = DataLoader(reader, batch_size=64, shuffle=True, collate_fn=torch.utils.data.default_convert)

    gives dicts of tensors: every field, "parameters" (b, p) and, for problems in time, "time" (b, 1) in seconds.
    A reader shows what was published when it was made; `refresh` catches up.  It can be pickled and forked.  `maps` is
    how many chunk files it keeps mapped; their pages count as memory of the process although the system may drop them.

    Raises:
        DatasetError: no data set at `path`, not one of Forebay's, of a newer format, or one that must not be trusted
            (see `dataset_trust`).
    """

    def __init__(self, path: Path | str, *, maps: int | None = None) -> None:
        self.path = Path(path)
        self._most_maps = _affordable_maps() if maps is None else maps
        self.refresh()

    def refresh(self) -> int:
        """Look again at what is published; returns the number of samples."""
        document = read_document(self.path)
        # Zarr's own metadata documents, by array name; lengths along `sample` are those of the published prefix.
        self.attributes: Mapping[str, Any] = document["attributes"]
        self.layout = Layout.from_json(self.path, self.attributes[OURS], arrays_of(document))
        self.arrays: Mapping[str, Any] = arrays_of(document)
        self.samples = int(self.arrays["sample_id"]["shape"][0])
        self.columns = columns_of(document)
        self._check_memory()
        self._maps = _Maps(self._most_maps)
        self._sources: dict[str, RowSource] = {}
        for name in ("valid", "frames", "_times"):
            self.__dict__.pop(name, None)
        return self.samples

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy may show more than its original; frames are only ever appended, so positions mean the same in both.
        return _open, (type(self), self.path, self._most_maps)

    @property
    def schema(self) -> Schema:
        """Parameters, fields, coordinates (with their values)."""
        return self.layout.schema

    @property
    def plan(self) -> ChunkPlan:
        """How many samples were planned and how they are cut into blocks."""
        return self.layout.plan

    @property
    def methods(self) -> tuple[str, ...]:
        """Solver methods; the array `method` holds positions in it, -1 for a sample that never reached a solver."""
        return methods_of(self.arrays)

    @cached_property
    def valid(self) -> np.ndarray:
        """Ids of the samples that may be trained on, ascending, int64."""
        return np.flatnonzero(self.column("valid"))

    @cached_property
    def frames(self) -> np.ndarray:
        """Keys of the frames of all valid samples, ascending, int64."""
        steps = self.schema.steps
        return (self.valid[:, None] * steps + np.arange(steps)).reshape(-1)

    def column(self, name: str) -> np.ndarray:
        """A whole per-sample array ("outcome", "residual", "parameters", ...) as stored, in memory."""
        return self.read(name, np.arange(self.samples))

    def read(self, name: str, rows: Sequence[int] | np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Rows of any per-sample array, in the order asked for and with repetitions; into `out` when given.

        Raises:
            DatasetError: no such array, or a chunk file is missing or torn.
            IndexError: a row that is not published.
        """
        ids = np.asarray(rows, dtype=np.int64)
        self._check_rows(ids)
        if name not in self.arrays or self.arrays[name]["dimension_names"][0] != "sample":
            known = sorted(n for n, a in self.arrays.items() if a["dimension_names"][0] == "sample")
            raise DatasetError(f"{self.path} has no per-sample array {name!r}; it has {', '.join(known)}")
        result = self._out(name, (len(ids), *self.arrays[name]["shape"][1:]), out)
        self._source(name).gather(ids, result)
        return result

    def constant(self, name: str) -> np.ndarray:
        """A whole array that is the same for all samples: a coordinate, or "time"; in memory.

        Raises:
            DatasetError: no such array, or its chunk file is missing or torn.
        """
        array = self.arrays.get(name)
        if array is None or array["dimension_names"][0] == "sample":
            known = sorted(n for n, a in self.arrays.items() if a["dimension_names"][0] != "sample")
            raise DatasetError(f"{self.path} has no coordinate {name!r}; it has {', '.join(known) or 'none'}")
        return read_whole(self.path, name, array)

    def read_frames(
        self,
        keys: Sequence[int] | np.ndarray,
        out: Mapping[str, np.ndarray] | None = None,
        *,
        fields: Collection[str] | None = None,
    ) -> dict[str, np.ndarray]:
        """Fields, parameters and time of frames, float32, first axis over `keys`; fields into `out` if given.

        `fields` names those that are wanted; all by default.
        """
        out = out or {}
        rows, steps = np.divmod(np.asarray(keys, dtype=np.int64), self.schema.steps)
        self._check_rows(rows)
        result = {}
        for name, item in self.layout.fields.items():
            if fields is not None and name not in fields:
                continue
            array = self._out(name, (len(rows), *item.shape), out.get(name))
            self._source(name).gather(rows, array, steps if self.layout.is_timed(name) else None)
            result[name] = array
        if self.schema.parameters:
            result["parameters"] = self.read("parameters", rows).astype(np.float32)
        if self.schema.times:
            result["time"] = self._times[steps, None]
        return result

    def read_block(self, chunk: int) -> Block:
        """A committed block as its solver made it, with copies of the arrays; `message` of the records is not stored.

        Also blocks beyond the published prefix, as soon as any `publish` came after their commit.

        Raises:
            DatasetError: the block is not committed, or a chunk file is missing or torn.
        """
        rows = self.layout.rows(chunk)
        ids = np.arange(rows.start, rows.stop)
        columns = {column.name: self._committed(column.name, column.dtype, (), ids) for column in self.columns}
        if (columns["outcome"] == UNSOLVED).any():
            raise DatasetError(f"block {chunk} of {self.path} is not committed; resume the run, which solves it")
        count = len(self.schema.parameters)
        parameters = np.empty((len(ids), 0))
        if count:
            parameters = self._committed("parameters", np.dtype(np.float64), (count,), ids)
        arrays = {"parameters": parameters}
        for name in self.layout.fields:
            arrays[name] = np.empty((len(ids), *self.schema.sample_shape(name)), np.float32)
            self._source(name).gather(ids, arrays[name])
        methods = self.methods
        if columns["method"].max() >= len(methods):  # named since this reader was made
            methods = methods_of(arrays_of(read_document(self.path)))
        records = [
            _record(i, {name: values[k] for name, values in columns.items()}, methods)
            for k, i in enumerate(ids.tolist())
        ]
        return Block(self.plan.split, chunk, ids, arrays, records, float(np.nansum(columns["seconds"])))

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int | Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        """One frame without a batch axis, or a batch of frames, by position in `frames`."""
        if isinstance(index, int | np.integer):
            return {name: array[0] for name, array in self.read_frames([self.frames[index]]).items()}
        return self.__getitems__(index)

    def __getitems__(self, indices: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        """A batch of frames in one go, which is what makes a DataLoader fast."""
        return self.read_frames(self.frames[np.asarray(indices, dtype=np.int64)])

    @cached_property
    def _times(self) -> np.ndarray:
        return np.asarray(self.schema.times, dtype=np.float32)

    def _check_rows(self, rows: np.ndarray) -> None:
        if rows.size and not 0 <= (lowest := int(rows.min())) <= (highest := int(rows.max())) < self.samples:
            wrong = lowest if lowest < 0 else highest
            raise IndexError(f"sample {wrong} of {self.path}, which shows samples 0 to {self.samples - 1}")

    def _check_memory(self) -> None:
        schema, columns = self.schema, [self.arrays[name] for name in ("sample_id", *(c.name for c in self.columns))]
        row = sum(np.dtype(array["data_type"]).itemsize for array in columns) + 8 * len(schema.parameters)
        check_memory(self.path, f"the records of {self.samples} samples", self.samples * row)
        check_memory(self.path, "the keys of all frames", 8 * self.samples * schema.steps)
        check_memory(self.path, "one sample", schema.sample_nbytes)

    def _out(self, name: str, shape: tuple[int, ...], out: np.ndarray | None) -> np.ndarray:
        dtype = np.dtype(self.arrays[name]["data_type"])
        if out is None:
            return np.empty(shape, dtype)
        if out.shape != shape or out.dtype != dtype:
            raise ValueError(f"`out` for {name!r} is {out.dtype} of shape {out.shape}; give {dtype} of shape {shape}")
        return out

    def _source(self, name: str) -> RowSource:
        if name not in self._sources:
            array = self.arrays[name]
            self._sources[name] = (
                _RawRows(self.path, name, array, self._maps) if is_raw(array) else _ZarrRows(self.path, name)
            )
        return self._sources[name]

    def _committed(self, name: str, dtype: np.dtype, shape: tuple[int, ...], rows: np.ndarray) -> np.ndarray:
        """Rows of a record array whether published or not, read afresh: a publish may have replaced the file since."""
        if not is_raw(self.arrays[name]):
            return self.read(name, rows)
        first, last = int(rows[0]) // ROWS, int(rows[-1]) // ROWS
        files = [array_chunk_file(self.path, name, (k, *(0 for _ in shape))) for k in range(first, last + 1)]
        if not all(file.exists() for file in files):
            raise DatasetError(f"sample {rows[-1]} of {self.path} is not committed; resume the run, which solves it")
        chunks = [read_chunk(file, dtype, (ROWS, *shape), within=self.path) for file in files]
        return np.concatenate(chunks)[rows - first * ROWS]


def _record(sample_id: int, row: Mapping[str, Any], methods: Sequence[str]) -> SolveRecord:
    return SolveRecord(
        sample_id=sample_id,
        seed=int(row["seed"]),
        outcome=Outcome(int(row["outcome"])),
        method=methods[row["method"]] if row["method"] >= 0 else "",
        iterations=int(row["iterations"]),
        residual=float(row["residual"]),
        seconds=float(row["seconds"]),
        indicator=_known(row.get("indicator")),
        estimate=_known(row.get("estimate")),
    )


def _known(value: float | None) -> float | None:
    return None if value is None or np.isnan(value) else float(value)


def _open(kind: type[DatasetReader], path: Path, maps: int) -> DatasetReader:
    return kind(path, maps=maps)


def _affordable_maps() -> int:
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAPS if descriptors == resource.RLIM_INFINITY else max(1, min(MAPS, descriptors // 4))


class _Maps:
    """Chunk files that are mapped, at most so many of all arrays together; the oldest gives way."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._order: deque[tuple[str, int]] = deque()
        self._held: dict[str, dict[int, np.ndarray]] = {}

    def __len__(self) -> int:
        return len(self._order)

    def of(self, name: str) -> dict[int, np.ndarray]:
        """The chunks of an array that are held, by number; changes with time."""
        return self._held.setdefault(name, {})

    def keep(self, name: str, number: int, chunk: np.ndarray) -> np.ndarray:
        """Hold a chunk from now on."""
        self.of(name)[number] = chunk
        self._order.append((name, number))
        if len(self._order) > self._most:
            oldest, first = self._order.popleft()
            del self._held[oldest][first]
        return chunk


class _RawRows:
    """Rows of an array that lies in raw chunk files."""

    def __init__(self, group: Path, name: str, array: Mapping[str, Any], maps: _Maps) -> None:
        self._group, self._name, self._maps = group, name, maps
        self._held = maps.of(name)
        self._shape = tuple(array["chunk_grid"]["configuration"]["chunk_shape"])
        self._dtype = np.dtype(array["data_type"])
        self._tail = tuple(0 for _ in self._shape[1:])

    def gather(self, rows: np.ndarray, out: np.ndarray, steps: np.ndarray | None = None) -> None:
        long = len(rows) > 0 and out[:1].nbytes >= COPY_EACH and out.flags.c_contiguous
        # Many rows in any order are taken chunk by chunk, so that no file is mapped again and again.
        if long and (len(rows) <= AT_ONCE or bool((rows[1:] >= rows[:-1]).all())):
            for start in range(0, len(rows), AT_ONCE):
                part = slice(start, start + AT_ONCE)
                self._copy_each(rows[part], out[part], None if steps is None else steps[part])
        else:
            self._copy_by_chunk(rows, out, steps)

    def _copy_each(self, rows: np.ndarray, out: np.ndarray, steps: np.ndarray | None) -> None:
        """One copy of each row, all in one call of numpy; indexing with arrays would copy them twice."""
        chunks, offsets = (part.tolist() for part in np.divmod(rows, self._shape[0]))
        held = self._held
        if not all(number in held for number in chunks):
            held = {number: self._chunk(number) for number in set(chunks)}
        # A plain comprehension: with rows of 16 KiB a call for each would take as long as the copy.
        if steps is None:
            views = [held[number][at : at + 1] for number, at in zip(chunks, offsets, strict=True)]
        else:
            places = zip(chunks, offsets, steps.tolist(), strict=True)
            views = [held[number][at, step : step + 1] for number, at, step in places]
        np.concatenate(views, out=out)

    def _copy_by_chunk(self, rows: np.ndarray, out: np.ndarray, steps: np.ndarray | None) -> None:
        chunks, offsets = np.divmod(rows, self._shape[0])
        order = np.argsort(chunks, kind="stable")
        ends = np.flatnonzero(np.diff(chunks[order], append=-1)) + 1
        start = 0
        for end in ends.tolist():
            places = order[start:end]
            index = (offsets[places],) if steps is None else (offsets[places], steps[places])
            out[places] = self._chunk(int(chunks[places[0]]))[index]
            start = end

    def _chunk(self, number: int) -> np.ndarray:
        found = self._held.get(number)
        if found is not None:
            return found
        file = array_chunk_file(self._group, self._name, (number, *self._tail))
        mapped = read_chunk(file, self._dtype, self._shape, within=self._group)
        return self._maps.keep(self._name, number, mapped)


class _ZarrRows:
    """Rows of any Zarr array, through the zarr library."""

    def __init__(self, group: Path, name: str) -> None:
        # Only repacked data sets come here; a DataLoader's workers start faster without the library.
        import zarr

        # The library goes by the array's own document, which may say something else than the group's.
        check_array(group, name, read_json(group / name / "zarr.json"))
        check_links(group, group / name)
        self._array = zarr.open_array(str(group / name), mode="r", zarr_format=3)

    def gather(self, rows: np.ndarray, out: np.ndarray, steps: np.ndarray | None = None) -> None:
        if steps is None:
            out[...] = self._array.oindex[(rows, *(slice(None) for _ in self._array.shape[1:]))]
        else:
            for k, (row, step) in enumerate(zip(rows.tolist(), steps.tolist(), strict=True)):
                out[k] = self._array[row, step]

"""Exports through zarr-python: a repacked copy in files, or a snapshot in an Icechunk repository.

Both hold the arrays and attributes of the source.  Fields get the chunks, shards and compression that were asked for;
records and coordinates stay as they are, raw, so that our own reader opens a repacked copy too.  `sample_id` keeps the
ids of the source; where samples were left out it is the only one that does, and the attribute `selection` says so.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, GzipCodec, ZstdCodec
from zarr.errors import ZarrUserWarning

from forebay.pipeline.dataset_card import write_card
from forebay.pipeline.dataset_export import Advance, ExportOptions, Selection
from forebay.pipeline.dataset_layout import CARD, DATASETS, FIELD_DTYPE, OURS, SELECTION
from forebay.pipeline.dataset_trust import check_memory
from forebay.pipeline.errors import DatasetError

_LEVELS = {"zstd": (0, 22, 3), "gzip": (0, 9, 5), "blosc": (0, 9, 5)}
"""Lowest, highest and usual level."""


def _check(selection: Selection, options: ExportOptions) -> None:
    chunk, shard = _sizes(selection, options)
    if chunk < 1 or (shard is not None and (shard < chunk or shard % chunk)):
        raise DatasetError(
            f"chunks of {chunk} samples in shards of {shard}: a shard holds a whole number of chunks, so choose a "
            f"multiple of {max(1, chunk)}, or leave the shards out"
        )
    check_memory(selection.reader.path, "one file", (shard or chunk) * selection.reader.schema.sample_nbytes)
    if options.level is None:
        return
    if options.compression == "none":
        raise DatasetError(f"level {options.level} without a compression; choose zstd, gzip or blosc")
    low, high, _ = _LEVELS[options.compression]
    if not low <= options.level <= high:
        raise DatasetError(f"{options.compression} has levels {low} to {high}, not {options.level}")


class Repacked:
    """Folders with the names that a run folder has, each a Zarr v3 group with its card."""

    def check(self, selection: Selection, options: ExportOptions) -> None:
        """As the protocol says."""
        _check(selection, options)

    def write(self, selections: Sequence[Selection], folder: Path, options: ExportOptions, advance: Advance) -> None:
        """One group a split."""
        for selection in selections:
            path = folder / DATASETS[selection.split]
            group = zarr.open_group(str(path), mode="w-", zarr_format=3, attributes=_attributes(selection, options))
            _copy(selection, group, options, advance)
            with warnings.catch_warnings():
                # Consolidated metadata is an extension of v3 that zarr, xarray and dask share; zarr says so each time.
                warnings.simplefilter("ignore", ZarrUserWarning)
                zarr.consolidate_metadata(str(path))
            write_card(path)


class Icechunk:
    """One repository, one commit on its branch `main`, one group a split: `train`, `validation`."""

    def __init__(self) -> None:
        import icechunk

        self._library: Any = icechunk

    def check(self, selection: Selection, options: ExportOptions) -> None:
        """As the protocol says."""
        _check(selection, options)

    def write(self, selections: Sequence[Selection], folder: Path, options: ExportOptions, advance: Advance) -> None:
        """Write all groups in one session, and commit it."""
        try:
            self._write(selections, folder, options, advance)
        except self._library.IcechunkError as error:  # a full disk, for example
            raise DatasetError(f"Icechunk could not write: {error}; make room, or export to another folder") from error

    def _write(self, selections: Sequence[Selection], folder: Path, options: ExportOptions, advance: Advance) -> None:
        # Its warning that two processes must not commit to one folder cannot concern a folder that nobody knows yet.
        self._library.set_logs_filter("error")
        repository = self._library.Repository.create(self._library.local_filesystem_storage(str(folder)))
        session = repository.writable_session("main")
        for selection in selections:
            attributes = {k: v for k, v in _attributes(selection, options).items() if k != "card"}
            group = zarr.create_group(session.store, path=selection.split, zarr_format=3, attributes=attributes)
            _copy(selection, group, options, advance)
        counts = ", ".join(f"{len(s.rows)} {s.split} samples" for s in selections)
        session.commit(f"{counts} of {selections[0].reader.path.resolve().parent.name}, exported by Forebay")


WRITERS: Mapping[str, Callable[[], Repacked | Icechunk]] = {"repacked": Repacked, "icechunk": Icechunk}


def _sizes(selection: Selection, options: ExportOptions) -> tuple[int, int | None]:
    chunk = options.chunk_samples
    return selection.reader.plan.size if chunk is None else chunk, options.shard_samples


def _attributes(selection: Selection, options: ExportOptions) -> dict[str, Any]:
    chunk, shard = _sizes(selection, options)
    attributes = dict(selection.reader.attributes) | {"card": CARD}
    attributes[OURS] = {**attributes[OURS], "samples": len(selection.rows), "chunk_samples": shard or chunk}
    if selection.is_partial:
        attributes[SELECTION] = "valid"
    return attributes


def _copy(selection: Selection, group: zarr.Group, options: ExportOptions, advance: Advance) -> None:
    reader = selection.reader
    chunk, shard = _sizes(selection, options)
    for name, source in reader.arrays.items():
        dims, tail = source["dimension_names"], tuple(source["shape"][1:])
        per_sample = dims[0] == "sample"
        dtype = np.dtype(source["data_type"])
        field = name in reader.layout.fields
        chunks = tuple(source["chunk_grid"]["configuration"]["chunk_shape"])
        array = group.create_array(
            name,
            shape=(len(selection.rows), *tail) if per_sample else tuple(source["shape"]),
            chunks=(chunk, *tail) if field else chunks,
            shards=(shard, *tail) if field and shard else None,
            dtype=FIELD_DTYPE if field else dtype,
            filters=None,
            compressors=_codec(options) if field else None,
            fill_value=_fill(reader, name, dtype),
            dimension_names=dims,
            chunk_key_encoding={"name": "default", "separator": "/"},
            attributes=dict(source["attributes"]),
            # A sample that is not valid is all fill value; leaving its chunk out would look like a lost file.
            config={"write_empty_chunks": True},
        )
        if field:
            for rows, values in selection.pieces(name, shard or chunk):
                array[rows] = values
                advance(values.nbytes)
        elif per_sample:
            array[...] = selection.read(name, 0, len(selection.rows))
        else:
            array[...] = reader.constant(name)


def _codec(options: ExportOptions) -> Any:
    if options.compression == "none":
        return None
    level = _LEVELS[options.compression][2] if options.level is None else options.level
    match options.compression:
        case "zstd":
            return ZstdCodec(level=level)
        case "gzip":
            return GzipCodec(level=level)
        case _:  # bytes of like significance beside each other is what makes floats shrink
            return BloscCodec(cname="zstd", clevel=level, shuffle="shuffle")


def _fill(reader: Any, name: str, dtype: np.dtype) -> float | int | bool:
    fills = {column.name: column.fill for column in reader.columns} | {"sample_id": -1}
    return fills.get(name, np.nan if dtype.kind == "f" else 0)

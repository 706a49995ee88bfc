"""What lies where in a data set: array names, shapes, chunk files, and the schema as plain JSON values.

A data set is one Zarr v3 group per split.  Row i of every per-sample array is sample i.

    <group>/zarr.json                     attributes, and the consolidated metadata of all arrays
    <group>/<field>/c/<chunk>/0/0         float32, the samples of one block: (S, [time], *dims)
    <group>/<record>/c/<k>                seed, outcome, ...: rows k·4096, ..., k·4096 + 4095
    <group>/<coordinate>/c/0              x, y, node_x, time, ...

Imports numpy alone: a writer or a reader of raw chunks never needs a storage library.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from forebay.pipeline.chunks import read_chunk
from forebay.pipeline.dataset_trust import check_arrays, is_name, read_json
from forebay.pipeline.errors import DatasetError
from forebay.pipeline.records import ChunkPlan, Coordinate, Field, Outcome, Parameter, Schema, Split

DATASETS: Mapping[Split, str] = {"train": "dataset.zarr", "validation": "validation.zarr"}
"""Where a run folder has the data set of each split."""

FORMAT = 2
"""Number of this layout; a reader refuses a larger one.  2 added the columns of reduced models."""
OURS = "forebay"
"""Attribute of the group that holds what `Layout` needs."""
SELECTION = "selection"
"""Attribute of a group that was exported with some of the samples only: says which.  Rows are no sample ids there."""
CARD = "README.md"
"""Name of the data-set card inside the group; the group's attribute `card` points to it."""
ROWS = 4096
"""Rows in one chunk of a per-sample scalar array: 32 KiB of float64, so that rewriting the tail costs nothing."""
FIELD_DTYPE = np.dtype(np.float32)
UNSOLVED = -1
"""Outcome code of a row that is not committed."""
NO_METHOD = "none"
"""Meaning of method code -1: the sample never reached a solver."""


@dataclass(frozen=True, slots=True)
class Column:
    """One value per sample."""

    name: str
    dtype: np.dtype
    fill: float | int | bool
    units: str
    description: str
    since: int = 1
    """First format that has it."""


COLUMNS = (
    # Read first and written last: whoever sees a row's outcome sees the rest of the row too.
    Column("outcome", np.dtype(np.int8), UNSOLVED, "1", "how the solve ended"),
    Column("seed", np.dtype(np.uint64), 0, "1", "key word of the sample's Philox generator"),
    Column("method", np.dtype(np.int16), -1, "1", "how the sample was solved"),
    Column("iterations", np.dtype(np.int32), 0, "1", "Krylov iterations, summed over the time steps"),
    Column(
        "residual", np.dtype(np.float64), np.nan, "1", "true relative residual |b - A u| / |b|, largest over the steps"
    ),
    Column("seconds", np.dtype(np.float64), np.nan, "s", "wall time of assembling and solving the sample"),
    Column("indicator", np.dtype(np.float64), np.nan, "1", "what a reduced model says of its own solution", 2),
    Column("estimate", np.dtype(np.float64), np.nan, "1", "estimated relative error of a reduced model's sample", 2),
    Column("valid", np.dtype(np.bool_), False, "1", "may be trained on: converged, finite, certified"),
)
RESERVED = frozenset({"sample", "time", "parameter", "sample_id", "parameters", "key", *(c.name for c in COLUMNS)})
"""Names that neither a field, a coordinate nor a dimension of a problem may have."""


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """Schema and chunk plan of one data set, and where its parts are."""

    schema: Schema
    plan: ChunkPlan

    @property
    def fields(self) -> dict[str, Field]:
        """All fields by name, inputs first."""
        return {item.name: item for item in (*self.schema.inputs, *self.schema.outputs)}

    def is_timed(self, name: str) -> bool:
        """Does the field's array have a time axis?"""
        return bool(self.schema.times) and any(item.name == name for item in self.schema.outputs)

    def dims(self, name: str) -> tuple[str, ...]:
        """Dimension names of a field's array."""
        return ("sample", *(("time",) if self.is_timed(name) else ()), *self.fields[name].dims)

    def chunk_shape(self, name: str) -> tuple[int, ...]:
        """Shape of one chunk of a field's array, (S, [T], *shape)."""
        return (self.plan.size, *self.schema.sample_shape(name))

    def chunk_file(self, group: Path, name: str, chunk: int) -> Path:
        """File of a field's chunk."""
        return array_chunk_file(group, name, (chunk, *(0 for _ in self.schema.sample_shape(name))))

    def rows(self, chunk: int) -> slice:
        """Rows of the samples of one block."""
        ids = self.plan.sample_ids(chunk)
        return slice(int(ids[0]), int(ids[-1]) + 1)

    @property
    def padded_rows(self) -> int:
        """Rows of a scalar array with its last chunk filled up."""
        return -(-self.plan.samples // ROWS) * ROWS

    def to_json(self) -> dict[str, Any]:
        """As plain values; the values of the coordinates stay in their arrays."""
        schema = self.schema
        return {
            "format": FORMAT,
            "split": self.plan.split,
            "samples": self.plan.samples,
            "chunk_samples": self.plan.size,
            "schema": {
                "parameters": [dataclasses.asdict(p) for p in schema.parameters],
                "inputs": [dataclasses.asdict(f) for f in schema.inputs],
                "outputs": [dataclasses.asdict(f) for f in schema.outputs],
                "coordinates": [{"name": c.name, "dims": c.dims, "units": c.units} for c in schema.coordinates],
                "times": list(schema.times),
                "boundary_conditions": schema.boundary_conditions,
            },
        }

    @classmethod
    def from_json(cls, group: Path, tree: Mapping[str, Any], documents: Mapping[str, Any]) -> Layout:
        """The reverse of `to_json`; `documents` is the consolidated metadata, from which the coordinates are read.

        Raises:
            DatasetError: values that `to_json` never writes.
        """
        try:
            return cls._parsed(group, tree, documents)
        except (KeyError, TypeError, ValueError) as error:
            raise DatasetError(
                f"the attribute {OURS!r} of {group} is not what Forebay writes ({type(error).__name__}: {error}); "
                f"restore zarr.json from a copy"
            ) from error

    @classmethod
    def _parsed(cls, group: Path, tree: Mapping[str, Any], documents: Mapping[str, Any]) -> Layout:
        schema = tree["schema"]
        coordinates = tuple(
            Coordinate(c["name"], tuple(c["dims"]), read_whole(group, c["name"], documents[c["name"]]), c["units"])
            for c in schema["coordinates"]
        )
        layout = cls(
            Schema(
                parameters=tuple(Parameter(**p) for p in schema["parameters"]),
                inputs=tuple(_field(f) for f in schema["inputs"]),
                outputs=tuple(_field(f) for f in schema["outputs"]),
                coordinates=coordinates,
                times=tuple(float(t) for t in schema["times"]),
                boundary_conditions=str(schema["boundary_conditions"]),
            ),
            ChunkPlan(tree["split"], int(tree["samples"]), int(tree["chunk_samples"])),
        )
        check_layout(layout)
        _check_stored(group, layout, documents, _columns_since(tree["format"]))
        return layout


def dataset_folders(path: Path) -> list[Path]:
    """The data sets that a path names: one itself, or those of a run folder.

    Raises:
        DatasetError: there is none.
    """
    if (path / "zarr.json").exists():
        return [path]
    found = [path / name for name in DATASETS.values() if (path / name / "zarr.json").exists()]
    if not found:
        raise DatasetError(f"{path} is neither a data set nor a run folder: no zarr.json found; name a dataset.zarr")
    return found


def columns_of(document: Mapping[str, Any]) -> tuple[Column, ...]:
    """The columns that a data set has, by its metadata document: an older format has fewer."""
    return _columns_since(document["attributes"][OURS]["format"])


def _columns_since(stored: int) -> tuple[Column, ...]:
    return tuple(column for column in COLUMNS if column.since <= stored)


def array_chunk_file(group: Path, name: str, index: tuple[int, ...]) -> Path:
    """File of a chunk under Zarr v3's default chunk key encoding: `c/0/0/0`, separator "/"."""
    return group / name / "c" / "/".join(str(i) for i in index)


def outcome_flags() -> dict[str, Any]:
    """CF attributes `flag_values` and `flag_meanings` of the outcome array."""
    return {
        "flag_values": [UNSOLVED, *(int(o) for o in Outcome)],
        "flag_meanings": " ".join(["not_solved", *(o.name.lower() for o in Outcome)]),
    }


def method_flags(methods: list[str]) -> dict[str, Any]:
    """CF attributes of the method array; code i is `methods[i]`."""
    return {"flag_values": list(range(-1, len(methods))), "flag_meanings": " ".join([NO_METHOD, *methods])}


def methods_of(arrays: Mapping[str, Any]) -> tuple[str, ...]:
    """The solver methods that the method array's codes 0, 1, ... stand for."""
    return tuple(arrays["method"]["attributes"]["flag_meanings"].split()[1:])


def read_document(path: Path) -> dict[str, Any]:
    """The group's metadata document.

    Raises:
        DatasetError: no data set there, not one of ours, or of a newer format.
    """
    try:
        document = read_json(path / "zarr.json")
    except (FileNotFoundError, NotADirectoryError):
        raise DatasetError(f"no data set at {path}: it has no zarr.json; give the path of a `*.zarr` folder") from None
    attributes = document.get("attributes") if isinstance(document, dict) else None
    ours = attributes.get(OURS) if isinstance(attributes, dict) else None
    stored = ours.get("format") if isinstance(ours, dict) else None
    consolidated = document.get("consolidated_metadata") if isinstance(document, dict) else None
    if not isinstance(stored, int) or not isinstance(consolidated, dict):
        raise DatasetError(f"{path} is a Zarr group without Forebay's attributes; open it with xarray instead")
    if stored > FORMAT:
        raise DatasetError(f"{path} has format {stored}, this Forebay reads up to {FORMAT}; upgrade Forebay")
    check_arrays(path, consolidated.get("metadata"))
    return document


def arrays_of(document: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata of every array in the group, by name."""
    return document["consolidated_metadata"]["metadata"]


def is_raw(array: Mapping[str, Any]) -> bool:
    """Is every chunk of this array one plain file that spans all axes but the first?"""
    chunk_shape = array["chunk_grid"]["configuration"]["chunk_shape"]
    codecs = array["codecs"]
    endian = codecs[0].get("configuration", {}).get("endian", "little")
    encoding = array["chunk_key_encoding"]
    return (
        array["chunk_grid"]["name"] == "regular"
        and len(codecs) == 1
        and codecs[0]["name"] == "bytes"
        and endian == "little"
        and encoding["name"] == "default"
        and encoding.get("configuration", {}).get("separator", "/") == "/"
        and not array.get("storage_transformers")
        and list(chunk_shape[1:]) == list(array["shape"][1:])
    )


def read_whole(group: Path, name: str, array: Mapping[str, Any]) -> np.ndarray:
    """An array that lies in one raw chunk, as a copy in memory."""
    shape = tuple(array["shape"])
    file = array_chunk_file(group, name, tuple(0 for _ in shape))
    return read_chunk(file, np.dtype(array["data_type"]), shape, within=group).copy()


def check_layout(layout: Layout) -> None:
    """Refuse what no reader could open.

    Raises:
        DatasetError: names that collide, are reserved or no identifiers; dimensions with two lengths; empty axes.
    """
    schema, plan = layout.schema, layout.plan
    if plan.samples < 1 or plan.size < 1:
        raise DatasetError(f"{plan.samples} samples in chunks of {plan.size}: both must be at least 1")
    lengths: dict[str, tuple[int, str]] = {}
    names = [*(f.name for f in (*schema.inputs, *schema.outputs)), *(c.name for c in schema.coordinates)]
    for name in names:
        _check_name("array", name)
        if names.count(name) > 1:
            raise DatasetError(f"two arrays are called {name!r}; rename one of the fields or coordinates")
    shapes = [(f.name, f.dims, f.shape) for f in (*schema.inputs, *schema.outputs)]
    shapes += [(c.name, c.dims, c.values.shape) for c in schema.coordinates]
    for name, dims, shape in shapes:
        _check_axes(name, dims, shape, lengths)
    for name in layout.fields:
        if name in lengths:
            raise DatasetError(
                f"field {name!r} has the name of a dimension; rename the field, e.g. {name + '_field'!r}"
            )


def _check_axes(name: str, dims: tuple[str, ...], shape: tuple[int, ...], lengths: dict[str, tuple[int, str]]) -> None:
    if len(dims) != len(shape) or len(set(dims)) != len(dims):
        raise DatasetError(f"array {name!r} has dims {dims} for shape {shape}; give one distinct name per axis")
    for dim, length in zip(dims, shape, strict=True):
        _check_name("dimension", dim)
        if length < 1:
            raise DatasetError(f"array {name!r} has length {length} along {dim!r}; every axis needs at least 1")
        known, owner = lengths.setdefault(dim, (length, name))
        if known != length:
            raise DatasetError(
                f"dimension {dim!r} has length {known} in {owner!r} and {length} in {name!r}; rename the second"
            )


def _check_name(kind: str, name: str) -> None:
    if not is_name(name):
        raise DatasetError(f"{kind} name {name!r} must be letters, digits and underscores, starting with a letter")
    if name in RESERVED:
        raise DatasetError(f"{kind} name {name!r} is reserved for the data set itself; choose another")


def _field(tree: Mapping[str, Any]) -> Field:
    shape = tuple(int(length) for length in tree["shape"])
    return Field(tree["name"], tuple(tree["dims"]), shape, str(tree["units"]), str(tree["description"]))


def _check_stored(group: Path, layout: Layout, documents: Mapping[str, Any], columns: tuple[Column, ...]) -> None:
    """Every array of the schema must be there with its shape and type; lengths along `sample` grow together."""
    length = documents["sample_id"]["shape"][0]
    if not 0 <= length <= layout.plan.samples:
        raise DatasetError(f"{group} shows {length} samples of {layout.plan.samples} planned; restore it from a copy")
    expected: dict[str, tuple[tuple[int, ...], np.dtype]] = {
        name: (layout.schema.sample_shape(name), FIELD_DTYPE) for name in layout.fields
    }
    expected |= {column.name: ((), column.dtype) for column in columns}
    expected["sample_id"] = ((), np.dtype(np.int64))
    if layout.schema.parameters:
        expected["parameters"] = ((len(layout.schema.parameters),), np.dtype(np.float64))
    for name, (tail, dtype) in expected.items():
        found = documents[name]
        # A raw array may differ in length without harm, which `verify` then tells along with everything else.
        same = tuple(found["shape"][1:]) == tail and (is_raw(found) or found["shape"][0] == length)
        if not same or np.dtype(found["data_type"]) != dtype:
            raise DatasetError(
                f"array {name!r} of {group} is {found['data_type']} of shape {found['shape']}, its schema asks for "
                f"{dtype} of shape {(length, *tail)}; restore zarr.json from a copy"
            )

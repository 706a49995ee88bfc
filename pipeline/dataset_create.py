"""Makes the empty Zarr v3 group of a data set: the only place where the zarr library writes anything.

Later the documents that zarr wrote here change in two ways only: the length along `sample` grows, and the table of
solver methods gets longer.  So whatever a zarr version puts into its metadata stays in there.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.errors import ZarrUserWarning

from forebay.pipeline.chunks import sync_all, sync_folder, write_chunk
from forebay.pipeline.dataset_layout import (
    CARD,
    COLUMNS,
    FIELD_DTYPE,
    OURS,
    ROWS,
    Layout,
    array_chunk_file,
    arrays_of,
    is_raw,
    method_flags,
    outcome_flags,
    read_document,
)
from forebay.pipeline.errors import DatasetError


def create_group(path: Path, layout: Layout, attributes: Mapping[str, Any]) -> None:
    """Create the group of a data set without samples; it appears under `path` complete or not at all.

    Raises:
        DatasetError: `path` is not empty, or an attribute is no JSON value.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise DatasetError(
            f"{path} exists and is not empty; choose another folder, or resume the run that it belongs to"
        )
    root = {**_checked(attributes), **_own_attributes(layout)}
    path.parent.mkdir(parents=True, exist_ok=True)
    building = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        group = zarr.open_group(str(building), mode="w-", zarr_format=3, attributes=root)
        _create_fields(group, layout)
        _create_columns(group, layout)
        _create_coordinates(group, building, layout)
        with warnings.catch_warnings():
            # Consolidated metadata is an extension of v3 that zarr, xarray and dask share, and zarr says so each time.
            warnings.simplefilter("ignore", ZarrUserWarning)
            zarr.consolidate_metadata(str(building))
        _check_raw(building)
        _prepare_chunk_folders(building)
        os.rename(building, path)
    except OSError as error:
        raise DatasetError(
            f"cannot create {path}: {error.strerror or error}; choose a folder that can be written"
        ) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
    sync_folder(path.parent)


def _checked(attributes: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in attributes.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise DatasetError(
                f"attribute {key!r} cannot be stored as JSON ({error}); give plain finite values"
            ) from error
    return dict(attributes)


def _own_attributes(layout: Layout) -> dict[str, Any]:
    return {
        "Conventions": "CF-1.11",
        "card": CARD,
        "boundary_conditions": layout.schema.boundary_conditions,
        OURS: layout.to_json(),
    }


def _create_array(
    group: zarr.Group,
    name: str,
    dims: tuple[str, ...],
    shape: tuple[int, ...],
    chunks: tuple[int, ...],
    dtype: np.dtype,
    fill: float | int | bool,
    attributes: Mapping[str, Any],
) -> None:
    group.create_array(
        name,
        shape=shape,
        chunks=chunks,
        dtype=dtype,
        filters=None,
        compressors=None,
        fill_value=fill,
        dimension_names=dims,
        chunk_key_encoding={"name": "default", "separator": "/"},
        attributes=dict(attributes),
    )


def _create_fields(group: zarr.Group, layout: Layout) -> None:
    inputs = {item.name for item in layout.schema.inputs}
    for name, item in layout.fields.items():
        dims, chunk_shape = layout.dims(name), layout.chunk_shape(name)
        auxiliary = [c.name for c in layout.schema.coordinates if c.dims != (c.name,) and set(c.dims) <= set(dims)]
        attributes = {
            "units": item.units,
            "long_name": item.description or name,
            "role": "input" if name in inputs else "output",
            # The tensor order: 0 for a scalar field, 1 for a vector field whose components have an axis.
            "rank": sum(dim.startswith("component") for dim in item.dims),
            "coordinates": " ".join(["sample_id", *auxiliary]),
        }
        _create_array(group, name, dims, (0, *chunk_shape[1:]), chunk_shape, FIELD_DTYPE, np.nan, attributes)


def _create_columns(group: zarr.Group, layout: Layout) -> None:
    flags: dict[str, dict[str, Any]] = {"outcome": outcome_flags(), "method": method_flags([])}
    for column in COLUMNS:
        attributes = {"units": column.units, "long_name": column.description, **flags.get(column.name, {})}
        _create_array(group, column.name, ("sample",), (0,), (ROWS,), column.dtype, column.fill, attributes)
    parameters = layout.schema.parameters
    if parameters:
        described = {
            "names": [p.name for p in parameters],
            "parameter_units": [p.units for p in parameters],
            "low": [p.low for p in parameters],
            "high": [p.high for p in parameters],
            "distributions": [p.distribution for p in parameters],
            "descriptions": [p.description for p in parameters],
        }
        count = len(parameters)
        dims, dtype = ("sample", "parameter"), np.dtype(np.float64)
        _create_array(group, "parameters", dims, (0, count), (ROWS, count), dtype, np.nan, described)


def _create_coordinates(group: zarr.Group, folder: Path, layout: Layout) -> None:
    dtype = np.dtype(np.int64)
    _create_array(group, "sample_id", ("sample",), (0,), (ROWS,), dtype, -1, {"units": "1", "long_name": "sample id"})
    # Row numbers never change, so all of them are written now and only the array's length grows.
    for k in range(layout.padded_rows // ROWS):
        write_chunk(array_chunk_file(folder, "sample_id", (k,)), np.arange(k * ROWS, (k + 1) * ROWS, dtype=dtype))
    constants = [(c.name, c.dims, np.asarray(c.values), c.units) for c in layout.schema.coordinates]
    if layout.schema.times:
        constants.append(("time", ("time",), np.asarray(layout.schema.times), "s"))
    for name, dims, values, units in constants:
        values = values if values.dtype.kind in "iu" else values.astype(np.float64)
        fill = 0 if values.dtype.kind in "iu" else np.nan
        _create_array(group, name, dims, values.shape, values.shape, values.dtype, fill, {"units": units})
        write_chunk(array_chunk_file(folder, name, tuple(0 for _ in values.shape)), values)


def _check_raw(folder: Path) -> None:
    """Hold zarr's metadata against what the raw files are, whatever its defaults become."""
    for name, array in arrays_of(read_document(folder)).items():
        if not is_raw(array):
            raise DatasetError(
                f"zarr {zarr.__version__} describes array {name!r} as {array['codecs']}, not as raw chunks; "
                f"reset the `array` section of your zarr configuration"
            )


def _prepare_chunk_folders(folder: Path) -> None:
    """Make the parents that writers share, and every document, durable before the group gets its name."""
    documents = sorted(folder.rglob("zarr.json"))
    for document in documents:
        if document.parent != folder:
            (document.parent / "c").mkdir(exist_ok=True)
    sync_all([*documents, *(document.parent for document in documents)])

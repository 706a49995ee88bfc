"""Exports for The Well: HDF5 files that its own `WellDataset` reads.

Layout, from its documentation (docs/data_format.md of github.com/PolymathicAI/the_well): root attributes, and the
groups `dimensions`, `boundary_conditions`, `scalars`, `t0_fields`, `t1_fields`, `t2_fields` for fields of tensor order
0, 1, 2 with axes (sample, [time], *space, *components), float32.  `TARGET/data/train` and `TARGET/data/valid` hold one
file each.

It is made for uniform grids with equal time steps; anything else is refused.  Where ours differ:
- outputs of a stationary problem have one time, 0: ask `WellDataset` for one input and no output step;
- axes are in the order x, y, z, which is the order of a vector's components; ours are z, y, x;
- parameters that vary from sample to sample are `scalars` that do, so `simulation_parameters` is empty;
- the group `forebay`, which others ignore, has the records, the parameters in float64, and our attributes as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from forebay.pipeline.dataset_export import Advance, ExportOptions, Selection
from forebay.pipeline.errors import DatasetError
from forebay.pipeline.records import Field, Schema

FOLDERS = {"train": "train", "validation": "valid"}
OTHERS = "export it as repacked or icechunk, which hold any mesh and any times"
_ORDER = ("x", "y", "z")


class Well:
    """One HDF5 file a split."""

    def check(self, selection: Selection, options: ExportOptions) -> None:
        """As the protocol says."""
        schema = selection.reader.schema
        grid = _Grid.of(schema)
        for item in (*schema.inputs, *schema.outputs):
            grid.axes(item)
        _check_spacing("stored times", np.asarray(schema.times))
        names = [*(p.name for p in schema.parameters), *(f.name for f in grid.scalars(schema))]
        for name in names:
            if not name.isprintable() or set(name) & {"/", "."} or names.count(name) > 1 or not name:
                raise DatasetError(
                    f"parameter {name!r} cannot be the name of one HDF5 data set; rename it, or {OTHERS}"
                )

    def write(self, selections: Sequence[Selection], folder: Path, options: ExportOptions, advance: Advance) -> None:
        """One file a split."""
        for selection in selections:
            name = _dataset_name(selection)
            path = folder / "data" / FOLDERS[selection.split] / f"{name}.hdf5"
            path.parent.mkdir(parents=True)
            with h5py.File(path, "w-") as file:
                grid = _Grid.of(selection.reader.schema)
                file.attrs["dataset_name"] = name
                file.attrs["grid_type"] = "cartesian"
                file.attrs["n_spatial_dims"] = len(grid.dims)
                file.attrs["n_trajectories"] = len(selection.rows)
                file.attrs["simulation_parameters"] = _names([])
                _write_dimensions(file.create_group("dimensions"), grid, selection.reader.schema)
                _write_boundaries(file.create_group("boundary_conditions"), grid, selection, options)
                _write_scalars(file.create_group("scalars"), grid, selection)
                _write_fields(file, grid, selection, advance)
                _write_ours(file.create_group("forebay"), selection)


WRITERS: Mapping[str, Callable[[], Well]] = {"well": Well}


@dataclass(frozen=True, slots=True)
class _Grid:
    """The uniform grid that all fields live on."""

    dims: tuple[str, ...]
    coordinates: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, schema: Schema) -> _Grid:
        lines = {c.name: c.values for c in schema.coordinates if c.dims == (c.name,) and c.values.dtype.kind == "f"}
        used = [dim for item in (*schema.inputs, *schema.outputs) for dim in item.dims if not _is_component(dim)]
        dims = tuple(dict.fromkeys(used))
        if not dims or (missing := [dim for dim in dims if dim not in lines]):
            what = f"dimension {missing[0]!r} has no coordinate of its own" if dims else "its fields have no axes"
            raise DatasetError(f"The Well holds fields on uniform grids, but {what}; {OTHERS}")
        for dim in dims:
            _check_spacing(f"coordinate {dim!r}", lines[dim])
        ordered = tuple(sorted(dims)) if set(dims) <= set(_ORDER) else dims
        return cls(ordered, {dim: lines[dim] for dim in ordered})

    def axes(self, item: Field) -> tuple[int, ...]:
        """The field's axes in The Well's order: space in the order of `dims`, then components."""
        space = [item.dims.index(dim) for dim in self.dims if dim in item.dims]
        components = [k for k, dim in enumerate(item.dims) if _is_component(dim)]
        lengths = {item.shape[k] for k in components}
        if len(components) > 2 or lengths - {len(self.dims)} or (components and not space):
            raise DatasetError(
                f"field {item.name!r} of shape {item.shape} is no scalar, vector or tensor in {len(self.dims)} "
                f"dimensions, which is all that The Well holds; {OTHERS}"
            )
        return (*space, *components)

    def scalars(self, schema: Schema) -> Iterator[Field]:
        """Fields that are one number a sample (and time)."""
        return (item for item in (*schema.inputs, *schema.outputs) if not item.dims)


def _write_dimensions(group: h5py.Group, grid: _Grid, schema: Schema) -> None:
    group.attrs["spatial_dims"] = _names(grid.dims)
    _put(group, "time", np.asarray(schema.times or (0.0,), np.float32), sample_varying=False)
    for dim, values in grid.coordinates.items():
        _put(group, dim, values.astype(np.float32), sample_varying=False, time_varying=False)


def _write_boundaries(group: h5py.Group, grid: _Grid, selection: Selection, options: ExportOptions) -> None:
    for dim, values in grid.coordinates.items():
        side = group.create_group(f"{dim}_boundary")
        side.attrs["associated_dims"] = _names([dim])
        side.attrs["associated_fields"] = _names([])
        side.attrs["bc_type"] = options.boundary
        side.attrs["sample_varying"] = side.attrs["time_varying"] = False
        side.attrs["description"] = selection.reader.schema.boundary_conditions
        mask = np.zeros(len(values), bool)
        mask[[0, -1]] = True
        side["mask"] = mask
        # The values at the boundary are in words only.
        side["values"] = np.full(int(mask.sum()), np.nan, np.float32)


def _write_scalars(group: h5py.Group, grid: _Grid, selection: Selection) -> None:
    schema, everything = selection.reader.schema, slice(0, len(selection.rows))
    names = []
    for k, parameter in enumerate(schema.parameters):
        values = selection.read("parameters", everything.start, everything.stop)[:, k].astype(np.float32)
        _put(group, parameter.name, values, sample_varying=True, time_varying=False, units=parameter.units)
        names.append(parameter.name)
    for item in grid.scalars(schema):
        values = selection.read(item.name, everything.start, everything.stop)
        timed = selection.reader.layout.is_timed(item.name)
        _put(group, item.name, values, sample_varying=True, time_varying=timed, units=item.units)
        names.append(item.name)
    group.attrs["field_names"] = _names(names)


def _write_fields(file: h5py.File, grid: _Grid, selection: Selection, advance: Advance) -> None:
    schema = selection.reader.schema
    outputs = {item.name for item in schema.outputs}
    names: dict[int, list[str]] = {0: [], 1: [], 2: []}
    groups = {order: file.create_group(f"t{order}_fields") for order in names}
    for item in (*schema.inputs, *schema.outputs):
        if not item.dims:
            continue
        order = sum(_is_component(dim) for dim in item.dims)
        _write_field(groups[order], grid, selection, item, item.name in outputs, advance)
        names[order].append(item.name)
    for order, listed in names.items():
        groups[order].attrs["field_names"] = _names(listed)


def _write_field(
    group: h5py.Group, grid: _Grid, selection: Selection, item: Field, timed: bool, advance: Advance
) -> None:
    axes = grid.axes(item)
    steps = (selection.reader.schema.steps,) if timed else ()
    shape = (len(selection.rows), *steps, *(item.shape[k] for k in axes))
    data = group.create_dataset(item.name, shape, np.float32)
    data.attrs["sample_varying"] = True
    data.attrs["time_varying"] = timed
    data.attrs["dim_varying"] = np.array([dim in item.dims for dim in grid.dims])
    data.attrs["units"] = item.units
    data.attrs["description"] = item.description
    if group.name == "/t2_fields":
        data.attrs["symmetric"] = data.attrs["antisymmetric"] = False
    lead = 1 + len(steps)
    order = (*range(lead), *(lead + k for k in axes))
    for rows, values in selection.pieces(item.name):
        data[rows] = values.reshape(len(values), *steps, *item.shape).transpose(order)
        advance(values.nbytes)


def _write_ours(group: h5py.Group, selection: Selection) -> None:
    reader = selection.reader
    group["attributes"] = json.dumps(dict(reader.attributes))
    group["sample_id"] = selection.rows
    for column in reader.columns:
        data = group.create_dataset(column.name, data=selection.read(column.name, 0, len(selection.rows)))
        for key, value in reader.arrays[column.name]["attributes"].items():
            data.attrs[str(key)] = value if isinstance(value, str) else json.dumps(value)
    if reader.schema.parameters:
        group["parameters"] = selection.read("parameters", 0, len(selection.rows))
        group["parameters"].attrs["names"] = _names([p.name for p in reader.schema.parameters])


def _put(group: h5py.Group, name: str, values: np.ndarray, **attributes: Any) -> None:
    data = group.create_dataset(name, data=values)
    for key, value in attributes.items():
        data.attrs[key] = value


def _names(names: Sequence[str]) -> np.ndarray:
    # Without the type an empty list would become an array of floats.
    return np.array(list(names), dtype=h5py.string_dtype())


def _is_component(dim: str) -> bool:
    return dim.startswith("component")


def _check_spacing(what: str, values: np.ndarray) -> None:
    gaps = np.diff(values)
    if len(gaps) and not np.allclose(gaps, gaps[0], rtol=1e-3, atol=0):
        raise DatasetError(
            f"The Well holds uniform grids and equal time steps, but {what} has spacings from {gaps.min():g} to "
            f"{gaps.max():g}; {OTHERS}"
        )


def _dataset_name(selection: Selection) -> str:
    study = selection.reader.attributes.get("study")
    name = study.get("name") if isinstance(study, Mapping) else None
    plain = "".join(c if c.isalnum() or c in "-_" else "_" for c in str(name or "forebay"))
    return plain[:64]

"""What is wrong with an HDF5 file of The Well, by its documentation (docs/data_format.md of PolymathicAI/the_well)."""

from collections.abc import Iterator

import h5py
import numpy as np

BOUNDARIES = ("wall", "open", "periodic")


def problems_of(file: h5py.File) -> list[str]:
    """One entry for each rule that the file breaks."""
    return [*_root(file), *_dimensions(file), *_fields(file), *_scalars(file), *_boundaries(file)]


def _root(file: h5py.File) -> Iterator[str]:
    kinds = {"dataset_name": str, "grid_type": str, "n_spatial_dims": np.integer, "n_trajectories": np.integer}
    for name, kind in kinds.items():
        if not isinstance(file.attrs.get(name), kind):
            yield f"@{name} is no {kind.__name__}"
    if file.attrs["grid_type"] not in ("cartesian", "spherical"):
        yield "@grid_type"
    for name in file.attrs["simulation_parameters"]:
        if name not in file.attrs:
            yield f"@{name} is listed and not there"


def _flags(where: h5py.HLObject, *names: str) -> Iterator[str]:
    for name in names:
        if not isinstance(where.attrs.get(name), np.bool_):
            yield f"{where.name}@{name} is no bool"


def _strings(where: h5py.HLObject, name: str) -> list[str]:
    values = where.attrs[name]
    assert all(isinstance(value, str) for value in values), f"{where.name}@{name}"
    return list(values)


def _dimensions(file: h5py.File) -> Iterator[str]:
    dims = file["dimensions"]
    spatial = _strings(dims, "spatial_dims")
    if len(spatial) != file.attrs["n_spatial_dims"] or not spatial:
        yield "as many spatial_dims as n_spatial_dims"
    yield from _flags(dims["time"], "sample_varying")
    for name in spatial:
        yield from _flags(dims[name], "sample_varying", "time_varying")
    for name in ("time", *spatial):
        if dims[name].dtype != np.float32:
            yield f"dimensions/{name} is {dims[name].dtype}"


def _fields(file: h5py.File) -> Iterator[str]:
    spatial = _strings(file["dimensions"], "spatial_dims")
    for order in range(3):
        group = file[f"t{order}_fields"]
        if sorted(_strings(group, "field_names")) != sorted(group):
            yield f"{group.name}@field_names {_strings(group, 'field_names')} for {sorted(group)}"
        for field in group.values():
            yield from _flags(field, "sample_varying", "time_varying")
            varying = field.attrs["dim_varying"]
            shape = [file.attrs["n_trajectories"]] if field.attrs["sample_varying"] else []
            shape += [len(file["dimensions/time"])] if field.attrs["time_varying"] else []
            shape += [len(file["dimensions"][d]) for d, varies in zip(spatial, varying, strict=True) if varies]
            shape += [len(spatial)] * order
            if field.shape != tuple(shape) or field.dtype != np.float32:
                yield f"{field.name} is {field.dtype} {field.shape}, not float32 {tuple(shape)}"
            if order == 2:
                yield from _flags(field, "symmetric", "antisymmetric")


def _scalars(file: h5py.File) -> Iterator[str]:
    group = file["scalars"]
    if sorted(_strings(group, "field_names")) != sorted(group):
        yield "scalars@field_names"
    for scalar in group.values():
        yield from _flags(scalar, "sample_varying", "time_varying")
        shape = [file.attrs["n_trajectories"]] if scalar.attrs["sample_varying"] else []
        shape += [len(file["dimensions/time"])] if scalar.attrs["time_varying"] else []
        if scalar.shape != tuple(shape) or scalar.dtype != np.float32:
            yield f"{scalar.name} is {scalar.dtype} {scalar.shape}, not float32 {tuple(shape)}"


def _boundaries(file: h5py.File) -> Iterator[str]:
    if not len(file["boundary_conditions"]):
        yield "no boundary condition"
    for side in file["boundary_conditions"].values():
        yield from _flags(side, "sample_varying", "time_varying")
        _strings(side, "associated_fields")
        lengths = tuple(len(file["dimensions"][dim]) for dim in _strings(side, "associated_dims"))
        if side["mask"].shape != lengths or side["mask"].dtype != bool:
            yield f"{side.name}/mask"
        if side["values"].shape != (int(side["mask"][:].sum()),) or side["values"].dtype != np.float32:
            yield f"{side.name}/values"
        if side.attrs["bc_type"] not in BOUNDARIES:
            yield f"{side.name}@bc_type"

"""The other layouts of `dataset_io`: how zarr-python, tensorstore, xarray and HDF5 write and read the same fields."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import tensorstore
import xarray
import zarr
from dataset_io_cases import FIELDS, Arrays, Blocks, Case, Read, Write


def write_zarr(folder: Path, case: Case, blocks: Blocks, *, single: bool = False) -> None:
    group = zarr.open_group(str(folder), mode="w-", zarr_format=3)
    chunks = (1, *case.chunk[1:]) if single else case.chunk
    made = {n: group.create_array(n, shape=case.shape, chunks=chunks, dtype="f4", compressors=None) for n in FIELDS}
    for rows, arrays in blocks:
        for name, values in arrays.items():
            made[name][rows] = values


def write_tensorstore(folder: Path, case: Case, blocks: Blocks) -> None:
    stores = {name: open_tensorstore(folder / name, case) for name in FIELDS}
    for rows, arrays in blocks:
        for name, values in arrays.items():
            stores[name][rows].write(values).result()


def open_tensorstore(folder: Path, case: Case | None = None) -> Any:
    spec: dict[str, Any] = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(folder)}}
    # Its own fsync of every file would come on top of the `sync` at the end.
    spec["context"] = {"file_io_sync": False}
    if case is None:
        return tensorstore.open(spec, read=True, open=True).result()
    grid = {"name": "regular", "configuration": {"chunk_shape": list(case.chunk)}}
    spec["metadata"] = {"shape": list(case.shape), "chunk_grid": grid, "data_type": "float32"}
    return tensorstore.open(spec, create=True, open=True, write=True).result()


def write_xarray(folder: Path, case: Case, blocks: Blocks) -> None:
    import dask.array

    lazy = dask.array.zeros(case.shape, chunks=case.chunk, dtype=np.float32)
    layout = {name: {"chunks": case.chunk, "compressors": None} for name in FIELDS}
    empty = xarray.Dataset(dict.fromkeys(FIELDS, (("sample", "y", "x"), lazy)))
    empty.to_zarr(folder, compute=False, encoding=layout, zarr_format=3, consolidated=False)
    for rows, arrays in blocks:
        part = xarray.Dataset({name: (("sample", "y", "x"), values) for name, values in arrays.items()})
        part.to_zarr(folder, region={"sample": rows}, consolidated=False)


def write_hdf5(folder: Path, case: Case, blocks: Blocks, *, single: bool = False) -> None:
    folder.mkdir()
    with h5py.File(folder / "samples.h5", "w") as file:
        chunks = (1, *case.chunk[1:]) if single else None
        made = {name: file.create_dataset(name, case.shape, "f4", chunks=chunks) for name in FIELDS}
        for rows, arrays in blocks:
            for name, values in arrays.items():
                made[name].write_direct(values, dest_sel=np.s_[rows])


WRITERS: dict[str, Write] = {
    "zarr-python": write_zarr,
    "zarr-python, sample a chunk": partial(write_zarr, single=True),
    "tensorstore": write_tensorstore,
    "xarray": write_xarray,
    "HDF5 contiguous": write_hdf5,
    "HDF5, sample a chunk": partial(write_hdf5, single=True),
}
PARTS = {"zarr-python, sample a chunk": 16, "HDF5, sample a chunk": 4, "xarray": 4}
"""Writers that are so slow that a part of the bytes is enough."""


def readers(folder: Path, out: Arrays) -> dict[str, Read]:
    """Everything open and ready; files of each writer lie in folders of its name, `out` holds a batch."""
    found: dict[str, Read] = {}
    for name in ("zarr-python", "zarr-python, sample a chunk"):
        found[name] = _by_batch({n: zarr.open_array(folder / name / n, mode="r").oindex for n in FIELDS})
        if "sample" not in name:
            found[f"{name}, one by one"] = _by_sample({n: zarr.open_array(folder / name / n, mode="r") for n in FIELDS})
    stores = {n: open_tensorstore(folder / "tensorstore" / n) for n in FIELDS}
    found["tensorstore"] = lambda rows: [f.result() for f in [stores[n][np.sort(rows)].read() for n in FIELDS]]
    singles = {n: open_tensorstore(folder / "zarr-python, sample a chunk" / n) for n in FIELDS}
    found["tensorstore, sample a chunk"] = lambda rows: [f.result() for f in [singles[n][rows].read() for n in FIELDS]]
    lazy = xarray.open_zarr(folder / "xarray", chunks=None, consolidated=False)
    found["xarray"] = lambda rows: lazy.isel(sample=np.sort(rows)).load()
    for name in ("HDF5 contiguous", "HDF5, sample a chunk"):
        file = h5py.File(folder / name / "samples.h5", "r")
        found[name] = _by_batch({n: file[n] for n in FIELDS}, distinct=True)
        found[f"{name}, one by one"] = _hdf5_by_sample({n: file[n] for n in FIELDS}, out)
    return found


def _by_batch(arrays: dict[str, Any], *, distinct: bool = False) -> Read:
    def read(rows: np.ndarray) -> list[np.ndarray]:
        wanted = np.unique(rows) if distinct else np.sort(rows)
        return [array[wanted] for array in arrays.values()]

    return read


def _by_sample(arrays: dict[str, Any]) -> Read:
    return lambda rows: [np.stack([array[i] for i in rows.tolist()]) for array in arrays.values()]


def _hdf5_by_sample(arrays: dict[str, Any], out: Arrays) -> Read:
    def read(rows: np.ndarray) -> Arrays:
        for name, array in arrays.items():
            for k, i in enumerate(rows.tolist()):
                array.read_direct(out[name], np.s_[i], np.s_[k])
        return out

    return read

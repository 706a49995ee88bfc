"""Other people's readers open a data set without our help and without a warning (pytest makes warnings errors)."""

import warnings

import dask
import dask.array as da
import numpy as np
import pytest
import tensorstore
import torch
import xarray as xr
import zarr
from dataset_samples import (
    make_dataset,
    sample_arrays,
    sample_record,
    stationary_schema,
    transient_schema,
    without_fsync,
)
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, default_convert

from forebay.pipeline.dataset import DatasetReader
from forebay.pipeline.dataset_card import write_card
from forebay.pipeline.records import ChunkPlan

STATIONARY, TRANSIENT = stationary_schema(), transient_schema()
PLAN = ChunkPlan("train", 11, 4)


@pytest.fixture(scope="module")
def stationary(tmp_path_factory):
    with without_fsync():
        path = make_dataset(tmp_path_factory.mktemp("s") / "d.zarr", STATIONARY, PLAN, failing=(3,))
        write_card(path)
    return path


@pytest.fixture(scope="module")
def transient(tmp_path_factory):
    with without_fsync():
        path = make_dataset(tmp_path_factory.mktemp("t") / "d.zarr", TRANSIENT, PLAN)
        write_card(path)
    return path


def expected(schema, name, failing=()):
    return np.stack([sample_arrays(schema, i, i in failing)[name] for i in range(11)])


def test_xarray_reads_fields_with_their_dimensions_units_and_coordinates(stationary):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ds = xr.open_zarr(stationary)
        assert dict(ds.sizes) == {"sample": 11, "y": 4, "x": 3, "parameter": 2}
        assert ds.u.dims == ("sample", "y", "x")
        assert np.array_equal(ds.u.values, expected(STATIONARY, "u", (3,)), equal_nan=True)
        assert np.array_equal(ds.flux.values, expected(STATIONARY, "flux", (3,)), equal_nan=True)
    assert ds.u.attrs == {"units": "K", "long_name": "u", "role": "output", "rank": 0}
    assert (ds.a.attrs["role"], ds.a.attrs["long_name"]) == ("input", "diffusion coefficient")
    assert {"x", "y", "sample_id"} <= set(ds.coords)
    assert ds.x.attrs["units"] == "m"
    assert np.array_equal(ds.u.sel(x=0.5).values, ds.u.values[:, :, 1], equal_nan=True)
    assert ds.attrs["boundary_conditions"] == "u = 0 on all sides"
    assert ds.attrs["study"]["solver"] == {"rtol": 1e-8}
    assert ds.attrs["card"] == "README.md"


def test_xarray_reads_the_records_and_the_meanings_of_their_codes(stationary):
    ds = xr.open_zarr(stationary, chunks=None)
    records = [sample_record(i, i == 3) for i in range(11)]
    assert ds.seed.values.tolist() == [r.seed for r in records]
    assert ds.valid.values.tolist() == [r.valid for r in records]
    assert ds.residual.values.tolist() == [r.residual for r in records]
    assert ds.seconds.dtype == np.float64, "seconds stay numbers and do not become time deltas"
    for name, wanted in {
        "method": [r.method for r in records],
        "outcome": [r.outcome.name.lower() for r in records],
    }.items():
        meanings = dict(zip(ds[name].flag_values, ds[name].flag_meanings.split(), strict=True))
        assert [meanings[int(code)] for code in ds[name].values] == wanted
    named = ds.parameters.assign_coords(parameter=ds.parameters.names)
    assert np.array_equal(named.sel(parameter="scale").values, expected(STATIONARY, "parameters")[:, 1])
    assert ds.parameters.attrs["distributions"] == ["uniform", "log_uniform"]


def test_xarray_reads_times_and_the_coordinates_of_a_mesh(transient):
    ds = xr.open_zarr(transient)
    assert ds.temperature.dims == ("sample", "time", "node")
    assert ds.source.dims == ("sample", "node")
    assert ds.time.values.tolist() == [0.5, 1.0, 2.0]
    assert {"node_x", "sample_id", "time"} <= set(ds.temperature.coords)
    assert np.array_equal(ds.triangles.values, [[0, 1, 2], [2, 3, 4]])
    assert np.array_equal(ds.temperature.sel(time=2.0).values, expected(TRANSIENT, "temperature")[:, 2])


def test_xarray_sees_only_the_published_prefix(tmp_path):
    with without_fsync():
        path = make_dataset(tmp_path / "d.zarr", STATIONARY, PLAN, chunks=[0, 2])
        empty = make_dataset(tmp_path / "e.zarr", STATIONARY, PLAN, chunks=[])
    assert xr.open_zarr(path).sizes["sample"] == 4
    assert xr.open_zarr(empty).sizes["sample"] == 0
    assert np.array_equal(xr.open_zarr(path).u.values, expected(STATIONARY, "u")[:4])


def test_xarray_computes_through_dask_over_whole_chunks(transient):
    ds = xr.open_zarr(transient)
    assert ds.temperature.data.chunks == ((4, 4, 3), (3,), (5,))
    with dask.config.set(scheduler="synchronous"):
        mean = ds.temperature.mean("sample").compute()
    np.testing.assert_allclose(mean.values, expected(TRANSIENT, "temperature").mean(0), rtol=1e-5)


def test_dask_reads_an_array_by_path_and_as_a_component(stationary):
    u = expected(STATIONARY, "u", (3,))
    with dask.config.set(scheduler="synchronous"):
        for array in (da.from_zarr(str(stationary / "u")), da.from_zarr(str(stationary), component="u")):
            assert array.chunks == ((4, 4, 3), (4,), (3,))
            assert np.array_equal(array.compute(), u, equal_nan=True)


@pytest.mark.parametrize("name", ["temperature", "source", "parameters", "seed", "valid", "outcome", "sample_id"])
def test_tensorstore_reads_every_kind_of_array(transient, name):
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(transient / name)}}
    store = tensorstore.open(spec, read=True, open=True).result()
    ours = DatasetReader(transient).read(name, range(11))
    assert store.dtype.numpy_dtype == ours.dtype
    assert np.array_equal(store.read().result(), ours)
    assert store.domain.labels[0] == "sample"


def test_zarr_python_lists_and_reads_every_array(transient):
    group = zarr.open_group(str(transient), mode="r")
    assert set(dict(group.arrays())) == set(DatasetReader(transient).arrays)
    assert np.array_equal(group["temperature"][3:9, 1], expected(TRANSIENT, "temperature")[3:9, 1])


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than this machine has cores
def test_a_torch_loader_with_two_workers_delivers_every_valid_frame_once_in_batches(stationary):
    loader = DataLoader(
        DatasetReader(stationary),
        batch_size=3,
        shuffle=True,
        num_workers=2,
        collate_fn=default_convert,
        generator=torch.Generator().manual_seed(5),
    )
    batches = list(loader)
    assert [len(b["u"]) for b in batches] == [3, 3, 3, 1]
    assert {name: value.dtype for name, value in batches[0].items()} == dict.fromkeys(
        ("a", "u", "flux", "parameters"), torch.float32
    )
    delivered = torch.cat([b["u"] for b in batches])
    wanted = {sample_arrays(STATIONARY, i)["u"].tobytes() for i in range(11) if i != 3}
    assert {row.numpy().tobytes() for row in delivered} == wanted
    assert len(delivered) == len(wanted)


def test_a_torch_loader_without_batching_of_its_own_needs_no_collate_function(transient):
    reader = DatasetReader(transient)
    sampler = BatchSampler(RandomSampler(reader, generator=torch.Generator().manual_seed(3)), 16, drop_last=False)
    batches = list(DataLoader(reader, batch_size=None, sampler=sampler))
    assert [tuple(b["temperature"].shape) for b in batches] == [(16, 5), (16, 5), (1, 5)]
    assert sorted(torch.cat([b["time"] for b in batches]).flatten().tolist()) == sorted([0.5, 1.0, 2.0] * 11)

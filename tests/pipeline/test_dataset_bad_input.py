import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest
import zarr
from dataset_samples import (
    ATTRIBUTES,
    make_block,
    make_dataset,
    stationary_schema,
    transient_schema,
    without_fsync,
)

from forebay.pipeline.dataset import DatasetCoordinator, DatasetReader, DatasetWriter
from forebay.pipeline.errors import DatasetError
from forebay.pipeline.records import ChunkPlan, Coordinate, Field, Schema

STATIONARY = stationary_schema()
TRANSIENT = transient_schema()
PLAN = ChunkPlan("train", 11, 4)


@pytest.fixture(autouse=True)
def _no_fsync():
    with without_fsync():
        yield


def open_new(path, plan=PLAN, schema=STATIONARY):
    return DatasetCoordinator.create(path, schema, plan, ATTRIBUTES), DatasetWriter(path, schema, plan)


def test_a_folder_that_holds_something_is_not_overwritten(tmp_path):
    (tmp_path / "d.zarr").mkdir()
    open_new(tmp_path / "d.zarr")[0].close()  # an empty folder is fine
    with pytest.raises(DatasetError, match=r"d.zarr exists and is not empty; choose another folder"):
        open_new(tmp_path / "d.zarr")
    (tmp_path / "file").write_text("x")
    with pytest.raises(DatasetError, match="exists and is not empty"):
        open_new(tmp_path / "file")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d.zarr", "file"]


@pytest.mark.parametrize("path", ["nowhere", "empty"])
@pytest.mark.parametrize("opener", [DatasetReader, DatasetCoordinator.open])
def test_a_path_without_a_data_set_is_explained(tmp_path, path, opener):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match=rf"no data set at .*{path}: it has no zarr.json"):
        opener(tmp_path / path)


def test_a_foreign_zarr_group_is_refused(tmp_path):
    zarr.open_group(str(tmp_path / "g.zarr"), mode="w", zarr_format=3)
    with pytest.raises(DatasetError, match="a Zarr group without Forebay's attributes"):
        DatasetReader(tmp_path / "g.zarr")


def test_a_newer_format_and_a_broken_document_are_refused(tmp_path):
    path = make_dataset(tmp_path / "d.zarr", STATIONARY, PLAN, chunks=[])
    document = path / "zarr.json"
    text = document.read_text()
    document.write_text(text.replace('"format": 2', '"format": 7'))
    with pytest.raises(DatasetError, match="has format 7, this Forebay reads up to 2; upgrade Forebay"):
        DatasetReader(path)
    document.write_text(text[:100])
    with pytest.raises(DatasetError, match=r"zarr.json is not JSON .*restore it from a copy"):
        DatasetReader(path)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [({"study": {"x": {1, 2}}}, "attribute 'study' cannot be stored"), ({"y": float("nan")}, "attribute 'y'.*finite")],
)
def test_attributes_that_are_no_json_are_refused(tmp_path, attributes, message):
    with pytest.raises(DatasetError, match=message):
        DatasetCoordinator.create(tmp_path / "d.zarr", STATIONARY, PLAN, attributes)
    assert list(tmp_path.iterdir()) == []


def field(name, dims=("x",), shape=(3,)):
    return Field(name, dims, shape)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (Schema((), (field("a/b"),), ()), "array name 'a/b' must be letters, digits and underscores"),
        (Schema((), (field(".."),), ()), "array name '..' must be letters"),
        (Schema((), (field("seed"),), ()), "array name 'seed' is reserved"),
        (Schema((), (field("u", ("sample",)),), ()), "dimension name 'sample' is reserved"),
        (Schema((), (field("u"),), (field("u"),)), "two arrays are called 'u'"),
        (Schema((), (field("u"),), (field("v", ("x",), (4,)),)), "'x' has length 3 in 'u' and 4 in 'v'"),
        (Schema((), (field("u", ("x", "y")),), ()), r"'u' has dims \('x', 'y'\) for shape \(3,\)"),
        (Schema((), (field("u", ("x", "x"), (3, 3)),), ()), "one distinct name per axis"),
        (Schema((), (field("u", ("x",), (0,)),), ()), "'u' has length 0 along 'x'"),
        (Schema((), (field("x"),), ()), "field 'x' has the name of a dimension"),
        (
            Schema((), (field("u"),), (), (Coordinate("x", ("x",), np.zeros(5)),)),
            "'x' has length 3 in 'u' and 5 in 'x'",
        ),
    ],
)
def test_schemas_that_no_reader_could_open_are_refused(tmp_path, schema, message):
    with pytest.raises(DatasetError, match=message):
        DatasetCoordinator.create(tmp_path / "d.zarr", schema, PLAN, {})
    assert list(tmp_path.iterdir()) == []


def test_blocks_that_do_not_belong_are_refused(tmp_path):
    coordinator, writer = open_new(tmp_path / "d.zarr")
    good = make_block(STATIONARY, PLAN, 1)
    wrong = {
        "block 1 of split 'validation'": dataclasses.replace(good, split="validation"),
        "block 7 of split 'train'": dataclasses.replace(good, chunk=7),
        "with 3 samples is not one of": dataclasses.replace(good, sample_ids=good.sample_ids[:3]),
        "holds nothing as field 'u'": dataclasses.replace(good, arrays={"a": good.arrays["a"]}),
        r"float64 of shape \(4, 4, 3\) as field 'a'": dataclasses.replace(
            good, arrays={**good.arrays, "a": good.arrays["a"].astype(float)}
        ),
        r"shape \(4, 3, 4\) as field 'a'; the data set stores float32 of shape \(4, 4, 3\)": dataclasses.replace(
            good, arrays={**good.arrays, "a": good.arrays["a"].swapaxes(1, 2)}
        ),
    }
    with coordinator:
        for message, block in wrong.items():
            with pytest.raises(DatasetError, match=message):
                writer.store(block)
        assert os.listdir(tmp_path / "d.zarr/a/c") == []


def test_storing_into_a_data_set_that_is_gone_does_not_make_a_new_one(tmp_path):
    with pytest.raises(DatasetError, match=r"has no array 'a'; create the data set before storing into it"):
        DatasetWriter(tmp_path / "d.zarr", STATIONARY, PLAN).store(make_block(STATIONARY, PLAN, 0))
    assert list(tmp_path.iterdir()) == []


def test_commits_that_do_not_belong_are_refused_and_leave_no_trace(tmp_path):
    coordinator, writer = open_new(tmp_path / "d.zarr")
    block = make_block(STATIONARY, PLAN, 1)
    records, parameters = list(block.records), block.arrays["parameters"]
    with coordinator:
        with pytest.raises(
            DatasetError, match=r"block 1 cannot be committed: .*a/c/1/0/0 is missing, due are 192; store"
        ):
            coordinator.commit(1, records, parameters)
        writer.store(block)
        with pytest.raises(DatasetError, match=r"with 3 records .*samples 4 to 7 in order"):
            coordinator.commit(1, records[:3], parameters)
        with pytest.raises(DatasetError, match=r"samples 4 to 7 in order and shape \(4, 2\)"):
            coordinator.commit(1, records[::-1], parameters)
        with pytest.raises(DatasetError, match=r"parameters of shape \(4, 1\)"):
            coordinator.commit(1, records, parameters[:, :1])
        with pytest.raises(DatasetError, match="method 'cg gamg' holds blanks"):
            coordinator.commit(1, [*records[:3], dataclasses.replace(records[3], method="cg gamg")], parameters)
        with pytest.raises(OverflowError):
            coordinator.commit(1, [*records[:3], dataclasses.replace(records[3], seed=-1)], parameters)
        with pytest.raises(IndexError, match="chunk 3 of split 'train' which has 3"):
            coordinator.commit(3, records, parameters)
        assert coordinator.committed.tolist() == []
        os.truncate(tmp_path / "d.zarr/u/c/1/0/0", 100)
        with pytest.raises(DatasetError, match="has 100 bytes, due are 192"):
            coordinator.commit(1, records, parameters)
        (tmp_path / "d.zarr/u/c/1/0/0").unlink()
        writer.store(block)
        assert coordinator.commit(1, records, parameters) is True


def test_a_study_that_asks_for_something_else_cannot_continue_the_data_set(tmp_path):
    path = make_dataset(tmp_path / "d.zarr", STATIONARY, PLAN, chunks=[0])
    with pytest.raises(DatasetError, match=r"made with samples = 11, the study now asks for 12; start a new run"):
        DatasetCoordinator.open(path, STATIONARY, ChunkPlan("train", 12, 4))
    with pytest.raises(DatasetError, match="was made with schema = "):
        DatasetCoordinator.open(path, TRANSIENT, PLAN)


def test_lost_records_of_published_samples_are_noticed_at_reopening(tmp_path):
    path = make_dataset(tmp_path / "d.zarr", STATIONARY, PLAN)
    (path / "outcome/c/0").unlink()
    with pytest.raises(DatasetError, match=r"shows 11 samples but has records of 0: files below .*outcome are missing"):
        DatasetCoordinator.open(path)


def test_writing_and_reading_raw_chunks_load_no_storage_library():
    program = (
        "import sys, forebay.pipeline.dataset, forebay.pipeline.verify, forebay.pipeline.dataset_card;"
        "print([m for m in ('zarr', 'xarray', 'dask', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

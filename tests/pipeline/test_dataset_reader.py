import dataclasses
import pickle

import numpy as np
import pytest
import zarr
from dataset_samples import (
    ATTRIBUTES,
    make_block,
    make_dataset,
    sample_arrays,
    stationary_schema,
    transient_schema,
    without_fsync,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from forebay.pipeline import dataset_reader
from forebay.pipeline.dataset import DatasetReader
from forebay.pipeline.errors import DatasetError
from forebay.pipeline.records import ChunkPlan, Field, Parameter, Schema

STATIONARY = stationary_schema()
TRANSIENT = transient_schema()
PLAN = ChunkPlan("train", 11, 4)


@pytest.fixture(autouse=True)
def _no_fsync():
    with without_fsync():
        yield


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """Eleven samples, of which 2, 3 and 9 failed."""
    with without_fsync():
        return make_dataset(tmp_path_factory.mktemp("data") / "d.zarr", STATIONARY, PLAN, failing=(2, 3, 9))


@pytest.fixture(scope="module")
def timed(tmp_path_factory):
    with without_fsync():
        return make_dataset(tmp_path_factory.mktemp("timed") / "d.zarr", TRANSIENT, PLAN, failing=(5,))


def test_every_block_comes_back_bit_for_bit_with_its_records(complete):
    reader = DatasetReader(complete)
    for chunk in range(PLAN.chunks):
        stored, made = reader.read_block(chunk), make_block(STATIONARY, PLAN, chunk, failing=(2, 3, 9))
        assert (stored.split, stored.chunk) == (made.split, made.chunk)
        assert np.array_equal(stored.sample_ids, made.sample_ids)
        assert stored.records == made.records
        assert stored.arrays.keys() == made.arrays.keys()
        for name, array in made.arrays.items():
            assert stored.arrays[name].dtype == array.dtype
            assert stored.arrays[name].tobytes() == array.tobytes(), name
        assert stored.arrays["u"].flags.writeable, "a learner may take the arrays over"


def test_schema_plan_and_attributes_come_back(timed):
    reader = DatasetReader(timed)
    plain = [dataclasses.replace(s, coordinates=()) for s in (reader.schema, TRANSIENT)]
    assert dataclasses.astuple(plain[0]) == dataclasses.astuple(plain[1])
    for stored, made in zip(reader.schema.coordinates, TRANSIENT.coordinates, strict=True):
        assert (stored.name, stored.dims, stored.units) == (made.name, made.dims, made.units)
        assert stored.values.dtype == made.values.dtype
        assert np.array_equal(stored.values, made.values)
    assert reader.plan == PLAN
    assert reader.attributes["study"] == ATTRIBUTES["study"]


def test_frames_are_those_of_valid_samples_and_carry_parameters_and_time(timed):
    reader = DatasetReader(timed)
    valid = [i for i in range(11) if i != 5]
    assert reader.frames.tolist() == [3 * i + step for i in valid for step in range(3)]
    assert len(reader) == 30
    batch = reader.read_frames([3 * 7 + 2, 3 * 0 + 1, 3 * 7 + 2])
    for k, (sample, step) in enumerate([(7, 2), (0, 1), (7, 2)]):
        made = sample_arrays(TRANSIENT, sample)
        assert np.array_equal(batch["temperature"][k], made["temperature"][step])
        assert np.array_equal(batch["source"][k], made["source"])
        assert np.array_equal(batch["parameters"][k], made["parameters"].astype(np.float32))
        assert batch["time"][k].tolist() == [TRANSIENT.times[step]]
    assert {a.dtype for a in batch.values()} == {np.dtype(np.float32)}


def test_as_a_sequence_the_reader_holds_frames(complete):
    reader = DatasetReader(complete)
    assert [i for i in range(11) if i not in (2, 3, 9)] == reader.valid.tolist()
    assert np.array_equal(reader[2]["u"], sample_arrays(STATIONARY, 4)["u"])
    assert np.array_equal(reader[-1]["u"], sample_arrays(STATIONARY, 10)["u"])
    assert np.array_equal(reader[[7, 0]]["u"], reader.__getitems__([7, 0])["u"])
    assert sum(1 for _ in reader) == 8
    with pytest.raises(IndexError, match="index 8 is out of bounds"):
        reader[8]


def test_rows_are_read_into_arrays_of_the_caller(complete):
    reader = DatasetReader(complete)
    out = np.empty((2, 4, 3), np.float32)
    assert reader.read("u", [10, 4], out) is out
    assert np.array_equal(out[0], sample_arrays(STATIONARY, 10)["u"])
    frames = reader.read_frames([1], {"u": out[:1]})
    assert frames["u"].base is out
    assert np.array_equal(out[0], sample_arrays(STATIONARY, 1)["u"])
    with pytest.raises(
        ValueError, match=r"`out` for 'u' is float32 of shape \(2, 4, 3\); give float32 of shape \(3, 4, 3\)"
    ):
        reader.read("u", [1, 2, 3], out)


def test_a_problem_without_parameters_or_coordinates_works(tmp_path):
    schema = Schema((), (), (Field("u", ("x",), (2,)),))
    reader = DatasetReader(make_dataset(tmp_path / "d.zarr", schema, PLAN))
    assert sorted(reader[0]) == ["u"]
    assert reader.read_block(2).arrays["parameters"].shape == (3, 0)


def test_blocks_that_do_not_divide_the_record_chunks_and_large_rows_are_read_right(tmp_path):
    schema = Schema((Parameter("p", 0, 1),), (), (Field("u", ("x",), (600,)), Field("v", (), ())))
    plan = ChunkPlan("train", 4100, 1000)
    reader = DatasetReader(make_dataset(tmp_path / "d.zarr", schema, plan))
    rows = np.array([4099, 0, 4096, 4095, 999, 1000, 4099])
    for name in ("u", "v", "parameters"):
        expected = np.stack([sample_arrays(schema, int(i))[name] for i in rows])
        assert np.array_equal(reader.read(name, rows), expected), name
    assert reader.column("seed").tolist() == [2**63 + 11 * i for i in range(4100)]
    assert reader.read_block(4).records[-1].sample_id == 4099


def test_more_chunks_than_may_be_mapped_are_read_right(complete, monkeypatch):
    monkeypatch.setattr(dataset_reader, "MAPS", 2)
    reader = DatasetReader(complete)
    for rows in ([0, 4, 8, 1, 5, 10], [8, 0, 4]):
        assert np.array_equal(reader.read("u", rows), DatasetReader(complete).column("u")[rows], equal_nan=True)
    assert len(reader._maps) == 2


def test_a_pickled_reader_reads_the_same(complete):
    reader = DatasetReader(complete)
    reader.read("u", [3])
    again = pickle.loads(pickle.dumps(reader))
    assert np.array_equal(again[5]["u"], reader[5]["u"])


@pytest.mark.parametrize("rows", [[11], [-1], [3, 400]])
def test_rows_that_are_not_published_are_refused(complete, rows):
    with pytest.raises(IndexError, match=rf"sample {rows[-1]} of .*d.zarr, which shows samples 0 to 10"):
        DatasetReader(complete).read("u", rows)


def test_an_unknown_array_is_refused_with_the_known_ones(complete):
    with pytest.raises(DatasetError, match=r"no per-sample array 'x'; it has a, estimate, flux, indicator, iterations"):
        DatasetReader(complete).read("x", [0])


# --- the fast path equals the general path ---------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(data=st.data(), name=st.sampled_from(["a", "u", "flux", "parameters", "seed", "residual", "valid", "method"]))
def test_memory_mapped_rows_equal_those_of_zarr_python(complete, data, name):
    rows = np.array(data.draw(st.lists(st.integers(0, 10), max_size=20)), dtype=np.int64)
    expected = zarr.open_array(str(complete / name), mode="r")[:][rows]
    assert DatasetReader(complete).read(name, rows).tobytes() == expected.tobytes()


@pytest.fixture(scope="module")
def repacked(timed, tmp_path_factory):
    """The same samples, compressed and in other chunks, as an archive would hold them."""
    target = tmp_path_factory.mktemp("repacked") / "d.zarr"
    source, copy = zarr.open_group(str(timed), mode="r"), zarr.open_group(str(target), mode="w", zarr_format=3)
    copy.attrs.update(source.attrs)
    for name, array in source.arrays():
        per_sample = array.metadata.dimension_names[0] == "sample"
        made = copy.create_array(
            name,
            shape=array.shape,
            chunks=(3, *array.shape[1:]) if per_sample else array.shape,
            compressors="auto" if per_sample else None,
            dtype=array.dtype,
            fill_value=array.fill_value,
            dimension_names=array.metadata.dimension_names,
            attributes=dict(array.attrs),
        )
        made[...] = array[...]
    with pytest.warns(zarr.errors.ZarrUserWarning):
        zarr.consolidate_metadata(str(target))
    return target


@settings(max_examples=30, deadline=None)
@given(positions=st.lists(st.integers(0, 29), min_size=1, max_size=12))
def test_frames_of_a_repacked_copy_equal_those_of_the_raw_chunks(timed, repacked, positions):
    raw, general = DatasetReader(timed)[positions], DatasetReader(repacked)[positions]
    assert raw.keys() == general.keys()
    for name in raw:
        assert raw[name].tobytes() == general[name].tobytes(), name


def test_blocks_of_a_repacked_copy_equal_those_of_the_raw_chunks(timed, repacked):
    raw, general = DatasetReader(timed).read_block(2), DatasetReader(repacked).read_block(2)
    assert raw.records == general.records
    assert raw.arrays["temperature"].tobytes() == general.arrays["temperature"].tobytes()


def test_what_zarr_itself_writes_is_what_the_raw_writer_writes(complete, tmp_path):
    ours = zarr.open_array(str(complete / "u"), mode="r")
    theirs = zarr.create_array(
        str(tmp_path / "u"), shape=ours.shape, chunks=ours.chunks, dtype="f4", compressors=None, fill_value=np.nan
    )
    theirs[...] = ours[...]
    for chunk in range(PLAN.chunks):
        assert (tmp_path / f"u/c/{chunk}/0/0").read_bytes() == (complete / f"u/c/{chunk}/0/0").read_bytes()

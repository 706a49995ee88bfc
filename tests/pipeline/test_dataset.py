import dataclasses
import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import zarr
from dataset_samples import (
    ATTRIBUTES,
    make_block,
    make_dataset,
    sample_arrays,
    stationary_schema,
    store_and_commit,
    transient_schema,
    without_fsync,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from forebay.pipeline import dataset_reader
from forebay.pipeline.dataset import DatasetCoordinator, DatasetReader, DatasetWriter
from forebay.pipeline.errors import DatasetError
from forebay.pipeline.records import ChunkPlan, Coordinate, Field, Parameter, Schema

STATIONARY = stationary_schema()
TRANSIENT = transient_schema()
PLAN = ChunkPlan("train", 11, 4)
RECORDS = ["seed", "outcome", "method", "iterations", "residual", "seconds", "valid"]


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


# --- what comes back -------------------------------------------------------------------------------------------------


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
    with pytest.raises(DatasetError, match=r"no per-sample array 'x'; it has a, flux, iterations, method"):
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


# --- committing and publishing ---------------------------------------------------------------------------------------


def open_new(path, plan=PLAN, schema=STATIONARY):
    return DatasetCoordinator.create(path, schema, plan, ATTRIBUTES), DatasetWriter(path, schema, plan)


def test_readers_see_the_contiguous_prefix_of_published_blocks_and_nothing_else(tmp_path):
    coordinator, writer = open_new(tmp_path / "d.zarr")
    with coordinator:
        reader = DatasetReader(tmp_path / "d.zarr")
        assert (len(reader), coordinator.published) == (0, 0)
        store_and_commit(writer, coordinator, STATIONARY, [0, 2])
        assert reader.refresh() == 0, "committed is not published"
        assert coordinator.publish() == 4
        assert reader.refresh() == 4
        store_and_commit(writer, coordinator, STATIONARY, [1])
        assert coordinator.publish() == 11
        assert (reader.refresh(), len(reader)) == (11, 11)


def test_a_block_beyond_the_prefix_can_be_read_back_by_whoever_resumes(tmp_path):
    coordinator, writer = open_new(tmp_path / "d.zarr")
    with coordinator:
        store_and_commit(writer, coordinator, STATIONARY, [2])
        reader = DatasetReader(tmp_path / "d.zarr")
        with pytest.raises(DatasetError, match=r"sample 10 of .* is not committed; resume the run"):
            reader.read_block(2)
        coordinator.publish()
        assert reader.read_block(2).records == make_block(STATIONARY, PLAN, 2).records
        with pytest.raises(DatasetError, match=r"block 1 of .* is not committed"):
            reader.read_block(1)


def test_publishing_without_news_touches_no_file(tmp_path):
    coordinator, writer = open_new(tmp_path / "d.zarr")
    with coordinator:
        store_and_commit(writer, coordinator, STATIONARY, [0])
        coordinator.publish()
        before = (tmp_path / "d.zarr/zarr.json").stat().st_ino
        assert coordinator.publish() == 4
        assert (tmp_path / "d.zarr/zarr.json").stat().st_ino == before


def test_publishing_rewrites_only_the_tail_of_the_record_arrays(tmp_path, monkeypatch):
    schema, plan = Schema((), (), (Field("u", (), ()),)), ChunkPlan("train", 12288, 4096)
    coordinator, writer = open_new(tmp_path / "d.zarr", plan, schema)
    with coordinator:
        store_and_commit(writer, coordinator, schema, [0, 1])
        coordinator.publish()
        written = []
        real = os.replace
        monkeypatch.setattr(
            os, "replace", lambda a, b: (written.append(os.path.relpath(b, tmp_path / "d.zarr")), real(a, b))
        )
        store_and_commit(writer, coordinator, schema, [2])
        written.clear()
        coordinator.publish()
    chunk_files = {name for name in written if "/c/" in name}
    assert chunk_files == {f"{c}/c/2" for c in RECORDS}
    assert written[-1] == "zarr.json", "the group's metadata makes everything visible, so it is last"
    assert written.index("outcome/c/2") == 6, "the outcome vouches for the other records, so it is their last"


def test_committing_twice_changes_nothing(tmp_path):
    coordinator, writer = open_new(tmp_path / "d.zarr")
    with coordinator:
        block = make_block(STATIONARY, PLAN, 0)
        writer.store(block)
        assert coordinator.commit(0, block.records, block.arrays["parameters"]) is True
        slower = [dataclasses.replace(r, seconds=99.0) for r in block.records]
        assert coordinator.commit(0, slower, block.arrays["parameters"].tolist()) is False
        assert coordinator.publish() == 4
    assert DatasetReader(tmp_path / "d.zarr").column("seconds").tolist() == [0.002] * 4


def test_storing_a_block_twice_leaves_one_copy(tmp_path):
    coordinator, writer = open_new(tmp_path / "d.zarr")
    with coordinator:
        writer.store(make_block(STATIONARY, PLAN, 0))
        store_and_commit(writer, coordinator, STATIONARY, [0])
    assert os.listdir(tmp_path / "d.zarr/u/c") == ["0"]
    assert os.listdir(tmp_path / "d.zarr/u/c/0/0") == ["0"]


def test_a_reopened_data_set_goes_on_where_it_stopped(tmp_path):
    path = make_dataset(tmp_path / "d.zarr", STATIONARY, PLAN, chunks=[0, 2])
    with DatasetCoordinator.open(path, STATIONARY, PLAN) as coordinator:
        assert coordinator.published == 4
        assert coordinator.committed.tolist() == [0, 2]
        assert coordinator.is_committed(2)
        assert not coordinator.is_committed(1)
        store_and_commit(DatasetWriter(path, STATIONARY, PLAN), coordinator, STATIONARY, [1, 2])
    reader = DatasetReader(path)
    assert reader.samples == 11
    assert reader.methods == ("direct:petsc-cholesky", "cg+gamg")
    for chunk in range(3):
        assert reader.read_block(chunk).records == make_block(STATIONARY, PLAN, chunk).records


def test_methods_keep_their_codes_when_new_ones_appear_after_reopening(tmp_path):
    path = make_dataset(tmp_path / "d.zarr", STATIONARY, PLAN, chunks=[0])
    with DatasetCoordinator.open(path) as coordinator:
        block = make_block(STATIONARY, PLAN, 1)
        DatasetWriter(path, STATIONARY, PLAN).store(block)
        records = [
            dataclasses.replace(r, method=m) for r, m in zip(block.records, ["gmres", "", "cg+gamg", "x"], strict=True)
        ]
        coordinator.commit(1, records, block.arrays["parameters"])
    reader = DatasetReader(path)
    assert [r.method for r in reader.read_block(0).records[:2]] == ["direct:petsc-cholesky", "cg+gamg"]
    assert reader.read_block(1).records == records
    attributes = json.loads((path / "method/zarr.json").read_text())["attributes"]
    assert attributes["flag_values"] == [-1, 0, 1, 2, 3]
    assert attributes["flag_meanings"] == "none direct:petsc-cholesky cg+gamg gmres x"


def test_half_written_files_of_killed_writers_are_removed_at_reopening(tmp_path, caplog):
    path = make_dataset(tmp_path / "d.zarr", STATIONARY, PLAN, chunks=[0])
    orphan = path / "u" / "c" / "0" / "0" / ".0.17-abcd.tmp"
    orphan.write_bytes(b"half a chunk")
    with caplog.at_level("INFO", logger="forebay.pipeline.dataset"), DatasetCoordinator.open(path):
        assert not orphan.exists()
    assert "a killed writer left behind" in caplog.text


def test_publishing_after_a_full_disk_can_be_repeated(tmp_path, monkeypatch):
    coordinator, writer = open_new(tmp_path / "d.zarr")
    with coordinator:
        store_and_commit(writer, coordinator, STATIONARY, [0])
        coordinator.publish()
        store_and_commit(writer, coordinator, STATIONARY, [1])
        real = os.replace

        def full(source, target):
            if str(target).endswith("u/zarr.json"):
                raise OSError(28, "No space left on device")
            real(source, target)

        monkeypatch.setattr(os, "replace", full)
        with pytest.raises(DatasetError, match="No space left on device"):
            coordinator.publish()
        monkeypatch.setattr(os, "replace", real)
        reader = DatasetReader(tmp_path / "d.zarr")
        assert (reader.samples, coordinator.published) == (4, 4)
        assert coordinator.publish() == 8
        assert reader.refresh() == 8


def test_a_block_of_which_only_some_records_became_durable_is_not_committed(tmp_path, monkeypatch):
    schema, plan = Schema((), (), (Field("u", (), ()),)), ChunkPlan("train", 4100, 1000)
    coordinator, writer = open_new(tmp_path / "d.zarr", plan, schema)
    store_and_commit(writer, coordinator, schema, [3, 4])  # block 4 has rows on both sides of 4096
    real = os.replace

    def full(source, target):
        if str(target).endswith("outcome/c/1"):
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(DatasetError, match="No space left on device"):
        coordinator.close()
    monkeypatch.setattr(os, "replace", real)
    with pytest.raises(DatasetError, match=r"sample 4099 of .* is not committed"):
        DatasetReader(tmp_path / "d.zarr").read_block(4)
    with DatasetCoordinator.open(tmp_path / "d.zarr") as coordinator:
        assert coordinator.committed.tolist() == [3]


def test_a_second_coordinator_is_refused_until_the_first_has_closed(tmp_path):
    path = make_dataset(tmp_path / "d.zarr", STATIONARY, PLAN, chunks=[0])
    with (
        DatasetCoordinator.open(path),
        pytest.raises(DatasetError, match=r"another process is writing .*d.zarr; wait for"),
    ):
        DatasetCoordinator.open(path)
    DatasetCoordinator.open(path).close()


def test_a_coordinator_in_another_process_is_refused_as_well(tmp_path):
    path = make_dataset(tmp_path / "d.zarr", STATIONARY, PLAN, chunks=[0])
    program = "import sys; from forebay.pipeline.dataset import DatasetCoordinator as C; C.open(sys.argv[1])"
    with DatasetCoordinator.open(path):
        done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True)
    assert done.returncode == 1
    assert "DatasetError: another process is writing" in done.stderr


def test_a_failing_open_lets_go_of_the_lock(tmp_path):
    path = make_dataset(tmp_path / "d.zarr", STATIONARY, PLAN, chunks=[0])
    with pytest.raises(DatasetError, match="was made with"):
        DatasetCoordinator.open(path, STATIONARY, ChunkPlan("train", 11, 5))
    DatasetCoordinator.open(path).close()


def test_closing_publishes_and_may_happen_twice(tmp_path):
    coordinator, writer = open_new(tmp_path / "d.zarr")
    store_and_commit(writer, coordinator, STATIONARY, [0])
    coordinator.close()
    coordinator.close()
    assert DatasetReader(tmp_path / "d.zarr").samples == 4


# --- bad input -------------------------------------------------------------------------------------------------------


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
    document.write_text(text.replace('"format": 1', '"format": 7'))
    with pytest.raises(DatasetError, match="has format 7, this Forebay reads up to 1; upgrade Forebay"):
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


# --- any sequence of operations against a plain model ----------------------------------------------------------------


class AnyOrder(RuleBasedStateMachine):
    """Stores, commits, publishes and reopens in any order; the model is two sets of block numbers and a count."""

    folder = None

    @initialize()
    def create(self):
        AnyOrder.runs = getattr(AnyOrder, "runs", 0) + 1
        self.path = AnyOrder.folder / f"{AnyOrder.runs}.zarr"
        self.coordinator, self.writer = open_new(self.path, schema=TRANSIENT)
        self.stored, self.committed, self.durable, self.visible = set(), set(), set(), 0

    @rule(chunk=st.integers(0, 2))
    def store(self, chunk):
        self.writer.store(make_block(TRANSIENT, PLAN, chunk, failing=(5,)))
        self.stored.add(chunk)

    @rule(chunk=st.integers(0, 2))
    def commit(self, chunk):
        block = make_block(TRANSIENT, PLAN, chunk, failing=(5,))
        if chunk in self.stored:
            news = self.coordinator.commit(chunk, block.records, block.arrays["parameters"])
            assert news == (chunk not in self.committed)
            self.committed.add(chunk)
        else:
            with pytest.raises(DatasetError, match="store the block first"):
                self.coordinator.commit(chunk, block.records, block.arrays["parameters"])

    @rule()
    def publish(self):
        self.durable = set(self.committed)
        prefix = next((c for c in range(3) if c not in self.committed), 3)
        self.visible = min(4 * prefix, 11)
        assert self.coordinator.publish() == self.visible

    @rule(gracefully=st.booleans())
    def reopen(self, gracefully):
        if gracefully:
            self.publish()
            self.coordinator.close()
        else:
            os.close(self.coordinator._lock)  # what the kernel does when the process dies
            self.committed = set(self.durable)
        self.coordinator = DatasetCoordinator.open(self.path, TRANSIENT, PLAN)
        assert set(self.coordinator.committed.tolist()) == self.committed

    @precondition(lambda self: hasattr(self, "path"))
    @invariant()
    def readers_see_exactly_the_published_prefix(self):
        reader = DatasetReader(self.path)
        assert reader.samples == self.visible
        assert reader.column("sample_id").tolist() == list(range(self.visible))
        stored = reader.column("temperature")
        for i in range(self.visible):
            made = sample_arrays(TRANSIENT, i, failed=i == 5)["temperature"]
            assert stored[i].tobytes() == made.tobytes()
        for chunk in self.durable:
            assert reader.read_block(chunk).records == make_block(TRANSIENT, PLAN, chunk, failing=(5,)).records

    def teardown(self):
        if hasattr(self, "coordinator") and self.coordinator._lock is not None:
            self.coordinator.close()


def test_any_order_of_storing_committing_publishing_and_crashing_agrees_with_the_model(tmp_path):
    AnyOrder.folder = tmp_path
    AnyOrder.TestCase.settings = settings(
        max_examples=25, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
    )
    result = AnyOrder.TestCase("runTest")
    result.runTest()

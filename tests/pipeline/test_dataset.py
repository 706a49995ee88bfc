import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys

import pytest
from dataset_samples import (
    ATTRIBUTES,
    make_block,
    make_dataset,
    stationary_schema,
    store_and_commit,
    transient_schema,
    without_fsync,
)

from forebay.pipeline.dataset import DatasetCoordinator, DatasetReader, DatasetWriter
from forebay.pipeline.errors import DatasetError
from forebay.pipeline.records import ChunkPlan, Field, Schema
from forebay.pipeline.verify import dataset_info, verify

STATIONARY = stationary_schema()
TRANSIENT = transient_schema()
PLAN = ChunkPlan("train", 11, 4)
RECORDS = ["seed", "outcome", "method", "iterations", "residual", "seconds", "indicator", "estimate", "valid"]


@pytest.fixture(autouse=True)
def _no_fsync():
    with without_fsync():
        yield


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


def test_a_reduced_sample_keeps_its_indicator_and_estimate_and_others_have_none(tmp_path):
    coordinator, writer = open_new(tmp_path / "d.zarr")
    block = make_block(STATIONARY, PLAN, 0)
    reduced = dataclasses.replace(block.records[1], method="rom", indicator=0.25, estimate=0.0125)
    records = [block.records[0], reduced, *block.records[2:]]
    with coordinator:
        writer.store(block)
        coordinator.commit(0, records, block.arrays["parameters"])
        coordinator.publish()
    reader = DatasetReader(tmp_path / "d.zarr")
    assert reader.read_block(0).records == records
    assert reader.column("estimate")[1] == 0.0125
    rows = {row.name: row for row in dataset_info(tmp_path / "d.zarr").methods}
    assert rows["rom"].estimate_max == 0.0125
    assert math.isnan(rows[records[0].method].estimate_max)


def test_a_data_set_of_format_1_is_read_and_continued_without_the_newer_columns(tmp_path):
    path = make_dataset(tmp_path / "d.zarr", STATIONARY, PLAN, chunks=[0])
    as_format_1(path)
    assert DatasetReader(path).read_block(0).records == make_block(STATIONARY, PLAN, 0).records
    with DatasetCoordinator.open(path, STATIONARY, PLAN) as coordinator:
        store_and_commit(DatasetWriter(path, STATIONARY, PLAN), coordinator, STATIONARY, [1, 2])
        assert coordinator.publish() == 11
    assert not (path / "estimate").exists()
    assert [f for f in verify(path).findings if not f.flaw.is_note] == []
    assert math.isnan(dataset_info(path).methods[0].estimate_max)


def as_format_1(path):
    """What a data set was before reduced models had columns."""
    document = json.loads((path / "zarr.json").read_text())
    document["attributes"]["forebay"]["format"] = 1
    for name in ("indicator", "estimate"):
        del document["consolidated_metadata"]["metadata"][name]
        shutil.rmtree(path / name)
    (path / "zarr.json").write_text(json.dumps(document))


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
    assert written.index("outcome/c/2") == len(chunk_files) - 1, (
        "the outcome vouches for the other records, so it is their last"
    )


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

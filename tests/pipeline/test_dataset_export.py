import dataclasses
import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading

import h5py
import numpy as np
import pytest
import tensorstore
import xarray as xr
from dataset_samples import (
    make_dataset,
    sample_arrays,
    sample_record,
    stationary_schema,
    transient_schema,
    without_fsync,
)
from well_format import problems_of

from forebay.pipeline import dataset_export
from forebay.pipeline.dataset import DatasetCoordinator, DatasetReader
from forebay.pipeline.dataset_export import ExportOptions, export
from forebay.pipeline.errors import DatasetError
from forebay.pipeline.records import ChunkPlan, Coordinate, Field, Parameter, Schema
from forebay.pipeline.verify import verify

FAILING = (3, 8)
VALID = [i for i in range(11) if i not in FAILING]


def grid_schema(times=()):
    """Scalars, a vector, a tensor, a number and a profile on a grid that is not square."""
    x, y = np.linspace(0.125, 0.875, 4), np.linspace(0.1, 0.9, 5)
    return Schema(
        parameters=(Parameter("mean", 1.0, 2.0, "m2"), Parameter("rate", 0.1, 10.0)),
        inputs=(Field("a", ("y", "x"), (5, 4), "m2", "coefficient"), Field("inflow", ("y",), (5,), "m/s")),
        outputs=(
            Field("u", ("y", "x"), (5, 4), "K"),
            Field("flow", ("y", "x", "component"), (5, 4, 2), "m/s"),
            Field("stress", ("component_i", "component_j", "y", "x"), (2, 2, 5, 4), "Pa"),
            Field("flux", (), (), "W"),
        ),
        coordinates=(Coordinate("x", ("x",), x, "m"), Coordinate("y", ("y",), y, "m")),
        times=times,
        boundary_conditions="u = 0 on all sides",
    )


def make_run(folder, schema):
    with without_fsync():
        make_dataset(folder / "dataset.zarr", schema, ChunkPlan("train", 11, 4), failing=FAILING)
        make_dataset(folder / "validation.zarr", schema, ChunkPlan("validation", 5, 4))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("stationary"), grid_schema())


@pytest.fixture(scope="module")
def timed(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("timed"), grid_schema((0.5, 1.0, 1.5)))


@pytest.fixture(autouse=True)
def _no_fsync():
    with without_fsync():
        yield


def expected(schema, name, ids=VALID, failing=()):
    return np.stack([sample_arrays(schema, i, i in failing)[name] for i in ids])


def left_behind(folder):
    return sorted(path.name for path in folder.iterdir())


# -- The Well ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["run", "timed"])
def test_the_wells_files_have_every_group_and_attribute_of_its_specification(request, kind, tmp_path):
    done = export(request.getfixturevalue(kind), tmp_path / "out", ExportOptions("well"))
    assert (done.samples, done.left_out) == ({"train": 9, "validation": 5}, 2)
    for split, count in (("train", 9), ("valid", 5)):
        with h5py.File(tmp_path / "out/data" / split / "trial.hdf5") as file:
            assert problems_of(file) == []
            assert file.attrs["n_trajectories"] == count
            assert file["boundary_conditions/x_boundary"].attrs["description"] == "u = 0 on all sides"


def test_the_wells_fields_are_bit_equal_with_axes_in_the_order_of_their_components(timed, tmp_path):
    export(timed, tmp_path / "out", ExportOptions("well", boundary="periodic"))
    schema = grid_schema((0.5, 1.0, 1.5))
    with h5py.File(tmp_path / "out/data/train/trial.hdf5") as file:
        assert file["dimensions"].attrs["spatial_dims"].tolist() == ["x", "y"]
        assert file["dimensions/time"][:].tolist() == [0.5, 1.0, 1.5]
        axes = {"t0_fields/u": (0, 1, 3, 2), "t1_fields/flow": (0, 1, 3, 2, 4), "t2_fields/stress": (0, 1, 5, 4, 2, 3)}
        for path, order in axes.items():
            wanted = expected(schema, path.split("/")[1]).transpose(order)
            assert file[path][:].tobytes() == np.ascontiguousarray(wanted).tobytes(), path
            assert file[path].attrs["time_varying"]
        assert file["t0_fields/a"][:].tobytes() == expected(schema, "a").transpose(0, 2, 1).tobytes()
        assert file["t0_fields/a"].attrs["units"] == "m2"
        assert not file["t0_fields/a"].attrs["time_varying"]
        assert file["t0_fields/inflow"].attrs["dim_varying"].tolist() == [False, True]
        assert file["t0_fields/inflow"][:].tobytes() == expected(schema, "inflow").tobytes()
        assert file["scalars"].attrs["field_names"].tolist() == ["mean", "rate", "flux"]
        assert file["scalars/flux"][:].tobytes() == expected(schema, "flux").tobytes()
        assert file["scalars/rate"][:].tolist() == expected(schema, "parameters")[:, 1].astype(np.float32).tolist()
        assert file["boundary_conditions/y_boundary"].attrs["bc_type"] == "periodic"
        assert file["boundary_conditions/y_boundary/mask"][:].tolist() == [True, False, False, False, True]


def test_the_wells_files_carry_records_parameters_and_attributes_exactly(run, tmp_path):
    export(run / "dataset.zarr", tmp_path / "out", ExportOptions("well", everything=True))
    with h5py.File(tmp_path / "out/data/train/trial.hdf5") as file:
        ours = file["forebay"]
        assert ours["sample_id"][:].tolist() == list(range(11))
        assert ours["parameters"][:].tobytes() == expected(grid_schema(), "parameters", range(11)).tobytes()
        assert ours["seed"][:].tolist() == [sample_record(i).seed for i in range(11)]
        assert ours["outcome"][:].tolist() == [int(sample_record(i, i in FAILING).outcome) for i in range(11)]
        assert "cg+gamg" in ours["method"].attrs["flag_meanings"]
        assert json.loads(ours["attributes"][()])["study"]["solver"] == {"rtol": 1e-8}
        assert np.isnan(file["t0_fields/u"][3]).all()
        assert file["t0_fields/u"].shape == (11, 1, 4, 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, r"dimension 'node' has no coordinate of its own; export it as repacked or icechunk"),
        ({"inputs": (), "outputs": (Field("q", (), ()),), "coordinates": ()}, "but its fields have no axes"),
        (
            {
                "inputs": (Field("a", ("x",), (3,)),),
                "outputs": (),
                "coordinates": (Coordinate("x", ("x",), np.array([0.0, 1, 3])),),
            },
            r"coordinate 'x' has spacings from 1 to 2; export",
        ),
        (
            {
                "inputs": (Field("a", ("x", "component"), (3, 2)),),
                "outputs": (),
                "coordinates": (Coordinate("x", ("x",), np.linspace(0, 1, 3)),),
            },
            r"field 'a' of shape \(3, 2\) is no scalar, vector or tensor in 1 dimensions",
        ),
    ],
)
def test_what_the_well_cannot_hold_is_refused_with_a_format_that_can(tmp_path, change, message):
    schema = dataclasses.replace(transient_schema(), **change)
    path = make_dataset(tmp_path / "d.zarr", schema, ChunkPlan("train", 11, 4))
    with pytest.raises(DatasetError, match=message):
        export(path, tmp_path / "out", ExportOptions("well"))
    assert left_behind(tmp_path) == ["d.zarr"]


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (grid_schema((0.5, 1.0, 2.0)), "stored times has spacings from 0.5 to 1"),
        (
            dataclasses.replace(grid_schema(), parameters=(Parameter("a/../b", 0, 1),)),
            "parameter 'a/../b' cannot be the name of one HDF5 data set",
        ),
    ],
)
def test_times_and_names_that_hdf5_or_the_well_cannot_hold_are_refused(tmp_path, schema, message):
    path = make_dataset(tmp_path / "d.zarr", schema, ChunkPlan("train", 4, 4))
    with pytest.raises(DatasetError, match=message):
        export(path, tmp_path / "out", ExportOptions("well"))


# -- Icechunk ----------------------------------------------------------------------------------------------------------


def test_icechunk_has_one_snapshot_with_the_same_arrays_and_attributes(run, tmp_path):
    icechunk = pytest.importorskip("icechunk")
    export(run, tmp_path / "out", ExportOptions("icechunk", everything=True, compression="zstd"))
    repository = icechunk.Repository.open(icechunk.local_filesystem_storage(str(tmp_path / "out")))
    history = list(repository.ancestry(branch="main"))
    assert history[0].message.startswith("11 train samples, 5 validation samples of stationary")
    assert len(history) == 2, "the repository's own first one, and ours"
    store = repository.readonly_session("main").store
    for group, folder in (("train", "dataset.zarr"), ("validation", "validation.zarr")):
        copy, source = xr.open_zarr(store, group=group, consolidated=False), xr.open_zarr(run / folder)
        assert copy.attrs == {k: v for k, v in source.attrs.items() if k != "card"}
        xr.testing.assert_identical(copy.drop_attrs(deep=False), source.drop_attrs(deep=False))
        for name in source.variables:
            assert copy[name].values.tobytes() == source[name].values.tobytes(), name


def test_a_library_that_is_missing_is_named(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "icechunk", None)
    with pytest.raises(DatasetError, match=r"needs icechunk, which is not installed: pip install 'forebay\[export\]'"):
        export(run, tmp_path / "out", ExportOptions("icechunk"))
    monkeypatch.delitem(sys.modules, "forebay.pipeline.dataset_export_well", raising=False)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(DatasetError, match="needs h5py"):
        export(run, tmp_path / "out", ExportOptions("well"))
    assert left_behind(tmp_path) == []


# -- repacked ----------------------------------------------------------------------------------------------------------

PACKINGS = [
    ExportOptions("repacked"),
    ExportOptions("repacked", chunk_samples=1),
    ExportOptions("repacked", chunk_samples=2, shard_samples=6, compression="zstd", level=1),
    ExportOptions("repacked", chunk_samples=3, compression="blosc"),
    ExportOptions("repacked", compression="gzip", everything=True),
    ExportOptions("repacked", chunk_samples=1, everything=True),
]


@pytest.mark.parametrize("options", PACKINGS)
def test_a_repacked_copy_is_bit_equal_for_us_for_xarray_and_for_tensorstore(timed, tmp_path, options):
    export(timed, tmp_path / "out", options)
    schema = grid_schema((0.5, 1.0, 1.5))
    ids = list(range(11)) if options.everything else VALID
    path = tmp_path / "out" / "dataset.zarr"
    reader, ds = DatasetReader(path), xr.open_zarr(path)
    for name in ("a", "u", "stress", "flux", "parameters"):
        wanted = expected(schema, name, ids, FAILING if name != "parameters" else ()).tobytes()
        assert reader.column(name).tobytes() == wanted, name
        assert ds[name].values.tobytes() == wanted, name
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path / name)}}
        assert tensorstore.open(spec, open=True).result().read().result().tobytes() == wanted, name
    assert reader.column("sample_id").tolist() == ids
    assert reader.methods == DatasetReader(timed / "dataset.zarr").methods
    assert ds.attrs.get("selection") == (None if options.everything else "valid")
    assert ds.x.values.tolist() == np.linspace(0.125, 0.875, 4).tolist()
    assert (path / "README.md").read_text().startswith("# trial: train split")
    report = verify(path)
    assert report.ok, report.lines()


def test_chunks_shards_and_compression_are_those_that_were_asked_for(run, tmp_path):
    export(run, tmp_path / "out", PACKINGS[2])
    document = json.loads((tmp_path / "out/dataset.zarr/u/zarr.json").read_text())
    assert document["chunk_grid"]["configuration"]["chunk_shape"] == [6, 5, 4]
    (sharding,) = document["codecs"]
    assert sharding["configuration"]["chunk_shape"] == [2, 5, 4]
    assert sharding["configuration"]["codecs"][-1] == {"name": "zstd", "configuration": {"level": 1, "checksum": False}}
    files = [path for path in (tmp_path / "out/dataset.zarr/u/c").rglob("*") if path.is_file()]
    assert len(files) == 2


def test_frames_of_a_repacked_selection_are_those_of_the_source(timed, tmp_path):
    export(timed, tmp_path / "out", PACKINGS[2])
    source, copy = DatasetReader(timed / "dataset.zarr"), DatasetReader(tmp_path / "out/dataset.zarr")
    assert len(copy) == len(source) == 27
    for name, values in source[np.arange(27)].items():
        assert copy[np.arange(27)][name].tobytes() == values.tobytes(), name


def test_nothing_can_be_added_to_an_exported_copy(run, tmp_path):
    export(run, tmp_path / "a", ExportOptions("repacked"))
    export(run, tmp_path / "b", ExportOptions("repacked", compression="zstd", everything=True))
    for folder, what in (("a", "valid"), ("b", "a, flow, flux, inflow")):
        with pytest.raises(DatasetError, match=rf"is an exported copy \({what}.*continue the run that it was exported"):
            DatasetCoordinator.open(tmp_path / folder / "dataset.zarr")


def test_a_run_that_goes_on_is_exported_as_far_as_it_is_published(tmp_path):
    schema = stationary_schema()
    path = make_dataset(tmp_path / "d.zarr", schema, ChunkPlan("train", 11, 4), chunks=[0, 2])
    done = export(path, tmp_path / "out", ExportOptions("repacked"))
    assert done.samples == {"train": 4}
    assert DatasetReader(tmp_path / "out/dataset.zarr").plan.samples == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shard_samples": 3, "chunk_samples": 2}, "chunks of 2 samples in shards of 3: a shard holds a whole number"),
        ({"shard_samples": 1, "chunk_samples": 2}, "chunks of 2 samples in shards of 1"),
        ({"chunk_samples": -1}, "chunks of -1 samples"),
        ({"chunk_samples": 0}, "chunks of 0 samples"),
        ({"level": 3}, "level 3 without a compression"),
        ({"compression": "gzip", "level": 22}, "gzip has levels 0 to 9, not 22"),
        ({"chunk_samples": 2**40}, "one file would need .* bytes of memory"),
        ({"boundary": "open"}, "boundary = 'open' is for the format well"),
        ({"format": "netcdf"}, "format 'netcdf' is not one of well, icechunk, repacked"),
        ({"format": "well", "compression": "zstd"}, "The Well's files have none"),
    ],
)
def test_options_that_make_no_sense_are_refused_before_anything_is_written(run, tmp_path, options, message):
    with pytest.raises(DatasetError, match=message):
        export(run, tmp_path / "out", ExportOptions(**{"format": "repacked"} | options))
    assert left_behind(tmp_path) == []


# -- the target --------------------------------------------------------------------------------------------------------

REPACKED = ExportOptions("repacked")


def test_an_existing_target_is_never_overwritten(run, tmp_path):
    (tmp_path / "empty").mkdir()
    export(run, tmp_path / "empty", REPACKED)
    (tmp_path / "file").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("empty", "file", "link"):
        with pytest.raises(DatasetError, match=rf"{name} exists and is not overwritten"):
            export(run, tmp_path / name, REPACKED)
    assert (tmp_path / "file").read_text() == "precious"


def test_a_target_inside_of_the_source_is_refused(run):
    with pytest.raises(DatasetError, match="lies in the data set"):
        export(run, run / "dataset.zarr" / "copy", REPACKED)
    assert "copy" not in left_behind(run / "dataset.zarr")


def test_a_target_below_a_file_is_told(run, tmp_path):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(DatasetError, match=r"cannot export to .*out: (Not a directory|File exists); nothing is left"):
        export(run, tmp_path / "file" / "out", REPACKED)
    assert left_behind(tmp_path) == ["file"]


def test_a_target_that_comes_into_being_meanwhile_is_kept(run, tmp_path):
    def progress(done, total):
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / "precious").write_text("x")

    with pytest.raises(DatasetError, match="has come into being meanwhile and is not overwritten"):
        export(run, tmp_path / "out", REPACKED, progress)
    assert left_behind(tmp_path) == ["out"]
    assert left_behind(tmp_path / "out") == ["precious"]


def test_too_little_space_is_told_before_anything_is_written(run, tmp_path, monkeypatch):
    usage = dataclasses.make_dataclass("usage", ["free"])
    monkeypatch.setattr(dataset_export.shutil, "disk_usage", lambda path: usage(1000))
    with pytest.raises(DatasetError, match=r"out needs up to \d+ bytes, .* has 1000 free; make room"):
        export(run, tmp_path / "out", REPACKED)
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), r"No space left on device; nothing is left of it"),
        (KeyboardInterrupt("enough"), "enough"),
    ],
)
@pytest.mark.parametrize("format", ["well", "icechunk", "repacked"])
def test_a_failure_in_the_middle_leaves_nothing_behind(run, tmp_path, format, error, message):
    def progress(done, total):
        if done > total / 2:
            raise error

    with pytest.raises((DatasetError, KeyboardInterrupt), match=message):
        export(run, tmp_path / "out", ExportOptions(format), progress)
    assert left_behind(tmp_path) == []


def test_what_a_killed_export_left_is_removed_by_the_next(run, tmp_path):
    program = (
        "import os, signal, sys\n"
        "from forebay.pipeline.dataset_export import ExportOptions, export\n"
        "def die(done, total): os.kill(os.getpid(), signal.SIGKILL)\n"
        "export(sys.argv[1], sys.argv[2], ExportOptions('repacked'), die)\n"
    )
    killed = subprocess.run([sys.executable, "-c", program, run, tmp_path / "out"], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert left_behind(tmp_path) == [".out.export.tmp"]
    export(run, tmp_path / "out", REPACKED)
    assert left_behind(tmp_path) == ["out"]
    assert verify(tmp_path / "out/dataset.zarr").ok


def test_two_exports_to_one_target_do_not_meet(run, tmp_path):
    building = tmp_path / ".out.export.tmp"
    building.mkdir()
    held = os.open(building, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    try:
        with pytest.raises(DatasetError, match=r"another process is exporting into .*\.out\.export\.tmp"):
            export(run, tmp_path / "out", REPACKED)
        assert building.exists()
    finally:
        os.close(held)


def test_progress_reaches_the_whole_and_grows(run, tmp_path):
    told = []
    export(run, tmp_path / "out", REPACKED, lambda done, total: told.append((done, total)))
    done, totals = zip(*told, strict=True)
    assert set(totals) == {(9 + 5) * grid_schema().sample_nbytes}
    assert list(done) == sorted(done)
    assert done[-1] == totals[0]


def test_everything_is_durable_before_it_has_its_name(run, tmp_path, monkeypatch):
    synced, lock = set(), threading.Lock()

    def fsync(descriptor):
        with lock:
            synced.add(os.readlink(f"/proc/self/fd/{descriptor}"))

    monkeypatch.setattr(os, "fsync", fsync)
    export(run, tmp_path / "out", REPACKED)
    written = [path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert {str(tmp_path / ".out.export.tmp" / path) for path in written} <= synced
    assert str(tmp_path) in synced


def test_a_data_set_without_valid_samples_is_told(tmp_path):
    path = make_dataset(tmp_path / "d.zarr", stationary_schema(), ChunkPlan("train", 4, 4), failing=range(4))
    with pytest.raises(DatasetError, match=r"d.zarr has no valid samples yet"):
        export(path, tmp_path / "out", REPACKED)
    with pytest.raises(DatasetError, match="neither a data set nor a run folder"):
        export(tmp_path, tmp_path / "out", REPACKED)

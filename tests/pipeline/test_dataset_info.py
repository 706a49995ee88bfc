"""What `forebay dataset info` says of a data set."""

import numpy as np
import pytest
from dataset_samples import make_dataset, stationary_schema, transient_schema, without_fsync

from forebay.pipeline.dataset_info import bytes_text
from forebay.pipeline.records import ChunkPlan
from forebay.pipeline.verify import dataset_info

SCHEMA = stationary_schema()
PLAN = ChunkPlan("train", 11, 4)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    with without_fsync():
        return make_dataset(tmp_path_factory.mktemp("pristine") / "d.zarr", SCHEMA, PLAN, failing=(2, 9))


def test_info_counts_what_is_there(pristine):
    info = dataset_info(pristine)
    assert (info.split, info.samples, info.planned, info.valid, info.complete) == ("train", 11, 11, 9, True)
    assert info.outcomes == {"converged": 9, "diverged": 2}
    assert info.parameters == ("mean", "scale")
    assert {f.name: (f.role, f.dims, f.shape, f.units, f.nbytes) for f in info.fields} == {
        "a": ("input", ("sample", "y", "x"), (11, 4, 3), "m2", 528),
        "u": ("output", ("sample", "y", "x"), (11, 4, 3), "K", 528),
        "flux": ("output", ("sample",), (11,), "W", 44),
    }
    direct, krylov = info.methods
    assert (direct.name, direct.count, direct.valid, direct.iterations_max) == ("direct:petsc-cholesky", 6, 5, 0)
    assert (krylov.name, krylov.count, krylov.valid, krylov.iterations_mean) == ("cg+gamg", 5, 4, 3.0)
    assert direct.residual_max == 1e-9 + 1e-12 * 10, "the failed sample's residual of 0.5 does not count"
    assert info.residual_max == direct.residual_max
    assert info.solver_seconds == pytest.approx(11 * 0.002, rel=1e-12)
    files = [f for f in pristine.rglob("*") if f.is_file()]
    assert info.disk_bytes == sum(len(f.read_bytes()) for f in files)


def test_info_of_an_empty_and_of_a_timed_data_set(tmp_path):
    with without_fsync():
        empty = dataset_info(make_dataset(tmp_path / "e.zarr", SCHEMA, PLAN, chunks=[]))
        timed = dataset_info(make_dataset(tmp_path / "t.zarr", transient_schema(), PLAN, chunks=[0]))
    assert (empty.samples, empty.valid, empty.outcomes, empty.methods) == (0, 0, {}, ())
    assert np.isnan(empty.residual_max)
    assert not empty.complete
    assert (timed.steps, timed.fields[1].dims, timed.fields[1].shape) == (3, ("sample", "time", "node"), (4, 3, 5))


def test_info_reads_as_labelled_lines(pristine):
    rows = dict(dataset_info(pristine).rows())
    assert rows["samples"] == "11 of 11 planned, 9 valid"
    assert rows["output u"] == "(sample 11, y 4, x 3) [K], 528 B"
    assert rows["outcomes"] == "converged 9, diverged 2"
    assert rows["method cg+gamg"].startswith(
        "5 samples, 4 valid; iterations 3.0 on average, 3 at most; 2.00 ms a sample"
    )


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 * 2**30, "5.0 GiB"), (2**50, "1024.0 TiB")]
)
def test_bytes_are_told_in_binary_units(count, text):
    assert bytes_text(count) == text

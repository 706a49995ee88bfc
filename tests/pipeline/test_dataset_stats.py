import json
import os
import subprocess
import sys

import numpy as np
import pytest
from dataset_samples import (
    ATTRIBUTES,
    make_dataset,
    sample_arrays,
    sample_record,
    stationary_schema,
    transient_schema,
    without_fsync,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from forebay.pipeline.dataset import DatasetCoordinator, DatasetWriter
from forebay.pipeline.dataset_moments import PERCENTILES, Moments
from forebay.pipeline.dataset_spectrum import Wavenumbers
from forebay.pipeline.dataset_stats import dataset_stats
from forebay.pipeline.errors import DatasetError
from forebay.pipeline.records import Block, ChunkPlan, Coordinate, Field, Schema

FAILING = (2, 9)
VALID = [i for i in range(11) if i not in FAILING]
PLAN = ChunkPlan("train", 11, 4)


@pytest.fixture(autouse=True)
def _no_fsync():
    with without_fsync():
        yield


def grid_schema(shape, sides, *, trailing=()):
    """One field u on a grid of cell centres, with sides of these lengths."""
    names = ("z", "y", "x")[-len(shape) :]
    lines = [(np.arange(n) + 0.5) * side / n for n, side in zip(shape, sides, strict=True)]
    coordinates = tuple(Coordinate(d, (d,), line, "m") for d, line in zip(names, lines, strict=True))
    components = tuple(f"component_{k}" for k in range(len(trailing)))
    return Schema((), (), (Field("u", names + components, (*shape, *trailing)),), coordinates)


# -- a data set --------------------------------------------------------------------------------------------------------


def test_fields_are_summed_up_over_valid_samples_all_steps_and_all_points(tmp_path):
    schema = transient_schema()
    stats = dataset_stats(make_dataset(tmp_path / "d.zarr", schema, PLAN, failing=FAILING))
    assert (stats.split, stats.samples, stats.valid, stats.steps) == ("train", 11, 9, 3)
    for item, name, role in zip(stats.fields, ("source", "temperature"), ("input", "output"), strict=True):
        values = np.stack([sample_arrays(schema, i)[name] for i in VALID]).astype(np.float64)
        assert (item.name, item.role, item.values) == (name, role, values.size)
        assert item.mean == pytest.approx(values.mean(), rel=1e-9, abs=1e-12)
        assert item.std == pytest.approx(values.std(), rel=1e-9)
        assert (item.minimum, item.maximum) == (values.min(), values.max())
        assert item.percentiles["50"] == pytest.approx(np.median(values), abs=0.05)
        assert item.spectrum is None, "a mesh has none"


def test_parameters_stand_beside_the_range_they_were_drawn_from(tmp_path):
    schema = stationary_schema()
    stats = dataset_stats(make_dataset(tmp_path / "d.zarr", schema, PLAN, failing=FAILING))
    values = np.stack([sample_arrays(schema, i)["parameters"] for i in VALID])
    mean, scale = stats.parameters
    assert (scale.name, scale.low, scale.high, scale.distribution) == ("scale", 0.1, 10.0, "log_uniform")
    assert (mean.minimum, mean.maximum) == (values[:, 0].min(), values[:, 0].max())
    assert (scale.mean, scale.std) == (pytest.approx(values[:, 1].mean()), pytest.approx(values[:, 1].std()))


def test_outcomes_are_counted_by_the_method_that_led_to_them(tmp_path):
    stats = dataset_stats(make_dataset(tmp_path / "d.zarr", stationary_schema(), PLAN, failing=FAILING))
    assert stats.outcomes == {
        "direct:petsc-cholesky": {"converged": 5, "diverged": 1},
        "cg+gamg": {"converged": 4, "diverged": 1},
    }


@pytest.mark.parametrize("chunks", [[], [0]])
def test_a_data_set_without_valid_samples_has_no_numbers_but_strict_json(tmp_path, chunks):
    path = make_dataset(tmp_path / "d.zarr", stationary_schema(), PLAN, chunks=chunks, failing=range(4))
    tree = dataset_stats(path).to_dict()
    json.dumps(tree, allow_nan=False)
    assert tree["samples"] == 4 * len(chunks)
    assert [(item["values"], item["mean"], item["spectrum"]) for item in tree["fields"]] == [(0, None, None)] * 3
    assert tree["parameters"][0]["minimum"] is None


def test_a_valid_sample_that_is_not_finite_is_told(tmp_path):
    path = make_dataset(tmp_path / "d.zarr", stationary_schema(), PLAN)
    values = np.fromfile(path / "u/c/1/0/0", np.float32)
    values[3] = np.inf
    values.tofile(path / "u/c/1/0/0")
    with pytest.raises(DatasetError, match=r"a valid sample among 4 to 7 holds NaN or inf in field 'u'; .*verify"):
        dataset_stats(path)


def test_the_memory_needed_does_not_grow_with_the_data_set(tmp_path):
    """128 MiB of fields, in a process that may grow by half of that."""
    schema = grid_schema((128, 128), (1.0, 1.0))
    plan = ChunkPlan("train", 2048, 64)
    u = np.random.default_rng(13).standard_normal((64, 128, 128), np.float32)
    with DatasetCoordinator.create(tmp_path / "d.zarr", schema, plan, ATTRIBUTES) as coordinator:
        writer = DatasetWriter(tmp_path / "d.zarr", schema, plan)
        for chunk in range(plan.chunks):
            ids = plan.sample_ids(chunk)
            block = Block(
                "train", chunk, ids, {"parameters": np.empty((64, 0)), "u": u}, list(map(sample_record, ids.tolist()))
            )
            writer.store(block)
            coordinator.commit(chunk, block.records, block.arrays["parameters"])
    program = (
        "import sys\n"
        "from forebay.pipeline.dataset_stats import dataset_stats\n"
        "def resident(key): return next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith(key))\n"
        "before = resident('VmRSS'); open('/proc/self/clear_refs', 'w').write('5')\n"
        "stats = dataset_stats(sys.argv[1]); print(stats.fields[0].values, resident('VmHWM') - before)\n"
    )
    command = [sys.executable, "-c", program, tmp_path / "d.zarr"]
    environment = os.environ | {"DASK_NUM_WORKERS": "2", "MALLOC_ARENA_MAX": "2"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    values, grown = map(int, done.stdout.split())
    assert values == 2048 * 128 * 128
    assert grown < 64 * 1024, f"grew by {grown} KiB"


# -- moments -----------------------------------------------------------------------------------------------------------

floats = hnp.arrays(
    np.float32,
    st.integers(1, 200),
    elements=st.floats(-(2.0**90), 2.0**90, width=32, allow_nan=False, allow_subnormal=False),
)


@settings(max_examples=60, deadline=None)
@given(values=floats, cut=st.integers(0, 200))
def test_merged_parts_are_as_if_seen_together(values, cut):
    whole, parts = Moments.of(values), Moments.of(values[:cut]).merged(Moments.of(values[cut:]))
    scale = float(np.abs(values).max()) or 1.0
    assert parts.count == whole.count
    assert parts.mean / scale == pytest.approx(whole.mean / scale, abs=1e-12)
    assert parts.std / scale == pytest.approx(whole.std / scale, abs=1e-7)
    assert (parts.minimum, parts.maximum) == (whole.minimum, whole.maximum)
    assert parts.percentiles() == whole.percentiles()


@settings(max_examples=60, deadline=None)
@given(values=floats)
def test_every_percentile_is_within_a_bucket_of_a_value_of_that_rank(values):
    ordered = np.sort(values.astype(np.float64))
    for q, found in zip(PERCENTILES, Moments.of(values).percentiles(), strict=True):
        wanted = ordered[int(np.floor(q / 100 * (len(values) - 1)))]
        assert found == pytest.approx(wanted, rel=0.008, abs=1e-38)


def test_percentiles_of_many_values_are_much_better_than_a_bucket():
    values = np.random.default_rng(11).lognormal(0, 3, 200_000).astype(np.float32)
    for q, found in zip(PERCENTILES, Moments.of(values).percentiles(), strict=True):
        assert found == pytest.approx(np.percentile(values, q), rel=2e-3)


def test_the_deviation_of_a_small_part_beside_a_large_mean_is_kept():
    values = (1e4 + np.random.default_rng(7).standard_normal(4000)).astype(np.float32)
    merged = Moments.of(values[:1500]).merged(Moments.of(values[1500:]))
    assert merged.std == pytest.approx(values.astype(np.float64).std(), rel=1e-9)


def test_values_of_one_bucket_are_taken_to_fill_it_evenly():
    values = 1 + (np.arange(10) + 0.5) / 10 * 2**-7
    found = Moments.of(values.astype(np.float32)).percentiles((25.0, 50.0, 75.0))
    assert found == pytest.approx(np.percentile(values, (25, 50, 75)), abs=2e-6)


# -- spectrum ----------------------------------------------------------------------------------------------------------


def spectrum_of(schema, frames):
    numbers = Wavenumbers.of(schema.outputs[0], schema)
    return numbers.spectrum(numbers.power(frames) / len(frames))


@pytest.mark.parametrize(
    ("shape", "sides", "trailing"), [((15,), (2.0,), ()), ((8, 9), (1.0, 1.0), (2,)), ((6, 4, 8), (3.0, 2.0, 4.0), ())]
)
def test_the_spectrum_sums_up_to_the_mean_square_and_begins_with_the_mean(shape, sides, trailing):
    schema = grid_schema(shape, sides, trailing=trailing)
    frames = (2 + np.random.default_rng(7).standard_normal((37, *shape, *trailing))).astype(np.float32)
    found = spectrum_of(schema, frames)
    space = tuple(range(1, 1 + len(shape)))
    squares = np.square(frames.astype(np.float64)).mean(space)
    assert sum(found.energy) == pytest.approx(squares.reshape(37, -1).sum(1).mean(), rel=1e-5)
    means = np.square(frames.astype(np.float64).mean(space))
    assert found.energy[0] == pytest.approx(means.reshape(37, -1).sum(1).mean(), rel=1e-4)
    assert found.wavenumber[1] == pytest.approx(1 / max(sides))
    assert found.units == "1/m"


@pytest.mark.parametrize(("waves", "shell"), [((3, 0), 12), ((0, 5), 5), ((2, 3), 9), ((-1, 2), 4)])
def test_a_plane_wave_is_in_the_shell_of_its_length(waves, shell):
    """On a domain of 0.5 by 2 m, where the shells are 1/2 per metre apart."""
    schema = grid_schema((16, 24), (0.5, 2.0))
    y, x = (c.values for c in schema.coordinates)
    wave = np.cos(2 * np.pi * (waves[0] * y[:, None] / 0.5 + waves[1] * x / 2.0) + 0.3)
    found = spectrum_of(schema, wave[None].astype(np.float32))
    assert found.energy[shell] == pytest.approx(0.5, rel=1e-5)
    assert sum(found.energy) - found.energy[shell] < 1e-10
    assert found.wavenumber[shell] == pytest.approx(shell / 2)


def test_the_spectrum_of_a_data_set_is_the_mean_over_its_valid_frames(tmp_path):
    schema = grid_schema((6, 8), (1.0, 2.0))
    (item,) = dataset_stats(make_dataset(tmp_path / "d.zarr", schema, PLAN, failing=FAILING)).fields
    frames = np.stack([sample_arrays(schema, i)["u"] for i in VALID]).astype(np.float32)
    assert item.spectrum.energy == pytest.approx(spectrum_of(schema, frames).energy, rel=1e-6)
    assert sum(item.spectrum.energy) == pytest.approx(np.square(frames, dtype=np.float64).mean(), rel=1e-6)


@pytest.mark.parametrize(
    "schema",
    [
        transient_schema(),
        Schema((), (), (Field("u", ("x",), (3,)),), (Coordinate("x", ("x",), np.array([0.0, 1.0, 3.0])),)),
        Schema((), (), (Field("u", (), ()),)),
        Schema((), (), (Field("u", ("x", "layer"), (3, 2)),), (Coordinate("x", ("x",), np.arange(3.0)),)),
    ],
)
def test_fields_that_are_not_on_a_uniform_grid_have_no_spectrum(schema):
    assert Wavenumbers.of(schema.outputs[0], schema) is None

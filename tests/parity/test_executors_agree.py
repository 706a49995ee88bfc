"""The Ray executor and its in-process twin keep the same data: same samples, fields equal bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import zarr
from running import events, forebay, write_tiny


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parity")
    for executor in ("local", "ray"):
        result = forebay("run", write_tiny(folder, executor=executor), "--folder", folder / executor)
        assert result.returncode == 0, result.stdout + result.stderr
    return folder / "local", folder / "ray"


@pytest.mark.ray
@pytest.mark.parametrize("name", ["dataset.zarr", "validation.zarr"])
def test_both_executors_keep_bit_equal_data(runs, name):
    local, remote = (zarr.open_group(run / name, mode="r") for run in runs)
    assert sorted(local.array_keys()) == sorted(remote.array_keys())
    for key in local.array_keys():
        if key == "seconds":
            continue  # a measurement
        assert np.array_equal(local[key][:], remote[key][:], equal_nan=local[key].dtype.kind == "f"), key


@pytest.mark.ray
def test_both_executors_solve_every_block_once(runs):
    for run in runs:
        keys = [(e["split"], e["chunk"]) for e in events(run, "block_stored")]
        assert sorted(keys) == sorted({("train", c) for c in range(5)} | {("validation", 0), ("validation", 1)})


@pytest.mark.ray
def test_both_executors_train_the_full_budget_and_improve(runs):
    for run in runs:
        (ended,) = events(run, "training_ended")
        assert ended["batches"] == 30

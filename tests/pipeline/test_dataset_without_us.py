"""The recipes of docs/dataset.md for readers without Forebay, run as they stand in an environment that has none."""

import json
import os
import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import numpy as np
import pytest
from dataset_samples import ATTRIBUTES, sample_record, without_fsync

from forebay.pipeline.dataset import DatasetCoordinator, DatasetReader, DatasetWriter
from forebay.pipeline.records import Block, ChunkPlan, Coordinate, Field, Parameter, Schema

PAGE = Path(__file__).parents[2] / "docs" / "dataset.md"
SIDE, SAMPLES, FAILING = 128, 4096, (7, 2026)
PLAN = ChunkPlan("train", SAMPLES, 64)
ALLOWED = 150 * 2**20
"""Bytes by which a reader may grow; the field alone has 256 MiB."""

DRIVER = """
import importlib.util, json, sys

def resident(key):
    line = next(line for line in open("/proc/self/status") if line.startswith(key))
    return 1024 * int(line.split()[1])

def grown(code, names):
    "Peak memory above what was there before."
    before = resident("VmRSS")
    open("/proc/self/clear_refs", "w").write("5")  # forgets the peak
    exec(compile(code, "docs/dataset.md", "exec"), names)
    return resident("VmHWM") - before

if __name__ == "__main__":
    assert importlib.util.find_spec("forebay") is None
    import dask, numpy, torch, xarray, tensorstore, zarr
    blocks = json.load(open("blocks.json"))
    names = {"__name__": "reader"}
    xarray.open_zarr("runs/NAME/dataset.zarr").residual.mean().compute()  # imports what reading needs
    told = {"growth": [grown(blocks[0], names), grown(blocks[1], names)]}
    numpy.savez("found.npz", mean=names["mean"], std=names["std"], spectrum=names["spectrum"])
    import recipe
    seen = batches = 0
    wide = torch.zeros(0)
    for batch in recipe.loader:
        seen, batches = seen + len(batch["u"]), batches + 1
        wide = torch.cat([wide, batch["mark"].flatten()])
        assert torch.isfinite(batch["u"]).all() and batch["u"].shape[1:] == (128, 128)
    told |= {"seen": seen, "batches": batches, "distinct": len(set(wide.tolist()))}
    exec(compile(blocks[3], "docs/dataset.md", "exec"), names)
    numpy.save("some.npy", names["some"])
    print(json.dumps(told | {"loaded": sorted(m for m in sys.modules if m.startswith("forebay"))}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run folder with 256 MiB in one field, and two failed samples."""
    home = tmp_path_factory.mktemp("others")
    line = np.arange(SIDE) / SIDE
    schema = Schema(
        parameters=(Parameter("scale", 0.0, 1.0),),
        inputs=(Field("mark", (), ()),),
        outputs=(Field("u", ("y", "x"), (SIDE, SIDE), "K"),),
        coordinates=(Coordinate("x", ("x",), line, "m"), Coordinate("y", ("y",), line, "m")),
    )
    path = home / "runs" / "NAME" / "dataset.zarr"
    rng = np.random.default_rng(2026)
    noise = rng.standard_normal((PLAN.size, SIDE, SIDE), np.float32)
    with without_fsync(), DatasetCoordinator.create(path, schema, PLAN, ATTRIBUTES) as coordinator:
        writer = DatasetWriter(path, schema, PLAN)
        for chunk in range(PLAN.chunks):
            ids = PLAN.sample_ids(chunk)
            failed = np.isin(ids, FAILING)
            u = noise + (ids % 11).astype(np.float32)[:, None, None]
            u[failed] = np.nan
            arrays = {"mark": ids.astype(np.float32), "u": u, "parameters": rng.random((len(ids), 1))}
            records = [sample_record(int(i), bool(f)) for i, f in zip(ids, failed, strict=True)]
            writer.store(Block("train", chunk, ids, arrays, records))
            coordinator.commit(chunk, records, arrays["parameters"])
    return home


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """Of an environment with every package of this one but Forebay, by links, so that nothing is downloaded."""
    home = tmp_path_factory.mktemp("venv")
    venv.create(home, symlinks=True)
    site = home / Path(sysconfig.get_path("purelib", vars={"base": ".", "platbase": "."}))
    for source in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for entry in Path(source).iterdir():
            if "forebay" not in entry.name and entry.suffix != ".pth" and not (site / entry.name).exists():
                (site / entry.name).symlink_to(entry)
    return home / "bin" / "python"


@pytest.fixture(scope="module")
def told(folder, python):
    text = PAGE.read_text().split("## Without Forebay")[1].split("\n## ")[0]
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.S | re.M)
    assert len(blocks) == 4
    (folder / "blocks.json").write_text(json.dumps(blocks))
    # A class that workers import stands in a file, as the page says; "mark" tells the samples apart.
    assert '["a", "u"]' in blocks[2]
    (folder / "recipe.py").write_text("import numpy as np\n" + blocks[2].replace('["a", "u"]', '["mark", "u"]'))
    (folder / "driver.py").write_text(DRIVER)
    done = subprocess.run(
        [python, "-E", "-s", "driver.py"],
        cwd=folder,
        env={k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        | {"DASK_NUM_WORKERS": "2", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def fields(folder):
    reader = DatasetReader(folder / "runs/NAME/dataset.zarr")
    return reader.read("u", reader.valid)


def test_forebay_was_not_there(told):
    assert told["loaded"] == []


def test_reductions_over_more_than_memory_allows_grow_by_a_part_of_the_data(told, fields):
    assert fields.nbytes > 1.7 * ALLOWED
    assert max(told["growth"]) < ALLOWED, f"{[round(b / 2**20) for b in told['growth']]} MiB"


def test_mean_and_deviation_are_those_of_the_valid_samples(folder, told, fields):
    with np.load(folder / "found.npz") as found:
        np.testing.assert_allclose(found["mean"], fields.mean(0, dtype=np.float64), rtol=1e-4)
        np.testing.assert_allclose(found["std"], fields.std(0, dtype=np.float64), rtol=1e-4)


def test_the_spectrum_sums_up_to_the_mean_square(folder, told, fields):
    with np.load(folder / "found.npz") as found:
        spectrum = found["spectrum"]
    assert np.isclose(spectrum.sum(), np.square(fields, dtype=np.float64).mean((1, 2)).mean(), rtol=1e-4)
    assert np.isclose(spectrum[0], np.square(fields.mean((1, 2), dtype=np.float64)).mean(), rtol=1e-3)


def test_the_torch_loader_gives_every_valid_sample_once(told):
    assert told["seen"] == told["distinct"] == SAMPLES - len(FAILING)
    assert told["batches"] == -(-told["seen"] // 64)


def test_tensorstore_reads_any_rows_bit_for_bit(folder, told):
    some = np.load(folder / "some.npy", allow_pickle=False)
    reader = DatasetReader(folder / "runs/NAME/dataset.zarr")
    assert some.tobytes() == reader.read("u", [3, 1, 4, 1, 5]).tobytes()


def test_the_interpreter_is_the_same_version(python):
    asked = subprocess.run([python, "--version"], capture_output=True, text=True, check=True)
    assert asked.stdout.split()[1] == sys.version.split()[0]

"""`forebay dataset ...` on a whole run, what a run folder keeps, and a training script of one's own."""

import importlib.util
import io
import json
import pickle
import pickletools
import shutil
from pathlib import Path

import h5py
import pytest
import torch
from running import forebay, start, write_tiny

from forebay.cluster.console import print_dataset_info, print_verification
from forebay.cluster.dataset_console import print_stats
from forebay.learners.stream import StreamDataset
from forebay.pipeline.dataset import DatasetReader

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_training.py"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("local")
    result = forebay("run", write_tiny(folder, executor="local"), "--folder", folder / "run")
    assert result.returncode == 0, result.stdout + result.stderr
    return folder / "run"


# -- stats and export --------------------------------------------------------------------------------------------------


def test_stats_are_tables_or_json(finished, capsys):
    print_stats(finished, as_json=False)
    text = capsys.readouterr().out
    for word in ("output u", "direct:petsc-cholesky", "converged", "isotropic spectrum", "validation.zarr"):
        assert word in text
    result = forebay("dataset", "stats", finished / "dataset.zarr", "--json")
    assert result.returncode == 0, result.stderr
    (tree,) = json.loads(result.stdout)
    assert (tree["split"], tree["samples"]) == ("train", 40)
    field = next(item for item in tree["fields"] if item["name"] == "u")
    u = DatasetReader(finished / "dataset.zarr").column("u")
    assert field["maximum"] == float(u.max())
    assert sum(field["spectrum"]["energy"]) == pytest.approx(float((u.astype(float) ** 2).mean()), rel=1e-4)


def test_export_says_what_it_wrote_and_does_not_overwrite(finished, tmp_path):
    result = forebay("dataset", "export", finished, "--format", "well", "--to", tmp_path / "well")
    assert result.returncode == 0, result.stderr
    assert "40 train, 12 validation samples" in result.stdout
    with h5py.File(tmp_path / "well/data/valid/tiny.hdf5") as file:
        assert file["t0_fields/u"].shape == (12, 1, 32, 32)
    again = forebay("dataset", "export", finished, "--format", "repacked", "--to", tmp_path / "well")
    assert again.returncode == 2
    assert "exists and is not overwritten" in again.stderr
    assert "Traceback" not in again.stderr


def test_a_repacked_run_is_read_by_every_verb(finished, tmp_path):
    options = ["--chunk-samples", 1, "--shard-samples", 8, "--compression", "zstd", "--all"]
    assert forebay("dataset", "export", finished, "--format", "repacked", "--to", tmp_path / "r", *options).stdout
    print_dataset_info(tmp_path / "r")
    assert print_verification(tmp_path / "r", samples=4, rtol=1e-5, seed=7) == 0
    assert len(list(StreamDataset(tmp_path / "r", batch_size=8))) == 5


def test_a_run_that_has_lost_one_of_its_data_sets_is_not_sound(finished, tmp_path, capsys):
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    assert print_verification(run, samples=0, rtol=1e-5, seed=7) == 0
    (run / "dataset.zarr").rename(tmp_path / "lost.zarr")
    capsys.readouterr()
    assert print_verification(run, samples=0, rtol=1e-5, seed=7) == 1
    assert "dataset.zarr: is missing or has no zarr.json, while the run has a study" in capsys.readouterr().out


# -- trust -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def strangers(finished, tmp_path):
    """A run whose stored study names a file that leaves a mark when it is executed."""
    run = Path(shutil.copytree(finished, tmp_path / "stranger"))
    (run / "trap.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')\n")
    kept = json.loads((run / "study.json").read_text())
    kept["study"]["problem"] = {"name": "trap.py:Trap"}
    kept["study_folder"] = str(run)
    (run / "study.json").write_text(json.dumps(kept))
    return run


def test_no_verb_that_looks_at_a_data_set_runs_what_its_study_names(strangers, tmp_path, capsys):
    assert print_verification(strangers, samples=3, rtol=1e-5, seed=7) == 0
    told = capsys.readouterr().out
    assert "its study has problem.name = 'trap.py:Trap', which is a file to be executed" in told
    assert "no sample was solved again; the files were checked" in told
    print_dataset_info(strangers)
    print_stats(strangers, as_json=True)
    assert forebay("dataset", "export", strangers, "--format", "repacked", "--to", tmp_path / "r").returncode == 0
    assert forebay("dataset", "verify", strangers).returncode == 0
    assert list(StreamDataset(strangers, batch_size=8, follow=True, policy="fifo"))
    assert not (tmp_path / "sprung").exists()


def test_a_study_that_is_trusted_runs(strangers, tmp_path):
    result = forebay("dataset", "verify", strangers, "--trust-study")
    assert "has no class 'Trap'" in result.stderr
    assert (tmp_path / "sprung").exists()


def test_texts_of_a_data_set_reach_no_terminal_as_commands(finished, tmp_path, capsys):
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    document = run / "dataset.zarr" / "zarr.json"
    tree = json.loads(document.read_text())
    tree["attributes"]["forebay"]["schema"]["outputs"][0]["units"] = "K\x1b]0;mine\x07"
    document.write_text(json.dumps(tree))
    print_dataset_info(run)
    print_stats(run, as_json=False)
    assert "\x1b" not in capsys.readouterr().out


def test_nothing_in_a_run_folder_is_a_pickle(finished):
    files = [path for path in finished.rglob("*") if path.is_file()]
    assert len(files) > 30
    for path in files:
        assert path.suffix not in (".pkl", ".pickle", ".pt", ".pth", ".joblib", ".npy"), path
        assert not looks_pickled(path.read_bytes()), path


def looks_pickled(data: bytes) -> bool:
    """Does it begin as pickles and torch's archives do, and go on as one?"""
    if data[:2] not in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        return data[:4] == b"PK\x03\x04" and b"data.pkl" in data[:4096]
    try:
        return any(opcode.name == "STOP" for opcode, _, _ in pickletools.genops(data))
    except ValueError:
        return False


def test_a_pickle_would_be_noticed():
    archive = io.BytesIO()
    torch.save({"weights": torch.ones(3)}, archive)
    assert looks_pickled(archive.getvalue())
    assert looks_pickled(pickle.dumps({"a": 1}))
    assert not looks_pickled(b"\x80\x04 some floats that begin so")


# -- a training script of one's own ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("own_training", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_example_learns_from_a_finished_run(finished, example, capsys):
    error = example.train(finished, follow=False, batches=60, batch_size=8)
    assert "batch 50" in capsys.readouterr().out
    assert error < 0.5, "1 is what the mean of nothing reaches"


def test_the_example_learns_while_a_run_goes_on(tmp_path, example):
    run = tmp_path / "run"
    process = start("run", write_tiny(tmp_path, executor="local", samples=48, batches=12), "--folder", run)
    try:
        error = example.train(run, follow=True, batches=40, batch_size=8)
        assert error < 1.0
        assert process.wait(120) == 0
    finally:
        if process.poll() is None:
            process.kill()
        process.stdout.close()
    stream = StreamDataset(run, batch_size=8, follow=True, policy="fifo")
    assert sum(len(batch["u"]) for batch in stream) == 48

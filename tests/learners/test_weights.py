"""Checkpoints: bit-equal continuation, atomic writing, damage, and the surrogate that a user ships."""

import json
import logging
import resource
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from forebay.learners import weights as weights_module
from forebay.learners.step import TrainOptions, make_state, train_step
from forebay.learners.surrogate import IOSpec, Surrogate, SurrogateConfig, TensorSpec
from forebay.learners.weights import find_fault, latest_checkpoint, load_checkpoint, save_checkpoint
from forebay.pipeline.errors import RunError

MODELS = {
    "fno": {"width": 6, "modes": [3, 2], "layers": 2, "projection": 8},
    "mlp": {"hidden": [16]},
    "unet": {"width": 4, "levels": 1},
}


def fresh_state(model="fno", batches=20, lr=1e-2):
    grid = (8, 6)
    io = IOSpec(
        (TensorSpec("a", ("y", "x"), grid),), (TensorSpec("u", ("y", "x"), grid),), ("k",), (0.5, 1.0), (1 / 8, 1 / 6)
    )
    surrogate = Surrogate(SurrogateConfig(io, model, MODELS[model], freeze_after=40), seed=7)
    return make_state(surrogate, TrainOptions(batches=batches, lr=lr, clip=0.5))


def frames(generator, count=4):
    a = torch.randn(count, 8, 6, generator=generator)
    k = torch.rand(count, 1, generator=generator)
    return {"a": a, "parameters": k, "time": k.round() / 2 + 0.5, "u": 300 + a.roll(1, 1) + k[:, :, None]}


def train(state, generator, batches):
    """Draws come from the generator, and the normaliser still moves for a while: both must be restored."""
    for _ in range(batches):
        batch = frames(generator)
        state.surrogate.observe(batch)
        state, _ = train_step(state, batch)
    return state


def contents(state):
    """All tensors that training changes."""
    tensors = dict(state.surrogate.state_dict())
    names = {p: n for n, p in state.surrogate.model.named_parameters()}
    for parameter, moments in state.optimiser.state.items():
        tensors |= {f"{kind}.{names[parameter]}": value for kind, value in moments.items()}
    return {name: tensor.clone() for name, tensor in tensors.items()}


@pytest.mark.parametrize("model", sorted(MODELS))
def test_training_after_a_restart_is_bit_equal_to_training_without_one(model, tmp_path):
    generator = torch.Generator().manual_seed(57)
    uninterrupted = train(fresh_state(model), generator, 20)

    generator = torch.Generator().manual_seed(57)
    state = train(fresh_state(model), generator, 8)  # 32 of 40 frames: the normaliser is still open
    path = save_checkpoint(tmp_path, state, extra={"ring": [1, 2]}, generators={"draw": generator})
    train(state, generator, 3)  # what the killed process did after its checkpoint must leave no trace

    restored = load_checkpoint(path)
    assert restored.extra == {"ring": [1, 2]}
    again = torch.Generator()
    again.set_state(restored.generators["draw"])
    resumed = train(restored.state, again, 12)

    expected, found = contents(uninterrupted), contents(resumed)
    assert expected.keys() == found.keys()
    assert {name for name in expected if name.startswith("exp_avg_sq.")}
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert (resumed.batches, resumed.options) == (20, uninterrupted.options)


def test_a_checkpoint_before_the_first_step_can_be_continued(tmp_path):
    path = save_checkpoint(tmp_path, fresh_state())
    resumed = train(load_checkpoint(path).state, torch.Generator().manual_seed(5), 3)
    direct = train(fresh_state(), torch.Generator().manual_seed(5), 3)
    assert all(torch.equal(a, b) for a, b in zip(contents(direct).values(), contents(resumed).values(), strict=True))


def test_skipped_batches_are_still_counted_after_a_restart(tmp_path):
    state = fresh_state()
    bad = frames(torch.Generator().manual_seed(5))
    bad["u"][0] = torch.nan
    for _ in range(2):
        state, _ = train_step(state, bad)
    restored = load_checkpoint(save_checkpoint(tmp_path, state)).state
    assert (restored.batches, restored.skipped, restored.skipped_in_a_row) == (2, 2, 2)


def test_other_options_may_replace_the_stored_ones(tmp_path):
    path = save_checkpoint(tmp_path, train(fresh_state(), torch.Generator().manual_seed(5), 2))
    longer = TrainOptions(batches=900, lr=1e-4)
    assert load_checkpoint(path, options=longer).state.options == longer


def test_the_newest_are_kept_and_found(tmp_path):
    generator = torch.Generator().manual_seed(5)
    state = fresh_state()
    assert latest_checkpoint(tmp_path / "nothing") is None
    for _ in range(4):
        state = train(state, generator, 1)
        save_checkpoint(tmp_path, state, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["batch_0000000003", "batch_0000000004"]
    assert latest_checkpoint(tmp_path).name == "batch_0000000004"


def test_saving_the_same_batch_again_replaces_it(tmp_path):
    state = fresh_state()
    save_checkpoint(tmp_path, state, extra={"attempt": 1})
    path = save_checkpoint(tmp_path, state, extra={"attempt": 2})
    assert load_checkpoint(path).extra == {"attempt": 2}
    assert [p.name for p in tmp_path.iterdir()] == ["batch_0000000000"]


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.write_bytes(bytes(data))


DAMAGE = {
    "weights missing": (lambda p: (p / "weights.safetensors").unlink(), "weights.safetensors is missing"),
    "state missing": (lambda p: (p / "state.json").unlink(), "state.json is missing"),
    "torn weights": (lambda p: truncate(p / "weights.safetensors"), "weights.safetensors does not match its checksum"),
    "bit flip": (lambda p: flip_a_bit(p / "optimiser.safetensors"), "optimiser.safetensors does not match"),
    "torn state": (lambda p: truncate(p / "state.json"), "state.json is damaged"),
    "empty state": (lambda p: (p / "state.json").write_text("{}"), "state.json is damaged"),
    "later format": (
        lambda p: (p / "state.json").write_text(json.dumps({"format": 99, "sha256": {}})),
        "its format is 99, this version reads 1",
    ),
}


@pytest.mark.parametrize("kind", sorted(DAMAGE))
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(kind, tmp_path, caplog):
    damage, message = DAMAGE[kind]
    state = fresh_state()
    older = save_checkpoint(tmp_path, state)
    newer = save_checkpoint(tmp_path, train(state, torch.Generator().manual_seed(5), 1))
    damage(newer)
    with caplog.at_level(logging.WARNING):
        assert latest_checkpoint(tmp_path) == older
    assert message in caplog.text
    assert find_fault(older) is None
    with pytest.raises(RunError, match=rf"batch_0000000001 cannot be used: .*{message}.*use an earlier one"):
        load_checkpoint(newer)


def test_a_half_written_folder_is_no_checkpoint_and_is_cleared_by_the_next_save(tmp_path):
    state = fresh_state()
    path = save_checkpoint(tmp_path, state)
    torn = tmp_path / f".incoming-{path.name}"
    shutil.copytree(path, torn)
    (torn / "weights.safetensors").unlink()
    assert latest_checkpoint(tmp_path) == path
    save_checkpoint(tmp_path, train(state, torch.Generator().manual_seed(5), 1), keep=1)
    assert [p.name for p in tmp_path.iterdir()] == ["batch_0000000001"]


def assert_a_failed_save_leaves_only_the_older(root, state, older, message):
    state = train(state, torch.Generator().manual_seed(5), 1)
    with pytest.raises(RunError, match=rf"could not be written: .*{message}.*; free space or check permissions"):
        save_checkpoint(root, state)
    assert [p.name for p in root.iterdir()] == [older.name]
    assert latest_checkpoint(root) == older


def test_a_file_system_that_refuses_large_files_keeps_the_previous_checkpoint(tmp_path):
    """A real refusal by the system in the middle of the weights, as safetensors reports it."""
    state = fresh_state()
    older = save_checkpoint(tmp_path, state)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, limits[1]))
    try:
        assert_a_failed_save_leaves_only_the_older(tmp_path, state, older, "File too large")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_disk_that_fills_up_while_flushing_keeps_the_previous_checkpoint(tmp_path, monkeypatch):
    state = fresh_state()
    older = save_checkpoint(tmp_path, state)

    def full(path):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(weights_module, "_flush", full)
    assert_a_failed_save_leaves_only_the_older(tmp_path, state, older, "No space left on device")


def test_a_checkpoint_that_was_moved_aside_comes_back_when_its_successor_cannot_take_its_place(tmp_path, monkeypatch):
    state = fresh_state()
    older = save_checkpoint(tmp_path, state, extra={"attempt": 1})
    rename = Path.rename

    def refuse(path, target):
        if path.name.startswith(".incoming-"):
            raise OSError(5, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(RunError, match="could not be written: Input/output error"):
        save_checkpoint(tmp_path, state, extra={"attempt": 2})
    assert [p.name for p in tmp_path.iterdir()] == [older.name]
    assert load_checkpoint(older).extra == {"attempt": 1}


def test_a_shipped_surrogate_predicts_what_the_trained_one_did(tmp_path):
    state = train(fresh_state(), torch.Generator().manual_seed(5), 12)
    rng = np.random.default_rng(3)
    inputs = {"a": rng.random((5, 8, 6)), "parameters": rng.random((5, 1)), "time": np.full((5, 1), 0.5)}
    folder = state.surrogate.save(tmp_path / "surrogate")
    assert sorted(p.name for p in folder.iterdir()) == ["surrogate.json", "weights.safetensors"]
    loaded = Surrogate.load(folder)
    np.testing.assert_array_equal(loaded.predict(inputs)["u"], state.surrogate.predict(inputs)["u"])
    assert loaded.io == state.surrogate.io
    assert bool(loaded.normaliser.frozen)


def test_a_surrogate_loads_from_a_checkpoint_and_from_a_folder_of_them(tmp_path):
    state = train(fresh_state(), torch.Generator().manual_seed(5), 2)
    path = save_checkpoint(tmp_path, state)
    expected = state.surrogate.state_dict()
    for source in (path, tmp_path):
        found = Surrogate.load(source).state_dict()
        assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_surrogate_may_replace_itself_but_not_other_files(tmp_path):
    surrogate = fresh_state().surrogate
    surrogate.save(tmp_path / "mine")
    surrogate.save(str(tmp_path / "mine"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match=r"other holds other files, a surrogate would replace them; name a new folder"):
        surrogate.save(tmp_path / "other")
    assert (tmp_path / "other" / "thesis.tex").exists()


def test_a_folder_without_weights_is_refused_by_name(tmp_path):
    with pytest.raises(RunError, match="holds neither a surrogate nor a checkpoint"):
        Surrogate.load(tmp_path)


def test_nothing_that_is_kept_is_a_pickle(tmp_path):
    path = save_checkpoint(tmp_path, train(fresh_state(), torch.Generator().manual_seed(5), 1))
    for file in path.iterdir():
        assert file.suffix in {".safetensors", ".json"}
        assert file.read_bytes()[:2] not in {b"\x80\x02", b"\x80\x04", b"PK"}
    state = json.loads((path / "state.json").read_text())
    assert state["normaliser"]["statistics"]["u"]["mean"] == pytest.approx(300.5, abs=1.0)

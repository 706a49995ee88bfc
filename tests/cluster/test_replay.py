"""Replays: the run's own weights bit for bit, also after a kill; other models on the same batches; what is refused."""

from __future__ import annotations

import json
import shutil

import pytest
from running import events, forebay, start, wait_until, write_tiny
from safetensors.torch import load_file

from forebay.cluster.replay import changed, replay
from forebay.learners.schedule import read_schedule
from forebay.pipeline.errors import DatasetError, RunError, StudyError
from forebay.pipeline.study import study_from_dict


@pytest.fixture(scope="module")
def killed_run(tmp_path_factory):
    """A run in one process that was killed after a checkpoint and then resumed."""
    folder = tmp_path_factory.mktemp("replay")
    study = write_tiny(folder, executor="local", samples=96, batches=48, checkpoint_every_s=0.05)
    run = folder / "run"
    process = start("run", study, "--folder", run)
    wait_until(lambda: len(events(run, "checkpoint")) >= 2, process)
    process.kill()
    process.communicate(timeout=60)
    resumed = forebay("resume", run)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    return run


def weights(folder):
    return load_file(folder / "surrogate" / "weights.safetensors")


def test_a_replay_without_changes_gives_the_runs_weights_bit_for_bit_although_it_was_killed(killed_run):
    assert len(events(killed_run, "run_started")) == 2
    result = forebay("replay", killed_run)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "weights equal the run's, bit for bit" in result.stdout
    ours, theirs = weights(killed_run / "replays" / "same"), weights(killed_run)
    assert all(ours[name].equal(theirs[name]) for name in theirs)
    kept = json.loads((killed_run / "replays" / "same" / "replay.json").read_text())["result"]
    assert kept["weights_equal"] is True
    assert kept["relative_l2"] == pytest.approx(kept["online"], rel=1e-12)


@pytest.mark.slow
@pytest.mark.ray
def test_a_run_with_ray_is_replayed_bit_for_bit_too(tmp_path):
    run = tmp_path / "run"
    result = forebay("run", write_tiny(tmp_path, executor="ray", samples=96, batches=48), "--folder", run)
    assert result.returncode == 0, result.stdout + result.stderr
    replayed = forebay("replay", run)
    assert "weights equal the run's, bit for bit" in replayed.stdout, replayed.stdout + replayed.stderr


def test_a_changed_weight_of_the_run_is_noticed(killed_run, tmp_path):
    from safetensors.torch import save_file

    run = tmp_path / "run"
    shutil.copytree(killed_run, run, ignore=shutil.ignore_patterns("replays"))
    path = run / "surrogate" / "weights.safetensors"
    tensors = load_file(path)
    name = next(n for n in sorted(tensors) if tensors[n].is_floating_point() and tensors[n].ndim > 1)
    tensors[name] = tensors[name] * (1 + 1e-6)
    save_file(tensors, path)
    assert replay(run).equal is False


def test_another_model_sees_the_same_batches(killed_run, tmp_path):
    changes = ["learner.model.name=unet", "learner.lr=1e-3", "learner.batches=6"]
    result = replay(killed_run, changes, tmp_path / "unet")
    assert result.equal is None
    assert (result.batches, len(read_schedule(killed_run / "draws.jsonl"))) == (6, 48)
    assert json.loads((tmp_path / "unet" / "surrogate" / "surrogate.json").read_text())["model"] == "unet"
    assert 0 < result.evaluation.mean < 10


def test_an_interrupted_replay_goes_on_and_ends_with_the_same_weights(killed_run, tmp_path):
    whole, half = tmp_path / "whole", tmp_path / "half"
    replay(killed_run, folder=whole)
    shutil.copytree(whole, half)
    shutil.rmtree(half / "surrogate")
    *_, earlier, newest = sorted((half / "checkpoints").iterdir())
    shutil.rmtree(newest)
    done = json.loads((earlier / "state.json").read_text())["batches"]
    assert 0 < done < 48
    result = replay(killed_run, folder=half)
    assert result.equal is True


STUDY = {"name": "s", "problem": {"name": "darcy"}, "learner": {"batches": 40}}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("solver.rtol=1e-3", r"only learner\.\* and validation\.every can be changed"),
        ("samples=10", r"only learner\.\* and validation\.every can be changed"),
        ("learner.batch_size=4", r"the recorded batches have settled learner\.batch_size"),
        ("learner.threads=2", r"the recorded batches have settled learner\.threads"),
        ("learner.batches=41", r"the run has drawn at most 40; use no more"),
        ("learner.lr=-1", r"learner\.lr = -1 is not allowed"),
    ],
)
def test_what_cannot_be_changed_is_refused(override, message):
    with pytest.raises(StudyError, match=message):
        changed(study_from_dict(STUDY), [override])


def test_a_folder_with_another_replay_or_other_files_is_refused(killed_run, tmp_path):
    replay(killed_run, ["learner.batches=2"], tmp_path / "two")
    with pytest.raises(RunError, match=r"holds a replay with other changes \(\['learner.batches=2'\]\)"):
        replay(killed_run, ["learner.batches=3"], tmp_path / "two")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(RunError, match="is not empty and holds no replay"):
        replay(killed_run, [], tmp_path / "mine")


def test_a_run_without_batches_has_nothing_to_replay(tmp_path):
    result = forebay("replay", tmp_path)
    assert result.returncode == 2
    assert "it has no study.json" in result.stderr


@pytest.fixture
def copied(killed_run, tmp_path):
    return shutil.copytree(killed_run, tmp_path / "run", ignore=shutil.ignore_patterns("replays"))


def rewrite_draws(run, change):
    path = run / "draws.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in change(lines)))


def with_key(key):
    def change(lines):
        last = max(number for number, line in enumerate(lines) if "batch" in line)
        lines[last]["keys"][0] = key
        return lines

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[:-1], r"was trained on 48 batches, of which draws\.jsonl has the first 47; .*batches=47"),
        (lambda lines: lines[:1], r"has drawn no whole batch yet, so there is nothing to replay"),
        (with_key(96), r"batch 48 of .* needs frame 96 of 96, which the study does not have"),
        (with_key(-1), r"batch 48 of .* needs frame -1 of 96, which the study does not have"),
        (
            lambda lines: [*lines[:-1], {"normalised": 999}, lines[-1]],
            r"batch 48 of .* needs chunks \(999,\) of \d+, which the study does not have",
        ),
    ],
)
def test_draws_that_are_not_those_of_the_run_are_refused(copied, change, message):
    rewrite_draws(copied, change)
    with pytest.raises(RunError, match=message):
        replay(copied)
    assert not (copied / "replays").exists()


def test_what_is_left_of_the_draws_is_replayed_when_that_is_asked_for(copied):
    rewrite_draws(copied, lambda lines: lines[:-1])
    result = replay(copied, ["learner.batches=47"])
    assert (result.batches, result.equal) == (47, None)


def test_a_data_set_of_another_schema_is_refused(copied):
    kept = json.loads((copied / "study.json").read_text())
    kept["study"]["problem"]["size"] += 16
    (copied / "study.json").write_text(json.dumps(kept))
    with pytest.raises(DatasetError, match=r"zarr was made with .*, the study now asks for"):
        replay(copied)


@pytest.mark.parametrize("text", ["{", "{}", "[]"])
def test_a_damaged_replay_is_named(copied, tmp_path, text):
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "replay.json").write_text(text)
    with pytest.raises(RunError, match=r"replay\.json is damaged; remove its folder, or choose another --folder"):
        replay(copied, folder=tmp_path / "again")

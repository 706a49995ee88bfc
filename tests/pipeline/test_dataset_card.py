import dataclasses
import os

import pytest
from dataset_samples import ATTRIBUTES, make_dataset, stationary_schema, transient_schema, without_fsync

from forebay.pipeline.dataset_card import write_card
from forebay.pipeline.errors import DatasetError
from forebay.pipeline.records import ChunkPlan, Outcome, Parameter

PLAN = ChunkPlan("train", 11, 4)


@pytest.fixture(autouse=True)
def _no_fsync():
    with without_fsync():
        yield


@pytest.fixture
def card(tmp_path):
    return write_card(make_dataset(tmp_path / "d.zarr", stationary_schema(), PLAN, failing=(2, 9))).read_text()


def test_the_card_lies_in_the_group_and_names_the_problem(card, tmp_path):
    assert (tmp_path / "d.zarr" / "README.md").read_text() == card
    assert card.startswith("# trial: train split\n\n11 samples (complete), 9 of them valid")
    assert "-div(a grad u) = 1 on the unit square." in card
    assert "Boundary conditions: u = 0 on all sides" in card
    assert "Domain: `x` from 0 to 1 [m], 3 points" in card


def test_the_card_tells_fields_parameters_and_their_distributions(card):
    assert "| `a` | input | (sample, y, x) | 11 x 4 x 3 | m2 | diffusion coefficient |" in card
    assert "| `scale` | 0.1 | 10 | 1 | log-uniform |  |" in card


def test_the_card_counts_outcomes_with_their_remedy_and_methods_with_their_residuals(card):
    assert f"| diverged | 2 | {Outcome.DIVERGED.advice} |" in card
    assert "| `cg+gamg` | 5 | 4 | 3.0 / 3 | 1.01e-09 | – | 2.00 |" in card
    assert "the tolerance was 1e-08" in card


def test_the_card_tells_machine_hours_versions_and_the_study(card):
    assert "Hardware: processor one of many, cores 2" in card
    assert "Solver time: 6.11e-06 hours (0.0 s; wall time summed over the samples)" in card
    assert "Versions: forebay 0.1.0" in card
    assert '"rtol": 1e-08' in card


def test_the_card_says_how_to_read_the_data_and_how_to_judge_a_surrogate(card):
    for word in ("xr.open_zarr", "da.from_zarr", "DataLoader", "‖prediction − reference‖₂ / ‖reference‖₂", "99th"):
        assert word in card


def test_the_readers_shown_on_the_card_work_as_written(card, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = card.split("```python\n")[1].split("```")[0]
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["good"].sizes["sample"] == 9
    assert names["u"].shape == (11, 4, 3)
    assert sum(len(batch["u"]) for batch in names["loader"]) == 9


def test_the_card_of_a_problem_in_time_tells_its_steps(tmp_path):
    attributes = ATTRIBUTES | {"initial_conditions": "u = left everywhere"}
    path = make_dataset(tmp_path / "d.zarr", transient_schema(), PLAN, chunks=[0], attributes=attributes)
    card = write_card(path).read_text()
    assert "Stored times: 3, from 0.5 s to 2 s, 0.75 s apart on average" in card
    assert "Initial conditions: u = left everywhere" in card
    assert "4 samples (not finished, 11 samples are planned)" in card


def test_the_card_of_a_validation_split_points_to_itself_for_judging(tmp_path):
    plan = dataclasses.replace(PLAN, split="validation")
    card = write_card(make_dataset(tmp_path / "d.zarr", stationary_schema(), plan)).read_text()
    assert "On this split," in card


def test_text_of_strangers_cannot_break_a_table(tmp_path):
    schema = dataclasses.replace(
        stationary_schema(), parameters=(Parameter("p", 0.0, 1.0, "1|2", description="one\n| two | three"),)
    )
    card = write_card(make_dataset(tmp_path / "d.zarr", schema, PLAN, attributes={})).read_text()
    assert r"| `p` | 0 | 1 | 1\|2 | uniform | one \| two \| three |" in card
    assert "The run left no description of the equations." in card


def test_writing_the_card_again_replaces_it(card, tmp_path):
    assert write_card(tmp_path / "d.zarr").read_text() == card
    assert sorted(n for n in os.listdir(tmp_path / "d.zarr") if n.startswith((".", "README"))) == [
        ".forebay.lock",
        "README.md",
    ]


def test_a_card_needs_a_data_set(tmp_path):
    with pytest.raises(DatasetError, match="no data set at"):
        write_card(tmp_path)

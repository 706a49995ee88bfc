"""Samples some of whose steps are solved in full: `adapt = "step"` in this process."""

from __future__ import annotations

import re

import numpy as np
import pytest
from suites.solid_blocks import NAMES, SIZE, make, methods, relative, solved

from forebay.pipeline.errors import RunError
from forebay.pipeline.records import Outcome
from forebay.solvers.compose import LIBRARY
from forebay.solvers.problems.necked_bar import NeckedBar
from forebay.solvers.rom import growth, step_tasks
from forebay.solvers.rom.errors import Judgement
from forebay.solvers.rom.growth import Place
from forebay.solvers.rom.library import Library
from forebay.solvers.rom.local_full import LocalFull
from forebay.solvers.rom.offline import CubatureError
from forebay.solvers.rom.online import ReducedModel
from forebay.solvers.rom.step_tasks import adapted
from forebay.solvers.rom.tasks import FullSolveError, HistoryError

TIGHT = 0.03
"""A tolerance that some of the samples miss and some meet."""


@pytest.fixture(scope="module")
def stepped(tmp_path_factory, stream):
    """A stream whose refused samples are solved by steps, and its library."""
    folder = tmp_path_factory.mktemp("steps")
    block = solved(make(folder, adapt="step", tolerance=TIGHT))
    return block, Library(folder / LIBRARY)


def test_refused_samples_are_solved_by_steps_and_say_how_many(stepped):
    block, _ = stepped
    kinds = methods(block)
    assert kinds[:4] == ["full"] * 4, "those of the training are whole"
    assert "rom+full" in kinds
    assert all(record.outcome is Outcome.CONVERGED for record in block.records)
    for record in block.records:
        if record.method != "rom+full":
            assert record.full_steps is None
            continue
        assert 1 <= record.full_steps <= SIZE["steps"]
        told = re.fullmatch(
            r"version \d+: estimated error (\S+) % of 3 %; (\d) of 8 steps in full \((.*)\), estimated error (\S+) %",
            record.message,
        )
        assert told is not None, record.message
        assert float(told[1]) > 3
        assert int(told[2]) == record.full_steps == len(told[3].split(", "))
        assert record.estimate <= TIGHT
        assert told[4] == f"{100 * record.estimate:.2g}"
        assert record.indicator >= 0
        assert 0 < record.residual <= 1e-8
        assert record.iterations >= record.full_steps


def test_their_fields_are_within_the_tolerance(stepped, stream):
    block, _ = stepped
    _, _, again = stream
    worst = 0.0
    for row, record in enumerate(block.records):
        if record.method == "rom+full":
            worst = max(worst, *(relative(block.arrays[name][row], again[row][0][name]) for name in NAMES))
    assert 1e-6 < worst < 1.5 * TIGHT


def test_every_sample_that_is_not_wholly_reduced_is_learned(stepped):
    block, library = stepped
    kinds = methods(block)
    assert library.latest == kinds.count("full") + kinds.count("rom+full")
    package = library.package(library.latest, NeckedBar(**SIZE).law)
    assert package.version == library.latest


def test_choices_have_a_row_of_their_own(stepped):
    block, _ = stepped
    kinds = methods(block)
    rows = {row["method"]: row for row in block.choices}
    assert list(rows) == ["rom", "rom+full", "full"]
    assert {name: row["solved"] for name, row in rows.items()} == {name: kinds.count(name) for name in rows}
    assert rows["rom"]["failures"] >= kinds.count("rom+full") > 0


def test_whole_samples_are_the_default(stream):
    _, block, _ = stream
    assert "rom+full" not in methods(block)


# --- what is learned ------------------------------------------------------------------------------------------------


@pytest.fixture
def full(trained):
    full = LocalFull(
        NeckedBar(**SIZE), name="necked_bar", rtol=1e-8, learn=(Library(trained / LIBRARY), growth.Settings())
    )
    yield full
    full.close()


def draw(*values):
    return {"parameters": np.array(values)}


FAR, FARTHER = draw(238.0, 780.0, 27.0, 0.95), draw(236.0, 760.0, 13.0, 0.95)


def march(full, sample, tolerance, library):
    """All steps of one sample, from the latest version on."""
    bar, base = NeckedBar(**SIZE), Place(library.latest)
    half = full.adapt(sample, base)
    return adapted(half, library.package(base.version, bar.law), bar.history(sample), bar.law, tolerance, None)


def test_the_published_version_is_the_one_that_the_steps_led_to(full, trained):
    library = Library(trained / LIBRARY)
    before = library.latest
    found = march(full, FAR, step_tasks.Tolerance(0.01, 0.01), library)
    assert found.full_steps > 0
    assert found.fields.version == library.latest == before + 1
    bar = NeckedBar(**SIZE)
    old, new = library.package(before, bar.law), library.package(before + 1, bar.law)
    assert len(new.calibration.pairs) > len(old.calibration.pairs)
    assert new.parameters == old.parameters
    history = bar.history(FAR)
    worse, better = (ReducedModel(package, bar.law).run(history).errors[-1].max() for package in (old, new))
    assert better < worse


def test_steps_that_wait_to_be_learned_are_learned_at_the_end(full, trained):
    library, law = Library(trained / LIBRARY), NeckedBar(**SIZE).law
    before = library.latest
    found = march(full, FAR, step_tasks.Tolerance(1e-12, 1e-12), library)
    assert found.full_steps == 8
    old, new = (library.reduced(version, full.model, law) for version in (before, before + 1))
    assert new.basis.displacement.snapshots == old.basis.displacement.snapshots + 8
    assert len(new.package.calibration.pairs) == len(old.package.calibration.pairs) + 4, "steps 1, 2, 4 and 8"


def test_a_version_that_came_meanwhile_learns_the_steps(full, trained, monkeypatch):
    """Another solver publishes between the first step and the last."""
    library, bar = Library(trained / LIBRARY), NeckedBar(**SIZE)
    before, learn = library.latest, growth.Growth.learn_steps

    def late(self, model, sample, steps, base):
        full.solve(FARTHER, learn=True)
        return learn(self, model, sample, steps, base)

    monkeypatch.setattr(growth.Growth, "learn_steps", late)
    found = march(full, FAR, step_tasks.Tolerance(0.01, 0.01), library)
    assert found.fields.version == before + 2
    between, last = (library.package(before + number, bar.law) for number in (1, 2))
    steps = sum(np.isfinite(decision.gappy) for decision in found.decisions if not decision.reduced)
    known = between.calibration.pairs
    assert len(last.calibration.pairs) == len(known) + steps
    np.testing.assert_array_equal(last.calibration.pairs[: len(known)], known)
    for sample, package in ((FAR, between), (FARTHER, last)):
        errors = ReducedModel(package, bar.law).run(bar.history(sample)).errors
        assert np.isfinite(errors).all()


def test_fields_at_all_times_are_in_canonical_order(full, trained):
    library, bar = Library(trained / LIBRARY), NeckedBar(**SIZE)
    found = march(full, FAR, step_tasks.Tolerance(0.01, 0.01), library)
    true = full.solve(FAR, learn=False)
    for name in ("displacement", "p"):
        field, expected = getattr(found.fields, name), getattr(true, name)
        assert field.shape == expected.shape
        assert np.linalg.norm(field - expected) < 0.03 * np.linalg.norm(expected)
    assert found.iterations > found.full_steps
    assert found.judgement.estimate < 0.05
    assert bar.history(FAR).steps == len(found.decisions)


# --- where steps do not do ------------------------------------------------------------------------------------------


class Failing:
    """A full half that fails as it is told to."""

    def __init__(self, error):
        self.error = error

    def solve(self, k, kept, refused, peak, *, enrich=True):
        raise self.error


@pytest.mark.parametrize(
    "error",
    [
        FullSolveError("step 3 did not converge"),
        CubatureError("the cubature stays at 0.1"),
        RunError("basis has gone"),
    ],
)
def test_a_sample_whose_steps_fail_is_solved_whole(trained, monkeypatch, error):
    monkeypatch.setattr(LocalFull, "adapt", lambda self, sample, base: Failing(error))
    version = Library(trained / LIBRARY).latest
    (record,) = solved(make(trained, adapt="step", tolerance=1e-4, samples=1)).records
    assert (record.method, record.outcome, record.full_steps) == ("full", Outcome.CONVERGED, None)
    assert record.message.endswith(f"; not solved by steps: {error}")
    assert record.estimate > 1e-4
    assert Library(trained / LIBRARY).latest == version + 1


def test_a_history_at_fault_is_the_samples_outcome(trained, monkeypatch):
    monkeypatch.setattr(LocalFull, "adapt", lambda self, sample, base: Failing(HistoryError("history: too hot")))
    (record,) = solved(make(trained, adapt="step", tolerance=1e-4, samples=1)).records
    assert (record.outcome, record.message) == (Outcome.PROBLEM_RAISED, "history: too hot")


def test_steps_that_end_above_the_tolerance_are_not_kept(trained, monkeypatch):
    monkeypatch.setattr(step_tasks, "judge_steps", lambda steps, sizes: Judgement(0.5, 0.5, float("nan")))
    (record,) = solved(make(trained, adapt="step", tolerance=1e-4, samples=1)).records
    assert record.method == "full"
    assert "; not solved by steps: 8 of 8 steps in full" in record.message


def test_without_any_full_step_there_is_nothing_to_certify(trained, monkeypatch):
    monkeypatch.setattr(step_tasks.Tolerance, "accepts", lambda self, u, p, *, shares: True)
    (record,) = solved(make(trained, adapt="step", tolerance=1e-4, samples=1)).records
    assert record.method == "full"
    assert "; not solved by steps: 0 of 8 steps in full, estimated error inf %" in record.message


def test_ranks_that_were_started_anew_know_no_adaptation():
    with pytest.raises(
        RuntimeError, match=r"these ranks know nothing of adaptation 7: they were started anew under it"
    ):
        step_tasks.solve_step(None, {}, {"token": "7", "first": False})


def test_what_a_task_left_instead_is_raised_here():
    for kind in (FullSolveError, CubatureError):
        with pytest.raises(kind, match="too soft"):
            step_tasks.refuse_failure({"failure": "too soft", "kind": kind.__name__})
    step_tasks.refuse_failure({"peak": 1.0})
    step_tasks.refuse_failure(None)

"""Blocks of simulations of a tiny bar: by the full model, and by a reduced one that learns while it is used."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from suites.solid_blocks import NAMES, SAMPLES, SIZE, TOLERANCE, make, methods, relative, solved
from suites.solid_cases import alone

from forebay.pipeline.errors import RunError
from forebay.pipeline.records import Outcome
from forebay.pipeline.study import SolverTable
from forebay.solvers.compose import LIBRARY, SolidStudy
from forebay.solvers.materials.catalogue import law_of
from forebay.solvers.problems.necked_bar import NeckedBar
from forebay.solvers.rom.basis import Settings
from forebay.solvers.rom.block_solver import SolidBlockSolver
from forebay.solvers.rom.growth import Place
from forebay.solvers.rom.library import Library
from forebay.solvers.rom.local_full import LocalFull
from forebay.solvers.rom.online import ReducedModel, ReducedSolveError
from forebay.solvers.rom.verdict import RomRule

DRAW = {"parameters": np.array([190.0, 600.0, 20.0, 1.0])}


# --- the full model -------------------------------------------------------------------------------------------------


def test_full_samples_are_those_of_the_model(tmp_path):
    problem = NeckedBar(**SIZE)
    solver = make(tmp_path, method="full", samples=2)
    block = solved(solver)
    model = problem.model(alone())
    for row, record in enumerate(block.records):
        trajectory = model.run(problem.history({"parameters": block.arrays["parameters"][row]}))
        steps, dofs, points = problem.stored_steps, np.argsort(model.dof_ids), np.argsort(model.point_ids)
        fields = problem.fields(trajectory.displacement[steps][:, dofs], trajectory.p[steps][:, points])
        for name in NAMES:
            np.testing.assert_allclose(block.arrays[name][row], fields[name], rtol=3e-7, atol=1e-12)
        assert record.method == solver.method == "full"
        assert record.iterations == sum(step.iterations for step in trajectory.records)
        assert record.residual == pytest.approx(max(step.residuals[-1] for step in trajectory.records), rel=1e-3)
        assert 0 < record.residual < 1e-8
        assert record.seconds > 0
        assert (record.indicator, record.estimate, record.message) == (None, None, "")
    model.destroy()
    assert block.choices == ()
    assert not (tmp_path / LIBRARY).exists()
    assert 0 < sum(record.seconds for record in block.records) <= block.seconds
    assert solver.timings.samples == 2
    assert 0 < solver.timings.solve < block.seconds


def test_blocks_come_out_the_same_however_they_are_cut(tmp_path, stream):
    _, block, again = stream
    second = solved(make(tmp_path, method="full", block=2), chunk=1)
    assert second.sample_ids.tolist() == [2, 3]
    np.testing.assert_array_equal(second.arrays["parameters"], block.arrays["parameters"][2:4])
    for row, sample in enumerate((2, 3)):
        for name in NAMES:
            np.testing.assert_allclose(second.arrays[name][row], again[sample][0][name], rtol=1e-5, atol=1e-12)


# --- the reduced model ----------------------------------------------------------------------------------------------


def test_the_first_samples_are_full_and_say_why(stream):
    _, block, _ = stream
    assert methods(block)[:4] == ["full"] * 4
    first, *others = block.records[:4]
    assert first.message == "there is no reduced model yet"
    assert (first.indicator, first.estimate) == (None, None)
    for version, record in enumerate(others, start=1):
        assert record.message == f"the reduced model has seen {version} of 4 training samples"
        assert record.estimate > 0
        assert record.indicator > 0


def test_later_samples_are_reduced_where_the_estimate_is_within_the_tolerance_and_full_elsewhere(stream):
    folder, block, _ = stream
    version = 4
    for record in block.records[4:]:
        assert record.outcome is Outcome.CONVERGED
        assert record.message.startswith(f"version {version}: estimated error ")
        assert record.message.endswith(" % of 6 %")
        assert f"{100 * record.estimate:.2g} %" in record.message
        assert (record.method == "rom") == (record.estimate <= TOLERANCE)
        version += record.method == "full"
    assert methods(block)[4:].count("rom") >= 5
    assert Library(folder / LIBRARY).latest == methods(block).count("full") == version


def test_reduced_samples_are_certified_by_their_own_equations_and_cost_less(stream):
    _, block, again = stream
    reduced = [record for record in block.records if record.method == "rom"]
    for record in reduced:
        assert 0 < record.residual <= 1e-8
        assert record.iterations >= SIZE["steps"]
    full_seconds = np.median([record.seconds for _, record in again])
    assert np.median([record.seconds for record in reduced]) < 0.5 * full_seconds


def test_true_errors_of_reduced_samples_are_within_three_times_the_tolerance(stream):
    _, block, again = stream
    worst = 0.0
    for row, record in enumerate(block.records):
        fields, check = again[row]
        assert (check.method, check.estimate, check.seed) == ("full", None, record.seed)
        for name in NAMES:
            error = relative(block.arrays[name][row], fields[name])
            if record.method == "rom":
                assert 1e-7 < error < 3 * TOLERANCE, (row, name)
                worst = max(worst, error)
            else:
                assert error < 1e-6
    assert worst < TOLERANCE, "most estimates are far from optimistic"


def test_solving_a_sample_again_teaches_the_reduced_model_nothing(trained):
    library = Library(trained / LIBRARY)
    version = library.latest
    solver = make(trained)
    fields, record = solver.resolve("train", SAMPLES - 1)
    solver.destroy()
    assert {name: array.shape for name, array in fields.items()} == {
        "parameters": (4,),
        "u": (3, 63, 3),
        "p": (3, 24),
    }
    assert (record.method, record.message) == ("full", "")
    assert library.latest == version


def test_choices_count_what_became_of_the_samples(stream):
    _, block, _ = stream
    reduced, full = block.choices
    kinds = methods(block)
    assert (reduced["method"], full["method"]) == ("rom", "full")
    assert (reduced["solved"], full["solved"]) == (kinds.count("rom"), kinds.count("full"))
    assert reduced["failures"] == kinds.count("full") - 4, "those of the training were not to be believed anyhow"
    assert (reduced["cut_offs"], full["failures"], full["cut_offs"]) == (0, 0, 0)
    seconds = [record.seconds for record in block.records if record.method == "rom"]
    assert reduced["median_s"] == pytest.approx(np.median(seconds))


def test_an_audit_of_all_solves_in_full_what_would_have_been_believed(trained):
    library = Library(trained / LIBRARY)
    version = library.latest
    block = solved(make(trained, samples=3, audit=1.0))
    assert methods(block) == ["full"] * 3
    for number, record in enumerate(block.records, start=version):
        assert record.message.startswith(f"audit of version {number}: estimated error ")
        assert record.estimate <= TOLERANCE
    assert library.latest == version + 3, "audits are learned from"
    assert [row["cut_offs"] for row in block.choices] == [3, 0]
    assert [row["failures"] for row in block.choices] == [0, 0]


def test_an_audit_of_some_is_decided_by_the_samples_seeds(trained):
    share = 0.4
    block = solved(make(trained, samples=8, audit=share))
    audited = [record.message.startswith("audit of ") for record in block.records]
    assert audited == [record.seed / 2**64 < share for record in block.records]
    assert 1 <= sum(audited) <= 7


def test_validation_samples_are_full_and_teach_nothing(trained):
    library = Library(trained / LIBRARY)
    version = library.latest
    block = solved(make(trained), "validation")
    assert methods(block) == ["full", "full"]
    assert [record.message for record in block.records] == ["", ""]
    assert [record.estimate for record in block.records] == [None, None]
    assert library.latest == version


def test_a_tolerance_that_nothing_meets_makes_every_sample_full(trained):
    block = solved(make(trained, samples=3, tolerance=1e-9))
    assert methods(block) == ["full"] * 3
    assert all("estimated error" in record.message for record in block.records)


def test_another_solver_of_the_run_begins_with_what_the_first_has_learned(trained):
    version = Library(trained / LIBRARY).latest
    block = solved(make(trained, samples=2))
    assert methods(block) == ["rom", "rom"]
    assert block.records[0].message.startswith(f"version {version}: ")


@dataclass
class Interrupted:
    """Full samples, before each of which another solver of the run finishes a block."""

    inner: LocalFull
    other: SolidBlockSolver

    @property
    def model(self):
        return self.inner.model

    def solve(self, draw, *, learn):
        self.other.solve_block("train", 0)
        return self.inner.solve(draw, learn=learn)

    def close(self):
        self.inner.close()
        self.other.destroy()


def test_a_version_that_another_solver_makes_is_taken_up_between_two_samples(tmp_path):
    problem, library = NeckedBar(**SIZE), Library(tmp_path / LIBRARY)
    settings = Settings(**SolidStudy("necked_bar", SIZE, tmp_path, tmp_path, SolverTable(method="rom")).settings)
    inner = LocalFull(problem, name="necked_bar", rtol=1e-8, learn=(library, settings))
    other = make(tmp_path, samples=2, training=32)
    block = solved(make(tmp_path, samples=2, training=32, full=Interrupted(inner, other)))
    assert block.records[0].message == "there is no reduced model yet"
    assert block.records[1].message == "the reduced model has seen 3 of 32 training samples"
    assert library.latest == 6


def test_versions_that_come_while_one_is_being_opened_are_taken_up(trained, monkeypatch):
    version, opening = Library(trained / LIBRARY).latest, Library.package
    waiting = [make(trained, samples=2, training=32)]

    def slow(library, number, law, cluster=None):
        package = opening(library, number, law, cluster)
        if waiting:
            solved(waiting.pop())
        return package

    monkeypatch.setattr(Library, "package", slow)
    solver = make(trained, samples=1)
    assert solver._latest(DRAW).place == Place(version + 2)
    solver.destroy()


def test_a_reduced_model_that_finds_no_solution_leaves_the_sample_to_the_full_one(trained, monkeypatch):
    def lost(self, history):
        raise ReducedSolveError(3, 0.75, "no decrease along a correction")

    monkeypatch.setattr(ReducedModel, "run", lost)
    version = Library(trained / LIBRARY).latest
    (record,) = solved(make(trained, samples=1)).records
    assert (record.method, record.outcome, record.estimate) == ("full", Outcome.CONVERGED, None)
    assert record.message.startswith(f"version {version} of the reduced model: ")
    assert "no decrease along a correction" in record.message
    assert Library(trained / LIBRARY).latest == version + 1


def test_a_library_of_another_law_ends_the_run(trained):
    class Softer(NeckedBar):
        @property
        def law(self):
            return law_of("chaboche", {"yield_stress": 90.0})

    version = Library(trained / LIBRARY).latest
    with pytest.raises(RunError, match=f"version {version} of the reduced model cannot be used: .*law"):
        solved(make(trained, problem=Softer(**SIZE)))


def test_good_values_are_those_of_the_study():
    rom = SolverTable().rom
    assert RomRule() == RomRule(rom.tolerance, rom.training, rom.audit, rom.adapt, SolverTable().rtol)

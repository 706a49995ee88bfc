"""Models for clusters of samples: made while a run goes on where they pay, chosen for each sample, or left out."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace

import numpy as np
import pytest
from suites.rom_cases import BAR, bar_history
from suites.solid_cases import alone

from forebay.pipeline.errors import RunError
from forebay.pipeline.records import ChunkPlan
from forebay.pipeline.study import SolverTable
from forebay.solvers.compose import LIBRARY, Sampling, SolidStudy, make_solid
from forebay.solvers.problems.necked_bar import NeckedBar
from forebay.solvers.rom import local_models
from forebay.solvers.rom.basis import Settings
from forebay.solvers.rom.block_solver import SolidBlockSolver
from forebay.solvers.rom.growth import Place
from forebay.solvers.rom.kept_samples import KeptSamples, replayed
from forebay.solvers.rom.library import Library
from forebay.solvers.rom.local_full import LocalFull
from forebay.solvers.rom.local_gain import Gain
from forebay.solvers.rom.local_models import is_over, verdict_of
from forebay.solvers.rom.online import ReducedModel

SIZE = {"cells": (6, 2, 2), "steps": 8, "frames": 3}
SAMPLES = 12


class TwoPlaces(NeckedBar):
    """The hot spot is at one end of the neck or at the other."""

    def history(self, draw):
        values = np.array(draw["parameters"])
        values[2] = 12.0 if values[2] < 20 else 28.0
        return super().history({**draw, "parameters": values})


def draws(count, seed=13):
    parameters = BAR.schema.parameters
    units = np.random.default_rng(seed).uniform(size=(count, len(parameters)))
    low, high = np.array([(p.low, p.high) for p in parameters]).T
    return [{"parameters": low + (high - low) * unit} for unit in units]


@pytest.fixture(autouse=True, scope="module")
def few():
    """Decide after few samples, in few modes."""
    patch = pytest.MonkeyPatch()
    patch.setattr(local_models, "ASKED", {"global": (), "auto": (SAMPLES,), "local": (8, SAMPLES)})
    patch.setattr(local_models, "MODES", 3)
    yield
    patch.undo()


def grown(folder, problem, bases, count=SAMPLES):
    """A library after some full samples, and the version that each of them led to."""
    settings = Settings(stress=3e-3, p=3e-3, cubature=2e-3, bases=bases)
    library = Library(folder / LIBRARY)
    full = LocalFull(problem, name="necked_bar", rtol=1e-8, learn=(library, settings))
    versions = [full.solve(draw, learn=True).version for draw in draws(count)]
    return library, full, versions


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    library, full, versions = grown(tmp_path_factory.mktemp("two"), TwoPlaces(**SIZE), "auto")
    yield library, full, versions
    full.close()


# --- where clusters pay ---------------------------------------------------------------------------------------------


def test_where_clusters_pay_the_next_version_has_a_model_for_each(two):
    library, _, versions = two
    assert versions == [*range(1, SAMPLES), SAMPLES + 1], "the last sample's version, then the one with clusters"
    assert library.decision(SAMPLES) is None
    decision = library.decision(SAMPLES + 1)
    assert decision.local
    assert decision.gain.gain > 1.2
    for cluster in range(2):
        package = library.package(SAMPLES + 1, BAR.law, cluster)
        whole = library.package(SAMPLES + 1, BAR.law)
        assert package.version == SAMPLES + 1
        assert whole.version == SAMPLES, "the one of all samples is still there, as it was"
        assert package.modes < whole.modes
        assert package.points < whole.points
        assert package.parameters == whole.parameters
        assert len(package.calibration.pairs) >= 8


def test_the_verdict_says_why_and_the_samples_are_no_longer_kept(two):
    library, _, _ = two
    verdict = verdict_of(library)
    assert verdict["local"] is True
    assert (verdict["samples"], verdict["version"]) == (SAMPLES, SAMPLES + 1)
    gain = f"{library.decision(SAMPLES + 1).gain.gain:.2f}"
    assert verdict["reason"] == f"local bases gain {gain} at n = 3, at least 1.2: 2 local bases are used"
    assert is_over(library, "auto")
    assert KeptSamples(library.folder).paths() == []


def test_samples_go_to_the_cluster_of_their_kind_and_are_solved_as_well(two):
    library, full, _ = two
    bar, version = TwoPlaces(**SIZE), SAMPLES + 1
    decision = library.decision(version)
    kinds = [draw["parameters"][2] < 20 for draw in draws(SAMPLES)]
    assert len({*zip(kinds, decision.labels, strict=True)}) == 2, "a cluster is a kind"
    draw = draws(1, seed=11)[0]
    true = full.solve(draw, learn=False)
    for cluster in (None, decision.choose(draw["parameters"]).cluster):
        reduced = library.reduced(version, full.model, bar.law, cluster)
        found = ReducedModel(reduced.package, bar.law).run(bar.history(draw))
        modes = reduced.basis.displacement.modes[:, : reduced.basis.modes]
        displacement = (found.coefficients @ modes.T)[:, np.argsort(full.model.dof_ids)]
        error = np.linalg.norm(displacement - true.displacement) / np.linalg.norm(true.displacement)
        assert error < 0.02
        assert reduced.package.version == version


def test_a_further_sample_teaches_its_cluster_and_the_others_stay(two, tmp_path):
    library, full, _ = two
    latest = library.latest
    draw = draws(1, seed=17)[0]
    cluster = library.decision(latest).choose(draw["parameters"]).cluster
    assert full.solve(draw, learn=True).version == latest + 1 == library.latest
    own, other = (library.package(latest + 1, BAR.law, number) for number in (cluster, 1 - cluster))
    assert own.version == latest + 1
    assert other.version < latest + 1
    assert len(own.calibration.pairs) > len(library.package(latest, BAR.law, cluster).calibration.pairs)
    names = {path.name for path in (library.folder / f"v{latest + 1:04d}").iterdir()}
    assert names == {"local.json", *(f"{kind}{n}.npz" for kind in ("package", "basis") for n in ("", "-0", "-1"))}
    kept = library.folder / f"v{latest + 1:04d}" / f"package-{1 - cluster}.npz"
    assert kept.stat().st_nlink >= 2, "a link, no copy"


def test_a_run_switches_by_itself_and_its_records_say_so(two, tmp_path):
    shutil.copytree(two[0].folder, tmp_path / LIBRARY)
    study = SolidStudy("bar", SIZE, tmp_path, tmp_path, SolverTable(method="rom", rom={"audit": 0.0, "tolerance": 0.2}))
    solver = make_solid(TwoPlaces(**SIZE), study, Sampling(2026, {"train": ChunkPlan("train", 8, 8)}))
    block = solver.solve_block("train", 0)
    assert {place.cluster for place in solver._opened} >= {0, 1}
    solver.destroy()
    version = Library(tmp_path / LIBRARY).latest
    starts = {record.message.partition(":")[0] for record in block.records if record.method == "rom"}
    assert {f"version {version}, cluster {n}" for n in (0, 1)} <= starts


def test_a_sample_that_its_cluster_cannot_do_is_tried_by_the_model_of_all(two, tmp_path, monkeypatch):
    shutil.copytree(two[0].folder, tmp_path / LIBRARY)
    study = SolidStudy("bar", SIZE, tmp_path, tmp_path, SolverTable(method="rom", rom={"audit": 0.0, "tolerance": 0.2}))
    tries, attempt = [], SolidBlockSolver._try_reduced

    def doubtful(self, draw, version):
        tries.append(version.place.cluster)
        verdict = attempt(self, draw, version)
        return replace(verdict, accepted=False, refused=True) if version.place.cluster is not None else verdict

    monkeypatch.setattr(SolidBlockSolver, "_try_reduced", doubtful)
    solver = make_solid(TwoPlaces(**SIZE), study, Sampling(2026, {"train": ChunkPlan("train", 1, 1)}))
    (record,) = solver.solve_block("train", 0).records
    solver.destroy()
    assert len(tries) == 2
    assert tries[1] is None
    assert record.method == "rom"
    assert record.message.startswith(f"version {Library(tmp_path / LIBRARY).latest}: estimated error")


# --- where they do not ----------------------------------------------------------------------------------------------


def test_where_clusters_do_not_pay_one_model_is_kept_and_the_reason_left(tmp_path, monkeypatch):
    monkeypatch.setattr(local_models, "ASKED", {"global": (), "auto": (8,), "local": ()})
    library, full, versions = grown(tmp_path, NeckedBar(**SIZE), "auto", 10)
    full.close()
    assert versions == list(range(1, 11))
    verdict = verdict_of(library)
    assert verdict["local"] is False
    assert verdict["samples"] == 8
    assert "the global basis is kept" in verdict["reason"]
    assert library.decision(10) is None
    assert KeptSamples(library.folder).paths() == []


def test_asked_again_later_samples_are_kept_until_then(tmp_path, monkeypatch):
    monkeypatch.setattr(local_models, "ASKED", {"global": (), "auto": (4, 6), "local": ()})
    monkeypatch.setattr(local_models, "MODES", 2)
    library, full, _ = grown(tmp_path, NeckedBar(**SIZE), "auto", 5)
    assert verdict_of(library)["samples"] == 4
    assert not is_over(library, "auto")
    assert len(KeptSamples(library.folder).paths()) == 5
    full.solve(draws(6)[5], learn=True)
    full.close()
    assert verdict_of(library)["samples"] == 6
    assert KeptSamples(library.folder).paths() == []


def test_local_takes_clusters_whatever_they_gain(tmp_path, monkeypatch):
    monkeypatch.setattr(Gain, "gain", property(lambda self: 0.5))
    library, full, _ = grown(tmp_path, TwoPlaces(**SIZE), "local")
    full.close()
    assert verdict_of(library)["local"] is True
    assert library.decision(library.latest).threshold == 0.0
    assert is_over(library, "local")


def test_a_gain_below_the_threshold_keeps_one_model(tmp_path, monkeypatch):
    monkeypatch.setattr(Gain, "gain", property(lambda self: 1.19))
    library, full, versions = grown(tmp_path, TwoPlaces(**SIZE), "auto")
    full.close()
    assert versions[-1] == SAMPLES
    assert verdict_of(library)["local"] is False


def test_a_global_library_keeps_no_samples_and_asks_nothing(tmp_path):
    library, full, _ = grown(tmp_path, NeckedBar(**SIZE), "global", 2)
    full.close()
    assert not (library.folder / "samples").exists()
    assert verdict_of(library) is None
    assert is_over(library, "global")


def test_samples_that_cannot_be_compared_are_a_reason_and_no_crash(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(local_models, "ASKED", {"global": (), "auto": (2,), "local": ()})
    monkeypatch.setattr(local_models, "MODES", 500)
    with caplog.at_level(logging.WARNING):
        library, full, _ = grown(tmp_path, NeckedBar(**SIZE), "auto", 2)
    full.close()
    assert verdict_of(library)["reason"].startswith("the full samples cannot be compared: modes = 500")
    assert "local bases were not judged" in caplog.text


# --- files ----------------------------------------------------------------------------------------------------------


def test_a_decision_that_is_damaged_is_told(two, tmp_path):
    shutil.copytree(two[0].folder, tmp_path / LIBRARY)
    library = Library(tmp_path / LIBRARY)
    path = library.folder / f"v{SAMPLES + 1:04d}" / "local.json"
    for text in ("{", json.dumps({"format": 1}), json.dumps({"format": 99})):
        path.unlink(missing_ok=True)
        path.write_text(text)
        with pytest.raises(RunError, match=r"local.json' cannot be read .*; remove its version's folder"):
            library.decision(SAMPLES + 1)


def test_a_kept_sample_is_replayed_as_it_was(tmp_path):
    model = BAR.model(alone())
    history = bar_history((200, 700, 20, 1.0))
    trajectory = model.run(history)
    kept = KeptSamples(tmp_path)
    draw = {"parameters": np.array([200.0, 700.0, 20.0, 1.0]), "f": np.arange(4.0)}
    assert kept.add(model, draw, trajectory.displacement) == 1
    (sample,) = kept.read(model)
    assert sample.draw.keys() == draw.keys()
    np.testing.assert_array_equal(sample.draw["f"], draw["f"])
    run = replayed(model, history, sample.displacement)
    for name, rtol in (("displacement", 1e-6), ("stress", 1e-4), ("p", 1e-3)):
        found, true = getattr(run.trajectory, name), getattr(trajectory, name)
        assert np.linalg.norm(found - true) < rtol * np.linalg.norm(true), name
    model.destroy()


def test_a_place_is_a_version_and_a_cluster(two):
    library, _, _ = two
    assert Place(3) == Place(3, None) != Place(3, 0)
    with pytest.raises(RunError, match="version 3 of the reduced model cannot be used"):
        library.package(3, BAR.law, 0)

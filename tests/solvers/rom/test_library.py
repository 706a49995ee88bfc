import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from suites.rom_cases import BAR, COARSE, WEAK, bar_history, bar_runs, simulated
from suites.solid_cases import alone

from forebay.pipeline.errors import DatasetError, RunError
from forebay.solvers.materials.catalogue import law_of
from forebay.solvers.problems.necked_bar import NeckedBar
from forebay.solvers.rom import library as library_module
from forebay.solvers.rom.basis import basis_of
from forebay.solvers.rom.library import Library
from forebay.solvers.rom.offline import Origin, Reduced, build, enrich, make_package
from forebay.solvers.rom.online import ReducedModel

LAW = BAR.law
ORIGIN = Origin("necked_bar", LAW, {"traction": (150.0, 200.0)})
SCRIPT = Path(__file__).with_name("rom_parallel.py")


@pytest.fixture(scope="module")
def model():
    model = BAR.model(alone())
    yield model
    model.destroy()


@pytest.fixture(scope="module")
def runs(model):
    return bar_runs(model)


@pytest.fixture(scope="module")
def reduced(model, runs):
    return build(model, runs[:2], ORIGIN, COARSE)


@pytest.fixture
def library(model, reduced, tmp_path):
    """With version 1."""
    library = Library(tmp_path / "rom")
    library.publish(model, reduced)
    return library


def numbered(reduced, version):
    return dataclasses.replace(reduced, package=dataclasses.replace(reduced.package, version=version))


def same(one, other):
    """Bit for bit, arrays, numbers and what holds them."""
    if dataclasses.is_dataclass(one):
        fields = [field.name for field in dataclasses.fields(one)]
        return type(one) is type(other) and all(same(getattr(one, name), getattr(other, name)) for name in fields)
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.tobytes() == other.tobytes() and one.shape == other.shape
    return one == other


def text_or(read):
    """What `read` returns, or the text of its RunError."""
    try:
        return read()
    except RunError as error:
        return str(error)


def environment():
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "PYTHONPATH": path}


# --- what goes in comes out -----------------------------------------------------------------------------------------


def test_there_is_no_version_before_the_first(tmp_path):
    assert Library(tmp_path / "none" / "yet").latest == 0
    assert Library(tmp_path).latest == 0


def test_what_is_published_comes_back_bit_for_bit(model, reduced, library):
    assert library.latest == 1
    assert same(library.package(1, LAW), reduced.package)
    assert same(library.basis(1, model), reduced.basis)
    assert len(reduced.basis.peaks) > 0
    assert len(reduced.basis.points) > 0


def test_a_loaded_version_solves_and_learns_as_the_original(model, runs, reduced, library):
    loaded = Reduced(library.package(1, LAW), library.basis(1, model), reduced.residual)
    first, second = (ReducedModel(found.package, LAW).run(runs[1].history) for found in (reduced, loaded))
    assert first.p.max() > 1e-4
    for name in ("coefficients", "stress", "p", "p_coefficients", "errors"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    one, other = (enrich(model, found, runs[2:], ORIGIN) for found in (reduced, loaded))
    assert same(one.package, other.package)
    assert same(one.basis, other.basis)


def test_a_basis_without_p_comes_back(model, tmp_path):
    weak = simulated(model, bar_history(WEAK))
    elastic = make_package(model, basis_of(model, [weak], COARSE), ORIGIN)
    assert elastic.basis.p is None
    library = Library(tmp_path)
    library.publish(model, elastic)
    assert same(library.basis(1, model), elastic.basis)
    assert same(library.package(1, LAW), elastic.package)


# --- versions -------------------------------------------------------------------------------------------------------


def test_a_version_is_published_once(model, reduced, library):
    content = (library.folder / "v0001" / "package.npz").read_bytes()
    with pytest.raises(RunError, match=r"v0001 exists already; a version is published once, by whoever holds the lock"):
        library.publish(model, reduced)
    assert (library.folder / "v0001" / "package.npz").read_bytes() == content
    assert os.listdir(library.folder) == ["v0001"]


def test_the_largest_number_is_the_latest_and_all_else_is_ignored(model, reduced, library):
    for name in (".v0099.77-c0ffee", "v12x", "lock", "v", "0044"):
        (library.folder / name).mkdir()
    assert library.latest == 1
    library.publish(model, numbered(reduced, 10_000))
    assert library.latest == 10_000
    assert library.package(10_000, LAW).version == 10_000
    library.publish(model, numbered(reduced, 99))
    assert library.latest == 10_000
    assert (library.folder / ".v0099.77-c0ffee").is_dir(), "perhaps somebody's"


def test_old_bases_are_removed_and_packages_kept(model, reduced, library):
    for version in (2, 3, 4, 5):
        library.publish(model, numbered(reduced, version))
        assert library.basis(version - 1, model).modes == reduced.basis.modes, "a reader may be at it"
    assert [library.package(version, LAW).version for version in range(1, 6)] == [1, 2, 3, 4, 5]
    kept = sorted(path.parent.name for path in library.folder.glob("*/basis.npz"))
    assert kept == ["v0004", "v0005"]
    with pytest.raises(RunError, match=r"v0003/basis\.npz' cannot be read .*; remove its version's folder"):
        library.basis(3, model)


def test_a_version_that_cannot_be_written_leaves_nothing_behind(model, reduced, library, monkeypatch):
    def full(path, parts):
        raise DatasetError(f"cannot write {path}: no space left")

    monkeypatch.setattr(library_module, "write_atomically", full)
    with pytest.raises(DatasetError, match="no space left"):
        library.publish(model, numbered(reduced, 2))
    assert os.listdir(library.folder) == ["v0001"]
    assert library.latest == 1


# --- what cannot be used --------------------------------------------------------------------------------------------


def test_a_package_of_another_law_is_refused(library):
    stiff = law_of("chaboche", {"young": 210e3})
    with pytest.raises(
        RunError, match=r"version 1 of the reduced model cannot be used: .* trained with law 'chaboche'"
    ):
        library.package(1, stiff)


def test_a_version_that_is_not_there_is_refused(model, library):
    with pytest.raises(RunError, match=r"version 7 of the reduced model cannot be used: .*v0007/package\.npz"):
        library.package(7, LAW)
    with pytest.raises(RunError, match=r"v0007/basis\.npz' cannot be read \(FileNotFoundError"):
        library.basis(7, model)


@pytest.mark.parametrize("part", [0.0, 0.001, 0.3, 0.9, 0.999])
def test_files_that_are_cut_short_are_refused_by_name(model, library, part):
    for name, read in (("package", lambda: library.package(1, LAW)), ("basis", lambda: library.basis(1, model))):
        path = library.folder / "v0001" / f"{name}.npz"
        content = path.read_bytes()
        path.write_bytes(content[: int(part * len(content))])
        with pytest.raises(RunError, match=rf"v0001/{name}\.npz' .*; (copy it again or rebuild it|remove its version)"):
            read()


def test_no_changed_byte_goes_unnoticed_or_raises_anything_else(model, reduced, library):
    path = library.folder / "v0001" / "basis.npz"
    content = path.read_bytes()
    rng = np.random.default_rng(2026)
    places = [*rng.integers(0, len(content), 40), *rng.integers(len(content) - 1500, len(content), 80), *range(0, 130)]
    refused = 0
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        found = text_or(lambda: library.basis(1, model))
        if isinstance(found, str):
            assert "v0001/basis.npz" in found
            refused += 1
        else:
            assert same(found, reduced.basis), place
    assert refused > len(places) / 3, "the others changed nothing that is read"


def test_a_basis_that_lacks_an_array_is_refused(model, library):
    path = library.folder / "v0001" / "basis.npz"
    stored = dict(np.load(path))
    del stored["stress_values"]
    np.savez(path, **stored)
    with pytest.raises(RunError, match=r"v0001/basis\.npz' cannot be read \(KeyError\('stress_values'\)"):
        library.basis(1, model)


@pytest.mark.parametrize(
    ("cells", "what"),
    [
        ((8, 2, 2), "degrees of freedom"),
        ((6, 2, 3), "degrees of freedom"),
        ((4, 2, 2), "lengths or volumes"),
        ((2, 6, 2), "lengths or volumes"),
    ],
)
def test_a_basis_of_another_mesh_is_refused(library, cells, what):
    """Of a larger one, of one all of whose numbers there are, and of one with the same numbers."""
    other = NeckedBar(cells=cells, steps=8, frames=4).model(alone())
    with pytest.raises(
        RunError, match=rf"v0001/basis\.npz' has other {what} than the model: .* open it with the problem"
    ):
        library.basis(1, other)
    other.destroy()


# --- several processes ----------------------------------------------------------------------------------------------


def test_a_lock_is_free_again_after_its_holder(library):
    for _ in range(2):
        with library.locked():
            assert (library.folder / "lock").exists()
    with pytest.raises(KeyError), library.locked():
        raise KeyError
    with library.locked():
        assert library.latest == 1


def test_two_processes_that_learn_under_the_lock_never_collide(library):
    """Each version is made from the one before, whoever made that."""
    learners = [
        subprocess.Popen(
            [sys.executable, SCRIPT, "learn", library.folder, f"ready{number}"],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    made = []
    for learner in learners:
        output, errors = learner.communicate(timeout=240)
        assert learner.returncode == 0, errors
        made.append(json.loads(output))
    assert sorted(made[0] + made[1]) == list(range(2, 6))
    assert library.latest == 5
    pairs = [len(library.package(version, LAW).calibration.pairs) for version in range(1, 6)]
    assert pairs == [16 + 8 * number for number in range(5)]


@pytest.fixture(scope="module")
def on_two(model, runs, tmp_path_factory):
    """One process has published in "alone", two have read that and published in "several"."""
    folder = tmp_path_factory.mktemp("published")
    one = make_package(model, basis_of(model, runs, COARSE), ORIGIN)
    Library(folder / "alone").publish(model, one)
    mpiexec = Path(sys.executable).with_name("mpiexec")
    subprocess.run(
        [mpiexec, "-n", "2", sys.executable, SCRIPT, "publish", folder], check=True, env=environment(), timeout=240
    )
    found = dict(np.load(folder / "found.npz"))
    return one, Library(folder / "several"), found, json.loads(str(found["facts"]))


@pytest.mark.mpi
def test_two_processes_publish_what_one_does(model, runs, on_two):
    one, several, _, _ = on_two
    found = several.basis(1, model)
    for name in ("displacement", "stress", "p"):
        mine, other = getattr(one.basis, name), getattr(found, name)
        np.testing.assert_allclose(other.singular_values, mine.singular_values, rtol=1e-8, err_msg=name)
        scaled, of_two = (pod.modes * pod.singular_values for pod in (mine, other))
        np.testing.assert_allclose(of_two, scaled, rtol=0, atol=1e-9 * abs(scaled).max(), err_msg=name)
    assert found.modes == one.basis.modes
    assert found.settings == one.basis.settings
    assert found.displacement_scale == pytest.approx(one.basis.displacement_scale, rel=1e-10)
    package = several.package(1, LAW)
    solved = ReducedModel(package, LAW).run(runs[0].history)
    alone_ = ReducedModel(one.package, LAW).run(runs[0].history)
    difference = np.linalg.norm(solved.coefficients - alone_.coefficients)
    assert difference < 0.1 * np.linalg.norm(alone_.coefficients), "other points, of the same tolerance"
    assert package.point_ids[: package.force_points].tolist() != found.points.tolist()
    np.testing.assert_array_equal(
        np.sort(model.point_ids[found.points]), np.sort(package.point_ids[: package.force_points])
    )


@pytest.mark.mpi
def test_two_processes_read_what_one_has_published(model, on_two):
    one, _, found, facts = on_two
    dofs, points = np.argsort(model.dof_ids), np.argsort(model.point_ids)
    np.testing.assert_array_equal(found["displacement"], one.basis.displacement.modes[dofs])
    np.testing.assert_array_equal(found["p"], one.basis.p.modes[points])
    np.testing.assert_array_equal(found["stress"], one.basis.stress.modes.reshape(model.points, 6, -1)[points])
    assert [expected for expected, _ in facts["points"]] == [points for _, points in facts["points"]]
    assert sum(points for _, points in facts["points"]) == len(one.basis.points)
    assert all(points for _, points in facts["points"])


@pytest.mark.mpi
def test_every_process_hears_of_a_refusal(on_two):
    facts = on_two[3]
    assert len(facts["again"]) == 2
    for text in facts["again"]:
        assert "a version is published once" in text
    for text in facts["other"] + facts["smaller"]:
        assert "it was made on another mesh" in text


@pytest.mark.mpi
def test_hot_spots_come_from_all_processes_in_turn(on_two):
    facts = on_two[3]
    first, second = facts["hot"]
    assert first == second
    assert len(first) == COARSE.hot_points
    owners = [set(ids) for ids in facts["hot owners"]]
    assert [sum(spot in ids for spot in first) for ids in owners] == [8, 8]

import dataclasses
import json

import numpy as np
import pytest
from dense_solid import ELASTIC, DenseSolid, Isotropic

from forebay.pipeline.errors import DatasetError
from forebay.solvers.rom.calibration import Calibration
from forebay.solvers.rom.package import LawStamp, PackageError, RomPackage
from forebay.solvers.rom.package_file import FORMAT

LAW = Isotropic()
SOLID = DenseSolid((2, 1, 1))


def a_package(**changes):
    modes = np.linalg.qr(np.random.default_rng(7).normal(size=(len(SOLID.lift), 7)))[0]
    pairs = np.random.default_rng(11).uniform(0.01, 1.0, (30, 4))
    values = {
        "chosen": [1, 5],
        "parameters": {"pull": (0.01, 0.02), "yield_stress": (180.0, 220.0)},
        "calibration": Calibration(pairs, level=0.91, least=0.25),
        "version": 3,
    }
    return SOLID.package(modes[:, :4], LAW, extra=modes[:, 4:], **{**values, **changes})


def saved(path, **members):
    """A package file, with some members replaced, or taken out where None."""
    a_package().save(path)
    with np.load(path) as file:
        kept = {**{name: file[name] for name in file.files}, **members}
    np.savez(path, **{name: value for name, value in kept.items() if value is not None})
    return path


def changed_metadata(path, **changes):
    a_package().save(path)
    with np.load(path) as file:
        metadata = {**json.loads(file["metadata"].tobytes()), **changes}
    kept = {key: value for key, value in metadata.items() if value is not None}
    return saved(path, metadata=np.frombuffer(json.dumps(kept).encode(), np.uint8))


# --- the file -------------------------------------------------------------------------------------------------------


def test_a_package_comes_back_from_its_file_as_it_was(tmp_path):
    package = a_package()
    package.save(tmp_path / "a.npz")
    restored = RomPackage.load(tmp_path / "a.npz", LAW)
    for field in dataclasses.fields(RomPackage):
        before, after = getattr(package, field.name), getattr(restored, field.name)
        if isinstance(before, np.ndarray):
            assert before.dtype == after.dtype, field.name
            np.testing.assert_array_equal(before, after, strict=True)
        elif field.name == "calibration":
            np.testing.assert_array_equal(before.pairs, after.pairs)
            assert (before.level, before.least) == (after.level, after.least)
            assert (before.displacement, before.p) == (after.displacement, after.p)
        else:
            assert before == after, field.name


def test_saving_twice_gives_the_same_bytes_and_no_other_file(tmp_path):
    for name in ("a.npz", "b.npz"):
        a_package().save(tmp_path / name)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "b.npz"]


def test_a_package_that_cannot_be_written_leaves_the_old_one(tmp_path):
    (tmp_path / "a.npz").mkdir()
    with pytest.raises(DatasetError, match=r"cannot write .*a\.npz"):
        a_package().save(tmp_path / "a.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_a_typical_package_has_about_100_kb(tmp_path):
    rng = np.random.default_rng(13)
    m, n, extra, q = 110, 10, 8, 8
    package = dataclasses.replace(
        a_package(),
        modes=n,
        strains=rng.normal(size=(m, 6, n + extra)),
        weights=np.ones(m),
        positions=rng.normal(size=(m, 3)),
        point_ids=np.arange(m),
        loads=np.ones((2, n + extra)),
        lift_strains=np.ones((m, 6, 1)),
        gram=np.eye(n + extra + 1),
        p_modes=rng.normal(size=(m, q)),
        hot_p_modes=rng.normal(size=(2, q)),
        monitors=np.ones((3, n)),
        calibration=Calibration(rng.uniform(size=(500, 4))),
    )
    package.save(tmp_path / "a.npz")
    assert 50_000 < (tmp_path / "a.npz").stat().st_size < 200_000


def test_every_cut_of_a_file_is_noticed(tmp_path):
    a_package().save(tmp_path / "whole.npz")
    whole = (tmp_path / "whole.npz").read_bytes()
    for size in (0, 1, 3, 50, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.npz").write_bytes(whole[:size])
        with pytest.raises(PackageError, match=r"not a package, or damaged or cut short .*copy it again"):
            RomPackage.load(tmp_path / "cut.npz")


def test_a_flipped_byte_is_noticed_unless_it_changes_nothing(tmp_path):
    package = a_package()
    package.save(tmp_path / "a.npz")
    whole = (tmp_path / "a.npz").read_bytes()
    refused = 0
    for position in np.random.default_rng(13).integers(0, len(whole), 60):
        content = bytearray(whole)
        content[position] ^= 0xFF
        (tmp_path / "a.npz").write_bytes(content)
        try:
            restored = RomPackage.load(tmp_path / "a.npz")
        except PackageError:
            refused += 1
        else:
            np.testing.assert_array_equal(restored.strains, package.strains)
    assert refused >= 45


@pytest.mark.parametrize("content", [b"not a zip file at all", b"\x80\x04pickle"])
def test_another_file_is_refused(tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(PackageError, match="not a package"):
        RomPackage.load(tmp_path / "a.npz")


def test_a_single_array_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.ones(3))
    with pytest.raises(PackageError, match="not a package"):
        RomPackage.load(tmp_path / "a.npy")


def test_pickles_are_not_read(tmp_path):
    path = saved(tmp_path / "a.npz", weights=np.array([{"a": 1}], object))
    with pytest.raises(PackageError, match="allow_pickle"):
        RomPackage.load(path)


def test_a_missing_file_is_reported_as_such(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.npz"):
        RomPackage.load(tmp_path / "nowhere.npz")


@pytest.mark.parametrize("name", ["strains", "gram", "metadata", "calibration_pairs"])
def test_a_missing_array_is_named(tmp_path, name):
    with pytest.raises(PackageError, match=f"lacks '{name}'; it is damaged"):
        RomPackage.load(saved(tmp_path / "a.npz", **{name: None}))


def test_a_missing_entry_of_the_metadata_is_named(tmp_path):
    with pytest.raises(PackageError, match="lacks 'modes'"):
        RomPackage.load(changed_metadata(tmp_path / "a.npz", modes=None))


def test_metadata_that_are_not_json_are_refused(tmp_path):
    with pytest.raises(PackageError, match=r"metadata of .* cannot be read"):
        RomPackage.load(saved(tmp_path / "a.npz", metadata=np.frombuffer(b"{no", np.uint8)))


def test_another_format_is_refused(tmp_path):
    with pytest.raises(PackageError, match=f"format {FORMAT + 1}, this version reads {FORMAT}"):
        RomPackage.load(changed_metadata(tmp_path / "a.npz", format=FORMAT + 1))


def test_another_law_is_refused_and_both_are_named(tmp_path):
    a_package().save(tmp_path / "a.npz")
    assert RomPackage.load(tmp_path / "a.npz").law == LawStamp.of(LAW)
    with pytest.raises(PackageError, match=r"trained with law 'isotropic_test_law' .*200\.0.*given is .*1000000000000"):
        RomPackage.load(tmp_path / "a.npz", ELASTIC)


# --- the value ------------------------------------------------------------------------------------------------------


def test_arrays_are_copies_that_cannot_be_written():
    weights = SOLID.weights.copy()
    package = a_package(weights=weights)
    weights[:] = -1.0
    assert (package.weights > 0).all()
    with pytest.raises(ValueError, match="read-only"):
        package.strains[0] = 0.0


def test_counts_follow_from_the_arrays():
    weights = SOLID.weights * (np.arange(len(SOLID.weights)) < 9)
    package = a_package(weights=weights)
    assert (package.points, package.force_points, package.modes, package.extra) == (16, 9, 4, 3)


@pytest.mark.parametrize(
    "name",
    [
        "strains", "weights", "positions", "point_ids", "loads", "lift_strains", "lift_loads", "gram", "p_modes",
        "hot_p_modes", "hot_positions", "hot_point_ids", "monitors", "monitor_lifts",
    ],
)  # fmt: skip
def test_arrays_that_do_not_fit_each_other_are_refused(name):
    array = getattr(a_package(), name)
    with pytest.raises(PackageError, match=r"has shape .*, but \(.*\) is .*; build the package again"):
        a_package(**{name: array[:-1]})


@pytest.mark.parametrize("modes", [0, 8])
def test_modes_and_strains_must_fit(modes):
    with pytest.raises(PackageError, match=rf"modes = {modes} with strains of shape \(16, 6, 7\)"):
        dataclasses.replace(a_package(), modes=modes)


@pytest.mark.parametrize("name", ["strains", "loads", "gram", "p_modes"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_must_be_finite(name, value):
    array = getattr(a_package(), name).copy()
    array.flat[0] = value
    with pytest.raises(PackageError, match=f"{name} holds NaN or inf"):
        a_package(**{name: array})


@pytest.mark.parametrize("weights", [-np.ones(16), np.zeros(16)])
def test_weights_must_not_be_negative_nor_all_zero(weights):
    with pytest.raises(PackageError, match=r"weights lie in .*must be >= 0, one at least > 0"):
        a_package(weights=weights)


def test_points_of_weight_zero_come_last():
    weights = SOLID.weights.copy()
    weights[3] = 0.0
    with pytest.raises(PackageError, match="a point of weight 0 comes before"):
        a_package(weights=weights)


def test_p_needs_as_many_points_as_modes():
    with pytest.raises(PackageError, match="17 modes of p at 16 points"):
        a_package(p_modes=np.ones((16, 17)))


def test_the_gram_matrix_must_be_symmetric():
    gram = a_package().gram.copy()
    gram[0, 1] += 0.1
    with pytest.raises(PackageError, match="gram is not symmetric"):
        a_package(gram=gram)


@pytest.mark.parametrize("changes", [{"displacement_scale": 0.0}, {"displacement_scale": np.nan}, {"p_scale": -1.0}])
def test_scales_must_make_sense(changes):
    with pytest.raises(PackageError, match="must be positive and p_scale"):
        a_package(**changes)


def test_ranges_of_parameters_must_be_ordered():
    with pytest.raises(PackageError, match=r"parameter 'pull' ranges over 2\.0 \.\.\. 1\.0"):
        a_package(parameters={"pull": (2.0, 1.0)})


@pytest.mark.parametrize(
    ("name", "value"), [("load_names", ("side", "side")), ("monitor_labels", ("x", "y", "x")), ("point_ids", [3] * 16)]
)
def test_names_and_points_must_differ(name, value):
    with pytest.raises(PackageError, match=f"{name} holds .* more than once"):
        a_package(**{name: value})

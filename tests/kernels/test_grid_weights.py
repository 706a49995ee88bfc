from dataclasses import replace

import numpy as np
import pytest

from forebay.kernels import weight_file
from forebay.kernels.grid_weights import FORMAT, GridWeights
from forebay.kernels.weight_file import WeightsError, latest_version, version_path


def weights(seed=7, units=3, **changes):
    rng = np.random.default_rng(seed)
    shapes = {"hidden": (2, units, 8), "hidden_bias": (2, units), "smoother": (2, units), "smoother_bias": (2,)}
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    gate = rng.standard_normal((2, units)).astype(np.float32)
    return replace(GridWeights(dimension=2, gate=gate, version=5, **arrays), **changes)


def test_a_file_gives_back_what_was_saved(tmp_path):
    saved = weights()
    saved.save(tmp_path / "new" / "w.safetensors")
    loaded = GridWeights.load(tmp_path / "new" / "w.safetensors")
    assert loaded.digest == saved.digest
    assert (loaded.dimension, loaded.version) == (2, 5)
    for name, array in saved.arrays.items():
        np.testing.assert_array_equal(loaded.arrays[name], array)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["w.safetensors"]


def test_the_digest_sees_every_number_and_not_the_version():
    first = weights()
    assert replace(first, version=9).digest == first.digest
    for name, array in first.arrays.items():
        changed = array.copy()
        changed.flat[-1] = np.nextafter(changed.flat[-1], np.float32(9))
        assert replace(first, **{name: changed}).digest != first.digest


@pytest.mark.parametrize("cut", [4, 200, -8])
def test_a_file_cut_short_is_refused(tmp_path, cut):
    path = tmp_path / "w.safetensors"
    weights().save(path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(WeightsError, match="damaged or cut short"):
        GridWeights.load(path)


def test_a_changed_number_is_noticed(tmp_path):
    path = tmp_path / "w.safetensors"
    weights().save(path)
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="do not match its digest"):
        GridWeights.load(path)


def test_weights_of_another_format_are_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    weight_file.write(path, "grid", FORMAT + 1, weights().arrays, {"dimension": "2", "version": "0"})
    with pytest.raises(WeightsError, match=f"format {FORMAT + 1}, this version reads {FORMAT}"):
        GridWeights.load(path)


def test_weights_of_another_kind_are_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    weight_file.write(path, "other", FORMAT, weights().arrays, {})
    with pytest.raises(WeightsError, match="kind 'other', not 'grid'"):
        GridWeights.load(path)


def test_foreign_safetensors_are_refused(tmp_path):
    from safetensors.numpy import save_file

    save_file({"x": np.ones(3)}, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match="no 'kind' in its header"):
        GridWeights.load(tmp_path / "w.safetensors")


def test_a_file_without_an_array_is_refused(tmp_path):
    arrays = weights().arrays
    del arrays["gate"]
    weight_file.write(tmp_path / "w.safetensors", "grid", FORMAT, arrays, {"dimension": "2", "version": "0"})
    with pytest.raises(WeightsError, match="lacks gate"):
        GridWeights.load(tmp_path / "w.safetensors")


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no file of weights"):
        GridWeights.load(tmp_path / "w.safetensors")


def test_arrays_that_do_not_fit_are_refused():
    first = weights()
    with pytest.raises(WeightsError, match=r"'gate' are float32 of shape \(2, 2\)"):
        replace(first, gate=first.gate[:, :2])
    with pytest.raises(WeightsError, match="'smoother' are float64"):
        replace(first, smoother=first.smoother.astype(np.float64))
    with pytest.raises(WeightsError, match="'hidden_bias' hold NaN"):
        replace(first, hidden_bias=np.full_like(first.hidden_bias, np.nan))
    with pytest.raises(WeightsError, match="dimension 4: it is 2 or 3"):
        replace(first, dimension=4)


def test_weights_of_another_dimension_are_refused():
    with pytest.raises(WeightsError, match="trained on 2-dimensional grids, this one has 3 axes"):
        weights().require_dimension(3)


@pytest.mark.parametrize("dimension", [2, 3])
def test_shipped_weights_can_be_read(dimension):
    assert GridWeights.shipped(dimension).dimension == dimension


def test_no_weights_are_shipped_for_other_dimensions():
    with pytest.raises(WeightsError, match="no weights are shipped for 1 dimensions"):
        GridWeights.shipped(1)


def test_the_newest_version_of_a_folder_is_found(tmp_path):
    assert latest_version(tmp_path / "none") is None
    assert latest_version(tmp_path) is None
    for version in (2, 10, 9):
        weights().save(version_path(tmp_path, version))
    (tmp_path / "v0011.safetensors.part").touch()
    assert latest_version(tmp_path) == (10, tmp_path / "v0010.safetensors")


def test_a_failed_write_leaves_nothing_behind(tmp_path):
    (tmp_path / "w.safetensors").mkdir()
    with pytest.raises(OSError, match=r"w\.safetensors"):
        weights().save(tmp_path / "w.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]

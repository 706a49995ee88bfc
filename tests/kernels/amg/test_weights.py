import amg_cases
import numpy as np
import pytest
from safetensors.numpy import save_file

from forebay.kernels.amg import CLASSICAL, AmgSolver, AmgWeights
from forebay.kernels.amg.numbers import FEATURES, smooth_and_prolong
from forebay.kernels.weight_file import WeightsError
from forebay.learners.amg_meshes import grid_mesh


def test_weights_come_back_bit_by_bit_with_version_and_digest(tmp_path):
    weights = amg_cases.random_weights(7)
    AmgWeights(weights.hidden, weights.output, 3).save(tmp_path / "w.safetensors")
    back = AmgWeights.load(tmp_path / "w.safetensors")
    np.testing.assert_array_equal(back.hidden, weights.hidden)
    np.testing.assert_array_equal(back.output, weights.output)
    assert back.version == 3
    assert back.digest == weights.digest
    assert back.digest != amg_cases.random_weights(11).digest


def test_the_shipped_weights_are_there_and_have_98_numbers():
    weights = AmgWeights.shipped()
    assert weights.hidden.size + weights.output.size == 98


def test_weights_of_another_kind_format_or_digest_are_refused(tmp_path):
    weights, path = amg_cases.random_weights(7), tmp_path / "w.safetensors"
    weights.save(path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    (tmp_path / "damaged").write_bytes(content)
    (tmp_path / "short").write_bytes(content[:40])
    arrays = {"hidden": weights.hidden, "output": weights.output}
    save_file(arrays, tmp_path / "other", metadata={"kind": "grid", "format": "2", "digest": "x"})
    save_file(arrays, tmp_path / "old", metadata={"kind": "amg", "format": "1", "digest": "x"})
    for name, match in {
        "damaged": "do not match its digest",
        "short": "no safetensors file, or damaged",
        "other": "weights of kind 'grid', not 'amg'",
        "old": "weights of format 1, this version reads 2",
    }.items():
        with pytest.raises(WeightsError, match=match):
            AmgWeights.load(tmp_path / name)


def test_arrays_that_make_no_network_are_refused():
    good = amg_cases.random_weights(7)
    with pytest.raises(WeightsError, match=r"'output' are float32 of shape \(2, 3\), not float32 of \(2, 9\)"):
        AmgWeights(good.hidden, np.zeros((2, 3), dtype=np.float32))
    with pytest.raises(WeightsError, match="'hidden' are float64"):
        AmgWeights(good.hidden.astype(np.float64), good.output)
    with pytest.raises(WeightsError, match="hold NaN or inf"):
        AmgWeights(good.hidden * np.float32(np.nan), good.output)


@pytest.mark.parametrize(("omega", "damping"), [(0.0, 1.0), (4.0, 1.0), (1.0, 2.0), (1.0, 0.0)])
def test_constants_beyond_their_range_are_refused(omega, damping):
    with pytest.raises(WeightsError, match=r"the first lies in \(0, 4\), the second in \(0, 2\); 1.33 is classical"):
        AmgWeights.constant(omega, damping)


def test_the_classical_cycle_has_no_hidden_units():
    assert CLASSICAL.hidden.shape == (0, FEATURES + 1)


def test_constants_may_differ_between_the_finest_level_and_the_others():
    pairs = ((1.2, 1.8), (1.6, 1.9))
    matrix = grid_mesh(30, 2).reference
    solver = AmgSolver(matrix.indptr, matrix.indices, matrix.data, weights=AmgWeights.by_level(*pairs), guard=False)
    values = matrix.data
    for level, pair in zip(solver.hierarchy.levels, pairs, strict=True):
        expected = AmgWeights.constant(*pair)
        smoother, prolong = np.empty_like(level.smoother_exact), np.empty_like(level.prolong_exact)
        arrays = (array.astype(np.float64) for array in (expected.hidden, expected.output))
        smooth_and_prolong(level.plan, values, *arrays, smoother, prolong, np.empty(level.plan.work_size))
        np.testing.assert_allclose(level.smoother_exact, smoother, rtol=1e-6)
        np.testing.assert_allclose(level.prolong_exact, prolong, atol=1e-6)
        values = level.coarse

"""POD on any number of ranks, and its update, against a dense singular value decomposition."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from suites.thread_ranks import alone, on_ranks

from forebay.solvers.rom.pod import Pod, component_rows, pod


def fields(rows=90, snapshots=12, decay=0.5, seed=7):
    """Snapshots whose singular values fall by a factor, and weights."""
    rng = np.random.default_rng(seed)
    weights = rng.uniform(0.2, 3.0, rows)
    left = np.linalg.qr(rng.standard_normal((rows, snapshots)))[0]
    right = np.linalg.qr(rng.standard_normal((snapshots, snapshots)))[0]
    return (left * decay ** np.arange(snapshots)) @ right / np.sqrt(weights)[:, None], weights


def missed(found: Pod, snapshots, weights):
    """Relative projection error of snapshots."""
    rest = snapshots - found.expand(found.project(snapshots, alone()))
    return np.sqrt(np.sum(weights[:, None] * rest**2) / np.sum(weights[:, None] * snapshots**2))


def on_parts(snapshots, weights, bounds, action):
    """Modes of all rows and small results of `action(rows, weights, comm)` on ranks that own rows between bounds."""
    parts = list(zip(np.split(snapshots, bounds), np.split(weights, bounds), strict=True))
    results = on_ranks(len(parts), lambda comm: action(*parts[comm.rank], comm))
    for result in results:
        assert np.array_equal(result.singular_values, results[0].singular_values)
        assert result.discarded == results[0].discarded
    return np.vstack([result.modes for result in results]), results[0]


def test_modes_are_orthonormal_in_the_weighted_product_and_singular_values_are_the_dense_ones():
    snapshots, weights = fields()
    found = pod(snapshots, weights, alone(), modes=7)
    dense = np.linalg.svd(np.sqrt(weights)[:, None] * snapshots, compute_uv=False)
    assert np.allclose(found.modes.T @ (weights[:, None] * found.modes), np.eye(7), atol=1e-14)
    assert np.allclose(found.singular_values, dense[:7], rtol=1e-13)
    assert found.energy == pytest.approx(np.sum(dense**2), rel=1e-14)
    assert found.error == pytest.approx(missed(found, snapshots, weights), rel=1e-9)


def test_singular_values_far_below_the_root_of_rounding_are_accurate():
    snapshots, weights = fields(snapshots=13, decay=0.1)
    found = pod(snapshots, weights, alone(), modes=12)
    assert np.allclose(found.singular_values, 0.1 ** np.arange(12), rtol=1e-3)
    assert np.allclose(found.modes.T @ (weights[:, None] * found.modes), np.eye(12), atol=1e-13)


@pytest.mark.parametrize("tolerance", [0.3, 1e-2, 1e-4])
def test_a_tolerance_keeps_the_fewest_modes_that_meet_it(tolerance):
    snapshots, weights = fields(decay=0.4)
    found = pod(snapshots, weights, alone(), tolerance=tolerance)
    fewer = pod(snapshots, weights, alone(), modes=len(found.singular_values) - 1)
    assert missed(found, snapshots, weights) <= tolerance < missed(fewer, snapshots, weights)
    again = pod(snapshots, weights, alone(), modes=12).truncated(tolerance=tolerance)
    assert np.array_equal(again.modes, found.modes)
    assert again.discarded == pytest.approx(found.discarded, rel=1e-12)
    assert pod(snapshots, weights, alone(), tolerance=tolerance, modes=2).modes.shape == (90, 2)


@settings(max_examples=25, deadline=None)
@given(bounds=st.lists(st.integers(0, 30), min_size=1, max_size=4).map(sorted), seed=st.integers(2, 2026))
def test_any_split_of_the_rows_gives_the_same_modes(bounds, seed):
    """Some ranks own fewer rows than there are snapshots, some none."""
    snapshots, weights = fields(rows=30, snapshots=9, seed=seed)
    expected = pod(snapshots, weights, alone(), modes=8)
    modes, found = on_parts(snapshots, weights, bounds, lambda u, w, comm: pod(u, w, comm, modes=8))
    assert np.allclose(modes, expected.modes, atol=1e-10)
    assert np.allclose(found.singular_values, expected.singular_values, rtol=1e-12)


def test_the_largest_coefficient_of_a_mode_is_positive_also_where_two_are_equal():
    shape = np.linspace(1.0, 2.0, 11)[:, None]
    for signs in ([1.0, -1.0, 0.5], [-1.0, 1.0, 0.5], [1.0, -1.0 - 1e-12, 0.5], [-1.0, 1.0 + 1e-12, 0.5]):
        found = pod(shape * signs, np.ones(11), alone(), modes=1)
        assert found.project(shape * signs, alone())[0, 0] > 0


@pytest.mark.parametrize("bounds", [[], [4, 50], [0, 45]])
def test_an_extended_pod_is_the_pod_of_all_snapshots(bounds):
    snapshots, weights = fields(snapshots=20, decay=0.6)
    batch = pod(snapshots, weights, alone(), modes=14)

    def extended(u, w, comm):
        first = pod(u[:, :8], w, comm, tolerance=1e-12)
        return first.extend(u[:, 8:13], comm, tolerance=1e-12).extend(u[:, 13:], comm, modes=14)

    modes, found = on_parts(snapshots, weights, bounds, extended)
    assert np.allclose(found.singular_values, batch.singular_values, rtol=1e-9)
    assert np.allclose(np.abs(modes.T @ (weights[:, None] * batch.modes)), np.eye(14), atol=1e-6)
    assert found.energy == pytest.approx(batch.energy, rel=1e-12)
    assert found.snapshots == 20


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(2, 2026), tolerance=st.sampled_from([1e-1, 1e-2, 1e-3]))
def test_updates_one_by_one_stay_within_the_tolerance_of_the_batch(seed, tolerance):
    snapshots, weights = fields(rows=60, snapshots=24, decay=0.6, seed=seed)
    found = pod(snapshots[:, :6], weights, alone(), tolerance=tolerance)
    for column in snapshots[:, 6:].T:
        found = found.extend(column, alone(), tolerance=tolerance)
    batch = pod(snapshots, weights, alone(), tolerance=tolerance)
    assert missed(found, snapshots, weights) <= 1.5 * tolerance
    assert abs(len(found.singular_values) - len(batch.singular_values)) <= 2
    assert found.error <= tolerance


def test_snapshots_in_the_span_change_singular_values_only_and_modes_stay_orthonormal():
    snapshots, weights = fields(snapshots=6, decay=1e-2)
    found = pod(snapshots, weights, alone(), modes=6)
    for _ in range(5):
        found = found.extend(found.expand(np.ones(6)), alone(), tolerance=1e-13)
    assert found.modes.shape == (90, 6)
    assert np.allclose(found.modes.T @ (weights[:, None] * found.modes), np.eye(6), atol=1e-13)
    with pytest.raises(ValueError, match="7 modes of 12 snapshots, of which 6 are linearly independent"):
        found.extend(found.expand(np.ones(6)), alone(), modes=7)


def test_modes_of_nearly_dependent_new_snapshots_are_orthonormal():
    snapshots, weights = fields(snapshots=8, decay=0.9)
    found = pod(snapshots[:, :6], weights, alone(), modes=6)
    nearly = found.expand(np.ones(6))[:, None] + 1e-10 * snapshots[:, 6:]
    found = found.extend(nearly, alone(), modes=8)
    assert np.allclose(found.modes.T @ (weights[:, None] * found.modes), np.eye(8), atol=1e-12)


def test_zero_snapshots_added_change_nothing():
    snapshots, weights = fields()
    before = pod(snapshots, weights, alone(), modes=5)
    after = before.extend(np.zeros((90, 2)), alone(), modes=5)
    assert np.allclose(after.modes, before.modes, atol=1e-13)
    assert np.allclose(after.singular_values, before.singular_values, rtol=1e-13)


def test_fields_of_several_components_repeat_the_weight_of_their_point():
    rng = np.random.default_rng(11)
    stress, weights = rng.standard_normal((15, 6, 4)), rng.uniform(1.0, 2.0, 15)
    found = pod(*component_rows(stress, weights), alone(), modes=4)
    modes = found.modes.reshape(15, 6, 4)
    assert np.allclose(np.einsum("q,qci,qcj->ij", weights, modes, modes), np.eye(4), atol=1e-14)
    size = np.einsum("q,qcj,qcj->", weights, stress, stress)
    assert found.energy == pytest.approx(size, rel=1e-13)


def broken(**changes):
    snapshots, weights = fields()
    arguments = {"tolerance": None, "modes": 3} | changes
    keywords = {name: arguments[name] for name in ("tolerance", "modes")}
    return arguments.get("snapshots", snapshots), arguments.get("weights", weights), keywords


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modes": 13}, r"13 modes of 12 snapshots, of which 12 are linearly independent; ask for 12 at most"),
        ({"modes": 0}, "0 modes; at least one"),
        ({"modes": None}, "neither a tolerance nor a number of modes"),
        ({"tolerance": 1.0}, r"a POD tolerance of 1.0; it must lie in \[0, 1\)"),
        ({"snapshots": np.zeros((90, 3))}, "all snapshots are zero"),
        ({"snapshots": np.empty((90, 0))}, "no snapshots; pass at least one"),
        ({"snapshots": np.ones((90, 6, 2))}, r"shape \(90, 6, 2\).*component_rows"),
        ({"snapshots": np.where(np.arange(12) == 5, np.nan, np.ones((90, 12)))}, "snapshot 5 holds NaN"),
        ({"weights": np.where(np.arange(90) == 7, 0.0, np.ones(90))}, "a weight is 0.0; weights must be positive"),
        ({"weights": np.where(np.arange(90) == 7, np.nan, np.ones(90))}, "a weight is nan"),
        ({"weights": np.ones(89)}, r"weights of shape \(89,\)"),
    ],
)
def test_broken_arguments_are_refused(changes, message):
    snapshots, weights, keywords = broken(**changes)
    with pytest.raises(ValueError, match=message):
        pod(snapshots, weights, alone(), **keywords)


def test_what_is_wrong_on_one_rank_is_raised_on_all():
    snapshots, weights = fields()
    snapshots[60, 3] = np.nan
    with pytest.raises(ValueError, match=r"snapshot 3 holds NaN.*\(on rank 1\)"):
        on_parts(snapshots, weights, [40], lambda u, w, comm: pod(u, w, comm, modes=3))


def test_ranks_must_hold_rows_of_the_same_snapshots():
    snapshots, weights = fields()
    with pytest.raises(ValueError, match=r"the ranks hold \[11, 12\] snapshots"):
        on_parts(snapshots, weights, [40], lambda u, w, comm: pod(u[:, 1 - comm.rank :], w, comm, modes=3))

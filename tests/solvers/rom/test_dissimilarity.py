import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mpi4py import MPI

from forebay.solvers.rom.dissimilarity import coordinates, dissimilarities

SELF = MPI.COMM_SELF
ROWS, STEPS = 40, 5
KINDS = ("sine", "subspace", "l2")


def simulations(seed, count=6, rows=ROWS, steps=STEPS):
    """What they have in common keeps their angles far from right ones."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(rows, steps))
    return [(common + rng.normal(size=(rows, steps))) * 10.0 ** rng.uniform(-3, 3) for _ in range(count)]


def weights_of(seed, rows=ROWS):
    return np.random.default_rng(seed).uniform(0.1, 10.0, rows)


def dots(first, second, weights):
    """First'W second."""
    return first.T @ (weights[:, None] * second)


def test_coordinates_keep_all_inner_products_in_the_weighted_norm():
    snapshots, weights = simulations(7), weights_of(7)
    small = coordinates(snapshots, weights, SELF)
    for a, u in zip(small, snapshots, strict=True):
        for b, v in zip(small, snapshots, strict=True):
            expected = dots(u, v, weights)
            scale = np.sqrt(np.trace(dots(u, u, weights)) * np.trace(dots(v, v, weights)))
            assert np.abs(a.T @ b - expected).max() < 4e-6 * scale


def test_coordinates_of_many_snapshots_that_span_little_are_few():
    rng = np.random.default_rng(11)
    span = rng.normal(size=(ROWS, 3))
    snapshots = [span @ rng.normal(size=(3, 100)) for _ in range(7)]
    small = coordinates(snapshots, weights_of(11), SELF)
    assert {c.shape for c in small} == {(3, 100)}
    np.testing.assert_allclose(small[5].T @ small[6], dots(snapshots[5], snapshots[6], weights_of(11)), atol=1e-8)


def test_a_tiny_simulation_is_kept_as_well_as_a_large_one():
    snapshots = simulations(7)
    snapshots[2] = 1e-12 * snapshots[2]
    small = coordinates(snapshots, weights_of(7), SELF)
    expected = dots(snapshots[2], snapshots[2], weights_of(7))
    assert np.abs(small[2].T @ small[2] - expected).max() < 4e-6 * np.trace(expected)


def test_a_simulation_that_moves_light_rows_only_is_kept_as_well_as_others():
    snapshots, weights = simulations(7), weights_of(7)
    weights[20:] *= 1e-18
    snapshots[2][:20] = 0.0
    small = coordinates(snapshots, weights, SELF)
    expected = dots(snapshots[2], snapshots[2], weights)
    assert np.abs(small[2].T @ small[2] - expected).max() < 4e-6 * np.trace(expected)


def test_the_sine_is_that_of_the_angle_in_the_weighted_inner_product():
    snapshots, weights = simulations(7), weights_of(7)
    small = coordinates(snapshots, weights, SELF)
    for solution in ("trajectory", "final"):
        matrix = dissimilarities(small, "sine", solution)
        for i, u in enumerate(snapshots):
            for j, v in enumerate(snapshots):
                a, b = (u, v) if solution == "trajectory" else (u[:, -1:], v[:, -1:])
                product, first, second = (np.trace(dots(x, y, weights)) for x, y in ((a, b), (a, a), (b, b)))
                expected = np.sqrt(max(1 - product**2 / (first * second), 0.0))
                assert matrix[i, j] == pytest.approx(expected, abs=1e-5)
    unweighted = dissimilarities(coordinates(snapshots, np.ones(ROWS), SELF), "sine")
    assert np.abs(unweighted - dissimilarities(small, "sine")).max() > 0.01


def test_the_distance_is_that_of_the_weighted_norm():
    snapshots = [u / np.linalg.norm(u) for u in simulations(13)]
    weights = weights_of(13)
    small = coordinates(snapshots, weights, SELF)
    for solution, part in (("trajectory", slice(None)), ("final", slice(-1, None))):
        matrix = dissimilarities(small, "l2", solution)
        difference = (snapshots[1] - snapshots[4])[:, part]
        assert matrix[1, 4] == pytest.approx(np.sqrt(np.trace(dots(difference, difference, weights))), rel=1e-5)


def test_the_chordal_distance_is_that_of_the_principal_angles():
    from scipy.linalg import subspace_angles

    snapshots, weights = simulations(7), weights_of(7)
    matrix = dissimilarities(coordinates(snapshots, weights, SELF), "subspace", dimension=2)
    roots = np.sqrt(weights)[:, None]
    frames = [np.linalg.svd(roots * u, full_matrices=False)[0][:, :2] for u in snapshots]
    for i, a in enumerate(frames):
        for j, b in enumerate(frames):
            expected = np.sqrt(np.mean(np.sin(subspace_angles(a, b)) ** 2))
            assert matrix[i, j] == pytest.approx(expected, abs=1e-4)


def test_subspaces_of_one_mode_have_the_sine_between_these():
    small = coordinates(simulations(7, steps=1), weights_of(7), SELF)
    np.testing.assert_allclose(
        dissimilarities(small, "subspace", dimension=1), dissimilarities(small, "sine"), atol=1e-12
    )


@given(seed=st.integers(0, 2**16), factor=st.sampled_from([-1e6, -1.0, -0.3, 1e-9, 2.0]), power=st.integers(-60, 60))
@settings(max_examples=25, deadline=None)
def test_angles_do_not_see_scale_and_sign_but_distances_do(seed, factor, power):
    small = list(coordinates(simulations(seed), weights_of(seed), SELF))
    scaled = [np.ldexp(c, power) for c in small]
    scaled[1] = factor * scaled[1]
    for kind in ("sine", "subspace"):
        assert np.abs(dissimilarities(scaled, kind) - dissimilarities(small, kind)).max() < 1e-12
    both = [small[0], factor * small[0]]
    assert dissimilarities(both, "sine")[0, 1] < 1e-12
    assert dissimilarities(both, "subspace")[0, 1] < 1e-12
    expected = abs(1 - factor) * np.linalg.norm(small[0])
    assert dissimilarities(both, "l2")[0, 1] == pytest.approx(expected)


@given(seed=st.integers(0, 2**16))
@settings(max_examples=25, deadline=None)
def test_every_dissimilarity_is_a_metric(seed):
    small = coordinates(simulations(seed, rows=6, steps=3), weights_of(seed, 6), SELF)
    for kind in KINDS:
        matrix = dissimilarities(small, kind, dimension=2)
        np.testing.assert_allclose(matrix, matrix.T, rtol=1e-12, atol=1e-12)
        assert not np.diag(matrix).any()
        assert (matrix[~np.eye(len(matrix), dtype=bool)] > 0).all()
        assert kind == "l2" or matrix.max() <= 1 + 1e-12
        slack = 1e-12 * matrix.max()
        assert (matrix[:, None, :] <= matrix[:, :, None] + matrix[None, :, :] + slack).all()


@pytest.mark.parametrize("angle", [1e-12, 1e-9, 1e-4, 1.0, np.pi / 2])
@pytest.mark.parametrize("sign", [-1, 1])
def test_small_angles_are_not_lost(angle, sign):
    first, second = np.array([[1.0], [0.0]]), sign * np.array([[np.cos(angle)], [np.sin(angle)]])
    assert dissimilarities([first, second], "sine")[0, 1] == pytest.approx(np.sin(angle), rel=1e-6)
    assert dissimilarities([first, second], "subspace", dimension=1)[0, 1] == pytest.approx(np.sin(angle), rel=1e-6)


def test_trajectories_need_equal_lengths_and_the_others_do_not():
    small = [*coordinates(simulations(7), weights_of(7), SELF)]
    small[3] = small[3][:, :4]
    with pytest.raises(ValueError, match=r"trajectories of 4 to 5 snapshots .* solution='final' or"):
        dissimilarities(small, "sine")
    assert dissimilarities(small, "sine", "final").shape == dissimilarities(small, "subspace").shape == (6, 6)


def test_a_zero_solution_has_no_direction():
    snapshots = simulations(7)
    snapshots[4][:, -1] = 0.0
    small = coordinates(snapshots, weights_of(7), SELF)
    assert np.isfinite(dissimilarities(small, "sine")).all()
    small[4][:, -1] = 0.0
    with pytest.raises(ValueError, match="simulation 4 is zero, which has no direction"):
        dissimilarities(small, "sine", "final")
    snapshots[4][:] = 0.0
    with pytest.raises(ValueError, match="simulation 4 is zero at all times, which has no direction; leave it out"):
        coordinates(snapshots, weights_of(7), SELF)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_simulations_must_be_finite(value):
    snapshots = simulations(7)
    snapshots[3][5, 1] = value
    with pytest.raises(ValueError, match="simulation 3 holds NaN or inf; leave it out"):
        coordinates(snapshots, weights_of(7), SELF)


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan])
def test_weights_must_be_positive(value):
    weights = weights_of(7)
    weights[2] = value
    with pytest.raises(ValueError, match="weights must be positive and finite"):
        coordinates(simulations(7), weights, SELF)


@pytest.mark.parametrize("broken", [np.ones(ROWS), np.ones((ROWS, 0)), np.ones((ROWS + 1, 5))])
def test_shapes_must_fit(broken):
    with pytest.raises(ValueError, match=r"simulation 2 of shape .* they must be \(rows, snapshots\)"):
        coordinates([*simulations(7)[:2], broken], weights_of(7), SELF)


def test_no_simulations_are_refused():
    with pytest.raises(ValueError, match="no simulations; give at least two"):
        coordinates([], weights_of(7), SELF)


@pytest.mark.parametrize("dimension", [0, 6])
def test_subspaces_need_independent_snapshots(dimension):
    small = coordinates(simulations(7), weights_of(7), SELF)
    with pytest.raises(ValueError, match=f"dimension = {dimension} .* simulation 0, which has 5 .* choose 1 to 5"):
        dissimilarities(small, "subspace", dimension=dimension)


@pytest.mark.parametrize(("kind", "solution"), [("cosine", "final"), ("sine", "first")])
def test_unknown_names_are_refused(kind, solution):
    with pytest.raises(ValueError, match="choose sine, subspace, l2, and trajectory or final"):
        dissimilarities(coordinates(simulations(7), weights_of(7), SELF), kind, solution)

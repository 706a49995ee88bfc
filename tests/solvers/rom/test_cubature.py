"""Empirical cubature: the tolerance holds, weights are positive, and parts change next to nothing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls
from suites.integrand_cases import cloud
from suites.thread_ranks import alone, on_ranks

from forebay.solvers.rom import cubature
from forebay.solvers.rom.columns import Part, Together
from forebay.solvers.rom.cubature import (
    integrand_rows,
    select,
    select_from_parts,
    select_global,
    select_hierarchical,
)
from forebay.solvers.rom.nnomp import Outcome, prune, pursue
from forebay.solvers.rom.passive_set import PassiveSet

CASE = cloud()
MATRIX, TARGET = CASE.integrands()


def split(count):
    """Parts of G and of the weights, and the point numbers of each."""
    slabs = CASE.slabs(count)
    return [np.ascontiguousarray(MATRIX[:, own]) for own in slabs], [CASE.weights[own] for own in slabs], slabs


def residual(matrix, target, points, weights):
    return np.linalg.norm(matrix[:, points] @ weights - target) / np.linalg.norm(target)


def gathered(found, slabs):
    """Global numbers and weights from one cubature a part."""
    points = np.concatenate([own[part.points] for own, part in zip(slabs, found, strict=True)])
    return points, np.concatenate([part.weights for part in found])


def test_rows_are_works_of_stresses_in_modes_and_the_volume():
    comm = alone()
    rows = integrand_rows(CASE.mode_strains, CASE.stress, comm)
    works = np.einsum("qck,qcj->kjq", CASE.mode_strains, CASE.stress).reshape(-1, 1500)
    assert rows.shape == (5 * 24 + 1, 1500)
    assert np.allclose(rows[:-1], works, rtol=1e-12, atol=1e-12 * np.abs(works).max())
    assert np.allclose(rows[-1], np.abs(works).mean(), rtol=1e-12)
    assert np.array_equal(integrand_rows(CASE.mode_strains, CASE.stress, comm, volume=False), rows[:-1])


def test_the_volume_row_is_the_same_on_all_ranks():
    parts = np.split(np.arange(1500), [0, 600])
    rows = on_ranks(
        3, lambda comm: integrand_rows(CASE.mode_strains[parts[comm.rank]], CASE.stress[parts[comm.rank]], comm)
    )
    assert np.allclose(np.hstack(rows), MATRIX, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("tolerance", [3e-2, 1e-2, 1e-3, 1e-5])
def test_the_tolerance_holds_with_few_points_and_positive_weights(tolerance):
    found = select(MATRIX, TARGET, tolerance)
    assert found.reached
    assert found.residual == pytest.approx(residual(MATRIX, TARGET, found.points, found.weights), rel=1e-12)
    assert found.residual <= tolerance
    assert np.all(found.weights > 0)
    assert np.all(np.diff(found.points) > 0)
    assert found.size == len(found.points) < 121
    assert found.weights.sum() == pytest.approx(CASE.weights.sum(), rel=5 * tolerance)
    assert np.all(np.diff(found.history) < 0)


def test_every_tenfold_tolerance_costs_more_points_and_pruning_leaves_none_to_spare():
    sizes = []
    for tolerance in (1e-1, 1e-2, 1e-3):
        found = select(MATRIX, TARGET, tolerance)
        sizes.append(found.size)
        chosen = PassiveSet.empty(TARGET)
        for point in found.points:
            chosen = chosen.with_column(point, MATRIX[:, point])
        chosen = chosen.uniform().settled()
        for index in range(len(chosen)):
            fewer = chosen.without(np.arange(len(chosen)) == index).settled()
            assert np.linalg.norm(fewer.residual()) > (1 - 1e-8) * tolerance * np.linalg.norm(TARGET)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] < 50


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(2, 2026), support=st.integers(1, 8))
def test_planted_points_are_found_exactly(seed, support):
    """Random columns in many rows are nearly orthogonal: pursuit picks the planted ones."""
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((150, 60)) * rng.uniform(0.1, 10.0, 60)
    points = np.sort(rng.choice(60, support, replace=False))
    weights = rng.uniform(0.5, 2.0, support) / np.linalg.norm(matrix[:, points], axis=0)
    found = select(matrix, matrix[:, points] @ weights, 1e-9)
    assert found.points.tolist() == points.tolist()
    assert np.allclose(found.weights, weights, rtol=1e-6)
    assert found.residual < 1e-9


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(2, 2026),
    rows=st.integers(1, 30),
    points=st.integers(1, 80),
    tolerance=st.sampled_from([0.3, 1e-2, 1e-4]),
    parts=st.integers(1, 5),
)
def test_integrals_of_any_full_weights_are_met(seed, rows, points, tolerance, parts):
    """Attainable by construction; duplicate and zero columns, parts without points or without integrals among them."""
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((rows, points)) + 0.5
    matrix[:, rng.random(points) < 0.1] = 0.0
    matrix[:, points // 2] = matrix[:, 0]
    matrix[0] += 1.0
    weights = rng.uniform(0.0, 1.0, points)
    bounds = np.sort(rng.integers(0, points + 1, parts - 1))
    target = matrix @ weights
    pieces, shares = np.split(matrix, bounds, axis=1), np.split(weights, bounds)
    found = select_from_parts(pieces, target, tolerance, weights=shares)
    together = sum(piece[:, own.points] @ own.weights for piece, own in zip(pieces, found, strict=True))
    assert np.linalg.norm(together - target) <= tolerance * np.linalg.norm(target)
    assert all(own.reached and np.all(own.weights > 0) for own in found)
    assert sum(len(own.points) for own in found) == found[0].size <= rows + 1


def test_a_solution_as_the_start_comes_back_at_once():
    first = select(MATRIX, TARGET, 1e-3)
    again = select(MATRIX, TARGET, 1e-3, start=first.points)
    assert len(again.history) == 1
    assert np.array_equal(again.points, first.points)
    assert np.allclose(again.weights, first.weights, rtol=1e-6)


def test_a_start_from_earlier_points_needs_a_few_more_only():
    earlier = select(MATRIX[24:], TARGET[24:], 1e-3)
    cold, warm = select(MATRIX, TARGET, 1e-3), select(MATRIX, TARGET, 1e-3, start=earlier.points)
    assert warm.residual <= 1e-3
    assert len(warm.history) < 0.7 * len(cold.history)
    assert warm.size < 1.15 * cold.size


def test_parts_keep_the_global_tolerance_with_nearly_as_many_points():
    sizes = []
    for count in range(1, 9):
        pieces, shares, slabs = split(count)
        found = select_from_parts(pieces, TARGET, 1e-3, weights=shares)
        points, weights = gathered(found, slabs)
        assert residual(MATRIX, TARGET, points, weights) <= 1e-3
        assert found[0].residual == pytest.approx(residual(MATRIX, TARGET, points, weights), rel=1e-9)
        sizes.append(found[0].size)
    assert max(np.abs(np.array(sizes) - np.mean(sizes))) <= max(2.0, 0.05 * np.mean(sizes)), sizes
    assert np.mean(sizes) <= 1.05 * select(MATRIX, TARGET, 1e-3).size


def test_thinning_needs_fewer_columns_than_pruning_once(monkeypatch):
    """The stage among the candidates of all parts uses it."""
    pieces, shares, _ = split(1)
    tolerances = np.geomspace(3e-2, 1e-3, 6)

    def sizes():
        return np.array([select_from_parts(pieces, TARGET, each, weights=shares)[0].size for each in tolerances])

    thinned = sizes()
    monkeypatch.setattr(cubature, "thin", lambda columns, chosen, limit, most: prune(chosen, limit))
    pruned = sizes()
    assert np.all(thinned <= pruned)
    assert thinned.sum() < 0.98 * pruned.sum(), (thinned, pruned)


def test_ranks_select_what_parts_in_one_process_do():
    pieces, shares, _ = split(3)
    expected = select_from_parts(pieces, TARGET, 1e-2, weights=shares)

    def selected(comm):
        return select_hierarchical(pieces[comm.rank], TARGET, 1e-2, comm, weights=shares[comm.rank])

    for found, own in zip(on_ranks(3, selected), expected, strict=True):
        assert np.array_equal(found.points, own.points)
        assert np.array_equal(found.weights, own.weights)
        assert (found.size, found.outcome, found.history) == (own.size, own.outcome, own.history)
        assert found.residual == pytest.approx(own.residual, rel=1e-9)


@pytest.mark.parametrize("count", [1, 4])
def test_global_selection_finds_the_same_points_on_any_number_of_ranks(count):
    pieces, _, slabs = split(count)
    expected = select(MATRIX, TARGET, 1e-2)
    found = on_ranks(count, lambda comm: select_global(pieces[comm.rank], TARGET, 1e-2, comm))
    points, weights = gathered(found, slabs)
    order = np.argsort(points)
    assert points[order].tolist() == expected.points.tolist()
    assert np.allclose(weights[order], expected.weights, rtol=1e-6)
    assert found[0].residual <= 1e-2


def test_a_warm_start_on_ranks_takes_owned_numbers():
    pieces, shares, _ = split(3)

    def twice(comm):
        own = pieces[comm.rank], TARGET, 1e-2, comm
        first = select_hierarchical(*own, weights=shares[comm.rank])
        return first, select_hierarchical(*own, weights=shares[comm.rank], start=first.points)

    for first, again in on_ranks(3, twice):
        assert len(again.history) == 1
        assert np.array_equal(again.points, first.points)


def test_the_pursuit_goes_on_over_all_points_where_the_candidates_do_not_suffice(monkeypatch):
    monkeypatch.setattr(cubature, "CANDIDATE_TOLERANCE", 100.0)
    pieces, shares, slabs = split(4)
    found = select_from_parts(pieces, TARGET, 1e-3, weights=shares)
    assert residual(MATRIX, TARGET, *gathered(found, slabs)) <= 1e-3


def test_the_pick_goes_by_direction_and_not_by_length():
    part = Part(np.array([[1.0, 90.0], [0.1, 60.0]]), np.array([7, 11]))
    key, value = part.best(np.array([2.0, 0.0]), np.empty(0, dtype=np.int64))
    assert key == 7
    assert value == pytest.approx(2.0 / np.hypot(1.0, 0.1))
    assert part.best(np.array([2.0, 0.0]), np.array([7, 99]))[0] == 11


def test_candidates_of_every_part_meet_its_share_of_the_limit_alone():
    pieces, shares, _ = split(4)
    targets = [piece @ share for piece, share in zip(pieces, shares, strict=True)]
    helpers = [Part(piece, np.arange(piece.shape[1]), own) for piece, own in zip(pieces, targets, strict=True)]
    answers = []

    def ask(method, *arguments):
        answers[:] = [getattr(helper, method)(*arguments) for helper in helpers]
        return answers

    limit = 1e-3 * np.linalg.norm(TARGET)
    Together(ask, 4).candidates(limit, np.empty(0, dtype=np.int64))
    for (keys, rows), piece, own in zip(answers, pieces, targets, strict=True):
        assert np.array_equal(rows, piece[:, keys].T)
        assert nnls(rows.T, own)[1] <= limit / 4


def test_too_few_points_allowed_is_said():
    found = select(MATRIX, TARGET, 1e-3, most=7)
    assert not found.reached
    assert found.outcome is Outcome.MAX_POINTS
    assert "allow more points" in found.outcome.value
    assert found.size == 7
    assert found.residual > 1e-3
    pieces, shares, _ = split(2)
    assert select_from_parts(pieces, TARGET, 1e-3, weights=shares, most=7)[0].outcome is Outcome.MAX_POINTS


def test_a_target_outside_the_cone_stalls():
    matrix = np.abs(MATRIX)
    found = select(matrix, np.where(np.arange(len(TARGET)) == 5, -1.0, 1.0) * np.abs(TARGET), 1e-6)
    assert found.outcome is Outcome.STALLED
    assert "not a nonnegative combination" in found.outcome.value
    none = select(matrix, -np.abs(TARGET), 1e-2)
    assert (none.outcome, none.size, none.residual) == (Outcome.STALLED, 0, 1.0)


def test_a_pursuit_ends_where_rounding_forbids_progress():
    """A limit of zero: every column is either used, banned or uncorrelated in the end."""
    rng = np.random.default_rng(7)
    matrix = np.repeat(rng.uniform(0.0, 1.0, (12, 15)), 2, axis=1)
    target = matrix @ rng.uniform(0.0, 1.0, 30)
    found = pursue(Part(matrix, np.arange(30)), PassiveSet.empty(target), 0.0, 30)
    assert np.linalg.norm(found.chosen.residual()) < 1e-12 * np.linalg.norm(target)
    assert len(found.chosen) <= 12


def test_positive_least_squares_satisfies_its_optimality_conditions():
    rng = np.random.default_rng(11)
    matrix, target = rng.uniform(0.0, 1.0, (30, 12)), rng.uniform(0.0, 1.0, 30)
    found = pursue(Part(matrix, np.arange(12)), PassiveSet.empty(target), 0.0, 12)
    slope = matrix.T @ found.chosen.residual()
    assert found.outcome is Outcome.STALLED
    assert np.abs(slope[found.chosen.keys]).max() < 1e-10
    assert slope.max() < 1e-8
    assert 0 < len(found.chosen) < 12


def test_the_cost_of_removal_is_what_removal_costs():
    chosen = PassiveSet.empty(TARGET)
    for point in (3, 300, 700, 1100):
        chosen = chosen.with_column(point, MATRIX[:, point])
    chosen = chosen.uniform().settled()
    before = np.sum(chosen.residual() ** 2)
    for index, cost in enumerate(chosen.removal_costs()):
        fewer = chosen.without(np.arange(len(chosen)) == index)
        free = np.linalg.lstsq(fewer.columns.T, TARGET)[1][0]
        assert free - before == pytest.approx(cost, rel=1e-8)
    assert prune(chosen, np.inf).keys.size == 1


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(2, 2026), part=st.floats(0.05, 0.6))
def test_pruning_stays_within_its_limit(seed, part):
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((20, 15)) + 0.4
    target = matrix @ rng.uniform(0.1, 1.0, 15)
    full = pursue(Part(matrix, np.arange(15)), PassiveSet.empty(target), 0.0, 15).chosen
    limit = part * np.linalg.norm(target)
    kept = prune(full, limit)
    assert np.linalg.norm(matrix[:, kept.keys] @ kept.weights - target) <= limit * (1 + 1e-12)
    assert np.all(kept.weights > 0)


def test_nearly_parallel_columns_are_solved_to_rounding():
    """The condition is 1e5: its square would leave 1e-12 of the target."""
    rng = np.random.default_rng(7)
    matrix = rng.standard_normal(40)[:, None] + 1e-5 * rng.standard_normal((40, 7))
    target = matrix.sum(axis=1)
    chosen = PassiveSet.empty(target)
    for key in range(7):
        chosen = chosen.with_column(key, matrix[:, key])
    assert np.linalg.norm(chosen.uniform().settled().residual()) < 3e-15 * np.linalg.norm(target)


def test_a_column_in_the_span_is_not_taken():
    chosen = PassiveSet.empty(TARGET).with_column(3, MATRIX[:, 3])
    assert chosen.with_column(4, 2.5 * MATRIX[:, 3]) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": TARGET[:-1]}, r"with b of shape \(120,\)"),
        ({"target": 0 * TARGET}, "b of norm 0.0; it must be finite and not zero"),
        ({"target": np.full_like(TARGET, np.inf)}, "b of norm inf"),
        ({"tolerance": 1.0}, r"tolerance of 1.0; it must lie in \(0, 1\)"),
        ({"tolerance": 0.0}, "tolerance of 0.0"),
        ({"most": 0}, "at most 0 points"),
        ({"start": [1500]}, "start points from 1500 to 1500; they must be owned local numbers, 0 to 1499"),
        ({"start": [-1]}, "start points from -1"),
        ({"weights": CASE.weights[1:]}, r"weights of shape \(1499,\)"),
        ({"weights": -CASE.weights}, "some perhaps negative"),
        ({"matrix": np.where(np.arange(1500) == 7, np.nan, MATRIX)}, "G holds NaN or inf"),
    ],
)
def test_broken_arguments_are_refused_alike_on_all_ranks_and_in_parts(changes, message):
    given_ = {"matrix": MATRIX, "target": TARGET, "tolerance": 1e-2, "weights": CASE.weights, "start": [], "most": None}
    matrix, target, tolerance, weights, start, most = (given_ | changes).values()

    def selected(comm):
        if comm.rank == 0:
            return select_hierarchical(MATRIX, target, tolerance, comm, weights=CASE.weights, most=most)
        return select_hierarchical(matrix, target, tolerance, comm, weights=weights, start=start, most=most)

    with pytest.raises(ValueError, match=message):
        on_ranks(2, selected)
    with pytest.raises(ValueError, match=message):
        select_from_parts(
            [matrix, MATRIX], target, tolerance, weights=[weights, CASE.weights], starts=[start, []], most=most
        )


def test_stresses_that_do_not_fit_the_modes_are_refused():
    with pytest.raises(ValueError, match=r"stress of shape \(1500, 24\) with mode strains of shape \(1500, 6, 5\)"):
        integrand_rows(CASE.mode_strains, CASE.stress[:, 0], alone())

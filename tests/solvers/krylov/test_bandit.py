"""The choice of a solver: Tsallis-INF, the contextual bandit, and the rules around them, on simulated costs."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forebay.solvers.krylov.arm_record import OUTLIER, WINDOW, ArmRecord
from forebay.solvers.krylov.bandit import ArmSelector, Rules
from forebay.solvers.krylov.contextual import Contextual
from forebay.solvers.krylov.tsallis_inf import TsallisInf

SAMPLES = 500


def solve(selector, costs, *, context=(), fails=(), set_up=None):
    """One sample as a solver goes through it; returns the seconds spent and the arms tried."""
    left, spent, tried = [selector.choose(context)], 0.0, []
    while left:
        arm = left[0]
        cap = selector.cap(arm)
        seconds = costs[arm] * (1.0 if set_up is None else set_up.pop(arm, 1.0))
        converged = arm not in fails and (cap is None or seconds <= cap)
        seconds = seconds if cap is None else min(seconds, cap)
        selector.observe(arm, seconds, converged=converged)
        spent += seconds
        tried.append(arm)
        left = [] if converged else selector.ranking()
    return spent, tried


def run(selector, costs, *, contexts=None, set_up=None):
    """Total seconds, and the first arm tried for each sample; costs (samples, arms)."""
    results = [
        solve(selector, row, context=() if contexts is None else contexts[k], set_up=set_up)
        for k, row in enumerate(costs.tolist())
    ]
    return sum(spent for spent, _ in results), np.array([tried[0] for _, tried in results])


def noisy(means, samples, rng, noise=0.1):
    means = np.broadcast_to(means, (samples, np.shape(means)[-1]))
    return means * rng.lognormal(0.0, noise, means.shape)


def cost_tables(count, *, seed=311):
    """4 to 8 arms 1.05 to 100 times as dear as the best, in random order; the first is within a factor of 5."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        means = np.exp(rng.uniform(math.log(1.05), math.log(100), rng.integers(4, 9)))
        means[0] = 1.0
        means = rng.permutation(means)
        safe = rng.choice(np.flatnonzero(means <= 5.0))
        means[[0, safe]] = means[[safe, 0]]
        yield means


def excesses(policy, tables, *, set_up=False, noise=0.1):
    """Total cost beyond the best fixed arm in hindsight, relative, for each table."""
    found = []
    for k, means in enumerate(tables):
        rng = np.random.default_rng(911 + k)
        costs = noisy(means, SAMPLES, rng, noise)
        first = dict(enumerate(np.exp(rng.uniform(0, math.log(3), len(means))))) if set_up else None
        total, _ = run(ArmSelector(len(means), seed=13 + k, policy=policy), costs, set_up=first)
        found.append(total / costs.sum(axis=0).min() - 1.0)
    return np.array(found)


# Stationary costs


def test_learning_costs_less_than_five_per_cent_of_the_best_fixed_arm():
    found = excesses("optimistic", cost_tables(40))
    assert np.median(found) < 0.05
    assert np.percentile(found, 95) < 0.08


def test_a_first_solve_that_sets_up_does_not_mislead():
    """Each arm's first solve takes 1 to 3 times as long, which no choice can avoid once an arm is tried."""
    found = excesses("optimistic", cost_tables(24), set_up=True)
    assert np.median(found) < 0.05
    assert np.percentile(found, 95) < 0.12


def test_strong_noise_does_not_hide_the_best_arm():
    found = excesses("optimistic", cost_tables(24), noise=0.3)
    assert np.median(found) < 0.06
    assert found.max() < 0.13


def test_near_ties_cost_less_than_their_difference():
    ladder = 1.0 + 0.05 * np.arange(6)
    tables = [np.random.default_rng(k).permutation(ladder) for k in range(12)]
    found = excesses("optimistic", tables)
    assert found.max() < 0.04, "one step of the ladder is 0.05, a random choice costs 0.125"


def test_the_default_policy_is_the_cheapest_on_stationary_costs():
    tables = list(cost_tables(8))
    optimistic, squarecb, tsallis = (excesses(policy, tables) for policy in ("optimistic", "squarecb", "tsallis"))
    assert np.median(optimistic) < np.median(squarecb) < np.median(tsallis) < 0.1


def test_each_arm_is_tried_twice_and_slow_ones_are_stopped_early():
    selector, rng = ArmSelector(4, seed=5), np.random.default_rng(17)
    costs = noisy([2.0, 1.0, 40.0, 1.1], SAMPLES, rng)
    for row in costs.tolist():
        solve(selector, row)
    rows = {row["arm"]: row for row in selector.table()}
    assert all(row["tries"] >= 2 for row in rows.values())
    assert rows[2]["cut_offs"] == rows[2]["tries"] <= 4
    assert rows[2]["parked"]
    assert not rows[1]["parked"]
    assert selector.experiments_s < 0.03 * selector.seconds


def test_what_slow_arms_cost_stays_within_the_budget():
    costs = noisy([1.0, 50.0, 60.0, 70.0, 80.0, 90.0], 3000, np.random.default_rng(23))
    total, picks = run(ArmSelector(6, seed=5), costs)
    assert total / costs[:, 0].sum() - 1.0 < 0.035
    assert np.count_nonzero(picks[100:]) > 5, "they are still tried now and then"


def test_parked_arms_are_tried_ever_more_rarely():
    selector = ArmSelector(2, seed=5, rules=Rules(budget=0.5, patience=50))
    _, picks = run(selector, np.tile([1.0, 10.0], (900, 1)))
    gaps = np.diff(np.flatnonzero(picks == 1))
    np.testing.assert_array_equal(gaps[1:], [50, 100, 200, 400])


# Costs that change


def test_a_best_arm_that_slows_down_is_left():
    means = np.tile([3.0, 1.0, 1.5, 4.0], (1000, 1))
    means[500:, 1] = 6.0
    costs = noisy(means, 1000, np.random.default_rng(29))
    total, picks = run(ArmSelector(4, seed=5), costs)
    assert np.count_nonzero(picks[500:520] == 2) >= 10
    assert total < 0.97 * costs.sum(axis=0).min()


def test_a_parked_arm_that_becomes_the_best_is_found():
    means = np.tile([3.0, 1.0, 1.5, 4.0], (1500, 1))
    means[500:, 3] = 0.3
    costs = noisy(means, 1500, np.random.default_rng(31))
    _, picks = run(ArmSelector(4, seed=5), costs)
    assert np.flatnonzero(picks[500:] == 3)[5] < 500
    assert np.mean(picks[-200:] == 3) > 0.9


@pytest.mark.parametrize("policy", ["tsallis", "squarecb"])
def test_the_other_policies_leave_a_slowed_arm_too(policy):
    means = np.tile([1.6, 1.0, 1.3], (1000, 1))
    means[500:, 1] = 6.0
    _, picks = run(ArmSelector(3, seed=5, policy=policy), noisy(means, 1000, np.random.default_rng(37)))
    assert np.mean(picks[300:500] == 1) > 0.5
    assert np.mean(picks[700:] == 1) < 0.05


# Failures


def test_an_arm_that_failed_twice_is_never_tried_again():
    selector, rng = ArmSelector(3, seed=5), np.random.default_rng(41)
    tried = [
        arms for row in noisy([1.0, 0.2, 1.5], SAMPLES, rng).tolist() for _, arms in [solve(selector, row, fails={1})]
    ]
    assert sum(1 in arms for arms in tried) == 2
    row = next(row for row in selector.table() if row["arm"] == 1)
    assert (row["failures"], row["given_up"], row["share"]) == (2, 1, 0.0)
    assert 1 not in selector.ranking()


def test_a_failure_costs_its_time_and_the_rescue():
    selector = ArmSelector(2, seed=5)
    solve(selector, [1.0, 0.5])
    selector.choose()
    selector.observe(1, 0.5, converged=False)
    assert selector.ranking()[0] == 0
    assert selector.cap(0) is None, "a rescue must not be stopped"
    selector.observe(0, 1.0)
    assert {row["arm"]: row["expected_s"] for row in selector.table()} == {0: 1.0, 1: 1.5}


def test_a_sample_that_nothing_solves_is_blamed_on_no_arm():
    selector = ArmSelector(3, seed=5)
    for _ in range(20):
        solve(selector, [1.0, 1.1, 1.2])
    for _ in range(5):
        _, tried = solve(selector, [1.0, 1.1, 1.2], fails={0, 1, 2})
        assert sorted(tried) == [0, 1, 2]
    solve(selector, [1.0, 1.1, 1.2])
    assert [row["failures"] for row in selector.table()] == [0, 0, 0]
    assert selector.table()[0]["expected_s"] == 1.0


def test_a_sample_that_only_a_stopped_arm_can_solve_is_not_lost():
    selector = ArmSelector(2, seed=5)
    solve(selector, [1.0, 0.5])
    spent, tried = solve(selector, [1.0, 3.0], fails={0})
    assert tried == [1, 0, 1]
    assert spent == pytest.approx(1.0 + 1.0 + 3.0)
    rows = {row["arm"]: row for row in selector.table()}
    assert (rows[1]["cut_offs"], rows[1]["failures"], rows[0]["failures"]) == (1, 0, 1)


def test_when_all_arms_are_given_up_one_is_still_named():
    selector = ArmSelector(2, seed=5)
    for _ in range(6):
        selector.observe(selector.choose(), 1.0, converged=False)
    assert all(row["given_up"] for row in selector.table())
    assert selector.choose() in (0, 1)


def test_failures_count_for_like_samples_only():
    selector, rng = ArmSelector(2, seed=5, features=1), np.random.default_rng(43)
    tries_of_1 = {True: 0, False: 0}
    for context in rng.uniform(-1, 1, (300, 1)):
        hard = bool(context[0] > 0.5)
        _, tried = solve(selector, [1.0, 0.3], context=context, fails={1} if hard else set())
        tries_of_1[hard] += 1 in tried
    assert tries_of_1[True] == 2
    assert tries_of_1[False] > 200


# Contexts


def crossing(samples, seed, noise=0.1):
    """Arm 0 rises slowly with the feature, arm 1 fast, arm 2 is never the best: they cross in the middle."""
    rng = np.random.default_rng(seed)
    contexts = rng.uniform(-1, 1, (samples, 1))
    means = np.exp(contexts * [0.3, 1.5, 0.9] + [0.0, 0.0, 0.8])
    return contexts, means, noisy(means, samples, rng, noise)


@pytest.mark.parametrize(
    ("policy", "against_fixed", "against_each"), [("optimistic", 0.88, 1.06), ("squarecb", 0.90, 1.08)]
)
def test_with_a_feature_the_choice_beats_the_best_fixed_arm(policy, against_fixed, against_each):
    contexts, means, costs = crossing(SAMPLES, 47)
    total, picks = run(ArmSelector(3, seed=5, features=1, policy=policy), costs, contexts=contexts)
    assert total < against_fixed * costs.sum(axis=0).min()
    assert total < against_each * costs[np.arange(SAMPLES), means.argmin(axis=1)].sum()
    clear = np.abs(contexts[100:, 0]) > 0.2
    assert np.mean(picks[100:][clear] == means.argmin(axis=1)[100:][clear]) > 0.9


def test_features_that_do_not_matter_cost_little():
    rng = np.random.default_rng(53)
    contexts, costs = rng.uniform(-1, 1, (SAMPLES, 2)), noisy([1.5, 1.0, 8.0, 1.2], SAMPLES, rng)
    total, _ = run(ArmSelector(4, seed=5, features=2), costs, contexts=contexts)
    assert total < 1.05 * costs[:, 1].sum()


def test_the_regression_recovers_a_smooth_cost_and_its_scatter():
    bandit, rng = Contextual(2, 1, seed=5), np.random.default_rng(59)
    for context in rng.uniform(-1, 1, (150, 1)):
        bandit.observe(0, math.exp(-7.0 + 1.3 * context[0] - 0.4 * context[0] ** 2 + rng.normal(0, 0.05)), context)
    for x in (-0.9, 0.0, 0.9):
        prediction = bandit.predict([x])[0]
        assert math.log(prediction.expected) == pytest.approx(-7.0 + 1.3 * x - 0.4 * x**2, abs=0.05)
        assert 0.03 < prediction.scatter < 0.08
    assert math.isnan(bandit.predict([0.0])[1].expected)
    assert bandit.choose([0.0]) == 1, "an arm without an observation comes first"


def test_gaps_are_weighted_inversely():
    bandit = Contextual(3, 0, seed=5)
    for _ in range(20):
        for arm, loss in enumerate((1.0, 1.5, 2.0)):
            bandit.observe(arm, loss)
    best, near, far = bandit.probabilities()
    assert best + near + far == pytest.approx(1.0)
    greed = (1.0 / near - 3.0) / 0.5
    assert 1.0 / far - 3.0 == pytest.approx(greed, rel=1e-3)
    assert greed == pytest.approx(30.0, rel=1e-2)


# Tsallis-INF


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 100), min_size=1, max_size=9), st.integers(0, 10_000))
def test_weights_solve_their_equation(sums, rounds):
    """wᵢ^(-1/2) - wⱼ^(-1/2) = η (Lᵢ - Lⱼ) / 2 for all pairs, and Σ w = 1, characterise the minimiser."""
    bandit = TsallisInf(len(sums), seed=5)
    bandit.restore(bandit.state() | {"sums": sums, "rounds": rounds})
    weights = np.array(bandit.probabilities)
    assert weights.sum() == pytest.approx(1.0, abs=1e-12)
    assert (weights > 0).all()
    rate = 4.0 / math.sqrt(rounds + 1)
    roots = weights**-0.5
    expected = rate * (np.array(sums) - sums[0]) / 2.0
    np.testing.assert_allclose(roots - roots[0], expected, rtol=1e-6, atol=1e-5)


def test_the_loss_estimates_are_unbiased():
    """The expectation of the change of each sum over the draw is the arm's loss."""
    losses, changes = [1.0, 2.0, 2.5], np.zeros(3)
    start = TsallisInf(3, seed=5)
    for _ in range(60):
        start.observe(start.choose(), 1.5)
    before, weights = np.array(start.state()["sums"]), start.probabilities
    drawn = set()
    for seed in range(200):
        bandit = TsallisInf(3, seed=seed)
        bandit.restore(start.state() | {"generator": np.random.default_rng(seed).bit_generator.state})
        arm = bandit.choose()
        if arm in drawn:
            continue
        drawn.add(arm)
        bandit.observe(arm, losses[arm])
        changes += weights[arm] * (np.array(bandit.state()["sums"]) - before)
    assert drawn == {0, 1, 2}
    np.testing.assert_allclose(changes, losses, rtol=1e-9)


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e4])
def test_the_unit_of_the_losses_does_not_matter(unit):
    draws = []
    for scale in (1.0, unit):
        bandit, rng = TsallisInf(4, seed=5), np.random.default_rng(61)
        losses = noisy([1.0, 1.5, 2.0, 30.0], 300, rng) * scale
        draws.append([arm for row in losses for arm in [bandit.choose()] if bandit.observe(arm, row[arm]) is None])
    assert draws[0] == draws[1]
    assert np.mean(np.array(draws[0][200:]) == 0) > 0.6


def test_against_an_adversary_the_regret_grows_like_the_root():
    """Two arms whose losses swap every so often: the best fixed one costs half of all rounds."""
    regrets = []
    for rounds in (500, 2000, 8000):
        bandit, total = TsallisInf(2, seed=5), 0.0
        period = int(math.sqrt(rounds))
        for t in range(rounds):
            arm, bad = bandit.choose(), (t // period) % 2
            loss = 1.0 + (arm == bad)
            bandit.observe(arm, loss)
            total += loss
        regrets.append((total - 1.5 * rounds) / math.sqrt(rounds))
    assert max(regrets) < 3.0


# State and bad input

POLICIES = [("optimistic", 0), ("tsallis", 0), ("squarecb", 0), ("optimistic", 2), ("squarecb", 2)]


@pytest.mark.parametrize(("policy", "features"), POLICIES)
@pytest.mark.parametrize("half_way", [False, True])
def test_a_restored_selector_makes_the_same_choices(policy, features, half_way):
    rng = np.random.default_rng(67)
    contexts, costs = rng.uniform(-1, 1, (300, features)), noisy([2.0, 1.0, 1.1, 9.0], 300, rng, 0.3)
    selector = ArmSelector(4, seed=5, features=features, policy=policy)
    run(selector, costs[:120], contexts=contexts[:120])
    if half_way:
        selector.choose(contexts[120])
    other = ArmSelector(4, seed=99, features=features, policy=policy)
    other.restore(json.loads(json.dumps(selector.state())))
    if half_way:
        for one in (selector, other):
            one.observe(one.ranking()[0], 1.0)
    results = [run(one, costs[121:], contexts=contexts[121:]) for one in (selector, other)]
    assert results[0][0] == results[1][0]
    np.testing.assert_array_equal(results[0][1], results[1][1])
    assert json.dumps(selector.state()) == json.dumps(other.state())


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 5),
    st.lists(st.tuples(st.floats(0, 1e3), st.booleans()), min_size=1, max_size=60),
    st.sampled_from(["optimistic", "tsallis", "squarecb"]),
)
def test_any_sequence_of_outcomes_leaves_a_consistent_table(arms, outcomes, policy):
    selector = ArmSelector(arms, seed=5, policy=policy)
    for seconds, converged in outcomes:
        arm = selector.choose()
        assert 0 <= arm < arms
        cap = selector.cap(arm)
        assert cap is None or cap > 0
        selector.observe(arm, seconds, converged=converged)
    selector.choose()
    rows = selector.table()
    json.dumps(rows, allow_nan=False)
    assert sorted(row["arm"] for row in rows) == list(range(arms))
    assert sum(row["tries"] for row in rows) == len(outcomes) == selector.samples - 1
    assert sum(row["failures"] + row["cut_offs"] for row in rows) == sum(not converged for _, converged in outcomes)
    assert selector.seconds == pytest.approx(sum(seconds for seconds, _ in outcomes))


def test_a_stall_of_the_machine_counts_a_few_times_the_median():
    record = ArmRecord()
    for cost in [1.0] * 11 + [1000.0]:
        record.tries += 1
        record.add(cost)
    assert record.expected == pytest.approx((10 + OUTLIER) / 11)
    for _ in range(WINDOW):
        record.add(2.0)
    assert record.expected == 2.0


def test_the_reasons_are_told():
    selector, reasons = ArmSelector(2, seed=5), []
    for _ in range(6):
        solve(selector, [1.2, 1.0])
        reasons.append(selector.reason)
    assert reasons == ["first try", "first try", "second try", "second try", "policy", "policy"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ArmSelector(0, seed=5), "0 arms; give at least one"),
        (lambda: ArmSelector(2, seed=5, policy="ucb"), "'ucb' does not exist; choose 'optimistic'"),
        (lambda: ArmSelector(2, seed=5, features=1, policy="tsallis"), "'tsallis' cannot use 1 features"),
        (lambda: ArmSelector(2, seed=5, features=1).choose(), "0 entries where 1 features"),
        (lambda: ArmSelector(2, seed=5, features=1).choose([math.nan]), "holds NaN or inf"),
        (lambda: ArmSelector(2, seed=5).observe(0, 1.0), "call `choose` first"),
        (lambda: observed(-1.0), "-1.0 is not a finite number"),
        (lambda: observed(math.nan), "nan is not a finite number"),
        (lambda: observed(1.0, arm=2), "no arm 2; this choice is between arms 0 to 1"),
        (lambda: Rules(behind=1.0), "behind must exceed 1"),
        (lambda: Rules(budget=1.0), r"budget lie in \[0, 1\)"),
        (lambda: TsallisInf(2, seed=5).observe(0, 1.0), "arm 0 was not drawn"),
        (lambda: Contextual(2, -1, seed=5), "-1 features"),
        (lambda: ArmSelector(2, seed=5).restore(ArmSelector(3, seed=5).state()), "has 3 arms, this object 2"),
        (
            lambda: ArmSelector(2, seed=5).restore(ArmSelector(2, seed=5, policy="tsallis").state()),
            "another policy than 'optimistic'",
        ),
        (
            lambda: ArmSelector(2, seed=5, features=1).restore(ArmSelector(2, seed=5, features=2).state()),
            "has 2 features, this object 1",
        ),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def observed(seconds, arm=0):
    selector = ArmSelector(2, seed=5)
    selector.choose()
    selector.observe(arm, seconds)


def test_a_sample_is_observed_to_its_end_once():
    selector = ArmSelector(2, seed=5)
    selector.observe(selector.choose(), 1.0)
    with pytest.raises(ValueError, match="once a sample"):
        selector.observe(0, 1.0)

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forebay.solvers.rom.calibration import CAPACITY, Calibration, Indicators


def pairs(seed, count, *, slope=1.0, scatter=0.4, displacement_by="equilibrium", elastic=0.0):
    """Errors = 0.3 times a power of one indicator times log-normal scatter; gappy and p vanish in elastic steps."""
    rng = np.random.default_rng(seed)
    gappy, equilibrium = np.exp(rng.uniform(np.log(1e-3), np.log(0.3), (2, count)))
    is_elastic = rng.uniform(size=count) < elastic
    gappy[is_elastic] = 0.0
    source = gappy if displacement_by == "gappy" else equilibrium
    displacement = 0.3 * source**slope * np.exp(scatter * rng.normal(size=count))
    p = 0.3 * gappy**slope * np.exp(scatter * rng.normal(size=count))
    return np.column_stack([gappy, equilibrium, displacement, p])


@pytest.mark.parametrize("slope", [0.6, 1.0])
@pytest.mark.parametrize("scatter", [0.2, 0.5])
@pytest.mark.parametrize("count", [40, 300])
def test_estimates_cover_held_out_errors_and_are_sharp(slope, scatter, count):
    qualities = [
        Calibration(pairs(2 * seed, count, slope=slope, scatter=scatter)).quality(
            pairs(2 * seed + 1, 400, slope=slope, scatter=scatter)
        )
        for seed in range(7, 27)
    ]
    for target in (0, 1):
        coverage = np.mean([quality[target].coverage for quality in qualities])
        ratio = np.median([quality[target].median_ratio for quality in qualities])
        assert 0.90 <= coverage <= 0.97, (target, coverage)
        assert 1.0 <= ratio <= 3.0, (target, ratio)


@pytest.mark.parametrize("level", [0.6, 0.8, 0.95])
def test_the_level_is_met(level):
    coverages = [
        Calibration(pairs(seed, 200), level).quality(pairs(seed + 1000, 500))[0].coverage for seed in range(11, 41)
    ]
    assert abs(np.mean(coverages) - level) < 0.03


def test_exponents_are_found_and_kept_within_bounds():
    for slope, expected in ((0.8, 0.8), (0.1, 0.5), (2.5, 1.0)):
        law = Calibration(pairs(7, 400, slope=slope, scatter=0.1)).p
        assert law.slope == pytest.approx(expected, abs=0.05)


def test_the_indicator_that_explains_an_error_is_used_for_it():
    own = Calibration(pairs(7, 300)).displacement
    other = Calibration(pairs(7, 300, displacement_by="gappy")).displacement
    assert own.gappy == 0.0 < own.equilibrium
    assert other.equilibrium == 0.0 < other.gappy


@given(
    seed=st.integers(0, 2**16),
    count=st.integers(0, 60),
    low=st.tuples(*[st.floats(0, 10)] * 2),
    more=st.tuples(*[st.floats(0, 10)] * 2),
)
@settings(max_examples=60, deadline=None)
def test_estimates_grow_with_each_indicator(seed, count, low, more):
    calibration = Calibration(pairs(seed, count, elastic=0.3))
    before = calibration.estimate(Indicators(*low))
    after = calibration.estimate(Indicators(low[0] + more[0], low[1] + more[1]))
    assert after[0] >= before[0] * (1 - 1e-12) >= 0
    assert after[1] >= before[1] * (1 - 1e-12) >= 0


def test_beyond_the_pairs_estimates_grow_at_least_linearly_and_without_a_jump():
    calibration = Calibration(pairs(11, 300, slope=0.6))
    law = calibration.p
    edge = law.most / law.gappy

    def estimate(gappy):
        return calibration.estimate(Indicators(gappy, 0.0))[1]

    assert estimate(edge * (1 + 1e-9)) == pytest.approx(estimate(edge * (1 - 1e-9)), rel=1e-6)
    assert estimate(10 * edge) == pytest.approx(10 * estimate(edge), rel=1e-9)
    assert estimate(edge) / estimate(edge / 10) == pytest.approx(10**law.slope, rel=1e-9)


def test_no_estimate_falls_below_what_blind_steps_got_wrong():
    """Elastic steps: both indicators are rounding, but the basis still errs by 1e-3."""
    rng = np.random.default_rng(13)
    blind = np.column_stack([np.zeros(60), 1e-14 * rng.uniform(size=60), rng.uniform(5e-4, 1e-3, 60), np.zeros(60)])
    calibration = Calibration(np.vstack([pairs(13, 150), blind]))
    assert calibration.estimate(Indicators(0.0, 0.0))[0] > 3e-4
    assert calibration.displacement.slope > 0.6, "rounding must not flatten the law"
    assert calibration.quality(blind)[0].coverage > 0.5


def test_few_pairs_give_the_largest_ratio():
    ratios = np.array([0.5, 2.0, 1.0, 0.25])
    few = np.column_stack([np.full(4, 0.1), np.array([0.1, 0.2, 0.4, 0.3])] + [np.ones(4)] * 2)
    few[:, 2] = ratios * few[:, 1]
    law = Calibration(few).displacement
    assert (law.slope, law.gappy) == (1.0, 0.0)
    assert Calibration(few).estimate(Indicators(0.0, 0.2))[0] == pytest.approx(0.4)


def test_without_pairs_an_estimate_is_its_indicator():
    assert Calibration().estimate(Indicators(0.02, 0.05)) == (0.05, 0.02)
    assert Calibration().estimate(Indicators(0.0, 0.0)) == (0.0, 0.0)


@pytest.mark.parametrize("column", [0, 1])
def test_an_indicator_that_is_always_zero_does_no_harm(column):
    one_sided = pairs(7, 100)
    one_sided[:, column] = 0.0
    estimate = Calibration(one_sided).estimate(Indicators(0.1, 0.1))
    assert np.isfinite(estimate).all()
    one_sided[:, :2] = 0.0
    assert Calibration(one_sided).estimate(Indicators(0.1, 0.2)) == (0.2, 0.1)


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_an_indicator_that_could_not_be_computed_vouches_for_nothing(value):
    assert Calibration(pairs(7, 50)).estimate(Indicators(value, 0.1)) == (np.inf, np.inf)
    assert Calibration().estimate(Indicators(0.1, value)) == (np.inf, np.inf)


def test_pairs_without_a_true_error_do_not_count_in_the_quality():
    some = pairs(7, 50)
    with_zeros = np.vstack([some, some * [1, 1, 0, 0]])
    assert Calibration(some).quality(with_zeros) == Calibration(some).quality(some)
    assert np.isnan(Calibration(some).quality(some[:0])[0].coverage)


def test_an_update_learns_from_new_pairs_and_keeps_the_latest():
    calibration = Calibration(pairs(7, CAPACITY), level=0.9)
    worse = pairs(11, 100) * [1, 1, 10, 10]
    updated = calibration.update(worse)
    assert updated.level == 0.9
    assert len(updated.pairs) == CAPACITY
    np.testing.assert_array_equal(updated.pairs[-100:], worse)
    np.testing.assert_array_equal(updated.pairs[:-100], calibration.pairs[100:])
    before, after = (c.estimate(Indicators(0.05, 0.05)) for c in (calibration, updated))
    assert after[0] > 1.5 * before[0]
    assert after[1] > 1.5 * before[1]


def test_pairs_are_copied_and_cannot_be_written():
    given_pairs = pairs(7, 20)
    calibration = Calibration(given_pairs)
    given_pairs[:] = 0.0
    assert calibration.pairs.min() > 0
    with pytest.raises(ValueError, match="read-only"):
        calibration.pairs[:] = 0.0


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.1])
def test_pairs_must_be_finite_and_not_negative(value):
    broken = pairs(7, 20)
    broken[3, 1] = value
    with pytest.raises(ValueError, match="negative values, NaN or inf; leave out"):
        Calibration(broken)


def test_pairs_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"pairs of shape \(5, 3\); give \(N, 4\)"):
        Calibration(np.ones((5, 3)))


def test_small_indicators_promise_no_more_than_the_least_share_of_the_upper_quartile():
    known = pairs(13, 300)
    usual, careful = Calibration(known), Calibration(known, least=1 / 3)
    tiny = Indicators(1e-9, 1e-9)
    quartile = np.quantile(known[:, 1], 0.75)
    assert careful.displacement.least == pytest.approx(1 / 3, rel=1e-9), "combinations are scaled by their quartiles"
    assert careful.estimate(tiny)[0] == careful.estimate(Indicators(1e-9, 0.33 * quartile))[0]
    assert careful.estimate(tiny)[0] > 5 * usual.estimate(tiny)[0]
    assert careful.p == usual.p
    assert careful.update(pairs(17, 20)).least == 1 / 3


@pytest.mark.parametrize("least", [-0.1, 1.1, np.nan])
def test_the_least_must_be_a_share(least):
    with pytest.raises(ValueError, match=r"least .* must lie in \[0, 1\]; 0.01 is usual, 1/3 careful"):
        Calibration(least=least)


@pytest.mark.parametrize("level", [0.0, 1.0, np.nan])
def test_the_level_must_be_a_probability(level):
    with pytest.raises(ValueError, match=r"must lie in \(0, 1\)"):
        Calibration(level=level)

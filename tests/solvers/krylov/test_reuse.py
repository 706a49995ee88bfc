import itertools

import pytest

from forebay.solvers.krylov.reuse import LONGEST_PAUSE, RefreshRule


def played(rule, counts):
    """Which solves renewed, for iteration counts as a function of the age of the preconditioner."""
    renewals, age = [], 0
    for k in range(len(counts)):
        if rule.due:
            rule.renewed()
            renewals.append(k)
            age = 0
        rule.solved(counts[k](age))
        age += 1
    return renewals


def test_the_first_solve_makes_one_and_similar_samples_keep_it():
    assert played(RefreshRule(), [lambda age: 3] * 50) == [0]


@pytest.mark.parametrize(("growth", "setup"), [(1, 12), (2, 12), (1, 30)])
def test_with_growing_counts_the_average_cost_is_close_to_the_best_period(growth, setup):
    rule = RefreshRule(setup_cost=setup)
    count = 400
    renewals = played(rule, [lambda age: 1 + growth * age] * count)

    def cost(period):
        return (setup + sum(1 + growth * age for age in range(period))) / period

    ends = [*renewals[1:], count]
    total = sum(
        setup + sum(1 + growth * age for age in range(end - start)) for start, end in zip(renewals, ends, strict=True)
    )
    assert total / count <= 1.15 * min(cost(period) for period in range(1, 100))


def test_samples_too_different_make_their_own_and_are_tried_ever_more_rarely():
    rule = RefreshRule()
    renewals = played(rule, [lambda age: 1 if age == 0 else 70] * 1000)
    kept = sorted(set(range(1000)) - set(renewals))
    gaps = [after - before for before, after in itertools.pairwise(kept)]
    assert gaps == sorted(gaps)
    assert gaps[0] <= 4
    assert max(gaps) <= LONGEST_PAUSE + 2
    assert len(kept) < 25


def test_after_a_reset_it_begins_anew():
    rule = RefreshRule()
    first = played(rule, [lambda age: 1 if age == 0 else 70] * 30)
    rule.reset()
    assert played(rule, [lambda age: 1 if age == 0 else 70] * 30) == first

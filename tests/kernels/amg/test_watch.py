import math

import pytest

from forebay.kernels.amg.watch import LEAST, Watch


def fed(learned, classical, residual=1e-8):
    watch = Watch()
    for name, counts in (("classical", classical), ("learned", learned)):
        for count in counts:
            watch.solved(learned=name == "learned", residual=residual, iterations=count)
    return watch


def test_a_slower_cycle_is_withdrawn_and_a_faster_one_is_not():
    assert fed([22] * LEAST, [20] * LEAST).withdrawn
    assert not fed([18] * LEAST, [20] * LEAST).withdrawn
    assert fed([22] * LEAST, [20] * LEAST).ratio == pytest.approx(1.1)


def test_too_few_solves_judge_nothing():
    assert not fed([90] * (LEAST - 1), [20] * 9).withdrawn
    assert not fed([90] * 9, [20] * (LEAST - 1)).withdrawn
    assert math.isnan(Watch().ratio)


def test_solves_to_other_tolerances_are_compared_by_their_rate():
    watch = fed([], [20] * LEAST)
    for _ in range(LEAST):
        watch.solved(learned=True, residual=1e-12, iterations=27)
    assert not watch.withdrawn
    assert watch.ratio == pytest.approx(0.9)


def test_what_was_withdrawn_stays_withdrawn():
    watch = fed([22] * LEAST, [20] * LEAST)
    for _ in range(50):
        watch.solved(learned=True, residual=1e-8, iterations=2)
    assert watch.withdrawn


def test_solves_without_iterations_or_residual_do_not_count():
    watch = Watch()
    watch.solved(learned=True, residual=0.0, iterations=4)
    watch.solved(learned=True, residual=1e-9, iterations=0)
    watch.solved(learned=True, residual=math.nan, iterations=7)
    assert watch.learned == []

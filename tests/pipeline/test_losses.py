"""What the bookkeeping of losses remembers, and of what; the rules themselves are tested with the policy."""

from __future__ import annotations

from functools import partial

import pytest

from forebay.cluster.faults import decide
from forebay.pipeline.losses import Losses
from forebay.pipeline.messages import SolverLost
from forebay.pipeline.records import Care
from forebay.pipeline.study import FaultsTable

SIZE = 8
BLOCK = ("train", 2)
"""Samples 16 to 23."""


def losses(**faults):
    return Losses(partial(decide, FaultsTable(**faults)))


def lose(book, sample, *, solver="solver-0", blocks=(BLOCK,)):
    at = None if sample is None else ("train", sample)
    return book.of_solver(SolverLost(solver, "killed by the test", at), list(blocks), SIZE)


def test_two_samples_of_a_block_are_drawn_anew_each_by_its_own_count():
    book = losses(sample_losses=1, redraws=3)
    for sample in (17, 21, 17):
        assert lose(book, sample) is None
    assert book.care[BLOCK] == Care(draws={17: 2, 21: 1})


def test_two_samples_of_a_block_are_given_up():
    book = losses(sample_losses=1, redraws=0)
    for sample in (17, 21):
        assert lose(book, sample) is None
    assert book.care[BLOCK] == Care(given_up=frozenset({17, 21}))


def test_a_solver_that_has_told_its_culprit_starts_with_a_clean_record():
    book = losses(restarts=2, sample_losses=1)
    for sample in (16, 17, 18, 19, 20, 21):  # more samples than losses in a row are borne
        assert lose(book, sample) is None
    assert [lose(book, None), lose(book, None)] == [None, None]
    assert lose(book, None) == "solver-0 was lost 3 times without progress in between: killed by the test"


@pytest.mark.parametrize("sample", [15, 24])
def test_a_mark_at_a_block_that_the_solver_no_longer_has_accuses_no_sample(sample):
    book = losses(restarts=1, sample_losses=1)
    assert lose(book, sample) is None
    assert book.care == {BLOCK: Care()}
    assert lose(book, sample) == "solver-0 was lost 2 times without progress in between: killed by the test"

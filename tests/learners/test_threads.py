"""More threads are used while they are faster, and given up when they are not."""

from __future__ import annotations

import pytest
import torch

from forebay.learners.threads import PAUSE, WINDOW, ThreadChoice


@pytest.fixture(autouse=True)
def threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def train(choice: ThreadChoice, steps: int, seconds: dict[int, float]) -> list[int]:
    """Threads used in each of some steps whose duration depends on the number of threads."""
    used = []
    for _ in range(steps):
        used.append(choice.threads)
        choice.step(seconds[choice.threads])
    return used


def test_nothing_changes_while_the_solvers_work():
    assert set(train(ThreadChoice(1, 2), 100, {1: 1.0, 2: 0.1})) == {1}


def test_faster_threads_are_kept_and_torch_is_told():
    choice = ThreadChoice(1, 2)
    choice.widen()
    assert train(choice, 400, {1: 1.0, 2: 0.8})[WINDOW:] == [2] * (400 - WINDOW)
    assert torch.get_num_threads() == 2


def test_slower_threads_are_given_up_and_tried_again_later_and_later():
    choice = ThreadChoice(1, 2)
    choice.widen()
    used = train(choice, 3 * WINDOW + PAUSE + 2 * PAUSE, {1: 1.0, 2: 1.1})
    assert used == [1] * WINDOW + [2] * WINDOW + [1] * PAUSE + [2] * WINDOW + [1] * 2 * PAUSE


def test_a_hopeless_trial_costs_two_steps():
    choice = ThreadChoice(1, 2)
    choice.widen()
    used = train(choice, WINDOW + 2 + PAUSE, {1: 1.0, 2: 9.0})
    assert used == [1] * WINDOW + [2] * 2 + [1] * PAUSE


def test_threads_that_become_slow_are_given_up_within_a_window():
    choice = ThreadChoice(1, 2)
    choice.widen()
    train(choice, 100, {1: 1.0, 2: 0.8})
    train(choice, WINDOW, {1: 1.0, 2: 5.0})
    assert choice.threads == 1


def test_equal_numbers_never_switch():
    choice = ThreadChoice(2, 2)
    choice.widen()
    assert set(train(choice, 300, {2: 1.0})) == {2}

"""Which reference the driver is given next, with a Ray that knows which are ready."""

from types import SimpleNamespace

import pytest

from forebay.cluster import ready
from forebay.cluster.ready import ReadyQueue, get_all


class Ray:
    """References are strings; `done` says which are ready, `later` which become so while they are waited for."""

    def __init__(self):
        self.done, self.later, self.asked = set(), set(), []

    def wait(self, references, *, num_returns, timeout=None):
        self.asked.append((len(references), num_returns, timeout))
        if timeout != 0:
            self.done |= self.later
        found = [reference for reference in references if reference in self.done][:num_returns]
        return found, [reference for reference in references if reference not in found]

    def get(self, references):
        if "broken" in references:
            raise RuntimeError("broken")


@pytest.fixture
def ray(monkeypatch):
    stand_in = Ray()
    monkeypatch.setattr(ready, "ray", stand_in)
    return stand_in


def test_one_question_serves_all_that_are_ready(ray):
    queue, waiting = ReadyQueue(), dict.fromkeys("abcdef")
    ray.done = {"b", "d", "e"}
    assert [queue.next(waiting, 7.0) for _ in range(3)] == ["b", "d", "e"]
    assert ray.asked == [(6, 6, 0)]


def test_where_nothing_is_ready_the_first_is_waited_for(ray):
    queue, waiting = ReadyQueue(), ["a", "b", "c"]
    ray.later = {"c", "b"}
    assert queue.next(waiting, 7.0) == "b"
    assert ray.asked == [(3, 3, 0), (3, 1, 7.0)]


def test_none_when_the_time_is_up(ray):
    assert ReadyQueue().next(["a"], 7.0) is None


def test_what_nobody_waits_for_any_more_is_left_out(ray):
    queue, waiting = ReadyQueue(), ["a", "b", "c"]
    ray.done = {"a", "b", "c"}
    assert queue.next(waiting, 7.0) == "a"
    assert queue.next(["c"], 7.0) == "c", "the actor that owed b was lost"


def test_with_nothing_to_wait_for_it_sleeps(ray, monkeypatch):
    slept = []
    monkeypatch.setattr(ready, "time", SimpleNamespace(sleep=slept.append))
    assert ReadyQueue().next({}, 7.0) is None
    assert (slept, ray.asked) == ([7.0], [])


def test_the_first_of_many_that_fails_is_raised_while_others_are_not_ready(ray):
    ray.done = {"a", "broken"}
    with pytest.raises(RuntimeError, match="broken"):
        get_all(["a", "never", "broken"])

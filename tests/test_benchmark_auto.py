"""The `auto` benchmark: fair turns, honest extrapolation, a verdict that can fall short for each of its reasons."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from forebay.pipeline.records import Outcome
from forebay.solvers.problems.darcy import Darcy
from forebay.solvers.problems.poisson import Poisson

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def load(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.fixture
def auto(load):
    return load("auto")


@pytest.fixture
def race(load):
    return load("race")


@pytest.fixture
def report(load):
    return load("common").Report("trial", argparse.Namespace(quick=True, write=False))


class Stream:
    """A system that remembers which sample is in hand, a clock, and solvers that move it."""

    def __init__(self, monkeypatch, race):
        self.now, self.sample = 0.0, -1
        self.log: list[tuple[str, int]] = []
        self.destroyed: list[str] = []
        monkeypatch.setattr(race, "time", SimpleNamespace(thread_time=lambda: self.now))
        self._race = race

    def update(self, draw):
        self.sample = int(draw["sample"])
        self.now += 1000.0  # assembling, which nobody is charged for

    def contender(self, name, seconds, *, setup=0.0, uncertified=(), **options):
        def solve():
            self.now += seconds
            self.log.append((name, self.sample))
            failed = self.sample in uncertified
            return SimpleNamespace(outcome=Outcome.MAX_ITERATIONS if failed else Outcome.CONVERGED)

        def make():
            self.now += setup
            return SimpleNamespace(solve=solve, destroy=lambda: self.destroyed.append(name))

        return self._race.Contender(name, make, **options)

    def run(self, contenders, samples, chunk, patience_s=np.inf):
        draws = [{"sample": np.array(k)} for k in range(samples)]
        chunks = [draws[k : k + chunk] for k in range(0, samples, chunk)]
        self._race.race(self, chunks, contenders, patience_s=patience_s)


@pytest.fixture
def stream(monkeypatch, race):
    return Stream(monkeypatch, race)


# -- race --------------------------------------------------------------------------------------------------------------


def test_contenders_take_turns_over_the_same_samples(stream):
    a, b = stream.contender("a", 1.0, setup=5.0), stream.contender("b", 2.0)
    stream.run([a, b], samples=5, chunk=2)
    assert "".join(f"{name}{sample}" for name, sample in stream.log) == "a0a1b0b1b2b3a2a3a4b4"
    assert a.seconds == [6.0, 1.0, 1.0, 1.0, 1.0]
    assert (a.total(5), b.total(5)) == (10.0, 10.0)
    assert (a.mark(5), a.uncertified, sorted(stream.destroyed)) == ("", 0, ["a", "b"])


def test_a_slow_method_is_stopped_and_extrapolated_without_its_start(stream, race):
    fast, slow = stream.contender("fast", 1.0), stream.contender("slow", 4.5, setup=100.0)
    near, kept = stream.contender("near", 3.5), stream.contender("kept", 50.0, may_stop=False)
    stream.run([fast, slow, near, kept], samples=100, chunk=10)
    assert [len(c.seconds) for c in (fast, slow, near, kept)] == [100, race.PROBE, 100, 100]
    assert slow.stopped
    assert slow.total(100) == pytest.approx(100.0 + 100 * 4.5)
    assert slow.mark(100) == "~"
    assert sorted(stream.destroyed) == ["fast", "kept", "near", "slow"], "each exactly once"


def test_a_method_that_spends_its_patience_is_stopped_sooner(stream, race):
    fast, slow, dear = stream.contender("fast", 1.0), stream.contender("slow", 40.0), stream.contender("dear", 3.5)
    stream.run([fast, slow, dear], samples=60, chunk=30, patience_s=60.0)
    assert [len(c.seconds) for c in (fast, slow, dear)] == [60, race.SHORT_PROBE, 60]


def test_a_method_that_fails_is_no_yardstick(stream):
    failing = stream.contender("failing", 0.1, uncertified={7})
    good = stream.contender("good", 1.0)
    stream.run([failing, good], samples=40, chunk=20)
    assert (failing.mark(40), failing.uncertified) == ("≥", 1)
    assert len(good.seconds) == 40


def test_a_stride_samples_the_stream(stream):
    sparse = stream.contender("sparse", 3.0, stride=4, may_stop=False)
    stream.run([stream.contender("fast", 0.1), sparse], samples=12, chunk=5)
    assert [sample for name, sample in stream.log if name == "sparse"] == [0, 4, 8]
    assert (sparse.total(12), sparse.mark(12)) == (36.0, "~")


# -- verdict -----------------------------------------------------------------------------------------------------------


def found(auto, case, seconds, **totals):
    """A case of one sample whose totals are given; `gmres` names plain and ILU."""

    def contender(name, value, uncertified=0):
        return auto.Contender(name, lambda: None, seconds=[value], uncertified=uncertified)

    fixed = tuple(contender(name, value) for name, value in totals.get("fixed", {"best": 1.0}).items())
    everywhere = tuple(contender(str(k), totals.get("single", 2.0)) for k, _ in enumerate(auto.EVERYWHERE))
    gmres = tuple(contender(str(k), value) for k, value in enumerate(totals.get("gmres", ())))
    mine = contender("auto", seconds, totals.get("uncertified", 0))
    arms = totals.get("arms", len(fixed))
    return auto.Found(case, 1, mine, fixed, arms, everywhere, gmres, ({"method": "best", "share": 1.0},))


@pytest.mark.parametrize(
    ("change", "ok"),
    [
        ({}, True),
        ({"seconds": 1.06}, False),
        ({"gmres": (99.0, 10.0)}, False),
        ({"gmres": (200.0, 6.9)}, False),
        ({"single": 0.5}, False),
        ({"uncertified": 1}, False),
    ],
)
def test_the_verdict_falls_short_for_each_of_its_reasons(auto, change, ok):
    darcy = found(auto, "darcy", **({"seconds": 1.0, "gmres": (200.0, 10.0)} | change))
    assert auto.judge([darcy, found(auto, "poisson", 1.04)]).ok is ok


def test_the_worst_case_is_named(auto):
    results = [found(auto, "a", 1.01, gmres=(200.0, 10.0)), found(auto, "b", 1.2), found(auto, "c", 0.9)]
    verdict = auto.judge(results)
    assert (verdict.case, verdict.worst) == ("b", pytest.approx(1.2))
    assert verdict.single == pytest.approx(3 * 2.0 / 3.11)


def test_a_fixed_method_that_left_samples_uncertified_is_not_the_best(auto):
    case = found(auto, "a", 1.0, fixed={"quick": 0.1, "sound": 1.0})
    assert case.best.name == "quick"
    case.fixed[0].uncertified = 1
    assert (case.best.name, case.ratio) == ("sound", 1.0)


def test_a_single_method_that_failed_anywhere_comes_last(auto):
    cases = [found(auto, "a", 1.0), found(auto, "b", 1.0)]
    cases[1].everywhere[0].seconds[0] = 0.1
    assert auto.singles(cases)[0].method == auto.EVERYWHERE[0]
    cases[1].everywhere[0].uncertified = 3
    last = auto.singles(cases)[-1]
    assert (last.method, last.mark) == (auto.EVERYWHERE[0], "≥")


def test_losing_cases_are_named(auto, report):
    auto.say_hindsight(report, [found(auto, "good", 1.0), found(auto, "bad", 1.3, uncertified=2, arms=0)])
    said = "\n".join(report.lines)
    assert "5 % above the best: bad 1.300." in said
    assert "none of auto's arms: bad best." in said
    assert "auto left uncertified: bad 2." in said


# -- the whole ---------------------------------------------------------------------------------------------------------


def test_full_and_quick_cases_have_names_of_their_own(auto):
    full, quick = auto.cases(quick=False), auto.cases(quick=True)
    assert len({case.name for case in full}) == len(full) == 13
    assert {case.name for case in quick} <= {case.name for case in full}
    assert sum(case.gmres for case in full) == 4
    assert any(case.gmres for case in quick), "the verdict needs one"


@pytest.mark.slow
@pytest.mark.parametrize("problem", [Darcy(size=32), Poisson(size=32)], ids=["darcy", "poisson"])
def test_every_contender_is_measured_on_real_systems(auto, report, problem):
    case = auto.Case("tiny", problem, samples=24, gmres=True)
    auto.measure(case, chunk=8, stride=8)  # the process loads numba and its kernels, a hundred times a tiny study
    result = auto.measure(case, chunk=8, stride=8)
    assert len(result.auto.seconds) == 24
    assert result.auto.uncertified == 0
    assert [len(contender.seconds) for contender in result.gmres] == [3, 3]
    assert all(len(contender.seconds) in range(20, 25) for contender in result.fixed)
    assert all(contender in result.fixed for contender in result.everywhere)
    assert 0 < result.ratio < 50
    assert sum(row["share"] for row in result.choices) == pytest.approx(1.0)
    names = [contender.name for contender in (*result.fixed, *result.gmres)]
    assert len(set(names)) == len(names)
    auto.say_case(report, result)
    auto.say_hindsight(report, [result])
    auto.say_gmres(report, [result])
    auto.say_single(report, [result])
    assert all(name in "\n".join(report.lines) for name in names)
    assert auto.judge([result]).worst == result.ratio

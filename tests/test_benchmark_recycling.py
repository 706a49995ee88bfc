"""The benchmarks `recycling` and `skr`: fair races, honest bounds, the published matrices; their sizes say nothing."""

from __future__ import annotations

import argparse
import importlib
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import numpy as np
import pytest
from grid_systems import matrix_of
from scipy.sparse import csr_array, diags_array, eye_array, kron

from forebay.solvers.petsc import petsc

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.fixture
def report(benchmark):
    return benchmark("common").Report("trial", argparse.Namespace(quick=True, write=False))


def rows(report) -> dict[str, list[str]]:
    """Cells of every table row that was printed, by the first cell."""
    lines = [line for text in report.lines for line in text.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {first: rest for first, *rest in cells}


@pytest.fixture
def sequence(benchmark):
    """Twelve small Darcy systems."""
    made = benchmark("sequences").of_problem("darcy", {"size": 32, "coefficient": "log_normal"}, 12)
    yield made
    made.destroy()


def preconditioner(module: ModuleType, name: str):
    return next(p for p in module.PRECONDITIONERS if p.name == name)


def true_residual(system, x):
    indptr, indices, values = system.matrix.getValuesCSR()
    return np.linalg.norm(system.rhs - csr_array((values, indices, indptr)) @ x) / np.linalg.norm(system.rhs)


def make_contender(module: ModuleType, system, method: str, pc: str, *, rtol=1e-8, cap=3000, restart=40):
    limits = module.Limits(rtol, cap)
    if method == "gcrodr":
        shape = {"restart": 20, "recycle": 8, "variant": "economical", "name": method}
        return module.RecyclingContender(system, preconditioner(module, pc), limits, **shape)
    return module.PetscContender(system, method, preconditioner(module, pc), limits, restart=restart)


@pytest.mark.parametrize("method", ["gmres", "lgmres", "bcgsl", "gcrodr"])
@pytest.mark.parametrize("pc", ["none", "jacobi", "bjacobi", "sor", "asm", "icc", "ilu"])
def test_every_contender_certifies_with_every_preconditioner(benchmark, sequence, method, pc):
    module = benchmark("contenders")
    contender = make_contender(module, sequence.system, method, pc)
    for sample in range(2):
        sequence.select(sample)
        solved = contender.solve()
        assert solved.certified
        assert solved.residual == pytest.approx(true_residual(sequence.system, contender._certify.x), rel=1e-6)
        assert solved.residual <= 1.01e-8
        assert solved.iterations > 0
        if method == "gmres":
            once = module.products_of(method, solved.iterations, 40) + 1
            assert solved.products == once, "what PETSc returns first is certified already"
        assert solved.seconds > 0
    contender.destroy()


@pytest.mark.parametrize("method", ["gmres", "lgmres", "bcgsl", "gcrodr"])
def test_a_capped_system_counts_as_a_failure(benchmark, sequence, method):
    contender = make_contender(benchmark("contenders"), sequence.system, method, "jacobi", cap=10)
    sequence.select(0)
    solved = contender.solve()
    assert not solved.certified
    assert solved.residual > 1e-8
    assert solved.iterations <= 12  # BCGSL looks at every second one
    contender.destroy()


@pytest.mark.parametrize("method", ["gmres", "lgmres", "bcgsl"])
def test_products_are_those_that_petsc_counts(benchmark, sequence, method):
    module = benchmark("contenders")
    log = petsc().Log
    log.begin()
    event = log.Event("MatMult")
    counts = set()
    for rtol in (1e-1, 1e-3, 1e-5, 1e-7, 1e-9):
        for restart in (7, 40):
            contender = make_contender(module, sequence.system, method, "jacobi", rtol=rtol, restart=restart)
            for sample in range(3):
                sequence.select(sample)
                before = event.getPerfInfo()["count"]
                solved = contender.solve()
                assert solved.products == event.getPerfInfo()["count"] - before
                counts.add(solved.iterations)
            contender.destroy()
    assert len(counts) > 10


class Track:
    """Stands for a sequence whose order is the reverse."""

    def __init__(self, count):
        self.count, self.order, self.selected = count, np.arange(count)[::-1], []

    def __len__(self):
        return self.count

    def select(self, sample):
        self.selected.append(sample)


class Runner:
    """A contender that takes two seconds, and says who was asked."""

    asked: ClassVar[list[str]] = []

    def __init__(self, name, *, in_order=False, certified=lambda turn: True):
        self.name, self.in_order, self.certified, self.turn = name, in_order, certified, 0
        Runner.asked.clear()

    def solve(self):
        Runner.asked.append(self.name)
        self.turn += 1
        return sys.modules["solver_runs"].Solved(2.0, 10, 11, 1e-9, self.certified(self.turn - 1))

    def destroy(self):
        pass


@pytest.mark.parametrize(("wanted", "turns"), [(12, range(12)), (5, (0, 3, 5, 8, 10)), (1, (0,))])
def test_a_race_spreads_fewer_systems_evenly(benchmark, wanted, turns):
    module = benchmark("solver_runs")
    racing = [Runner("all"), Runner("some"), Runner("path", in_order=True)]
    track = Track(12)
    runs = module.race(track, racing, {"all": 12, "some": wanted, "path": 12})
    assert [len(runs[name].solved) for name in ("all", "some", "path")] == [12, len(turns), 12]
    asked = list(zip(Runner.asked, track.selected, strict=True))
    assert [sample for name, sample in asked if name == "some"] == list(turns)
    assert [sample for name, sample in asked if name == "path"] == list(range(11, -1, -1))
    if wanted == 12:
        assert Runner.asked[::3] == ["all", "some", "path"] * 4, "each begins a third of the turns"


def test_who_fails_on_the_first_systems_stops_and_who_failed_once_goes_on(benchmark):
    module = benchmark("solver_runs")
    racing = [Runner("never", certified=lambda turn: False), Runner("once", certified=lambda turn: turn > 0)]
    runs = module.race(Track(12), racing, {"never": 12, "once": 12})
    assert (len(runs["never"].solved), runs["never"].failures) == (module.FAILURES, module.FAILURES)
    assert (len(runs["once"].solved), runs["once"].failures) == (12, 1)
    assert runs["once"].milliseconds() == ">2,000"
    assert str(module.Ratio.of(runs["never"], runs["once"])) == "?"


@pytest.mark.parametrize(
    ("first", "second", "text"),
    [(True, True, "2.00"), (False, True, ">2.00"), (True, False, "<2.00"), (False,) * 2 + ("?",)],
)
def test_a_ratio_with_failures_is_a_bound(benchmark, first, second, text):
    module = benchmark("solver_runs")

    def runs(seconds, certified):
        return module.Runs((module.Solved(seconds, 3, 4, 1e-9, True), module.Solved(seconds, 3, 4, 1e-9, certified)))

    assert str(module.Ratio.of(runs(2.0, first), runs(1.0, second))) == text


def test_a_shorter_sequence_has_an_order_of_its_own(sequence):
    short = sequence.first(5)
    assert sorted(short.order) == list(range(5))
    assert sorted(sequence.order) == list(range(12))
    along = sequence.sorted()
    assert list(along.order) in (list(range(12)), list(range(11, -1, -1)))
    assert along.draws[0] is sequence.draws[sequence.order[0]]


@pytest.mark.slow
def test_recycling_fills_every_cell_and_says_what_it_lost(benchmark, report):
    recycling = benchmark("recycling")
    some = tuple(p for p in recycling.PRECONDITIONERS if p.name in ("icc", "ilu"))
    plan = replace(
        recycling.QUICK,
        cases=recycling.cases(32, 8, 6, 5),
        preconditioners=some,
        rivals=(recycling.Case("helmholtz3d", {"size": 8}, 5),),
    )
    assert recycling.run_benchmark(plan, report) in (0, 1)
    found = rows(report)
    names = ("GMRES(40)", "LGMRES(40)", "BCGSL", "exact", "economical", "sorted")
    titles = [f"{case.title}, {pc}, 1e-08: {name}" for case in plan.cases for pc in ("icc", "ilu") for name in names]
    unfit = [title for title in titles if title.startswith("convection_diffusion 32 x 32, icc")]
    assert [title for title in titles if title not in found] == unfit
    for title in set(titles) - set(unfit):
        systems, failed, _, _, _, _, residual = found[title]
        assert int(systems) == (6 if title.endswith(("economical", "sorted")) and " x 8" not in title else 5)
        # GMRES(40) meets the cap on the coarsest Helmholtz systems.
        assert int(failed) == 0 or ("helmholtz3d" in title and title.endswith("GMRES(40)"))
        assert float(residual) <= 1.01e-8
    assert any("Without icc: it needs a symmetric matrix." in text for text in report.lines)
    assert {"GMRES(100) + GAMG", "direct, MUMPS LDL'", "GCRO-DR(60, 30) + ILU(2)", "GCRO-DR(80, 40) + ILU(2)"} <= set(
        found
    )
    assert "over the best alternative" in report.lines[-1]


def test_the_gain_of_a_cell_where_both_fail_does_not_enter_the_mean(benchmark):
    recycling, solver_runs = benchmark("recycling"), benchmark("solver_runs")

    def cell(name, gmres, ours, *, certified=True):
        runs = {
            key: solver_runs.Runs((solver_runs.Solved(seconds, 3, 4, 1e-9, certified),))
            for key, seconds in ((recycling.GMRES, gmres), (recycling.ECONOMICAL, ours))
        }
        return recycling.Cell(recycling.FULL.cases[1], name, 1e-8, runs)

    cells = [cell("jacobi", 4.0, 1.0), cell("ilu", 9.0, 1.0), cell("none", 99.0, 1.0, certified=False)]
    assert recycling.overall(cells) == pytest.approx(6.0)
    assert recycling.headline(cells) == pytest.approx(9.0)
    assert recycling.headline([cell("ilu", 9.0, 1.0, certified=False)]) == 0


@pytest.mark.parametrize("misplaced", [0, 2])
def test_the_skr_matrix_is_the_laplacian_of_c_u_but_for_one_diagonal(benchmark, misplaced):
    skr = benchmark("skr")
    problem = skr.SkrDarcy(11, misplaced)
    draw = problem.draw(np.random.default_rng(5))
    matrix, rhs = matrix_of(problem, draw)
    s = problem.inner
    second = diags_array([-1.0, 2.0, -1.0], offsets=[-1, 0, 1], shape=(s, s))
    laplacian = kron(second, eye_array(s)) + kron(eye_array(s), second)
    c = draw["c"]
    mended = (laplacian @ diags_array(c[1:-1, 1:-1].ravel())).toarray()
    rows_below = np.arange(s, s * s)
    behind = rows_below - s - misplaced
    expected = mended.copy()
    # The two that would lie before the first node are, in the scripts, the last two of the wall's row above it.
    above = np.concatenate([c[0, 1:-1], c[1:-1, 1:-1].ravel()])
    expected[rows_below, rows_below - s] = -above[s + behind]
    np.testing.assert_allclose(matrix.toarray(), expected, rtol=1e-14)
    assert (np.abs(matrix.toarray() - mended).max() > 1e-3) == bool(misplaced)
    assert rhs == pytest.approx(np.full(s * s, 1 / (s - 1) ** 2))


def test_the_misplaced_diagonal_makes_the_skr_matrix_indefinite(benchmark):
    skr = benchmark("skr")
    x, y = np.meshgrid(*[np.linspace(0, 1, 22)] * 2)
    draw = {"c": np.exp(0.7 * np.sin(2 * np.pi * x) * np.sin(2 * np.pi * y))}
    real_parts = [np.linalg.eigvals(matrix_of(skr.SkrDarcy(22, k), draw)[0].toarray()).real.min() for k in (0, 2)]
    assert real_parts[0] > 0 > real_parts[1]


def test_the_skr_coefficient_has_the_published_variance(benchmark):
    problem = benchmark("skr").SkrDarcy(32, 2)
    rng = np.random.default_rng(7)
    logs = np.log([problem.draw(rng)["c"] for _ in range(200)])
    k = np.fft.fftfreq(32, 1 / 32)
    squared = 4 * np.pi**2 * (k[:, None] ** 2 + k**2) + 49.0
    variance = (343.0 * squared**-2.5).sum() - 343.0 * 49.0**-2.5
    assert logs.var() == pytest.approx(variance, rel=0.1)
    assert np.abs(logs.mean(axis=(1, 2))).max() < 1e-12


def test_skr_compares_both_assemblies(benchmark, report):
    skr = benchmark("skr")
    plan = replace(skr.QUICK, nodes=(24,), systems=5, preconditioners=skr.QUICK.preconditioners[-1:])
    assert skr.run_benchmark(plan, report) in (0, 1)
    found = rows(report)
    titles = [f"{kind}, 22², ilu: {name}" for kind in ("published", "mended") for name in (skr.GMRES, *skr.OURS)]
    assert all(found[title][:2] == ["5", "0"] for title in titles)
    assert all(float(found[title][-1]) <= 1.01e-8 for title in titles)
    assert any("published: at best 13.9x in time" in text for text in report.lines)

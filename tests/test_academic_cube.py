"""The benchmark of the academic cube: its loads and errors are what it says, and it still runs on two processes."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def load(monkeypatch):
    """Imports a file of benchmarks/ by its name, as its neighbours see it."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.fixture
def ranks(load):
    return load("academic_cube_ranks")


@pytest.fixture
def benchmark(load):
    return load("academic_cube")


def test_the_claim_stands_in_the_first_line(benchmark):
    assert benchmark.__doc__.startswith("Claim: ")


def test_the_law_has_the_constants_of_the_reference_at_every_temperature(ranks):
    constants = ranks.LAW.constants
    named = ("young", "poisson", "expansion", "viscosity", "exponent", "kinematic", "recall", "yield_stress")
    assert [constants[name] for name in named] == [200e3, 0.3, 2e-5, 300, 30, 1e5, 1000, 10]
    others = ("hardening", "saturation", "kinematic_2")
    assert [constants[name] for name in others] == [0, 0, 0]
    active = [name for name in named if f"{name}_slope" in constants]
    assert len(active) == 4
    assert [constants[f"{name}_slope"] for name in active] == [0] * len(active)
    settings = ranks.SETTINGS
    assert (settings.displacement, settings.p, settings.cubature) == (1e-6, 1e-6, 1e-5)


def test_every_cycle_has_the_same_loads_and_ends_with_those_of_its_end(ranks):
    history = ranks.cube_history(3, 10)
    assert history.times[[0, 1, 10, 30]] == pytest.approx([0, 0.2, 2, 6])
    assert history.loads[0].tolist() == [0, 0]
    np.testing.assert_allclose(history.loads[11:21], history.loads[1:11])
    np.testing.assert_allclose(history.loads[21:], history.loads[1:11])
    assert history.loads[1:, 0].tolist() == [-100] * 30
    assert history.loads[1:11, 1] / 1e-6 == pytest.approx([0.04, 0.16, 0.36, 0.64, *[1] * 6])
    assert ranks.cube_history(1, 40).loads[:4, 0] == pytest.approx([0, -50, -100, -100])


@pytest.mark.parametrize(("time", "warm"), [(0, 0), (0.5, 0.5), (1, 1), (1.8, 0.2), (2, 0), (3, 1), (5.5, 0.5)])
def test_the_temperature_is_a_bell_that_comes_and_goes_in_every_cycle(ranks, time, warm):
    places = np.array([[500.0, 500, 500], [500, 0, 500], [0, 0, 0]])
    expected = 20 + 380 * warm * np.exp([0, -1, -3])
    assert ranks.temperature(places, time) == pytest.approx(expected)


def test_errors_refer_to_the_step_itself_and_at_least_to_a_hundredth_of_the_largest(benchmark):
    weights = np.array([1.0, 3.0])
    true = np.array([[5.0, 2.0, 1e-9], [5.0, 2.0, 0.0]])
    values = true + np.array([[7.0, 0.02, 0.0], [7.0, 0.0, 0.003]])
    sizes = 4.0, 0.01 * 4.0
    expected = [0.02 / sizes[0], np.sqrt(3) * 0.003 / sizes[1]]
    assert benchmark.errors(weights, values, true) == pytest.approx(expected)


def test_the_best_projection_keeps_what_the_first_steps_span_and_loses_the_rest(benchmark):
    rng = np.random.default_rng(2026)
    weights = rng.uniform(1, 9, 13)
    spanned, other = rng.standard_normal((13, 2)), rng.standard_normal(13)
    root = np.sqrt(weights)
    basis, _ = np.linalg.qr(root[:, None] * spanned)
    normal = (root * other - basis @ (basis.T @ (root * other))) / root
    values = np.column_stack([np.zeros(13), spanned, spanned @ [3.0, -2.0] + normal])
    expected = values.copy()
    expected[:, 3] -= normal
    np.testing.assert_allclose(benchmark.projected(weights, values, 2), expected, atol=1e-12)


def fake(benchmark, shift: float, two_shift: float):
    """A case of two trained cycles and one further, in two steps each, whose errors are known."""
    case = benchmark.Case(increments=2, cycles=3, trained=(1, 2), cells=1)
    true = np.ones((4, 7))
    grow = np.array([0.0, 0, 1, 10, 1000, 100, 10])
    reduced = {f"{kind}{trained}": true + shift * trained * grow for kind in "up" for trained in (1, 2)}
    reduced |= {f"replayed{trained}": true + 0.5 * shift * trained * grow for trained in (1, 2)}
    fields = {"dofs": np.ones(4), "points": np.ones(4), "u": true, "p": true, **reduced}
    two = fields | {f"u{trained}": true + two_shift * trained * grow for trained in (1, 2)}
    sizes = [{"n": 3, "q": 5, "m": 17, "residual": 2e-6}, {"n": 4, "q": 6, "m": 19, "residual": 3e-6}]
    return case, benchmark.Solved(fields, sizes), benchmark.Solved(two, sizes)


def test_reproduction_is_the_first_training_and_extrapolation_the_cycles_after_the_last(benchmark):
    figures = benchmark.figures_of(*fake(benchmark, 1e-7, 3e-7))
    assert figures.displacement == pytest.approx(1e-7)
    assert figures.p == pytest.approx(1e-7)
    assert figures.extrapolated_p == pytest.approx(2e-7 * 100)
    assert figures.parallel_displacement == pytest.approx(2 * 3e-7 * 1000), "beside the full one, second training"


def test_two_processes_are_compared_in_the_trained_cycles_only(benchmark):
    case, one, two = fake(benchmark, 1e-7, 3e-7)
    expected = benchmark.figures_of(case, one, two)
    two.fields["u1"][:, 3:] += 1.0
    two.fields["u2"][:, 5:] += 1.0
    assert benchmark.figures_of(case, one, two) == expected


def test_two_processes_are_also_compared_with_the_reduced_model_of_one(benchmark):
    figures = benchmark.figures_of(*fake(benchmark, -3e-7, 1e-7))
    assert figures.parallel_displacement == pytest.approx(2 * 4e-7 * 1000, rel=1e-3)


def test_the_table_has_a_row_for_the_training_and_each_further_cycle(benchmark):
    case, one, two = fake(benchmark, 1e-7, 3e-7)
    first, second = benchmark.rows_of(case, one, two, 0), benchmark.rows_of(case, one, two, 1)
    assert [row[0] for row in (*first, *second)] == ["2, 1, those", "2, 1, 2", "2, 1, 3", "2, 2, those", "2, 2, 3"]
    assert all(len(row) == len(benchmark.COLUMNS) for row in (*first, *second))
    assert first[0] == ["2, 1, those", "3", "5", "17", "1.0e-07", "1.0e-07", "5.0e-08", "", "17", "3.0e-07"]
    assert first[1][4:7] == ["1.0e-04", "1.0e-04", "5.0e-05"]
    assert first[2][4:7] == ["1.0e-05", "1.0e-05", "5.0e-06"]
    assert second[1][4:7] == ["2.0e-05", "2.0e-05", "1.0e-05"]
    assert [row[-1] for row in second] == ["6.0e-04", "6.0e-05"]


@pytest.mark.mpi
@pytest.mark.slow
def test_a_coarse_cube_is_reproduced_on_one_process_and_on_two(benchmark, load):
    report = load("common").Report("trial", argparse.Namespace(quick=True, write=False))
    case = benchmark.Case(increments=5, cycles=2, trained=(1,), cells=3)
    figures = benchmark.measure(report, [case])
    assert figures.displacement < benchmark.DISPLACEMENT
    assert figures.p < benchmark.P
    assert 1e-12 < figures.parallel_displacement < benchmark.PARALLEL
    assert 1e-5 < figures.extrapolated_p < 0.1, "one cycle does not tell what the next one does"
    assert sum("5, 1, those" in text for text in report.lines) == 1

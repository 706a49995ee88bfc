from pathlib import Path

import numpy as np
import pytest
from suites.solid_problem_suite import SolidProblemSuite, middle

from forebay.pipeline.errors import StudyError
from forebay.solvers.problems import load_problem
from forebay.solvers.problems.necked_bar import HotSpot, NeckedBar

NECK = 6.0
"""Half of its length, [mm]."""


@pytest.fixture(scope="module")
def bar():
    return NeckedBar(cells=(6, 2, 2), steps=8, frames=8)


class TestNeckedBar(SolidProblemSuite):
    @pytest.fixture(scope="class")
    def problem(self, bar):
        return bar

    def test_the_neck_yields_first_even_where_it_is_cold(self, problem, solved):
        p = solved(position=8.0, temperature=400.0)["p"]
        x = centres(problem)[:, 0]
        first = p[np.flatnonzero(p.max(axis=1) > 1e-7)[0]]
        assert first[np.abs(x - 20) < NECK].min() > 1e-7
        assert first[np.abs(x - 20) > NECK].max() < 0.3 * first.max()

    def test_the_loaded_end_moves_most_and_the_other_not_along_the_bar(self, problem, solved):
        u = solved()["u"]
        x = {c.name: c.values for c in problem.schema.coordinates}["node_x"]
        for frame in u[:4]:
            assert x[frame[:, 0].argmax()] == 40.0
            assert not frame[x == 0.0, 0].any()
        ends = u[:, x == 0.0, 1:]
        assert abs(ends).max() > 1e-4, "free to contract"

    def test_more_traction_and_more_heat_deform_more(self, solved):
        def largest(**values):
            return solved(position=20.0, **values)["p"][-1].max()

        pulled = [largest(traction=traction) for traction in (160.0, 190.0, 240.0)]
        assert np.all(np.diff(pulled) > 0.3 * pulled[0])
        heated = [largest(temperature=temperature) for temperature in (400.0, 600.0, 800.0)]
        assert np.all(np.diff(heated) > 0.1 * heated[0])

    def test_the_hot_spot_sits_at_its_position(self, problem, model):
        for position in (8.0, 25.0):
            history = problem.history(middle(problem, position=position))
            celsius = history.temperature(model.positions, problem.duration / 2)
            assert abs(model.positions[celsius.argmax(), 0] - position) < 40 / 6

    def test_the_traction_acts_on_the_whole_end(self, model):
        force = np.zeros(3)
        np.add.at(force, np.arange(model.dofs) % 3, model.unit_loads[:, 0])
        np.testing.assert_allclose(force, [100.0, 0.0, 0.0], atol=1e-3)

    def test_the_solid_is_the_bar_described(self, problem):
        x = np.linspace(0, 40, 100_001)
        area = 100 * (1 - 0.3 * np.exp(-(((x - 20) / 6) ** 2))) ** 2
        fine = NeckedBar(cells=(120, 2, 2))
        assert fine._fields.weights.sum() == pytest.approx(np.trapezoid(area, x), rel=1e-4)
        nodes = np.stack([c.values for c in problem.schema.coordinates[:3]], axis=1)
        np.testing.assert_allclose(np.ptp(nodes, axis=0), [40.0, 10.0, 10.0], rtol=1e-5)
        assert np.ptp(nodes[np.isclose(nodes[:, 0], 20.0), 1]) == pytest.approx(7.0)


def centres(problem):
    values = {c.name: c.values for c in problem.schema.coordinates}
    nodes = np.stack([values[f"node_{axis}"] for axis in "xyz"], axis=1)
    return nodes[values["hexahedra"]].mean(axis=1)


def test_the_traction_is_held_in_waves_between_its_half_and_its_whole():
    problem = NeckedBar(cells=(6, 2, 2), steps=16, cycles=2, duration=3.0)
    history = problem.history(middle(problem, traction=200.0))
    assert history.times[-1] == 6.0
    pull = history.loads[:, 0]
    np.testing.assert_allclose(pull[:5], [0, 50, 100, 150, 200])
    np.testing.assert_allclose(pull[4::4], [200, 100, 200, 100, 200, 100, 200, 100], atol=1e-10)
    assert pull[6] == pytest.approx(100 * (1 + np.sqrt(0.5)))


def test_the_hot_spot_is_where_and_as_hot_as_asked():
    spot = HotSpot(620.0, 12.0, 2.0)
    points = np.array([[12.0, 0.0, 3.0], [26.0, 0.0, 0.0], [12.0, 4.0, 0.0], [12.0, -4.0, 0.0]])
    np.testing.assert_allclose(spot(points, 1.0), [620.0, 20 + 600 / np.e, 656.0, 584.0])
    np.testing.assert_allclose(spot(points, 0.5), 20 + 0.5 * (spot(points, 1.0) - 20))
    np.testing.assert_allclose(spot(points, 2.0), 20.0, atol=1e-10)
    np.testing.assert_allclose(spot(points, 3.0), spot(points, 1.0), rtol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cells": [24, 1, 6]}, r"problem.cells = \[24, 1, 6\] is not allowed: .* greater than or equal to 2; the"),
        ({"cells": [24, 6]}, r"problem.cells = \[24, 6\] is not allowed"),
        ({"steps": 3}, r"problem.steps = 3 is not allowed: .* greater than or equal to 4; the default is 40"),
        ({"frames": 41}, r"problem.frames = 41 is more than the 40 steps .* lower problem.frames to 40 at most"),
        ({"traction_high": 160}, r"problem.traction_low = 160.0 must be below problem.traction_high = 160"),
        ({"temperature_low": 801}, r"problem.temperature_low = 801.* must be below problem.temperature_high = 800"),
        ({"temperature_high": 950}, r"problem.temperature_high = 950 is not allowed: .* less than or equal to 900"),
        ({"position_high": 41.0}, r"problem.position_high = 41.0 is not allowed: .* less than or equal to 40"),
        ({"position_low": 32.0}, r"problem.position_low = 32.0 must be below problem.position_high = 32.0"),
        ({"yield_low": 1.2}, r"problem.yield_low = 1.2 must be below problem.yield_high = 1.15"),
        ({"yield_low": 0.0}, r"problem.yield_low = 0.0 is not allowed"),
        ({"duration": 0.0}, r"problem.duration = 0.0 is not allowed: .* greater than 0; the default is 2.0"),
    ],
)
def test_options_of_a_study_are_checked(options, message):
    with pytest.raises(StudyError, match=message):
        load_problem("necked_bar", options, folder=Path())


def test_it_is_known_by_its_name():
    assert load_problem("necked_bar", {"cells": [6, 2, 2], "cycles": 2}, folder=Path()) == NeckedBar(
        cells=(6, 2, 2), cycles=2
    )

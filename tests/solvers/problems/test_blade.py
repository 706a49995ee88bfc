from pathlib import Path

import numpy as np
import pytest
from suites.solid_problem_suite import SolidProblemSuite, middle

from forebay.pipeline.errors import StudyError
from forebay.solvers.fem import blade_mesh
from forebay.solvers.problems import load_problem
from forebay.solvers.problems.blade import Blade
from forebay.solvers.problems.blade_temperature import BladeTemperature, unplace


@pytest.fixture(scope="module")
def small():
    return Blade(layers=3, steps=4, frames=2)


class TestBlade(SolidProblemSuite):
    @pytest.fixture(scope="class")
    def problem(self, small):
        return small

    def test_the_root_stays_and_the_tip_is_drawn_outwards(self, problem, solved):
        u = solved()["u"][0]
        z = nodes_of(problem)[:, 2]
        assert not u[z == 0].any()
        means = [u[np.isclose(z, height), 2].mean() for height in (20.0, 60.0)]
        assert 0 < means[0] < 0.6 * means[1]

    def test_pressure_pushes_the_blade_to_its_suction_side(self, problem, solved):
        tip = nodes_of(problem)[:, 2] == 60.0
        middle, high = (fields["u"][0, tip, 1].mean() for fields in (solved(), solved(pressure=1.0)))
        assert high > middle + 0.01

    def test_a_faster_blade_grows_longer_and_a_hotter_one_deforms_more_plastically(self, problem, solved):
        tip = nodes_of(problem)[:, 2] == 60.0
        middle, fast, hot = solved(), solved(speed=13_000.0), solved(temperature=850.0)
        assert fast["u"][0, tip, 2].mean() > middle["u"][0, tip, 2].mean() + 0.004
        assert hot["p"][-1].max() > 1.1 * middle["p"][-1].max()

    def test_the_hottest_section_is_at_its_height(self, problem, model):
        for height in (15.0, 45.0):
            history = problem.history(middle(problem, height=height))
            celsius = history.temperature(model.positions, problem.duration / 2)
            assert abs(model.positions[celsius.argmax(), 2] - height) < 60 / 3

    def test_centrifugal_forces_are_those_of_the_blade_in_its_orbit(self, problem, model):
        force = np.zeros(3)
        np.add.at(force, np.arange(model.dofs) % 3, np.where(model.fixed, 0.0, model.unit_loads[:, 0]))
        z = model.positions[:, 2]
        whole = (model.weights * (300 + z)).sum()
        assert 0.6 * whole < force[2] < whole, "the rest acts on the clamped root"
        assert abs(force[0]) < 1e-9 * whole, "none along the axis"


def nodes_of(problem):
    return np.stack([c.values for c in problem.schema.coordinates[:3]], axis=1)


def test_loads_follow_the_speed_from_rest_over_cruise_to_idle():
    problem = Blade(layers=2, steps=8, cycles=2, duration=80.0)
    history = problem.history(middle(problem, speed=12_000.0, pressure=0.3))
    assert history.times[-1] == 160.0
    squared = [0, 0.25, 1, 1, 1, 1, 1, 0.65**2, 0.09, 0.65**2, 1, 1, 1, 1, 1, 0.65**2, 0.09]
    np.testing.assert_allclose(history.loads[:, 1], 0.3 * np.array(squared), rtol=1e-12)
    omega = 400 * np.pi
    np.testing.assert_allclose(history.loads[:, 0], 8.2e-9 * omega**2 * np.array(squared), rtol=1e-12)


def test_points_of_the_blade_are_found_in_its_section():
    section = np.random.default_rng(11).uniform((0, -3), (37, 6), (50, 2))
    levels = np.random.default_rng(13).uniform(0, 1, 50)
    placed = blade_mesh.place(np.column_stack([section, levels]))
    np.testing.assert_allclose(unplace(placed), section, atol=1e-12)


def test_the_blade_is_cold_at_its_root_and_by_its_holes_and_hot_at_its_leading_edge():
    problem = Blade(layers=14)
    nodes = nodes_of(problem)
    spot = BladeTemperature(800.0, 30.0, 60.0)
    celsius = spot(nodes, 30.0)
    assert (celsius[nodes[:, 2] == 0] == 20.0).all()
    assert celsius.min() >= 20.0
    assert celsius.max() < 800.0
    section, z = unplace(nodes), nodes[:, 2]
    hottest = celsius.argmax()
    assert section[hottest, 0] < 1.0, "at the leading edge"
    assert abs(z[hottest] - 30.0) < 5.0
    at = np.isclose(z, z[hottest])
    hole = np.hypot(*(section - (0.34 * 40, 40 * camber(0.34))).T) < 0.052 * 40 + 0.01
    beside = (np.abs(section[:, 0] - 0.34 * 40) < 2) & ~hole
    assert celsius[at & hole].max() < celsius[at & beside].max() - 40
    np.testing.assert_allclose(spot(nodes, 15.0) - 20, 0.5 * (celsius - 20), atol=1e-9)
    np.testing.assert_allclose(spot(nodes, 60.0), 20.0, atol=1e-9)


def camber(at):
    return np.mean([blade_mesh.outline(side, np.array([at]))[0, 1] for side in (1, -1)]) / 40


def test_the_hottest_section_moves_with_its_height():
    line = np.column_stack([np.zeros((61, 2)), np.arange(61.0)])
    peaks = [int(BladeTemperature(700.0, height, 60.0)(line, 30.0).argmax()) for height in (25.0, 35.0, 45.0)]
    np.testing.assert_allclose(peaks, [25, 35, 45], atol=4)


def test_the_default_section_is_the_one_of_the_package(monkeypatch):
    def refuse(size):
        raise ValueError(f"Gmsh cannot be loaded; no {size}")

    monkeypatch.setattr(blade_mesh, "mesh_section", refuse)
    cells = Blade(layers=3).schema.outputs[1].shape[0]
    section = blade_mesh.load_section(blade_mesh._FILE)
    assert cells == 3 * len(section.quadrilaterals)
    with pytest.raises(StudyError, match=r"problem.size = 2.5 cannot be meshed: Gmsh cannot be .*or leave it at 1.5"):
        Blade(size=2.5).schema  # noqa: B018


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 5}, r"problem.size = 5 is not allowed: .* less than or equal to 4; the default is 1.5"),
        ({"layers": 1}, r"problem.layers = 1 is not allowed: .* greater than or equal to 2; the default is 12"),
        ({"frames": 81, "cycles": 2}, r"problem.frames = 81 is more than the 80 steps .* 80 at most, or raise"),
        ({"speed_low": 13000}, r"problem.speed_low = 13000.* must be below problem.speed_high = 13000"),
        ({"pressure_low": 1.0}, r"problem.pressure_low = 1.0 must be below problem.pressure_high = 1.0"),
        ({"temperature_high": 900.5}, r"problem.temperature_high = 900.5 is not allowed: .* less than or equal to 900"),
        ({"height_high": 61}, r"problem.height_high = 61 is not allowed: .* less than or equal to 60"),
        ({"height_low": 50}, r"problem.height_low = 50.* must be below problem.height_high = 45"),
        ({"yield_high": 0.9}, r"problem.yield_low = 0.9 must be below problem.yield_high = 0.9"),
    ],
)
def test_options_of_a_study_are_checked(options, message):
    with pytest.raises(StudyError, match=message):
        load_problem("blade", options, folder=Path())


def test_it_is_known_by_its_name():
    assert load_problem("blade", {"layers": 4, "height_low": 20.0}, folder=Path()) == Blade(layers=4, height_low=20.0)

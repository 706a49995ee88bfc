"""What every problem of solid mechanics must do; subclass with a small one as the module fixture `problem`.

    class TestMySolid(SolidProblemSuite):
        @pytest.fixture(scope="class")
        def problem(self): return MySolid(cells=(4, 2, 2), steps=8, frames=3)

Everything that the model says of its mesh comes from DOLFINx, what the schema says of it does not.
"""

import functools
import pickle
import subprocess
import sys

import numpy as np
import pytest
from suites.solid_cases import alone

from forebay.pipeline.sampling import sample_generator
from forebay.solvers.materials.law import plastic_strain
from forebay.solvers.problems.contract import check_contract
from forebay.solvers.problems.solid import is_solid

HEAVY = ("dolfinx", "mpi4py", "petsc4py", "basix", "gmsh", "numba")


def middle(problem, **values):
    """A draw in the middle of all ranges, but for the named parameters."""
    parameters = problem.schema.parameters
    unknown = set(values) - {p.name for p in parameters}
    assert not unknown
    return {"parameters": np.array([values.get(p.name, p.quantile(0.5)) for p in parameters])}


class SolidProblemSuite:
    @pytest.fixture(scope="class")
    def model(self, problem):
        model = problem.model(alone())
        yield model
        model.destroy()

    @pytest.fixture(scope="class")
    def solved(self, problem, model):
        """Output fields of the sample in the middle of all ranges, but for named parameters; each is solved once."""
        order = np.argsort(model.dof_ids), np.argsort(model.point_ids)

        @functools.cache
        def solve(**values):
            trajectory = model.run(problem.history(middle(problem, **values)))
            assert sum(record.cuts for record in trajectory.records) == 0
            kept = problem.stored_steps
            return problem.fields(trajectory.displacement[kept][:, order[0]], trajectory.p[kept][:, order[1]])

        return solve

    def test_it_keeps_the_contract(self, problem):
        assert is_solid(problem)
        check_contract(problem)

    def test_coordinates_span_the_axes_of_the_fields(self, problem):
        schema = problem.schema
        u, p = schema.outputs
        assert (u.name, u.dims, u.units) == ("u", ("node", "component"), "mm")
        assert (p.name, p.dims, p.units) == ("p", ("cell",), "1")
        values = {c.name: c.values for c in schema.coordinates}
        nodes = np.stack([values[f"node_{axis}"] for axis in "xyz"], axis=1)
        assert u.shape == nodes.shape
        assert (*p.shape, 8) == values["hexahedra"].shape
        assert set(values["hexahedra"].ravel()) == set(range(len(nodes)))

    def test_the_schema_is_made_without_the_libraries_that_solve(self, problem):
        code = (
            "import pickle, sys; problem = pickle.loads(sys.stdin.buffer.read()); problem.schema; problem.stored_steps;"
            f"print([name for name in {HEAVY} if name in sys.modules])"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], input=pickle.dumps(problem), capture_output=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == b"[]"

    def test_stored_times_are_times_of_the_history(self, problem):
        times, kept = problem.history(middle(problem)).times, problem.stored_steps
        assert kept.dtype == np.int64
        assert kept[0] >= 1
        assert (np.diff(kept) > 0).all()
        assert kept[-1] == len(times) - 1
        np.testing.assert_array_equal(problem.schema.times, times[kept])

    def test_a_draw_says_all_there_is_to_know_of_a_sample(self, problem):
        parameters = middle(problem)["parameters"]
        first, again = (problem.draw(parameters, sample_generator(13, "train", 7)) for _ in range(2))
        assert first == again == {}, "neither problem has input fields"

    def test_the_history_fits_the_model(self, problem, model):
        history = problem.history(middle(problem))
        assert history.loads.shape == (len(history.times), len(model.load_names))
        assert history.displacements.shape == (len(history.times), 0)
        assert model.displacement_names == ()
        assert history.times[0] == 0.0
        assert not history.loads[0].any(), "a virgin body at rest"

    def test_every_corner_of_the_ranges_stays_where_the_law_holds(self, problem, model):
        for end in np.ndindex(*(2,) * len(problem.schema.parameters)):
            parameters = np.array([(p.low, p.high)[k] for p, k in zip(problem.schema.parameters, end, strict=True)])
            history = problem.history({"parameters": parameters})
            found = np.stack([history.temperature(model.positions, t) for t in history.times])
            assert (found[0] == 20.0).all(), "of one temperature at the start"
            assert found.min() >= 20.0
            assert found.max() < history.law.constants["hottest"]
            assert (history.loads >= 0).all()
            assert (history.loads[1:].max(axis=0) > 0).all()

    def test_a_cycle_is_hottest_in_its_middle_and_ends_cold(self, problem, model):
        history = problem.history(middle(problem, temperature=700.0))
        quarters = problem.duration * np.arange(1, 5) / 4
        rise = [history.temperature(model.positions, t).max() - 20 for t in quarters]
        assert 400 < rise[1] < 750
        np.testing.assert_allclose(rise, rise[1] * np.array([0.5, 1.0, 0.5, 0.0]), atol=1e-9)

    def test_scatter_changes_the_yield_stress_alone(self, problem):
        law, weak = problem.law, problem.history(middle(problem, yield_factor=0.9)).law
        changed = {name for name, value in law.constants.items() if weak.constants[name] != value}
        assert changed == {"yield_stress"}
        assert weak.constants["yield_stress"] == pytest.approx(0.9 * law.constants["yield_stress"], rel=1e-15)
        assert weak.name == law.name

    def test_a_history_travels_to_another_process(self, problem):
        history = problem.history(middle(problem))
        copy = pickle.loads(pickle.dumps(history))
        points = np.random.default_rng(7).uniform(-5, 40, (20, 3))
        at = 0.4 * history.times[-1]
        np.testing.assert_array_equal(copy.temperature(points, at), history.temperature(points, at))
        np.testing.assert_array_equal(copy.loads, history.loads)
        assert copy.law == history.law

    def test_a_problem_with_a_mesh_travels_without_it(self, problem, model):
        data = pickle.dumps(problem)
        assert len(data) < 2000
        copy = pickle.loads(data)
        assert copy == problem
        for mine, other in zip(problem.schema.coordinates, copy.schema.coordinates, strict=True):
            np.testing.assert_array_equal(mine.values, other.values)

    def test_nodes_and_cells_of_the_fields_are_those_of_the_schema(self, problem, model):
        places = model._space.space.tabulate_dof_coordinates()[: model.dofs // 3].ravel()
        p = model.positions[np.argsort(model.point_ids), 0]
        fields = problem.fields(places[None, np.argsort(model.dof_ids)], p[None])
        values = {c.name: c.values for c in problem.schema.coordinates}
        for axis, name in enumerate(("node_x", "node_y", "node_z")):
            np.testing.assert_allclose(fields["u"][0, :, axis], values[name], atol=1e-12)
        corners = values["node_x"][values["hexahedra"]]
        assert ((fields["p"][0] > corners.min(axis=1)) & (fields["p"][0] < corners.max(axis=1))).all()

    def test_a_sample_fills_the_fields_of_the_schema(self, problem, solved):
        fields = solved()
        for name in ("u", "p"):
            assert fields[name].shape == problem.schema.sample_shape(name)
            assert np.isfinite(fields[name]).all()
        assert (np.diff(fields["p"], axis=0) >= 0).all(), "p never decreases"
        assert fields["p"][-1].max() > 5e-5, "a sample that stays elastic teaches nothing"

    def test_a_stronger_material_deforms_less_plastically(self, solved):
        weak, strong = solved()["p"][-1], solved(yield_factor=1.1)["p"][-1]
        assert strong.max() < 0.97 * weak.max()
        assert (strong <= weak + 1e-5).mean() > 0.95

    def test_the_law_that_reduced_models_are_trained_for_is_that_of_the_middle(self, problem):
        history = problem.history(middle(problem, yield_factor=1.0))
        assert history.law == problem.law
        assert plastic_strain(problem.law, problem.law.initial(5)).shape == (5,)

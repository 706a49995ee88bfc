import functools

import numpy as np
import pytest
from suites.solid_cases import DETERMINATE, PULL, SYMMETRY, alone, distorted_cube, history, steps

from forebay.solvers.fem.elasticity import rigid_motions
from forebay.solvers.fem.solid import SolidModel, Support, UnitLoad
from forebay.solvers.fem.solid_loads import motions_about
from forebay.solvers.fem.solid_mesh import cube, necked_bar, plate_with_hole
from forebay.solvers.materials.chaboche import LinearElastic

STEEL = LinearElastic(young=2000.0, poisson=0.3, young_slope=0.0, expansion=1e-4)
TENSORS = {"xx": (0, 0), "yy": (1, 1), "zz": (2, 2), "xy": (0, 1), "xz": (0, 2), "yz": (1, 2)}
FACES = [(axis, end) for axis in range(3) for end in ("min", "max")]


def solve(model, law=STEEL, **amplitudes):
    """The end of one step in which amplitudes grow from zero."""
    columns = {
        what: [[0.0, value] for value in amplitudes.get(what, ())] or None for what in ("loads", "displacements")
    }
    trajectory = model.run(history(law, [0.0, 1.0], temperature=amplitudes.get("temperature"), **columns))
    return trajectory.state


def nodes_of(model):
    return model._space.space.tabulate_dof_coordinates()[: model.dofs // 3]


def compliance(stress, young=2000.0, poisson=0.3):
    """Strain of an isotropic body, Mandel."""
    normal = stress[:3].sum()
    return (1 + poisson) / young * stress - poisson / young * normal * np.array([1, 1, 1, 0, 0, 0])


# --- exact where the method is exact --------------------------------------------------------------------------------


@functools.cache
def faces_loaded(shape, order):
    """A distorted cube with a unit traction for every stress component."""
    loads = []
    for name, (i, j) in TENSORS.items():
        stress = np.zeros((3, 3))
        stress[i, j] = stress[j, i] = 1.0
        for axis, end in FACES:
            vector = stress[axis] * (1 if end == "max" else -1)
            if np.any(vector):
                loads.append(
                    (name, UnitLoad(f"{name} on {'xyz'[axis]}_{end}", "traction", f"{'xyz'[axis]}_{end}", vector))
                )
    model = SolidModel(distorted_cube(shape), DETERMINATE, [load for _, load in loads], order=order)
    return [name for name, _ in loads], model


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("shape", ["hexahedron", "tetrahedron"])
@pytest.mark.parametrize("component", range(6), ids=list(TENSORS))
def test_a_uniform_stress_is_exact_on_distorted_cells(component, shape, order):
    names, model = faces_loaded(shape, order)
    state = solve(model, loads=[5.0 if name == list(TENSORS)[component] else 0.0 for name in names])
    expected = np.zeros(6)
    expected[component] = 5.0 if component < 3 else 5.0 * np.sqrt(2)
    np.testing.assert_allclose(state.stress, np.tile(expected, (model.points, 1)), atol=1e-11)
    strain = compliance(expected)
    np.testing.assert_allclose(model.strains(state.displacement), np.tile(strain, (model.points, 1)), atol=1e-14)


def test_displacements_of_a_uniform_stress_are_linear():
    names, model = faces_loaded("hexahedron", 1)
    state = solve(model, loads=[5.0 if name == "xy" else 0.0 for name in names])
    x, y, z = nodes_of(model).T
    shear = 2 * 5.0 * (1 + 0.3) / 2000.0
    # The corner at the origin holds x, y, z, the one along x holds y and z: the shear is all in u_x.
    np.testing.assert_allclose(
        state.displacement.reshape(-1, 3), np.column_stack([shear * y, 0 * x, 0 * z]), atol=1e-14
    )


def test_a_pressure_on_all_sides_makes_a_hydrostatic_state():
    loads = [UnitLoad(f"{axis}_{end}", "pressure", f"{axis}_{end}") for axis in "xyz" for end in ("min", "max")]
    model = SolidModel(distorted_cube(), DETERMINATE, loads)
    state = solve(model, loads=[7.0] * 6)
    np.testing.assert_allclose(state.stress, np.tile([-7.0, -7, -7, 0, 0, 0], (model.points, 1)), atol=1e-11)


def test_a_free_body_expands_without_stress():
    model = SolidModel(distorted_cube(), DETERMINATE, [])
    state = solve(model, temperature=lambda x, t: 20.0 + 100.0 * t + 0 * x[:, 0])
    np.testing.assert_allclose(state.stress, 0.0, atol=1e-11)
    np.testing.assert_allclose(state.displacement.reshape(-1, 3), 1e-4 * 100.0 * nodes_of(model), atol=1e-14)


def test_a_body_that_went_on_expanding_for_many_steps_still_converges():
    model = SolidModel(distorted_cube(), DETERMINATE, [])
    found = model.run(history(STEEL, steps(4), temperature=lambda x, t: 20.0 + 100.0 * min(t, 0.5) + 0 * x[:, 0]))
    assert [record.iterations for record in found.records] == [1, 1, 1, 1]
    np.testing.assert_allclose(found.displacement[-1].reshape(-1, 3), 5e-3 * nodes_of(model), atol=1e-14)


def test_a_clamped_bar_is_stressed_by_heat():
    model = SolidModel(cube(alone(), 2), [*SYMMETRY, Support("x_max", "x")], [])
    state = solve(model, temperature=lambda x, t: 20.0 + 50.0 * t + 0 * x[:, 0])
    np.testing.assert_allclose(
        state.stress, np.tile([-2000.0 * 1e-4 * 50, 0, 0, 0, 0, 0], (model.points, 1)), atol=1e-11
    )
    reaction = model.internal_force(state.stress)
    right = nodes_of(model)[:, 0] > 1 - 1e-9
    assert reaction.reshape(-1, 3)[right, 0].sum() == pytest.approx(-10.0, rel=1e-12)
    assert np.abs(reaction[~model.fixed]).max() < 1e-12


def test_a_prescribed_displacement_is_met_and_pulls():
    model = SolidModel(cube(alone(), 3, 2.0), [*SYMMETRY, Support("x_max", "x", "stretch")], [])
    assert model.displacement_names == ("stretch",)
    state = solve(model, displacements=[0.01])
    x, y, z = nodes_of(model).T
    expected = 0.005 * np.column_stack([x, -0.3 * y, -0.3 * z])
    np.testing.assert_allclose(state.displacement.reshape(-1, 3), expected, atol=1e-15)
    np.testing.assert_allclose(state.stress[:, 0], 10.0, rtol=1e-12)


def test_the_weight_of_a_column_grows_downwards():
    law = LinearElastic(young=1000.0, poisson=0.0, young_slope=0.0)
    model = SolidModel(cube(alone(), 2, 3.0), SYMMETRY, [UnitLoad("weight", "body", vector=(0, 0, -2.0))], order=2)
    state = solve(model, law, loads=[0.5])
    z = nodes_of(model)[:, 2]
    np.testing.assert_allclose(state.displacement.reshape(-1, 3)[:, 2], -1e-3 * (3.0 * z - z**2 / 2), atol=1e-14)
    np.testing.assert_allclose(state.stress[:, 2], -(3.0 - model.positions[:, 2]), atol=1e-11)


# --- centrifugal: order of convergence against the exact solution ---------------------------------------------------

LENGTH, STIFF, SPIN = 2.0, 500.0, 3.0


def spun(cells, order):
    """ν = 0 uncouples x and y: u_i = ρω²/E (L² x_i/2 - x_i³/6) in the plane, 0 along the axis."""
    load = UnitLoad("spin", "centrifugal", vector=(0, 0, 4.0))
    model = SolidModel(cube(alone(), cells, LENGTH), SYMMETRY, [load], order=order)
    law = LinearElastic(young=STIFF, poisson=0.0, young_slope=0.0)
    return model, solve(model, law, loads=[SPIN])


@pytest.mark.parametrize(("order", "sizes", "finest"), [(1, (3, 6, 12), 0.06), (2, (2, 3, 4), 0.012)])
def test_stresses_of_a_spinning_body_converge_at_the_order_of_the_element(order, sizes, finest):
    errors = []
    for cells in sizes:
        model, state = spun(cells, order)
        exact = np.zeros((model.points, 6))
        exact[:, :2] = SPIN * (LENGTH**2 - model.positions[:, :2] ** 2) / 2
        error, size = (((a**2).sum(axis=1) @ model.weights) for a in (state.stress - exact, exact))
        errors.append(np.sqrt(error / size))
    slope = -np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    assert abs(slope - order) < 0.2, f"observed order {slope:.2f} from errors {errors}"
    assert errors[-1] < finest


def test_displacements_of_a_spinning_body_are_exact_at_the_nodes():
    model, state = spun(3, 1)
    x = nodes_of(model)
    exact = SPIN / STIFF * (LENGTH**2 * x / 2 - x**3 / 6) * [1, 1, 0]
    np.testing.assert_allclose(state.displacement.reshape(-1, 3), exact, atol=1e-13)


def test_the_axis_of_a_centrifugal_load_goes_through_its_point():
    mesh = cube(alone(), 2)
    loads = [
        UnitLoad("at", "centrifugal", vector=(1, 0, 0), point=(9.0, 0.0, -100.0)),
        UnitLoad("around", "centrifugal", vector=(0, 1, 0)),
    ]
    forces = SolidModel(mesh, SYMMETRY, loads, name="spin").nodal_loads
    totals = forces.reshape(-1, 3, 2).sum(axis=0)
    np.testing.assert_allclose(totals, [[0, 0.5], [0.5, 0], [100.5, 0.5]], atol=1e-12)


# --- other choices give the same answer -----------------------------------------------------------------------------


def bar(linear="mumps"):
    return SolidModel(necked_bar(alone(), (8, 3, 3)), [Support("x_min", "xyz")], [PULL], linear=linear)


def test_multigrid_gives_what_the_direct_solver_gives():
    direct, multigrid = (solve(bar(linear), loads=[30.0]).displacement for linear in ("mumps", "gamg"))
    assert np.linalg.norm(multigrid - direct) < 1e-8 * np.linalg.norm(direct)


def test_multigrid_meets_prescribed_displacements_to_the_last_digit():
    supports = [Support("x_min", "xyz"), Support("x_max", "x", "pull")]
    model = SolidModel(necked_bar(alone(), (8, 3, 3)), supports, [], linear="gamg")
    state = solve(model, displacements=[0.3])
    held = state.displacement.reshape(-1, 3)[nodes_of(model)[:, 0] > 40 - 1e-9, 0]
    np.testing.assert_allclose(held, 0.3, rtol=1e-15)


def test_rigid_motions_spare_multigrid_iterations():
    model = SolidModel(necked_bar(alone(), (24, 4, 4), neck=0.0), [Support("x_min", "xyz")], [PULL], linear="gamg")
    record = model.run(history(STEEL, [0.0, 1.0], loads=[[0.0, 30.0]])).records[0]
    assert record.linear_iterations / record.iterations <= 14


def test_rigid_motions_of_two_parts_are_those_of_the_whole():
    points = np.random.default_rng(13).normal([5.0, 0.0, -3.0], size=(20, 3))
    centre = points.mean(axis=0)
    parts = np.concatenate([motions_about(points[:7], centre), motions_about(points[7:], centre)])
    np.testing.assert_allclose(parts, motions_about(points, centre), atol=1e-14)
    np.testing.assert_allclose(parts, rigid_motions(points), atol=1e-14)
    assert motions_about(points[:0], centre).shape == (0, 6)


def test_the_stress_at_a_hole_tends_to_three_times_the_mean():
    plate = plate_with_hole(alone(), (12, 12, 1), side=40.0, radius=3.0, thickness=1.0, grading=2.0)
    model = SolidModel(plate, SYMMETRY, [PULL], order=2)
    state = solve(model, loads=[10.0])
    near = np.argmin(np.linalg.norm(model.positions - [0.0, 3.0, 0.5], axis=1))
    assert 2.6 < state.stress[near, 0] / 10.0 < 3.1
    far = np.argmin(np.linalg.norm(model.positions - [40.0, 40.0, 0.5], axis=1))
    assert state.stress[far, 0] == pytest.approx(10.0, rel=0.02)


# --- what reduced models take from the model ------------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, 2])
def test_lumped_masses_are_positive_and_add_up_to_the_volume(order):
    model = SolidModel(necked_bar(alone(), (4, 2, 2)), [Support("x_min", "xyz")], [PULL], order=order)
    assert model.dof_weights.min() > 0
    assert model.dof_weights.reshape(-1, 3).sum(axis=0) == pytest.approx([model.weights.sum()] * 3, rel=1e-12)


def test_unit_loads_add_up_to_area_and_vanish_at_supports():
    model = SolidModel(cube(alone(), 2, 3.0), [Support("x_max & y_min", "xyz"), *SYMMETRY], [PULL])
    assert np.all(model.unit_loads[model.fixed] == 0)
    assert model.nodal_loads.sum() == pytest.approx(9.0, rel=1e-14)
    assert 0 < model.unit_loads.sum() < 9.0


def test_lifts_meet_the_unit_displacement_in_elastic_equilibrium():
    supports = [Support("x_min", "xyz"), Support("x_max", "x", "pull"), Support("x_max", "y", "bend")]
    model = SolidModel(necked_bar(alone(), (6, 2, 2)), supports, [])
    assert model.displacement_names == ("pull", "bend")
    ends = nodes_of(model)[:, 0]
    lifts = model.lifts.reshape(-1, 3, 2)
    np.testing.assert_allclose(lifts[ends > 40 - 1e-9, :2], np.broadcast_to(np.eye(2), (9, 2, 2)), atol=1e-14)
    np.testing.assert_allclose(lifts[ends < 1e-9], 0.0, atol=1e-14)
    law = LinearElastic(young=3.0, poisson=0.3, young_slope=0.0)
    for column, amplitudes in enumerate(np.eye(2)):
        state = solve(model, law, displacements=amplitudes)
        np.testing.assert_allclose(model.lifts[:, column], state.displacement, atol=1e-12)


def test_strains_of_many_columns_are_those_of_each():
    model = bar()
    columns = np.random.default_rng(11).normal(size=(model.dofs, 3))
    together = model.strains(columns)
    assert together.shape == (model.points, 6, 3)
    for j in range(3):
        np.testing.assert_array_equal(together[:, :, j], model.strains(columns[:, j]))


def test_strains_are_the_transpose_of_internal_forces():
    model = bar()
    rng = np.random.default_rng(7)
    stress, displacement = rng.normal(size=(model.points, 6)), rng.normal(size=model.dofs)
    work = (model.weights[:, None] * stress * model.strains(displacement)).sum()
    assert model.internal_force(stress) @ displacement == pytest.approx(work, rel=1e-12)


@pytest.mark.parametrize("order", [1, 2])
def test_numbers_of_points_and_degrees_of_freedom_are_complete(order):
    model = SolidModel(cube(alone(), 3), SYMMETRY, [PULL], order=order)
    nodes = (3 * order + 1) ** 3
    assert model.unknowns == model.dofs == 3 * nodes
    np.testing.assert_array_equal(np.sort(model.dof_ids), np.arange(3 * nodes))
    np.testing.assert_array_equal(np.sort(model.point_ids), np.arange(model.points))
    np.testing.assert_array_equal(model.dof_ids % 3, np.tile([0, 1, 2], nodes))


def test_numbers_of_nodes_and_cells_are_those_of_the_input():
    model = SolidModel(cube(alone(), (2, 3, 4), 1.0), SYMMETRY, [PULL])
    nodes = model.gather(np.repeat(nodes_of(model), 3, axis=0), model.dof_ids)[::3]
    z, y, x = np.meshgrid(np.linspace(0, 1, 5), np.linspace(0, 1, 4), np.linspace(0, 1, 3), indexing="ij")
    np.testing.assert_allclose(nodes, np.column_stack([x.ravel(), y.ravel(), z.ravel()]), atol=1e-15)
    cells = model.gather(model.positions, model.point_ids).reshape(24, 8, 3).mean(axis=1)
    np.testing.assert_allclose(cells[[0, 1, 2]], [[0.25, 1 / 6, 0.125], [0.75, 1 / 6, 0.125], [0.25, 0.5, 0.125]])

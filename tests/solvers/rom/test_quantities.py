import dataclasses

import numpy as np
import pytest
from dense_solid import DenseSolid, Isotropic, history, room_temperature

from forebay.solvers.rom import quantities
from forebay.solvers.rom.online import ReducedModel

SOLID = DenseSolid()
LAW = Isotropic()
HISTORY = history(LAW, lift=8.0, steps=10)
HOT = [0, 7, 40]


@pytest.fixture(scope="module")
def full():
    return SOLID.run(HISTORY)


@pytest.fixture(scope="module")
def exact(full):
    """A package with all modes, so that the trajectory is the full one, and all modes of p."""
    p_modes = SOLID.pod([full], [HISTORY], 2)[1]
    package = SOLID.package(SOLID.unit_modes(), LAW, p_modes=p_modes, chosen=HOT)
    return package, ReducedModel(package, LAW, rtol=1e-13).run(HISTORY)


def test_reactions_are_those_of_the_full_model(full, exact):
    found = quantities.reactions(*exact)
    assert found.shape == (11, 1)
    np.testing.assert_allclose(found[:, 0], full.reactions, rtol=0, atol=1e-9 * np.abs(full.reactions).max())


def test_a_reaction_is_the_sum_of_the_forces_on_the_pulled_end(full, exact):
    end = 3 * np.flatnonzero(SOLID.nodes[:, 0] > 2.999)
    nodal = np.einsum("p,pcd,pc->d", SOLID.weights, SOLID.operator, full.stress[-1], optimize=True)
    assert quantities.reactions(*exact)[-1, 0] == pytest.approx(nodal[end].sum(), rel=1e-9)


def test_reactions_and_work_do_not_depend_on_how_the_lift_continues_into_the_solid(exact):
    _, trajectory = exact
    bump = 0.3 * np.random.default_rng(13).normal(size=len(SOLID.free))
    lift = SOLID.lift.copy()
    lift[SOLID.free] += bump
    shifted = SOLID.package(
        SOLID.unit_modes(),
        LAW,
        lift_strains=(SOLID.operator @ lift)[:, :, None],
        lift_loads=(SOLID.loads @ lift)[:, None],
    )
    other = ReducedModel(shifted, LAW, rtol=1e-13).run(HISTORY)
    expected = quantities.reactions(exact[0], trajectory)
    np.testing.assert_allclose(quantities.reactions(shifted, other), expected, rtol=0, atol=1e-8 * expected.max())
    work = quantities.external_work(exact[0], trajectory)
    np.testing.assert_allclose(quantities.external_work(shifted, other), work, rtol=0, atol=1e-8 * work.max())


def test_monitored_displacements_are_those_of_the_full_model(full, exact):
    found = quantities.monitored(*exact)
    np.testing.assert_allclose(found, full.displacement[:, -3:], rtol=0, atol=1e-12)
    np.testing.assert_allclose(found[:, 0], HISTORY.displacements[:, 0], rtol=0, atol=1e-15)


def test_energy_is_the_trapezoidal_sum_over_points_and_components(full, exact):
    strain = np.einsum("pcd,sd->spc", SOLID.operator, full.displacement, optimize=True)
    total, expected = 0.0, [0.0]
    for k in range(1, 11):
        for q, weight in enumerate(SOLID.weights):
            mean = (full.stress[k, q] + full.stress[k - 1, q]) / 2
            total += weight * mean @ (strain[k, q] - strain[k - 1, q])
        expected.append(total)
    np.testing.assert_allclose(quantities.energy(*exact), expected, rtol=0, atol=1e-9 * max(expected))


@pytest.mark.parametrize("modes", [3, 8])
def test_the_work_from_outside_is_the_energy_inside(full, modes):
    package = SOLID.package(SOLID.pod([full], [HISTORY], modes)[0], LAW)
    trajectory = ReducedModel(package, LAW, rtol=1e-12).run(HISTORY)
    inside, outside = quantities.energy(package, trajectory), quantities.external_work(package, trajectory)
    assert inside.max() > 0.1
    np.testing.assert_allclose(outside, inside, rtol=0, atol=1e-9 * inside.max())


def test_elastic_energy_is_half_force_times_displacement():
    law = Isotropic(yield_stress=1e12)
    elastic = history(law, temperature=room_temperature)
    package = SOLID.package(SOLID.unit_modes(), law)
    trajectory = ReducedModel(package, law, rtol=1e-13).run(elastic)
    reaction = quantities.reactions(package, trajectory)[:, 0]
    deflection = elastic.loads[:, 0] * (package.loads[0] @ trajectory.coefficients.T + 0.0)
    of_lift = elastic.loads @ package.lift_loads * elastic.displacements
    expected = 0.5 * (reaction * elastic.displacements[:, 0] + deflection + of_lift[:, 0])
    np.testing.assert_allclose(quantities.energy(package, trajectory), expected, rtol=1e-9, atol=1e-12)


def test_p_max_is_the_largest_over_points_and_hot_spots(full, exact):
    np.testing.assert_allclose(quantities.p_max(*exact), full.p.max(axis=1), rtol=0, atol=1e-10)


def test_p_max_sees_hot_spots_that_no_point_sees(full, exact):
    package, trajectory = exact
    hottest = int(np.argmax(full.p[-1]))
    cold = np.flatnonzero(full.p[-1] < 0.9 * full.p[-1].max())
    elsewhere = dataclasses.replace(
        package, hot_p_modes=package.p_modes[[hottest]], hot_positions=np.ones((1, 3)), hot_point_ids=[hottest]
    )
    found = quantities.p_max(elsewhere, dataclasses.replace(trajectory, p=trajectory.p[:, cold]))
    assert found[-1] == pytest.approx(full.p[-1].max(), rel=1e-3)
    assert found[-1] > 1.1 * trajectory.p[-1, cold].max()


def test_without_hot_spots_p_max_is_that_of_the_points(full):
    package = SOLID.package(SOLID.pod([full], [HISTORY], 4)[0], LAW)
    trajectory = ReducedModel(package, LAW).run(HISTORY)
    np.testing.assert_array_equal(quantities.p_max(package, trajectory), trajectory.p.max(axis=1))

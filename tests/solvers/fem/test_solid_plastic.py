import numpy as np
import pytest
from suites.solid_cases import (
    PULL,
    SYMMETRY,
    Fragile,
    Stiffening,
    alone,
    history,
    steps,
    uniaxial,
)

from forebay.solvers.fem.solid import SolidModel, SolveError, Support
from forebay.solvers.fem.solid_mesh import cube, necked_bar
from forebay.solvers.materials.chaboche import Chaboche, VonMises
from forebay.solvers.materials.law import Response, columns, width

VISCOUS = Chaboche(recall=200.0)
HARDENING = VonMises(young=200e3, yield_stress=100.0, hardening=5e3)


def bar(**options):
    supports = [Support("x_min", "x"), Support("x_min & y_min", "y"), Support("x_min & z_min", "z")]
    return SolidModel(necked_bar(alone(), (6, 2, 2)), supports, [PULL], **options)


def hot_spot(positions, time):
    return 20.0 + 600.0 * np.sin(0.5 * np.pi * time) ** 2 * np.exp(-(((positions[:, 0] - 18.0) / 14.0) ** 2))


def pulled(law, count=8, peak=160.0, temperature=hot_spot):
    times = steps(count)
    return history(law, times, loads=[peak * np.sin(0.5 * np.pi * times)], temperature=temperature)


# --- the material ---------------------------------------------------------------------------------------------------


def point_in_tension(law, strains, times, temperature):
    """Axial stress and p of one point whose lateral stresses vanish, by Newton on the other five strains."""
    state, strain, stresses, p = law.initial(1), np.zeros((1, 6)), [0.0], [0.0]
    response = Response(np.zeros((1, 6)), np.zeros((1, 6, 6)), np.empty((1, width(law))))
    for k in range(1, len(times)):
        strain[0, 0] = strains[k]
        for _ in range(30):
            law.update(strain, np.array([temperature]), times[k] - times[k - 1], state, response)
            if np.abs(response.stress[0, 1:]).max() < 1e-9:
                break
            strain[0, 1:] -= np.linalg.solve(response.tangent[0, 1:, 1:], response.stress[0, 1:])
        state = response.state.copy()
        stresses.append(response.stress[0, 0])
        p.append(state[0, columns(law, "p")][0])
    return np.array(stresses), np.array(p)


@pytest.mark.parametrize("law", [VISCOUS, HARDENING], ids=["chaboche", "von_mises"])
def test_a_bar_in_uniform_tension_follows_the_law_at_one_point(law):
    times = steps(10)
    strains = 4e-3 * np.sin(1.5 * np.pi * times)
    model = uniaxial(cube(alone(), 2, 5.0))
    found = model.run(
        history(law, times, displacements=[5.0 * strains], temperature=lambda x, t: np.full(len(x), 400.0))
    )
    stress, p = point_in_tension(law, strains, times, 400.0)
    np.testing.assert_allclose(found.stress[1:, :, 0], np.tile(stress[1:, None], model.points), atol=1e-5)
    np.testing.assert_allclose(found.stress[1:, :, 1:], 0.0, atol=1e-5)
    np.testing.assert_allclose(found.p, np.tile(p[:, None], model.points), atol=1e-10)
    assert p[-1] > 1e-3


def test_newton_converges_quadratically_with_the_consistent_tangent():
    found = bar(rtol=1e-11).run(pulled(VISCOUS, count=4))
    orders = []
    for record in found.records[1:]:
        r = np.array([value for value in record.residuals[1:] if value > 1e-13])
        if len(r) >= 3:
            orders.append(np.log(r[2] / r[1]) / np.log(r[1] / r[0]))
    assert len(orders) >= 2
    assert 1.7 < np.median(orders) < 3.0, orders
    assert max(record.iterations for record in found.records) <= 6


def test_converged_steps_are_in_equilibrium():
    model, law = bar(), VISCOUS
    drive = pulled(law)
    found = model.run(drive)
    for k in range(1, 9):
        residual = model.unit_loads @ drive.loads[k] - model.internal_force(found.stress[k])
        scale = np.linalg.norm(model.internal_force(found.stress[k]))
        assert np.linalg.norm(residual[~model.fixed]) <= 1.001e-8 * scale
        assert found.records[k - 1].residuals[-1] <= 1e-8
    assert found.p[-1].max() > 1e-4
    assert np.all(np.diff(found.p, axis=0) >= 0)


def test_external_work_is_stored_or_dissipated_as_steps_get_small():
    law = VonMises(young=200e3, young_slope=0.0, yield_stress=100.0, hardening=5e3)
    model, errors, counts = bar(), [], (8, 16, 32, 64)
    for count in counts:
        drive = pulled(law, count, temperature=None)
        found = model.run(drive)
        forces = drive.loads @ model.unit_loads.T
        work = (0.5 * (forces[1:] + forces[:-1]) * np.diff(found.displacement, axis=0)).sum()
        plastic = found.state.variables[:, columns(law, "plastic_strain")]
        strain = model.strains(found.state.displacement)
        stored = 0.5 * model.weights @ (found.state.stress * (strain - plastic)).sum(axis=1)
        yielding = 100.0 + 5e3 * found.p
        dissipated = model.weights @ (0.5 * (yielding[1:] + yielding[:-1]) * np.diff(found.p, axis=0)).sum(axis=0)
        errors.append(abs(work - stored - dissipated) / work)
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert 1.5 < slope < 2.3, f"observed order {slope:.2f} from errors {errors}"
    assert errors[-1] < 2e-4, errors


def test_a_law_of_ones_own_is_enough():
    law = Stiffening(young=1000.0, stiffening=1e4)
    model = SolidModel(cube(alone(), 2), SYMMETRY, [PULL])
    found = model.run(history(law, steps(3), loads=[20.0 * steps(3)]))
    strain = model.strains(found.state.displacement)[:, 0]
    np.testing.assert_allclose(1000.0 * strain * (1 + 1e4 * strain**2), 20.0, rtol=1e-8)
    assert not found.p.any()


# --- robustness -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stiffening", [190.0, 1e6])
def test_the_line_search_shortens_corrections_that_overshoot(stiffening):
    # The first correction makes the residual, and its work, 1.2 or 6,400 times what they were, with the other sign.
    law = Stiffening(young=1000.0, stiffening=stiffening)
    model = SolidModel(cube(alone(), 2), SYMMETRY, [PULL])
    found = model.run(history(law, [0.0, 1.0], loads=[[0.0, 80.0]]))
    assert found.records[0].backtracks > 0
    assert found.records[0].cuts == 0
    strain = model.strains(found.state.displacement)[:, 0]
    np.testing.assert_allclose(1000.0 * strain * (1 + stiffening * strain**2), 80.0, rtol=1e-8)


@pytest.mark.parametrize(("hardening", "peak", "count"), [(500.0, 120.0, 16), (500.0, 120.0, 64), (5e3, 160.0, 8)])
def test_plastic_steps_of_a_necked_bar_need_no_cuts(hardening, peak, count):
    # Every step begins with points on their yield surface.  By the residual's norm alone steps were cut here, and where
    # rounding chose tangents, it also failed; both halves of the remedy are needed.
    law = VonMises(young=200e3, young_slope=0.0, yield_stress=100.0, hardening=hardening)
    found = bar().run(pulled(law, count, peak, temperature=None))
    assert sum(record.cuts for record in found.records) == 0
    assert max(record.iterations for record in found.records) <= 8
    assert found.p[-1].max() > 5e-3


def test_a_step_that_is_too_large_is_cut_and_equals_smaller_steps():
    model = bar()
    times = steps(2)

    def warm(positions, time):  # linear in time, as loads are between two times
        return 20.0 + 500.0 * time + 0 * positions[:, 0]

    small = history(VISCOUS, steps(16), loads=[150.0 * steps(16)], temperature=warm)
    fragile = Fragile(VISCOUS, longest=1.01 / 16)
    large = history(fragile, times, loads=[150.0 * times], temperature=warm)
    found, expected = model.run(large), model.run(small)
    assert [record.substeps for record in found.records] == [8, 8]
    assert all(record.cuts >= 3 for record in found.records)
    scale = np.abs(expected.displacement[-1]).max()
    np.testing.assert_allclose(found.displacement[-1], expected.displacement[-1], atol=1e-9 * scale)
    np.testing.assert_allclose(found.state.variables, expected.state.variables, atol=1e-11)


def test_substeps_grow_again_after_a_cut():
    class Hesitant(Fragile):
        def update(self, strain, temperature, dt, state, response, *, tangent=True):
            self.longest = 0.0 if len(self.tried) < 3 else 1.0
            super().update(strain, temperature, dt, state, response, tangent=tangent)

    law = Hesitant(HARDENING, 1.0)
    record = bar().run(history(law, [0.0, 1.0], loads=[[0.0, 50.0]])).records[0]
    lengths = [dt for dt, before in zip(law.tried, [0.0, *law.tried], strict=False) if dt != before]
    assert lengths == [1.0, 0.5, 0.25, 0.125, 0.25, 0.5, 0.125]
    assert (record.substeps, record.cuts) == (4, 3)


def test_prescribed_displacements_are_cut_too():
    model = uniaxial(cube(alone(), 2))
    whole = history(HARDENING, [0.0, 1.0], displacements=[[0.0, 3e-3]])
    broken = history(Fragile(HARDENING, 0.3), [0.0, 1.0], displacements=[[0.0, 3e-3]])
    found, expected = model.run(broken), model.run(whole)
    assert found.records[0].substeps == 4
    # Proportional loading with linear hardening: the number of steps does not matter.
    np.testing.assert_allclose(found.state.stress, expected.state.stress, rtol=1e-7, atol=1e-6)


def test_a_step_that_no_cut_helps_ends_in_an_error_that_says_where():
    model = bar()
    drive = history(Fragile(VISCOUS, 0.3), [0.0, 0.25, 100.25], loads=[[0.0, 1.0, 2.0]])
    message = (
        r"step 2 of model 'solid' did not converge at t = 0\.6406\d* s, relative residual nan, though it was cut to "
        r"0\.0039 of its length: the law failed: a step of 0\.39\d* s is too long; check loads and temperatures"
    )
    with pytest.raises(SolveError, match=message) as caught:
        model.run(drive)
    assert (caught.value.step, round(caught.value.time, 4)) == (2, 0.6406)


@pytest.mark.parametrize("linear", ["mumps", "gamg"])
def test_a_singular_tangent_spoils_no_later_one(linear):
    class Soft(Fragile):
        def update(self, strain, temperature, dt, state, response, *, tangent=True):
            self.law.update(strain, temperature, dt, state, response, tangent=tangent)
            if dt > self.longest:
                response.tangent[:] = 0.0

    model = bar(linear=linear)
    found = model.run(history(Soft(HARDENING, 0.3), [0.0, 1.0], loads=[[0.0, 100.0]]))
    assert (found.records[0].substeps, found.records[0].cuts) == (4, 4)
    smaller = bar().run(history(HARDENING, steps(4), loads=[100.0 * steps(4)]))
    np.testing.assert_allclose(found.displacement[-1], smaller.displacement[-1], atol=1e-6 * smaller.displacement.max())


def test_a_load_beyond_the_limit_load_is_an_error():
    perfect = VonMises(yield_stress=100.0, hardening=0.0)
    model = SolidModel(cube(alone(), 2), SYMMETRY, [PULL])
    with pytest.raises(SolveError, match=r"step 2 of model 'solid' did not converge .* cut to 0\.0039"):
        model.run(history(perfect, [0.0, 1.0, 2.0], loads=[[0.0, 90.0, 130.0]]))


def test_an_error_that_is_not_the_laws_own_is_not_swallowed():
    with pytest.raises(ValueError, match="1000"):
        bar().run(pulled(VISCOUS, temperature=lambda x, t: 5000.0 * t + 20.0 + 0 * x[:, 0]))


# --- stopping, going on, going again --------------------------------------------------------------------------------


def test_a_run_goes_on_from_any_of_its_states():
    model, drive = bar(), pulled(VISCOUS)
    kept = {}
    found = model.run(drive, observe=lambda k, state, record: kept.update({k: (state, record)}))
    assert sorted(kept) == list(range(1, 9))
    assert [kept[k][1].step for k in kept] == list(range(1, 9))
    state, record = model.step(drive, 6, kept[5][0])
    np.testing.assert_array_equal(state.displacement, found.displacement[6])
    np.testing.assert_array_equal(state.stress, found.stress[6])
    assert record.residuals == kept[6][1].residuals
    assert record.time == drive.times[6]


def test_a_replay_equals_the_run():
    model, drive = bar(), pulled(VISCOUS)
    states = {}
    found = model.run(drive, observe=lambda k, state, record: states.update({k: state}))
    again = {}
    end = model.replay(drive, found.displacement, observe=lambda k, state: again.update({k: state}))
    np.testing.assert_array_equal(end.variables, found.state.variables)
    np.testing.assert_array_equal(end.stress, found.state.stress)
    for k in range(1, 9):
        np.testing.assert_array_equal(again[k].stress, found.stress[k])
    later = model.replay(drive, found.displacement[3:7], first=3, start=states[3])
    np.testing.assert_array_equal(later.variables, states[6].variables)


def test_a_replay_with_more_rows_than_times_is_refused():
    model, drive = bar(), pulled(VISCOUS, count=3)
    with pytest.raises(ValueError, match="4 rows of displacements from time 1 on, but the history has 4 times"):
        model.replay(drive, np.zeros((4, model.dofs)), first=1)


def test_records_say_what_a_step_has_cost():
    found = bar().run(pulled(VISCOUS, count=3))
    for k, record in enumerate(found.records, start=1):
        assert (record.step, record.substeps, record.cuts) == (k, 1, 0)
        assert record.iterations == len(record.residuals) - 1 == record.linear_iterations
        assert set(record.seconds) == {"strain", "law", "assembly", "linear"}
        assert all(value > 0 for value in record.seconds.values())
    assert sum(sum(record.seconds.values()) for record in found.records) <= found.wall_seconds
    assert found.seconds > 0


def test_nothing_changes_in_a_step_without_a_change():
    model = SolidModel(cube(alone(), 2), SYMMETRY, [PULL])
    found = model.run(history(HARDENING, steps(2), loads=[[0.0, 0.0, 0.0]]))
    assert [record.iterations for record in found.records] == [0, 0]
    assert not found.displacement.any()

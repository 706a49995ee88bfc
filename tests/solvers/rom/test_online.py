import dataclasses

import numpy as np
import pytest
from dense_solid import ELASTIC, Isotropic, heated_tip, history, room_temperature
from suites.dense_cases import HISTORY, LAW, SOLID, Fragile, full_run, six_modes

from forebay.solvers.materials.history import History
from forebay.solvers.materials.law import StateVariable
from forebay.solvers.rom.online import ReducedModel, ReducedState
from forebay.solvers.rom.package import PackageError


@pytest.fixture(scope="module")
def full():
    return full_run()


@pytest.fixture(scope="module")
def basis():
    return six_modes()


def lifted(coefficients, displacements, modes):
    return coefficients @ modes.T + displacements @ SOLID.lift[None]


# --- against the full model -----------------------------------------------------------------------------------------


def test_with_all_modes_and_points_it_is_the_full_model(full):
    modes = SOLID.unit_modes()
    trajectory = ReducedModel(SOLID.package(modes, LAW), LAW, rtol=1e-13).run(HISTORY)
    assert full.p[-1].max() > 1e-3
    found = lifted(trajectory.coefficients, HISTORY.displacements, modes)
    np.testing.assert_allclose(found, full.displacement, rtol=0, atol=1e-10 * np.abs(full.displacement).max())
    np.testing.assert_allclose(trajectory.stress, full.stress, rtol=0, atol=1e-9 * np.abs(full.stress).max())
    np.testing.assert_allclose(trajectory.p, full.p, rtol=0, atol=1e-10 * full.p.max())
    np.testing.assert_array_equal(trajectory.state.variables[:, 6], trajectory.p[-1])


def test_an_elastic_step_is_the_galerkin_projection(basis):
    elastic = history(ELASTIC, temperature=room_temperature)
    modes = basis[0]
    response = SOLID.respond(ELASTIC, SOLID.lift, ELASTIC.initial(len(SOLID.weights)))
    rows = SOLID.operator @ modes
    stiffness = np.einsum("p,pcn,pcd,pdm->nm", SOLID.weights, rows, response.tangent, rows, optimize=True)
    of_lift = np.einsum("p,pcn,pc->n", SOLID.weights, rows, response.stress)
    forces = elastic.loads @ SOLID.loads @ modes - elastic.displacements * of_lift
    trajectory = ReducedModel(SOLID.package(modes, ELASTIC), ELASTIC).run(elastic)
    expected = np.linalg.solve(stiffness, forces.T).T
    np.testing.assert_allclose(trajectory.coefficients, expected, rtol=0, atol=1e-9 * np.abs(expected).max())
    assert trajectory.p.max() == 0.0


def test_every_mode_is_in_equilibrium_at_the_end_of_every_step(basis):
    trajectory = ReducedModel(SOLID.package(basis[0], LAW), LAW, rtol=1e-10).run(HISTORY)
    rows = SOLID.operator @ basis[0]
    internal = np.einsum("p,pcn,spc->sn", SOLID.weights, rows, trajectory.stress, optimize=True)
    external = HISTORY.loads @ SOLID.loads @ basis[0]
    scale = np.einsum("p,pcn,spc->sn", SOLID.weights, np.abs(rows), np.abs(trajectory.stress)).max()
    np.testing.assert_allclose(internal[1:], external[1:], rtol=0, atol=1e-9 * scale)


def test_a_training_history_is_reproduced_better_with_more_modes(full):
    errors = []
    for count in (2, 4, 8):
        modes = SOLID.pod([full], [HISTORY], count)[0]
        trajectory = ReducedModel(SOLID.package(modes, LAW), LAW).run(HISTORY)
        found = lifted(trajectory.coefficients, HISTORY.displacements, modes)
        errors.append(SOLID.norm(found - full.displacement).max() / SOLID.norm(full.displacement).max())
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
    assert errors[-1] < 1e-3


def test_points_of_weight_zero_carry_the_law_but_no_force(full, basis):
    half = len(SOLID.weights) // 2
    order = np.argsort(SOLID.positions[:, 1] > 0.5, kind="stable")
    parts = {
        name: getattr(SOLID.package(basis[0], LAW), name)[order]
        for name in ("strains", "positions", "point_ids", "lift_strains", "p_modes")
    }
    with_watched = SOLID.package(basis[0], LAW, **parts, weights=2 * SOLID.weights * (np.arange(2 * half) < half))
    forces_only = {name: array[:half] for name, array in parts.items()}
    without = SOLID.package(basis[0], LAW, **forces_only, weights=2 * SOLID.weights[:half])
    watching, blind = (ReducedModel(package, LAW).run(HISTORY) for package in (with_watched, without))
    np.testing.assert_array_equal(watching.coefficients, blind.coefficients)
    np.testing.assert_array_equal(watching.stress[:, :half], blind.stress)
    strain = (SOLID.operator @ lifted(watching.coefficients, HISTORY.displacements, basis[0]).T)[order[half:]]
    state = LAW.initial(half)
    for k in range(1, HISTORY.steps + 1):
        temperature = heated_tip(SOLID.positions[order[half:]], HISTORY.times[k])
        response = SOLID.respond_at(LAW, np.ascontiguousarray(strain[:, :, k]), temperature, state)
        state = response.state
    np.testing.assert_allclose(watching.stress[-1, half:], response.stress, rtol=0, atol=1e-9)
    np.testing.assert_allclose(watching.p[-1, half:], state[:, 6], rtol=0, atol=1e-15)


def test_free_thermal_expansion_leaves_no_stress_and_converges():
    modes = SOLID.positions.mean(axis=0) - SOLID.nodes
    free = np.zeros((len(SOLID.lift), 1))
    free[:, 0] = modes.ravel()
    package = SOLID.package(free, LAW, lift_strains=np.zeros((len(SOLID.weights), 6, 1)))
    warm = history(LAW, pull=0.0, side=0.0, temperature=lambda positions, time: np.full(len(positions), 20 + 50 * time))
    trajectory = ReducedModel(package, LAW).run(warm)
    assert np.abs(trajectory.stress).max() < 1e-9 * LAW.young * LAW.expansion * 100
    np.testing.assert_allclose(trajectory.coefficients[:, 0], -LAW.expansion * 50 * warm.times, rtol=1e-9)


def test_nothing_happens_without_loads(basis):
    still = history(LAW, pull=0.0, side=0.0, temperature=room_temperature)
    trajectory = ReducedModel(SOLID.package(basis[0], LAW), LAW).run(still)
    assert not trajectory.coefficients.any()
    assert all(result.iterations == 0 for result in trajectory.results)


def test_temperature_alone_can_drive_a_solid_without_loads_or_lifts(basis):
    plain = SOLID.package(basis[0], LAW)
    package = dataclasses.replace(
        plain,
        loads=plain.loads[:0],
        load_names=(),
        lift_strains=plain.lift_strains[:, :, :0],
        lift_loads=np.empty((0, 0)),
        displacement_names=(),
        gram=plain.gram[:6, :6],
        monitor_lifts=plain.monitor_lifts[:, :0],
    )
    warmed = history(LAW, pull=0.0, side=0.0)
    alone = dataclasses.replace(warmed, loads=warmed.loads[:, :0], displacements=warmed.displacements[:, :0])
    found, expected = ReducedModel(package, LAW).run(alone), ReducedModel(plain, LAW).run(warmed)
    np.testing.assert_array_equal(found.coefficients, expected.coefficients)
    assert np.abs(found.stress).max() > 1.0


# --- runs and steps -------------------------------------------------------------------------------------------------


def test_steps_by_hand_are_the_run_bit_for_bit(basis):
    model = ReducedModel(SOLID.package(basis[0], LAW), LAW)
    trajectory = model.run(HISTORY)
    state = model.initial()
    for k in range(1, HISTORY.steps + 1):
        state, result = model.step(HISTORY, k, state)
        np.testing.assert_array_equal(state.coefficients, trajectory.coefficients[k])
        np.testing.assert_array_equal(state.stress, trajectory.stress[k])
        np.testing.assert_array_equal(result.p_coefficients, trajectory.p_coefficients[k])
        assert result.indicators == trajectory.results[k - 1].indicators
    np.testing.assert_array_equal(state.variables, trajectory.state.variables)
    assert state.peak == trajectory.state.peak


def test_a_run_leaves_nothing_behind_for_the_next(basis):
    model = ReducedModel(SOLID.package(basis[0], LAW), LAW)
    first = model.run(HISTORY)
    kept = first.coefficients.copy(), first.stress.copy(), first.state.variables.copy()
    model.run(history(LAW, pull=-0.02, side=-40.0))
    again = model.run(HISTORY)
    for before, after in zip(kept, (first.coefficients, first.stress, first.state.variables), strict=True):
        np.testing.assert_array_equal(before, after)
    np.testing.assert_array_equal(first.coefficients, again.coefficients)
    np.testing.assert_array_equal(first.indicators, again.indicators)


def test_a_step_does_not_write_to_the_state_that_it_is_given(basis):
    model = ReducedModel(SOLID.package(basis[0], LAW), LAW)
    state = model.run(HISTORY, until=4).state
    before = state.variables.copy(), state.stress.copy(), state.coefficients.copy()
    model.step(HISTORY, 5, state)
    for old, new in zip(before, (state.variables, state.stress, state.coefficients), strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_run_can_stop_early_and_is_observed_step_by_step(basis):
    model = ReducedModel(SOLID.package(basis[0], LAW), LAW)
    seen = []
    part = model.run(HISTORY, until=3, observe=lambda k, state, result: seen.append((k, state, result)))
    whole = model.run(HISTORY)
    np.testing.assert_array_equal(part.coefficients, whole.coefficients[:4])
    np.testing.assert_array_equal(part.times, HISTORY.times[:4])
    assert len(part.loads) == len(part.displacements) == len(part.p) == len(part.p_coefficients) == 4
    assert [k for k, _, _ in seen] == [1, 2, 3]
    assert seen[-1][1] is part.state
    assert [result for _, _, result in seen] == list(part.results)
    assert part.indicators.shape == part.errors.shape == (3, 2)
    nothing = model.run(HISTORY, until=0)
    assert nothing.coefficients.shape == (1, 6)
    assert nothing.indicators.shape == nothing.errors.shape == (0, 2)


def test_the_estimates_of_a_step_are_those_of_the_package(basis):
    package = SOLID.package(basis[0], LAW)
    pairs = np.column_stack([np.geomspace(1e-3, 0.1, 40)] * 4) * [1.0, 1.0, 2.0, 3.0]
    package = dataclasses.replace(package, calibration=package.calibration.update(pairs))
    trajectory = ReducedModel(package, LAW).run(HISTORY)
    expected = [package.calibration.estimate(result.indicators) for result in trajectory.results]
    np.testing.assert_array_equal(trajectory.errors, expected)


def test_the_last_rate_only_helps_to_guess(basis):
    package = SOLID.package(basis[0], LAW)
    model = ReducedModel(package, LAW, rtol=1e-12)
    state = model.run(HISTORY, until=3).state
    guessed, with_rate = model.step(HISTORY, 4, state)
    plain, without = model.step(HISTORY, 4, dataclasses.replace(state, rate=None))
    np.testing.assert_allclose(guessed.coefficients, plain.coefficients, rtol=0, atol=1e-12)
    assert with_rate.iterations <= without.iterations


def test_the_next_rate_lies_on_the_line_through_the_last_two(basis):
    """Rates belong to the middles of their steps, which here differ in length; the next is as long as the last."""
    model = ReducedModel(SOLID.package(basis[0], LAW), LAW)
    times = np.array([0.0, 0.1, 0.4, 0.6])
    amplitudes = times[:, None] ** 2
    uneven = dataclasses.replace(
        HISTORY,
        times=times,
        loads=amplitudes * HISTORY.loads[-1],
        displacements=0.1 * amplitudes * HISTORY.displacements[-1],
    )
    states = [model.initial()]
    for k in (1, 2, 3):
        states.append(model.step(uneven, k, states[-1])[0])
    gamma = np.array([state.coefficients for state in states])
    rates = np.diff(gamma, axis=0) / np.diff(times)[:, None]
    np.testing.assert_allclose(states[1].rate, rates[0], rtol=1e-12)
    slope = (rates[2] - rates[1]) / 0.25
    np.testing.assert_allclose(states[3].rate, rates[2] + slope * 0.2, rtol=1e-9)
    assert states[3].step[1] == pytest.approx(0.2)


def test_where_nothing_yields_the_guess_is_the_solution(basis):
    elastic = history(ELASTIC, temperature=room_temperature)
    trajectory = ReducedModel(SOLID.package(basis[0], ELASTIC), ELASTIC).run(elastic, until=5)
    assert [result.iterations for result in trajectory.results] == [1, 0, 0, 0, 0]


def test_the_peak_is_the_largest_displacement_so_far(basis):
    trajectory = ReducedModel(SOLID.package(basis[0], LAW), LAW).run(HISTORY)
    norms = SOLID.norm(lifted(trajectory.coefficients, HISTORY.displacements, basis[0]))
    assert trajectory.state.peak == pytest.approx(norms.max(), rel=1e-12)
    assert norms[-1] < 0.8 * norms.max()


def test_a_sample_may_have_other_constants(basis):
    soft = Isotropic(yield_stress=150.0)
    own = ReducedModel(SOLID.package(basis[0], soft), soft).run(history(soft))
    other = ReducedModel(SOLID.package(basis[0], LAW), LAW).run(history(soft))
    np.testing.assert_array_equal(own.coefficients, other.coefficients)
    assert np.abs(own.p[-1] - ReducedModel(SOLID.package(basis[0], LAW), LAW).run(HISTORY).p[-1]).max() > 1e-4


# --- refusals -------------------------------------------------------------------------------------------------------


def test_another_law_is_refused(basis):
    with pytest.raises(PackageError, match="was trained with law"):
        ReducedModel(SOLID.package(basis[0], LAW), ELASTIC)


def test_a_law_without_p_is_refused(basis):
    class Plain(Isotropic):
        variables = (StateVariable("plastic_strain", 6), StateVariable("q", 1))

    with pytest.raises(ValueError, match=r"has no variable 'p'.*give it a column 'p'"):
        ReducedModel(SOLID.package(basis[0], Plain()), Plain())


def test_a_history_with_another_kind_of_law_is_refused(basis):
    model = ReducedModel(SOLID.package(basis[0], LAW), LAW)
    with pytest.raises(ValueError, match=r"history's law \('fragile_test_law'.*only constants may differ"):
        model.run(history(Fragile()))


@pytest.mark.parametrize("field", ["loads", "displacements"])
def test_a_history_for_another_model_is_refused(basis, field):
    model = ReducedModel(SOLID.package(basis[0], LAW), LAW)
    arrays = {name: getattr(HISTORY, name) for name in ("times", "loads", "displacements", "temperature", "law")}
    arrays[field] = np.zeros((len(HISTORY.times), 3))
    with pytest.raises(ValueError, match=r"has 3 .*(loads|displacements), the package (2|1): \['(side|pull)"):
        model.run(History(**arrays))


@pytest.mark.parametrize("k", [0, 9])
def test_a_step_outside_the_history_is_refused(basis, k):
    model = ReducedModel(SOLID.package(basis[0], LAW), LAW)
    with pytest.raises(ValueError, match=rf"step {k} must lie in 1 \.\.\. 8"):
        model.step(HISTORY, k, model.initial())
    with pytest.raises(ValueError, match=r"until = 9 must lie in 0 \.\.\. 8"):
        model.run(HISTORY, until=9)


def test_a_state_of_another_package_is_refused(basis):
    model = ReducedModel(SOLID.package(basis[0], LAW), LAW)
    state = model.initial()
    with pytest.raises(ValueError, match=r"coefficients \(5,\) and variables \(96, 7\), due are \(6,\)"):
        model.step(HISTORY, 1, ReducedState(np.zeros(5), state.variables, state.stress))
    with pytest.raises(ValueError, match=r"variables \(95, 7\), due are"):
        model.step(HISTORY, 1, ReducedState(np.zeros(6), state.variables[1:], state.stress))

import numpy as np
import pytest
from material_points import (
    DEVIATORIC,
    IDENTITY,
    ROOM,
    drive,
    equivalent,
    rotation,
    tension,
    to_matrix,
    to_vector,
    update,
    variable,
    worked,
)

from forebay.solvers.materials.chaboche import Chaboche, LinearElastic, VonMises
from forebay.solvers.materials.law import plastic_strain

YOUNG, SHEAR, BULK = 200e3, 200e3 / 2.6, 200e3 / 1.2
LAWS = {"elastic": LinearElastic(), "von Mises": VonMises(), "chaboche": Chaboche()}
PLASTIC = {"von Mises": VonMises(kinematic=60e3, recall=400.0), "chaboche": Chaboche()}


# --- one direction --------------------------------------------------------------------------------------------------


def test_norton_creep_under_constant_stress_has_the_rate_of_the_formula():
    """Without hardening ṗ is constant, and backward Euler exact."""
    law = Chaboche(hardening=0.0, kinematic=0.0, viscosity=320.0, exponent=5.0)
    times = np.array([0.0, 0.3, 1.0, 4.0, 4.5])
    target = np.zeros((5, 6))
    target[1:, 0] = 290.0
    strain, _, state = drive(law, times, target, stress_controlled=np.ones(6, bool))
    rate = ((290.0 - 150.0) / 320.0) ** 5
    np.testing.assert_allclose(plastic_strain(law, state), rate * times, rtol=1e-9)
    np.testing.assert_allclose(strain[1:, 0], 290.0 / YOUNG + rate * times[1:], rtol=1e-9)
    np.testing.assert_allclose(strain[1:, 1], -0.3 * 290.0 / YOUNG - rate * times[1:] / 2, rtol=1e-9)


def test_perfect_plasticity_stops_at_the_yield_stress_and_returns_radially():
    law = VonMises(hardening=0.0)
    stress, _ = tension(law, np.linspace(0, 1, 5), np.linspace(0, 4e-3, 5))
    np.testing.assert_allclose(stress[2:], 150.0, rtol=1e-12)
    np.testing.assert_allclose(stress[:1], 0.0)
    strain = np.random.default_rng(7).normal(size=(20, 6)) * 4e-3
    trial = 2 * SHEAR * strain @ DEVIATORIC
    response = update(law, strain, ROOM, 1.0, law.initial(20))
    expected = trial * (150.0 / equivalent(trial))[:, None] + np.outer(BULK * strain @ IDENTITY, IDENTITY)
    np.testing.assert_allclose(response.stress, expected, rtol=1e-11, atol=1e-9)


@pytest.mark.parametrize("constants", [{"hardening": 5e3}, {"hardening": 0.0, "kinematic": 5e3}])
def test_linear_hardening_has_the_slope_of_two_springs_in_series(constants):
    stress, _ = tension(VonMises(**constants), np.arange(6.0), np.array([0.0, 1e-3, 2e-3, 3e-3, 5e-3, 9e-3]))
    slope = np.diff(stress[1:]) / np.array([1e-3, 1e-3, 2e-3, 4e-3])
    np.testing.assert_allclose(slope, YOUNG * 5e3 / (YOUNG + 5e3), rtol=1e-10)


@pytest.mark.parametrize(
    ("constants", "reversed_yield"),
    [({"hardening": 5e3}, -1.0), ({"hardening": 0.0, "kinematic": 5e3}, None)],
)
def test_isotropic_hardening_widens_the_yield_surface_and_kinematic_hardening_moves_it(constants, reversed_yield):
    law = VonMises(**constants)
    stress, state = tension(law, np.arange(4.0), np.array([0.0, 9e-3, 9e-3 - 1.4e-3, 0.0]))
    top, p = stress[1], plastic_strain(law, state)
    limit = reversed_yield * top if reversed_yield else top - 2 * 150.0
    assert p[2] == p[1]
    plastic = p[3] - p[2]
    # Beyond the reversed yield stress both harden with the same slope.
    assert stress[3] == pytest.approx(limit - 5e3 * plastic, rel=1e-10)
    assert plastic > 1e-3


def test_the_back_stress_follows_the_recurrence_of_backward_euler_and_saturates_at_c_over_d():
    law = VonMises(hardening=0.0, kinematic=60e3, recall=400.0)
    strain = np.linspace(0, 0.04, 201)
    stress, state = tension(law, np.arange(201.0), strain)
    back, p = 0.0, plastic_strain(law, state)
    for k in range(1, 201):
        back = (back + 60e3 * (p[k] - p[k - 1])) / (1 + 400.0 * (p[k] - p[k - 1]))
        assert stress[k] == pytest.approx(150.0 + back if p[k] > 0 else YOUNG * strain[k], rel=1e-10)
    assert stress[-1] == pytest.approx(150.0 + 60e3 / 400.0, rel=1e-5)


def test_every_hardening_saturates_at_the_sum_of_its_parts_with_the_viscous_stress_of_the_rate():
    law = Chaboche(
        hardening=0.0,
        saturation=80.0,
        saturation_rate=50.0,
        kinematic=60e3,
        recall=400.0,
        kinematic_2=9e3,
        recall_2=100.0,
        viscosity=300.0,
        exponent=8.0,
    )
    rate = 1e-3
    times = np.linspace(0, 0.4 / rate, 401)
    stress, _ = tension(law, times, rate * times)
    assert stress[-1] == pytest.approx(150.0 + 80.0 + 150.0 + 90.0 + 300.0 * rate ** (1 / 8), rel=1e-9)


def test_saturating_isotropic_hardening_is_exact_in_p():
    law = VonMises(hardening=700.0, saturation=80.0, saturation_rate=50.0)
    stress, state = tension(law, np.arange(8.0), np.linspace(0, 0.1, 8))
    p = plastic_strain(law, state)[1:]
    np.testing.assert_allclose(stress[1:], 150.0 + 700.0 * p + 80.0 * (1 - np.exp(-50.0 * p)), rtol=1e-11)


def test_constants_follow_the_temperature():
    law = VonMises(hardening=1e3, hardening_slope=0.4, yield_stress_slope=0.5)
    for temperature, fraction in [(20.0, 0.0), (520.0, 0.5), (920.0, 0.9)]:
        strain = np.array([0.0, 9e-3, 2e-2]) + law.expansion * (temperature - 20.0)
        stress, state = tension(law, np.arange(3.0), strain, temperature=temperature)
        p = plastic_strain(law, state)
        expected = 150.0 * (1 - 0.5 * fraction) + 1e3 * (1 - 0.4 * fraction) * p[1:]
        np.testing.assert_allclose(stress[1:], expected, rtol=1e-10)


# --- rates and steps ------------------------------------------------------------------------------------------------


def relaxed(steps):
    """Equivalent stress after pure shear is held for 2 s, and its exact value; K, m as below, no hardening."""
    law = Chaboche(hardening=0.0, kinematic=0.0, viscosity=500.0, exponent=4.0)
    strain = np.zeros((1, 6))
    strain[0, 3] = 3e-3
    state = law.initial(1)
    for _ in range(steps):
        response = update(law, strain, ROOM, 2.0 / steps, state)
        state = response.state
    start = np.sqrt(1.5) * 2 * SHEAR * 3e-3 - 150.0
    # σ̇ = -3G (σ / K)^4 for the overstress σ, hence σ⁻³ grows linearly.
    exact = (start**-3 + 3 * 3 * SHEAR / 500.0**4 * 2.0) ** (-1 / 3) + 150.0
    return equivalent(response.stress)[0], exact


def test_relaxation_converges_to_the_exact_solution_with_order_one():
    steps = np.array([200, 400, 800, 1600])
    error = [abs(value / exact - 1) for value, exact in map(relaxed, steps)]
    slope = -np.polyfit(np.log(steps), np.log(error), 1)[0]
    assert abs(slope - 1) < 0.2, f"observed order {slope:.2f} from errors {error}"
    assert error[-1] < 1e-3


def cycled(law, steps):
    """Stress after a non-proportional, non-isothermal cycle in so many steps."""
    fractions = np.linspace(0, 1, steps + 1)[1:]
    state = law.initial(1)
    for s in fractions:
        strain, temperature = np.zeros((1, 6)), 20.0 + 600.0 * s
        strain[0, 0], strain[0, 3] = 6e-3 * np.sin(5 * s), 5e-3 * np.sin(3 * s) ** 2
        strain[0, 1:3] = -0.4 * strain[0, 0]
        strain += law.expansion * (temperature - ROOM) * IDENTITY
        response = update(law, strain, temperature, 10.0 / steps, state)
        state = response.state
    return response.stress[0]


@pytest.mark.parametrize(
    "law", [Chaboche(kinematic_2=5e3, recall_2=50.0, saturation=60.0), VonMises(kinematic=60e3, recall=400.0)]
)
def test_a_non_proportional_cycle_converges_with_order_one(law):
    steps = np.array([80, 160, 320])
    reference = 2 * cycled(law, 10240) - cycled(law, 5120)  # extrapolated
    error = [np.linalg.norm(cycled(law, n) - reference) / np.linalg.norm(reference) for n in steps]
    slope = -np.polyfit(np.log(steps), np.log(error), 1)[0]
    assert abs(slope - 1) < 0.2, f"observed order {slope:.2f} from errors {error}"
    assert error[-1] < 0.02


def test_the_viscous_law_tends_to_the_rate_independent_one_as_its_viscosity_vanishes():
    hardening = {"kinematic": 60e3, "kinematic_slope": 0.5, "recall": 400.0, "saturation": 60.0}
    limit = cycled(VonMises(**hardening), 40)
    viscosities = np.array([10.0, 1.0, 0.1, 1e-6])
    error = [np.linalg.norm(cycled(Chaboche(**hardening, viscosity=K), 40) - limit) for K in viscosities]
    slope = np.polyfit(np.log(viscosities[:3]), np.log(error[:3]), 1)[0]
    assert abs(slope - 1) < 0.1, f"the difference should be proportional to K: {error}"
    assert error[-1] / np.linalg.norm(limit) < 1e-8


def test_a_step_without_time_is_elastic_for_the_viscous_law_and_no_matter_to_the_other():
    strain = np.random.default_rng(7).normal(size=(10, 6)) * 5e-3
    elastic, plastic = LinearElastic(), VonMises()
    expected = update(elastic, strain, 300.0, 0.0, elastic.initial(10))
    stiff = Chaboche(viscosity=1e-6, exponent=200.0)
    for law, dt in [(Chaboche(), 0.0), (stiff, 0.0), (Chaboche(), 1e-300)]:
        response = update(law, strain, 300.0, dt, law.initial(10))
        np.testing.assert_allclose(response.stress, expected.stress, rtol=1e-12, atol=1e-10)
        np.testing.assert_allclose(response.tangent, expected.tangent, rtol=1e-12, atol=1e-6)
    one, other = (update(plastic, strain, 300.0, dt, plastic.initial(10)).stress for dt in (0.0, 1e3))
    np.testing.assert_array_equal(one, other)


# --- temperature, pressure, frames ----------------------------------------------------------------------------------


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_free_expansion_makes_no_stress_and_prevented_expansion_only_pressure(law):
    temperature = np.array([20.0, 400.0, 950.0])
    free = np.outer(2e-5 * (temperature - 20.0), IDENTITY)
    response = update(law, free, temperature, 0.1, law.initial(3))
    np.testing.assert_allclose(response.stress, 0.0, atol=1e-10)
    response = update(law, np.zeros((3, 6)), temperature, 0.1, law.initial(3))
    bulk = BULK * (1 - 0.25 * (temperature - 20.0) / 1000)
    expected = np.outer(-3 * bulk * 2e-5 * (temperature - 20.0), IDENTITY)
    np.testing.assert_allclose(response.stress, expected, rtol=1e-12, atol=1e-10)
    assert not response.state.any()


@pytest.mark.parametrize("law", PLASTIC.values(), ids=PLASTIC)
def test_plastic_flow_does_not_depend_on_the_pressure_and_keeps_the_volume(law):
    rng = np.random.default_rng(11)
    strain, state = rng.normal(size=(30, 6)) * 5e-3, worked(law, 30, rng)
    one = update(law, strain, ROOM, 0.1, state)
    other = update(law, strain + 0.01 * IDENTITY, ROOM, 0.1, state)
    np.testing.assert_allclose(other.state, one.state, rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(
        other.stress - one.stress, np.tile(0.03 * BULK * IDENTITY, (30, 1)), rtol=1e-10, atol=1e-7
    )
    np.testing.assert_allclose(variable(law, one.state, "plastic_strain") @ IDENTITY, 0.0, atol=1e-15)


@pytest.mark.parametrize("law", PLASTIC.values(), ids=PLASTIC)
def test_a_rotated_strain_history_gives_the_rotated_stress(law):
    rng = np.random.default_rng(13)
    turn = rotation(rng)
    path = rng.normal(size=(3, 25, 6)) * 4e-3
    here, there = law.initial(25), law.initial(25)
    for strain in path:
        one = update(law, strain, 500.0, 0.1, here)
        other = update(law, to_vector(turn @ to_matrix(strain) @ turn.T), 500.0, 0.1, there)
        here, there = one.state, other.state
        expected = to_vector(turn @ to_matrix(one.stress) @ turn.T)
        np.testing.assert_allclose(other.stress, expected, rtol=1e-9, atol=1e-8)
        np.testing.assert_allclose(plastic_strain(law, there), plastic_strain(law, here), rtol=1e-10, atol=1e-16)


@pytest.mark.parametrize("law", PLASTIC.values(), ids=PLASTIC)
def test_a_closed_cycle_of_strain_dissipates(law):
    times = np.linspace(0, 1, 401)
    strain = 6e-3 * np.sin(4 * np.pi * times)
    stress, state = tension(law, times, strain)
    work = np.concatenate([[0], np.cumsum((stress[1:] + stress[:-1]) / 2 * np.diff(strain))])
    assert work[-1] > work[200] > 0
    assert np.all(np.diff(plastic_strain(law, state)) >= 0)

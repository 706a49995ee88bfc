import numpy as np
import pytest
from material_points import differences, update, worked

from forebay.solvers.materials.chaboche import Chaboche, LinearElastic, VonMises
from forebay.solvers.materials.law import plastic_strain

POINTS = 60
SATURATING = {"saturation": 120.0, "saturation_slope": 0.3, "saturation_rate": 40.0}
TWO_BACK_STRESSES = {"kinematic": 60e3, "recall": 400.0, "kinematic_2": 5e3, "kinematic_2_slope": 0.2, "recall_2": 20.0}
LAWS = {
    "elastic": LinearElastic(),
    "perfect": VonMises(hardening=0.0),
    "linear isotropic": VonMises(),
    "saturating": VonMises(**SATURATING),
    "linear kinematic": VonMises(kinematic=2e4),
    "armstrong-frederick": VonMises(kinematic=60e3, recall=400.0),
    "two back-stresses": VonMises(**TWO_BACK_STRESSES, **SATURATING),
    "softening": VonMises(saturation=-60.0, kinematic=60e3, recall=400.0),
    "viscous": Chaboche(kinematic=0.0),
    "chaboche": Chaboche(),
    "chaboche, everything": Chaboche(**TWO_BACK_STRESSES, **SATURATING),
    "chaboche, m = 1": Chaboche(exponent=1.0, viscosity=2e4),
    "chaboche, m = 30": Chaboche(exponent=30.0, yield_stress=10.0, kinematic=1e5, recall=1000.0),
}


def check(law, strain, temperature, dt, state):
    """Relative to the largest entry of each point's tangent; returns the response."""
    response = update(law, strain, temperature, dt, state)
    error = np.abs(response.tangent - differences(law, strain, temperature, dt, state)).max(axis=(1, 2))
    assert (error / np.abs(response.tangent).max(axis=(1, 2))).max() < 1e-6
    return response


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
@pytest.mark.parametrize("dt", [1e-4, 0.1, 100.0])
def test_the_tangent_is_the_derivative_at_random_states_and_temperatures(law, dt):
    rng = np.random.default_rng(2026)
    state = worked(law, POINTS, rng)
    strain, temperature = rng.normal(size=(POINTS, 6)) * 4e-3, rng.uniform(10, 990, POINTS)
    response = check(law, strain, temperature, dt, state)
    flowed = plastic_strain(law, response.state) > plastic_strain(law, state)
    assert flowed.mean() > 0.9 or isinstance(law, LinearElastic)


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_the_tangent_is_the_derivative_after_load_reversal(law):
    rng = np.random.default_rng(7)
    temperature = rng.uniform(10, 990, POINTS)
    ahead = rng.normal(size=(POINTS, 6)) * 5e-3
    state = update(law, ahead, temperature, 0.1, law.initial(POINTS)).state
    check(law, -0.7 * ahead, temperature, 0.1, state)


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_the_tangent_of_an_elastic_step_is_that_of_elasticity(law):
    rng = np.random.default_rng(11)
    temperature = rng.uniform(10, 990, POINTS)
    strain = law.expansion * (temperature - 20.0)[:, None] * [1, 1, 1, 0, 0, 0] + rng.normal(size=(POINTS, 6)) * 1e-6
    response = check(law, strain, temperature, 0.1, law.initial(POINTS))
    assert not response.state.any()
    young = 200e3 * (1 - 0.25 * (temperature - 20.0) / 1000)
    shear, bulk = young / 2.6, young / 1.2
    identity = np.outer([1, 1, 1, 0, 0, 0], [1, 1, 1, 0, 0, 0])
    expected = 2 * shear[:, None, None] * (np.eye(6) - identity / 3) + bulk[:, None, None] * identity
    np.testing.assert_allclose(response.tangent, expected, rtol=1e-13, atol=1e-8)


@pytest.mark.parametrize("law", [law for law in LAWS.values() if isinstance(law, VonMises)])
def test_rounding_does_not_choose_the_tangent_of_a_point_on_its_yield_surface(law):
    rng = np.random.default_rng(13)
    strain, temperature = rng.normal(size=(POINTS, 6)) * 5e-3, rng.uniform(10, 990, POINTS)
    state = update(law, strain, temperature, 0.1, law.initial(POINTS)).state
    elastic = update(LinearElastic(), strain, temperature, 0.1, np.zeros((POINTS, 1))).tangent
    for _ in range(4):
        again = update(law, strain * (1 + 4e-16 * rng.normal(size=strain.shape)), temperature, 0.1, state)
        np.testing.assert_array_equal(again.tangent, elastic)
        np.testing.assert_array_equal(again.state, state)
    further = update(law, strain * (1 + 1e-8), temperature, 0.1, state)
    assert (plastic_strain(law, further.state) > plastic_strain(law, state)).all()


def test_only_dynamic_recovery_breaks_the_symmetry():
    rng = np.random.default_rng(13)
    strain, temperature = rng.normal(size=(POINTS, 6)) * 4e-3, rng.uniform(10, 990, POINTS)
    for name, symmetric in [("linear kinematic", True), ("saturating", True), ("armstrong-frederick", False)]:
        law = LAWS[name]
        tangent = update(law, strain, temperature, 0.1, worked(law, POINTS, rng)).tangent
        skew = np.abs(tangent - tangent.transpose(0, 2, 1)).max() / np.abs(tangent).max()
        assert skew < 1e-14 if symmetric else skew > 1e-3, f"{name}: {skew}"

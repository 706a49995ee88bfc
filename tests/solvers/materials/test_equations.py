"""The discrete equations hold, whatever the state, step and constants: written again here in plain numpy."""

import numpy as np
import pytest
from material_points import DEVIATORIC, IDENTITY, equivalent, update, variable, worked

from forebay.solvers.materials.chaboche import Chaboche, VonMises
from forebay.solvers.materials.law import plastic_strain

POINTS = 200
EVERYTHING = {
    "saturation": 120.0,
    "saturation_slope": 0.3,
    "saturation_rate": 40.0,
    "hardening_slope": 0.1,
    "kinematic": 60e3,
    "recall": 400.0,
    "kinematic_2": 5e3,
    "kinematic_2_slope": 0.2,
    "recall_2": 20.0,
    "reference_temperature": 100.0,
    "stress_free_temperature": 30.0,
}
LAWS = [VonMises(), VonMises(**EVERYTHING), Chaboche(), Chaboche(**EVERYTHING)]
IDS = ["von Mises", "von Mises, everything", "chaboche", "chaboche, everything"]


def at(law, name, temperature):
    return getattr(law, name) * (1 - getattr(law, f"{name}_slope") * (temperature - law.reference_temperature) / 1000)


def residuals(law, strain, temperature, dt, old, new, stress):
    """Of every equation, each (n,) in MPa."""
    young = at(law, "young", temperature)
    three_shear = 1.5 * young / (1 + law.poisson)
    bulk = young / (3 - 6 * law.poisson)
    before, after = plastic_strain(law, old), plastic_strain(law, new)
    dp = after - before
    plastic = variable(law, new, "plastic_strain")
    flow = plastic - variable(law, old, "plastic_strain")
    elastic = strain - np.outer(law.expansion * (temperature - law.stress_free_temperature), IDENTITY) - plastic
    hooke = three_shear[:, None] / 1.5 * (elastic @ DEVIATORIC)
    hooke += np.outer(bulk * (elastic @ IDENTITY), IDENTITY)
    yield from np.abs(stress - hooke).T
    xi = stress @ DEVIATORIC
    for suffix, back in (("", "back_strain_1"), ("_2", "back_strain_2")):
        if any(v.name == back for v in law.variables):
            kinematic = at(law, f"kinematic{suffix}", temperature)
            alpha, last = variable(law, new, back), variable(law, old, back)
            xi = xi - kinematic[:, None] / 1.5 * alpha
            evolution = alpha - last - flow + getattr(law, f"recall{suffix}") * dp[:, None] * alpha
            yield from np.abs(kinematic[:, None] * evolution).T
    normal = xi / np.linalg.norm(xi, axis=1)[:, None]
    yield from np.abs(three_shear[:, None] * (flow - np.sqrt(1.5) * dp[:, None] * normal)).T
    radius = at(law, "yield_stress", temperature) + at(law, "hardening", temperature) * after
    radius += at(law, "saturation", temperature) * (1 - np.exp(-law.saturation_rate * after))
    overstress = equivalent(xi) - radius
    rate_independent = np.where(dp > 0, np.abs(overstress), np.maximum(overstress, 0))
    yield norton(law, temperature, dt, dp, overstress, three_shear) if isinstance(law, Chaboche) else rate_independent


def norton(law, temperature, dt, dp, overstress, three_shear):
    """Residual of Δp = Δt <overstress / K>^m, in stress or as the stress that Δp relaxes, whichever is the smaller.

    The first loses its digits where Δp is small next to p, of which it is a difference, the second where m is large.
    """
    viscosity, m = at(law, "viscosity", temperature), law.exponent
    with np.errstate(over="ignore"):
        relaxed = three_shear * np.abs(dt * (np.maximum(overstress, 0) / viscosity) ** m - dp)
    in_stress = np.abs(overstress - viscosity * (dp / dt) ** (1 / m))
    return np.minimum(np.where(dp > 0, in_stress, np.maximum(overstress, 0)), relaxed)


@pytest.mark.parametrize("law", LAWS, ids=IDS)
@pytest.mark.parametrize("amplitude", [5e-4, 5e-3, 0.3])
@pytest.mark.parametrize("dt", [1e-9, 1e-2, 1e4])
def test_the_discrete_equations_hold(law, amplitude, dt):
    rng = np.random.default_rng(2026)
    old = worked(law, POINTS, rng)
    strain, temperature = rng.normal(size=(POINTS, 6)) * amplitude, rng.uniform(1, 999, POINTS)
    response = update(law, strain, temperature, dt, old)
    scale = equivalent(strain) * 2e5 + 500
    checked = list(residuals(law, strain, temperature, dt, old, response.state, response.stress))
    assert max((residual / scale).max() for residual in checked) < 1e-11
    assert (plastic_strain(law, response.state) > plastic_strain(law, old)).any()


@pytest.mark.parametrize("exponent", [1.0, 3.0, 30.0, 2000.0])
@pytest.mark.parametrize("viscosity", [1e-6, 1.0, 300.0, 1e5])
@pytest.mark.parametrize("dt", [1e-300, 1e-12, 1.0, 1e12])
def test_the_scalar_equation_is_solved_whatever_the_viscosity_and_step(exponent, viscosity, dt):
    law = Chaboche(exponent=exponent, viscosity=viscosity)
    rng = np.random.default_rng(7)
    old = worked(LAWS[2], POINTS, rng)
    strain, temperature = rng.normal(size=(POINTS, 6)) * 10.0 ** rng.uniform(-5, 0, (POINTS, 1)), np.full(POINTS, 300.0)
    response = update(law, strain, temperature, dt, old)
    assert (plastic_strain(law, response.state) >= plastic_strain(law, old)).all()
    assert np.isfinite(response.tangent).all()
    scale = equivalent(strain) * 2e5 + 500
    checked = list(residuals(law, strain, temperature, dt, old, response.state, response.stress))
    assert max((residual / scale).max() for residual in checked) < 1e-11


@pytest.mark.parametrize("amplitude", [3e-3, 1e-2, 1e-1])
@pytest.mark.parametrize("law", [VonMises(kinematic=60e3, recall=400.0), Chaboche(exponent=30.0)], ids=IDS[::2])
def test_states_outside_what_recovery_allows_are_still_solved(law, amplitude):
    """A projected or interpolated state need not be one that the law could reach; Newton alone fails at some."""
    rng = np.random.default_rng(11)
    old = law.initial(5000)
    old[:, 7:] = rng.normal(size=(5000, 6)) @ DEVIATORIC * amplitude
    strain, temperature = rng.normal(size=(5000, 6)) * 1e-2, np.full(5000, 20.0)
    response = update(law, strain, temperature, 1e-3, old)
    scale = equivalent(strain) * 2e5 + 60e3 * np.linalg.norm(old[:, 7:], axis=1)
    checked = list(residuals(law, strain, temperature, 1e-3, old, response.state, response.stress))
    assert max((residual / scale).max() for residual in checked) < 1e-11
    assert (plastic_strain(law, response.state) >= 0).all()

"""Backward Euler return mapping of J2 (visco)plasticity, compiled by numba; the laws of `chaboche` wrap it.

Notation: s deviatoric stress, Xᵢ = 2/3 Cᵢ αᵢ back-stresses, ξ = s - Σ Xᵢ, p accumulated plastic strain, G the shear
modulus, R(p) = R₀ + H p + Q (1 - exp(-b p)).  With θᵢ = 1 / (1 + Dᵢ Δp) a step of size Δt ends at

    αᵢ = θᵢ (αᵢₙ + Δεp),   Δεp = √(3/2) Δp N,   N = η / |η|,   η(Δp) = s_trial - Σ θᵢ 2/3 Cᵢ αᵢₙ,
    √(3/2) |ξ| - R = √(3/2) |η(Δp)| - Δp (3G + Σ Cᵢ θᵢ) - R(pₙ + Δp) = K (Δp / Δt)^{1/m},

one scalar equation a point, whose left side falls as Δp grows: back-stresses never leave |Xᵢ| <= √(2/3) Cᵢ / Dᵢ, so
what dynamic recovery gives to √(3/2) |η| is at most what it takes from Δp Cᵢ θᵢ.

All kernels are in this one file: numba's cache on disk follows the file of a function, not those of what it calls.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from forebay.solvers.materials.law import TENSOR

compiled = njit(cache=True, fastmath=False, error_model="numpy")

SOLVED, NOT_FINITE, OUT_OF_RANGE, NOT_CONVERGED = range(4)
"""What the kernels write for every point."""
ITERATIONS = 100
"""Bound of the scalar solve; it takes 3 to 6."""
_RTOL = 1e-13
_ON_SURFACE = 1e-10
"""Times R₀: a point that has yielded is this close to its yield surface; rounding must not choose its tangent."""
_ROOT = math.sqrt(1.5)
_NORMAL, _BACK_1, _BACK_2 = range(3)
_P, _PLASTIC, _ALPHA_1, _ALPHA_2 = 0, 1, 7, 13
"""Where variables start in a row of the state."""


class Constants(NamedTuple):
    """All constants that a kernel reads; a law without some of them leaves these 0.  Units as in the laws."""

    young: float
    young_slope: float
    poisson: float
    expansion: float
    reference_temperature: float
    stress_free_temperature: float
    coldest: float
    hottest: float
    yield_stress: float
    yield_stress_slope: float
    hardening: float
    hardening_slope: float
    saturation: float
    saturation_slope: float
    saturation_rate: float
    kinematic: float
    kinematic_slope: float
    recall: float
    kinematic_2: float
    kinematic_2_slope: float
    recall_2: float
    viscosity: float
    viscosity_slope: float
    exponent: float


class Elastic(NamedTuple):
    """Elastic constants at one temperature."""

    shear: float
    bulk: float
    thermal_strain: float


class Plastic(NamedTuple):
    """Plastic constants at one temperature, and 3G."""

    three_shear: float
    yield_stress: float
    hardening: float
    saturation: float
    rate: float
    kinematic_1: float
    recall_1: float
    kinematic_2: float
    recall_2: float
    viscosity: float
    exponent: float


class Trial(NamedTuple):
    """What the scalar equation needs of the elastic trial state; ξ = s_trial - Σ aᵢ with aᵢ = 2/3 Cᵢ αᵢₙ."""

    overstress: float
    p: float
    xi_xi: float
    xi_a1: float
    xi_a2: float
    a1_a1: float
    a1_a2: float
    a2_a2: float


@compiled
def elastic_points(
    strain: np.ndarray,
    temperature: np.ndarray,
    constants: Constants,
    stress: np.ndarray,
    tangent: np.ndarray,
    wanted: bool,
    status: np.ndarray,
) -> int:
    """σ = C(T) : (ε - α (T - T_free) 1) at every point; returns how many failed."""
    failed = 0
    for q in range(len(strain)):
        elastic, status[q] = _elastic_at(temperature[q], constants)
        if status[q] == SOLVED:
            mean = _deviatoric_stress(q, strain, strain, -1, elastic, stress)
            total = 0.0
            for i in range(TENSOR):
                total += stress[q, i]
            if math.isfinite(total):
                _add_pressure(q, 3.0 * elastic.bulk * mean, stress)
                if wanted:
                    _isotropic(q, 2.0 * elastic.shear, elastic.bulk, tangent)
            else:
                status[q] = NOT_FINITE
        failed += status[q] != SOLVED
    return failed


@compiled
def plastic_points(
    strain: np.ndarray,
    temperature: np.ndarray,
    dt: float,
    state: np.ndarray,
    constants: Constants,
    backs: int,
    viscous: bool,
    stress: np.ndarray,
    tangent: np.ndarray,
    new_state: np.ndarray,
    wanted: bool,
    status: np.ndarray,
) -> int:
    """Update every point with 0, 1 or 2 back-stresses; a point that fails gets its status and nothing else of use.

    Without `viscous` the law is rate-independent and Δt is not read.  Returns how many points failed.
    """
    work = np.zeros((3, TENSOR))
    failed = 0
    for q in range(len(strain)):
        elastic, status[q] = _elastic_at(temperature[q], constants)
        if status[q] == SOLVED:
            mean = _deviatoric_stress(q, strain, state, _PLASTIC, elastic, stress)
            plastic = _plastic_at(temperature[q], constants, elastic)
            trial = _trial(q, state, backs, plastic, stress, work)
            if not math.isfinite(trial.overstress):
                status[q] = NOT_FINITE
            elif trial.overstress <= _ON_SURFACE * plastic.yield_stress or (viscous and dt == 0.0):
                for i in range(state.shape[1]):
                    new_state[q, i] = state[q, i]
                if wanted:
                    _isotropic(q, 2.0 * elastic.shear, elastic.bulk, tangent)
            else:
                dp, compliance, status[q] = _increment(dt, viscous, plastic, trial)
                if status[q] == SOLVED:
                    norm = _flow(q, dp, state, backs, plastic, stress, new_state, work)
                    if wanted:
                        _isotropic_and_flow(q, dp, compliance, norm, elastic, plastic, tangent, work)
            _add_pressure(q, 3.0 * elastic.bulk * mean, stress)
        failed += status[q] != SOLVED
    return failed


@compiled
def _elastic_at(temperature: float, c: Constants) -> tuple[Elastic, int]:
    shift = temperature - c.reference_temperature
    young = c.young * (1.0 - 1e-3 * c.young_slope * shift)
    elastic = Elastic(
        young / (2.0 * (1.0 + c.poisson)),
        young / (3.0 * (1.0 - 2.0 * c.poisson)),
        c.expansion * (temperature - c.stress_free_temperature),
    )
    # NaN fails the comparison too.
    return elastic, SOLVED if c.coldest <= temperature <= c.hottest else OUT_OF_RANGE


@compiled
def _plastic_at(temperature: float, c: Constants, elastic: Elastic) -> Plastic:
    shift = 1e-3 * (temperature - c.reference_temperature)
    return Plastic(
        3.0 * elastic.shear,
        c.yield_stress * (1.0 - c.yield_stress_slope * shift),
        c.hardening * (1.0 - c.hardening_slope * shift),
        c.saturation * (1.0 - c.saturation_slope * shift),
        c.saturation_rate,
        c.kinematic * (1.0 - c.kinematic_slope * shift),
        c.recall,
        c.kinematic_2 * (1.0 - c.kinematic_2_slope * shift),
        c.recall_2,
        c.viscosity * (1.0 - c.viscosity_slope * shift),
        c.exponent,
    )


@compiled
def _deviatoric_stress(
    q: int, strain: np.ndarray, state: np.ndarray, plastic_strain: int, elastic: Elastic, stress: np.ndarray
) -> float:
    """Write the deviator of the trial stress, return the mean elastic strain; column -1: no plastic strain."""
    mean = 0.0
    for i in range(TENSOR):
        value = strain[q, i]
        if plastic_strain >= 0:
            value -= state[q, plastic_strain + i]
        if i < 3:
            value -= elastic.thermal_strain
            mean += value / 3.0
        stress[q, i] = value
    for i in range(TENSOR):
        stress[q, i] = 2.0 * elastic.shear * (stress[q, i] - (mean if i < 3 else 0.0))
    return mean


@compiled
def _trial(q: int, state: np.ndarray, backs: int, c: Plastic, stress: np.ndarray, work: np.ndarray) -> Trial:
    """Leave ξ, a₁, a₂ of the trial state in `work` and return their products."""
    xi_xi = xi_a1 = xi_a2 = a1_a1 = a1_a2 = a2_a2 = 0.0
    factor_1, factor_2 = c.kinematic_1 / 1.5, c.kinematic_2 / 1.5
    for i in range(TENSOR):
        a1 = factor_1 * state[q, _ALPHA_1 + i] if backs > 0 else 0.0
        a2 = factor_2 * state[q, _ALPHA_2 + i] if backs > 1 else 0.0
        xi = stress[q, i] - a1 - a2
        xi_xi += xi * xi
        xi_a1 += xi * a1
        xi_a2 += xi * a2
        a1_a1 += a1 * a1
        a1_a2 += a1 * a2
        a2_a2 += a2 * a2
        work[_NORMAL, i], work[_BACK_1, i], work[_BACK_2, i] = xi, a1, a2
    p = state[q, _P]
    overstress = _ROOT * math.sqrt(xi_xi) - _isotropic_hardening(p, c)[0]
    return Trial(overstress, p, xi_xi, xi_a1, xi_a2, a1_a1, a1_a2, a2_a2)


@compiled
def _isotropic_hardening(p: float, c: Plastic) -> tuple[float, float]:
    """R(p) and dR/dp."""
    radius, slope = c.yield_stress + c.hardening * p, c.hardening
    if c.saturation != 0.0:
        radius -= c.saturation * math.expm1(-c.rate * p)
        slope += c.saturation * c.rate * math.exp(-c.rate * p)
    return radius, slope


@compiled
def _overstress(dp: float, c: Plastic, t: Trial) -> tuple[float, float]:
    """√(3/2) |ξ| - R after the increment Δp, and minus its derivative.

    η = ξ_trial + Σ φᵢ aᵢ with φᵢ = 1 - θᵢ = Dᵢ Δp θᵢ, so that nothing cancels where steps are small.
    """
    theta_1, theta_2 = 1.0 / (1.0 + c.recall_1 * dp), 1.0 / (1.0 + c.recall_2 * dp)
    phi_1, phi_2 = c.recall_1 * dp * theta_1, c.recall_2 * dp * theta_2
    eta_a1 = t.xi_a1 + phi_1 * t.a1_a1 + phi_2 * t.a1_a2
    eta_a2 = t.xi_a2 + phi_1 * t.a1_a2 + phi_2 * t.a2_a2
    norm = math.sqrt(t.xi_xi + phi_1 * (t.xi_a1 + eta_a1) + phi_2 * (t.xi_a2 + eta_a2))
    radius, radius_slope = _isotropic_hardening(t.p + dp, c)
    stiff_1, stiff_2 = c.kinematic_1 * theta_1, c.kinematic_2 * theta_2
    value = _ROOT * norm - dp * (c.three_shear + stiff_1 + stiff_2) - radius
    recovery = _ROOT * (c.recall_1 * theta_1**2 * eta_a1 + c.recall_2 * theta_2**2 * eta_a2) / norm
    return value, c.three_shear + stiff_1 * theta_1 + stiff_2 * theta_2 + radius_slope - recovery


@compiled
def _increment(dt: float, viscous: bool, c: Plastic, t: Trial) -> tuple[float, float, int]:
    """Δp > 0, dΔp/df of a small change of the trial overstress f, and the status.

    The viscous law is solved in the overstress x, Δp = Δt (x / K)^m, the rate-independent one in x = Δp: Newton inside
    a bracket that holds for any state.  In Δp the viscous equation is singular at 0; in x it is concave, and Newton
    from the right, where min(f, K (f / (3G Δt))^{1/m}) lies, does not overshoot.  Halley's correction with the
    curvature of x^m, nearly all there is, costs no power and saves an evaluation: on average 3.0 to 4.8 of them instead
    of 4.0 to 6.3 (m = 3 to 30).
    """
    ceiling = _ROOT * (math.sqrt(t.xi_xi) + math.sqrt(t.a1_a1) + math.sqrt(t.a2_a2))
    low, high, x = 0.0, ceiling / c.three_shear, 0.0
    if viscous:
        high, x = ceiling, min(t.overstress, c.viscosity * (t.overstress / (c.three_shear * dt)) ** (1.0 / c.exponent))
    for _ in range(ITERATIONS):
        dp, rise, resistance = x, 1.0, 0.0
        if viscous:
            dp = dt * (x / c.viscosity) ** c.exponent
            rise, resistance = c.exponent * dp / x, x
        value, slope = _overstress(dp, c, t)
        residual = value - resistance
        fall = slope * rise + (1.0 if viscous else 0.0)
        if abs(residual) <= _RTOL * ceiling:
            return dp, rise / fall, SOLVED
        if residual > 0.0:
            low = x
        else:
            high = x
        step = residual / fall
        if viscous:
            step /= 1.0 + 0.5 * step * slope * rise * (c.exponent - 1.0) / (x * fall)
        following = x + step
        if not low < following < high:
            following = 0.5 * (low + high)
        # Neighbours in floating point may be further apart than the tolerance when m is large.
        if abs(following - x) <= 4e-16 * x:
            return dp, rise / fall, SOLVED
        x = following
    return 0.0, 0.0, NOT_CONVERGED


@compiled
def _flow(
    q: int,
    dp: float,
    state: np.ndarray,
    backs: int,
    c: Plastic,
    stress: np.ndarray,
    new_state: np.ndarray,
    work: np.ndarray,
) -> float:
    """Write deviatoric stress and internal variables after the increment; leave N in `work` and return |η|."""
    theta_1, theta_2 = 1.0 / (1.0 + c.recall_1 * dp), 1.0 / (1.0 + c.recall_2 * dp)
    norm = 0.0
    for i in range(TENSOR):
        work[_NORMAL, i] += c.recall_1 * dp * theta_1 * work[_BACK_1, i] + c.recall_2 * dp * theta_2 * work[_BACK_2, i]
        norm += work[_NORMAL, i] ** 2
    norm = math.sqrt(norm)
    new_state[q, _P] = state[q, _P] + dp
    for i in range(TENSOR):
        work[_NORMAL, i] /= norm
        flow = _ROOT * dp * work[_NORMAL, i]
        new_state[q, _PLASTIC + i] = state[q, _PLASTIC + i] + flow
        if backs > 0:
            new_state[q, _ALPHA_1 + i] = theta_1 * (state[q, _ALPHA_1 + i] + flow)
        if backs > 1:
            new_state[q, _ALPHA_2 + i] = theta_2 * (state[q, _ALPHA_2 + i] + flow)
        stress[q, i] -= c.three_shear / 1.5 * flow
    return norm


@compiled
def _isotropic_and_flow(
    q: int, dp: float, compliance: float, norm: float, e: Elastic, c: Plastic, tangent: np.ndarray, work: np.ndarray
) -> None:
    """The consistent tangent, an isotropic matrix plus u ⊗ N.

    dΔp = √(3/2) 2G compliance N·dε =: λ N·dε, dN = (1 - N ⊗ N) dη / |η| and dη = 2G dev dε + Σ wᵢ aᵢ dΔp, wᵢ = Dᵢ θᵢ²;
    so with κ = √(3/2) Δp / |η| and b the part of Σ wᵢ aᵢ normal to N,
    dσ/dε = bulk 1 ⊗ 1 + 2G (1 - 2G κ) dev - 2G ((√(3/2) λ - 2G κ) N + κ λ b) ⊗ N.  b makes it not symmetric.
    """
    two_shear = 2.0 * e.shear
    kappa, rate = _ROOT * dp / norm, _ROOT * two_shear * compliance
    weight_1, weight_2 = c.recall_1 / (1.0 + c.recall_1 * dp) ** 2, c.recall_2 / (1.0 + c.recall_2 * dp) ** 2
    along = 0.0
    for i in range(TENSOR):
        work[_BACK_1, i] = weight_1 * work[_BACK_1, i] + weight_2 * work[_BACK_2, i]
        along += work[_BACK_1, i] * work[_NORMAL, i]
    of_normal = _ROOT * rate - two_shear * kappa - kappa * rate * along
    _isotropic(q, two_shear * (1.0 - two_shear * kappa), e.bulk, tangent)
    for i in range(TENSOR):
        left = -two_shear * (of_normal * work[_NORMAL, i] + kappa * rate * work[_BACK_1, i])
        for j in range(TENSOR):
            tangent[q, i, j] += left * work[_NORMAL, j]


@compiled
def _isotropic(q: int, of_deviator: float, bulk: float, tangent: np.ndarray) -> None:
    """Write of_deviator dev + bulk 1 ⊗ 1."""
    for i in range(TENSOR):
        for j in range(TENSOR):
            tangent[q, i, j] = bulk - of_deviator / 3.0 if i < 3 and j < 3 else 0.0
        tangent[q, i, i] += of_deviator


@compiled
def _add_pressure(q: int, mean_stress: float, stress: np.ndarray) -> None:
    for i in range(3):
        stress[q, i] += mean_stress

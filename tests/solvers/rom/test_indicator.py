import dataclasses

import numpy as np
import pytest
from dense_solid import ELASTIC, DenseSolid, Isotropic, history, room_temperature

from forebay.solvers.materials.law import Response
from forebay.solvers.rom.calibration import Calibration
from forebay.solvers.rom.gappy import Gappy
from forebay.solvers.rom.indicator import FLOOR, Estimator
from forebay.solvers.rom.online import ReducedModel

SOLID = DenseSolid()
LAW = Isotropic()


def complement(modes):
    """Modes that complete the given ones to all free degrees of freedom, orthonormal in L2."""
    root = np.sqrt(SOLID.mass[SOLID.free])
    rows = root[:, None] * modes[SOLID.free]
    full = np.linalg.svd(rows)[0][:, modes.shape[1] :] / root[:, None]
    found = np.zeros((len(SOLID.lift), full.shape[1]))
    found[SOLID.free] = full
    return found


def lifted(coefficients, displacements, modes):
    return coefficients @ modes.T + displacements @ SOLID.lift[None]


@pytest.fixture(scope="module")
def trained():
    """Modes of displacement, test modes and modes of p from two training histories."""
    histories = [history(LAW, pull=0.010, side=15.0), history(LAW, pull=0.014, side=25.0)]
    runs = [SOLID.run(h) for h in histories]
    modes, p_modes = SOLID.pod(runs, histories, 12)
    return modes[:, :4], SOLID.test_modes(modes[:, :4], modes[:, 4:10]), p_modes[:, :3]


# --- equilibrium ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3])
def test_the_estimate_is_exact_for_a_linear_material_if_test_modes_cover_the_rest(count):
    elastic = history(ELASTIC, lift=10.0)
    exact = SOLID.run(elastic)
    modes = SOLID.pod([exact], [elastic], count)[0]
    package = SOLID.package(modes, ELASTIC, extra=complement(modes))
    trajectory = ReducedModel(package, ELASTIC, rtol=1e-12).run(elastic)
    errors = SOLID.norm(lifted(trajectory.coefficients, elastic.displacements, modes) - exact.displacement)
    peaks = np.maximum.accumulate(SOLID.norm(lifted(trajectory.coefficients, elastic.displacements, modes)))
    both = 0.5 * (errors + np.maximum.accumulate(errors))
    np.testing.assert_allclose(trajectory.indicators[:, 1], both[1:] / peaks[1:], rtol=1e-6, atol=1e-9)
    assert trajectory.indicators[:, 1].max() > 1e-3 if count == 1 else trajectory.indicators[:, 1].max() < 1e-8


def test_the_correction_leads_to_the_solution_in_all_modes(trained):
    modes, extra, _ = trained
    elastic = history(ELASTIC, temperature=room_temperature)
    small = SOLID.package(modes, ELASTIC, extra=extra)
    large = SOLID.package(np.hstack([modes, extra]), ELASTIC)
    model = ReducedModel(small, ELASTIC, rtol=1e-12)
    state, _ = model.step(elastic, 1, model.initial())
    response = Response.empty(ELASTIC, len(SOLID.weights))
    strain = small.strains[:, :, :4] @ state.coefficients + small.lift_strains @ elastic.displacements[1]
    ELASTIC.update(strain, np.full(len(strain), 20.0), 1.0, ELASTIC.initial(len(strain)), response)
    correction = Estimator(small).correction(elastic.loads[1], response)
    both = np.concatenate([state.coefficients, np.zeros(extra.shape[1])]) + correction
    expected = ReducedModel(large, ELASTIC, rtol=1e-12).run(elastic, until=1).coefficients[1]
    np.testing.assert_allclose(both, expected, rtol=0, atol=1e-9 * np.abs(expected).max())


def test_the_estimate_follows_the_true_error_in_the_plastic_range(trained):
    modes, extra, p_modes = trained
    package = SOLID.package(modes, LAW, extra=extra, p_modes=p_modes)
    model = ReducedModel(package, LAW)
    estimates, errors = [], []
    for pull, side, lift in ((0.012, 20.0, 0.0), (0.012, 20.0, 5.0), (0.016, 0.0, 0.0), (0.008, 40.0, 2.0)):
        sample = history(LAW, pull=pull, side=side, lift=lift)
        exact, found = SOLID.run(sample), model.run(sample)
        difference = lifted(found.coefficients, sample.displacements, modes) - exact.displacement
        peaks = np.maximum.accumulate(SOLID.norm(exact.displacement))
        errors.extend(SOLID.norm(difference)[1:] / peaks[1:])
        estimates.extend(found.indicators[:, 1])
    assert np.corrcoef(np.log(estimates), np.log(errors))[0, 1] > 0.8
    ratios = np.array(estimates) / errors
    assert 0.3 < np.median(ratios) < 3.0, np.median(ratios)


def test_without_test_modes_equilibrium_is_not_judged(trained):
    trajectory = ReducedModel(SOLID.package(trained[0], LAW), LAW).run(history(LAW))
    np.testing.assert_array_equal(trajectory.indicators[:, 1], 0.0)


def test_a_tangent_that_cannot_be_inverted_gives_infinity(trained):
    package = SOLID.package(trained[0], LAW, extra=trained[1])
    response = Response.empty(LAW, len(SOLID.weights))
    response.stress[:] = response.tangent[:] = 0.0
    assert Estimator(package).imbalance(np.ones(2), response) == np.inf


def test_the_estimate_refers_to_the_peak_or_to_a_part_of_the_training(trained):
    package = SOLID.package(trained[0], LAW, extra=trained[1])
    response = SOLID.respond(LAW, 1e-4 * SOLID.lift, LAW.initial(len(SOLID.weights)))
    estimator = Estimator(package)
    correction = np.append(estimator.correction(np.ones(2), response), 0.0)
    absolute = np.sqrt(correction @ package.gram @ correction)
    assert estimator.imbalance(np.ones(2), response) == pytest.approx(absolute)
    assert estimator.equilibrium(absolute, absolute, 0.02) == pytest.approx(absolute / 0.02)
    assert estimator.equilibrium(absolute, 3 * absolute, 0.02) == pytest.approx(2 * absolute / 0.02)
    assert estimator.equilibrium(absolute, absolute, 0.0) == pytest.approx(absolute / (FLOOR * 0.01))


def test_the_norm_of_a_displacement_includes_its_lift(trained):
    modes, extra, _ = trained
    estimator = Estimator(SOLID.package(modes, LAW, extra=extra))
    coefficients, pull = np.array([0.3, -0.2, 0.1, 0.5]), np.array([0.7])
    expected = SOLID.norm(modes @ coefficients + 0.7 * SOLID.lift)
    assert estimator.displacement_norm(coefficients, pull) == pytest.approx(expected, rel=1e-12)


# --- gappy ----------------------------------------------------------------------------------------------------------


def test_a_plastic_strain_in_the_span_of_the_modes_fits(trained):
    package = SOLID.package(trained[0], LAW, p_modes=trained[2])
    coefficients = np.array([0.02, -0.004, 0.001])
    fitted, misfit = Estimator(package).gappy(trained[2] @ coefficients)
    np.testing.assert_allclose(fitted, coefficients, rtol=1e-10)
    assert misfit < 1e-12


def test_fit_and_misfit_are_those_of_gappy(trained):
    p = np.abs(np.random.default_rng(13).normal(size=96))
    fitted, misfit = Estimator(SOLID.package(trained[0], LAW, p_modes=trained[2])).gappy(p)
    expected = Gappy(trained[2]).fit(p)
    np.testing.assert_allclose(fitted, expected[0], rtol=1e-10)
    assert misfit == pytest.approx(float(expected[1]), rel=1e-12)


def test_the_misfit_is_the_distance_to_the_span(trained):
    package = SOLID.package(trained[0], LAW, p_modes=trained[2])
    inside = trained[2] @ np.array([0.03, 0.0, 0.0])
    outside = np.linalg.svd(trained[2])[0][:, -1]
    misfit = Estimator(package).gappy(inside + 0.04 * outside)[1]
    assert misfit == pytest.approx(0.8, rel=1e-9)


def test_elastic_steps_have_no_misfit_and_the_first_plastic_point_raises_no_alarm(trained):
    package = SOLID.package(trained[0], LAW, p_modes=trained[2], p_scale=1e-3)
    estimator = Estimator(package)
    assert estimator.gappy(np.zeros(96)) == (pytest.approx(np.zeros(3)), 0.0)
    first = np.zeros(96)
    first[5] = 1e-9
    assert estimator.gappy(first)[1] < 1e-3
    first[5] = 1e-1
    assert estimator.gappy(first)[1] > 0.3


def test_without_any_scale_nothing_is_divided_by_zero(trained):
    package = SOLID.package(trained[0], LAW, p_modes=trained[2], p_scale=0.0)
    assert Estimator(package).gappy(np.zeros(96))[1] == 0.0
    without_modes = dataclasses.replace(package, p_modes=np.empty((96, 0)), hot_p_modes=np.empty((0, 0)))
    fitted, misfit = Estimator(without_modes).gappy(np.full(96, 0.01))
    assert fitted.shape == (0,)
    assert misfit == pytest.approx(1.0)


# --- both, calibrated -----------------------------------------------------------------------------------------------


def test_calibrated_estimates_cover_histories_that_were_not_used(trained):
    modes, extra, p_modes = trained
    model = ReducedModel(SOLID.package(modes, LAW, extra=extra, p_modes=p_modes), LAW)

    def pairs(samples):
        found = []
        for pull, side, lift in samples:
            sample = history(LAW, pull=pull, side=side, lift=lift)
            exact, reduced = SOLID.run(sample), model.run(sample)
            u = SOLID.norm(lifted(reduced.coefficients, sample.displacements, modes) - exact.displacement)
            peaks = np.maximum.accumulate(SOLID.norm(exact.displacement))
            reconstructed = reduced.p_coefficients @ p_modes.T
            reference = np.maximum(np.linalg.norm(exact.p, axis=1), FLOOR * 1e-3 * np.sqrt(96))
            p = np.linalg.norm(reconstructed - exact.p, axis=1) / reference
            found.append(np.column_stack([reduced.indicators, u[1:] / peaks[1:], p[1:]]))
        return np.vstack(found)

    rng = np.random.default_rng(2026)
    draws = np.column_stack([rng.uniform(0.008, 0.016, 16), rng.uniform(5, 35, 16), rng.uniform(0, 6, 16)])
    quality = Calibration(pairs(draws[:10])).quality(pairs(draws[10:]))
    for target in quality:
        assert target.coverage > 0.8, quality
        assert 1.0 <= target.median_ratio <= 4.0, quality

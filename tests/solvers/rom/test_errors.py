import dataclasses

import numpy as np
import pytest
from suites.rom_cases import BAR, GENTLE, PULLS, pull_history, pulled_cube, simulated
from suites.solid_cases import alone

from forebay.solvers.materials.history import History
from forebay.solvers.rom.basis import Run, Settings, basis_of
from forebay.solvers.rom.calibration import Indicators
from forebay.solvers.rom.errors import (
    Judgement,
    calibration_pairs,
    displacement_field,
    judge,
    plastic_field,
    true_errors,
)
from forebay.solvers.rom.indicator import FLOOR
from forebay.solvers.rom.offline import Origin, build, make_package
from forebay.solvers.rom.online import ReducedModel

LAW = BAR.law
SETTINGS = Settings(displacement=1e-3, stress=1e-2, p=1e-2, cubature=1e-2)


@pytest.fixture(scope="module")
def cube():
    model = pulled_cube(alone())
    yield model
    model.destroy()


@pytest.fixture(scope="module")
def pulls(cube):
    return [simulated(cube, pull_history(LAW, *drive, back=0.5)) for drive in PULLS]


@pytest.fixture(scope="module")
def reduced(cube, pulls):
    return build(cube, pulls, Origin("cube", LAW), SETTINGS)


@pytest.fixture(scope="module")
def found(reduced, pulls):
    """The reduced simulation of the second pull."""
    return ReducedModel(reduced.package, LAW).run(pulls[1].history)


@pytest.fixture(scope="module")
def elastic(cube):
    run = simulated(cube, pull_history(LAW, *GENTLE))
    return run, make_package(cube, basis_of(cube, [run], SETTINGS), Origin("cube", LAW))


def part(run, first, last):
    """Steps first + 1 ... last of a run."""
    rows = slice(first, last + 1)
    history, full = run.history, run.trajectory
    fields = {name: getattr(full, name)[rows] for name in ("times", "displacement", "stress", "p")}
    return Run(
        History(history.times[rows], history.loads[rows], history.displacements[rows], history.temperature, LAW),
        dataclasses.replace(full, **fields),
    )


def part_of(found, first, last):
    rows = slice(first, last + 1)
    names = ("times", "loads", "displacements", "coefficients", "stress", "p", "p_coefficients")
    return dataclasses.replace(
        found, results=found.results[first:last], **{name: getattr(found, name)[rows] for name in names}
    )


def judged(found, results):
    """The same simulation with other (gappy, equilibrium, displacement error, p error) of its steps."""
    rows = [
        dataclasses.replace(result, indicators=Indicators(*row[:2]), displacement_error=row[2], p_error=row[3])
        for result, row in zip(found.results, results, strict=True)
    ]
    return dataclasses.replace(found, results=tuple(rows))


# --- fields ---------------------------------------------------------------------------------------------------------


def test_displacements_are_modes_and_lifts(cube, reduced, found):
    modes, n = reduced.basis.displacement.modes, reduced.basis.modes
    field = displacement_field(reduced.basis, cube.lifts, found)
    assert field.shape == (9, cube.dofs)
    for k in (0, 3, 8):
        expected = (
            sum(found.coefficients[k, j] * modes[:, j] for j in range(n)) + found.displacements[k, 0] * cube.lifts[:, 0]
        )
        np.testing.assert_allclose(field[k], expected, rtol=0, atol=1e-15)
    assert not field[0].any()


def test_plastic_strains_are_modes_of_p_and_never_negative(reduced, found):
    modes = reduced.basis.p.modes
    raw = found.p_coefficients @ modes.T
    assert raw.min() < 0, "or the test says nothing"
    np.testing.assert_array_equal(plastic_field(reduced.basis, found), np.where(raw > 0, raw, 0.0))


def test_without_modes_of_p_plastic_strains_are_zero(cube, elastic):
    run, reduced = elastic
    field = plastic_field(reduced.basis, ReducedModel(reduced.package, LAW).run(run.history))
    np.testing.assert_array_equal(field, np.zeros((9, cube.points)))


# --- true errors ----------------------------------------------------------------------------------------------------


def test_true_errors_are_those_computed_directly(cube, reduced, pulls, found):
    run = pulls[1]
    u, p = displacement_field(reduced.basis, cube.lifts, found), plastic_field(reduced.basis, found)
    moved, expected = [], []
    volume = cube.weights.sum()
    for k in range(1, 9):
        true_u, true_p = run.trajectory.displacement[k], run.trajectory.p[k]
        moved.append(np.sqrt(np.sum(cube.dof_weights * true_u**2)))
        u_error = np.sqrt(np.sum(cube.dof_weights * (u[k] - true_u) ** 2))
        p_error = np.sqrt(np.sum(cube.weights * (p[k] - true_p) ** 2) / volume)
        yielded = np.sqrt(np.sum(cube.weights * true_p**2) / volume)
        expected.append(
            (
                u_error / max(*moved, FLOOR * reduced.basis.displacement_scale),
                p_error / max(yielded, FLOOR * reduced.basis.p_scale),
            )
        )
    assert moved[-1] < 0.7 * max(moved), "taken back"
    errors = true_errors(cube, reduced.basis, run, found)
    np.testing.assert_allclose(errors, expected, rtol=1e-9)
    assert errors[3:].min() > 1e-5


def test_small_displacements_and_strains_refer_to_a_part_of_what_the_training_knows(cube, reduced, pulls, found):
    u, p = pulls[1].trajectory.displacement * 1e-4, pulls[1].trajectory.p * 1e-4
    tiny = Run(pulls[1].history, dataclasses.replace(pulls[1].trajectory, displacement=u, p=p))
    still = dataclasses.replace(
        found,
        coefficients=np.zeros_like(found.coefficients),
        displacements=np.zeros_like(found.displacements),
        p_coefficients=np.zeros_like(found.p_coefficients),
    )
    errors = true_errors(cube, reduced.basis, tiny, still)
    sizes = np.sqrt(u[1:] ** 2 @ cube.dof_weights), np.sqrt(p[1:] ** 2 @ cube.weights / cube.weights.sum())
    np.testing.assert_allclose(errors[:, 0], sizes[0] / (FLOOR * reduced.basis.displacement_scale), rtol=1e-12)
    np.testing.assert_allclose(errors[:, 1], sizes[1] / (FLOOR * reduced.basis.p_scale), rtol=1e-12)


def test_the_errors_of_a_later_part_refer_to_the_peak_before_it(cube, reduced, pulls, found):
    whole = true_errors(cube, reduced.basis, pulls[1], found)
    peak = np.sqrt(pulls[1].trajectory.displacement[:7] ** 2 @ cube.dof_weights).max()
    later = part(pulls[1], 6, 8), part_of(found, 6, 8)
    np.testing.assert_allclose(true_errors(cube, reduced.basis, *later, peak=peak), whole[6:], rtol=1e-12)
    assert (true_errors(cube, reduced.basis, *later)[:, 0] > 1.1 * whole[6:, 0]).all()
    pairs = calibration_pairs(cube, reduced.basis, *later, peak=peak)
    np.testing.assert_allclose(pairs, np.hstack([found.indicators, whole])[6:], rtol=1e-12)


def test_a_simulation_without_strain_has_no_error_of_p(cube, elastic):
    run, reduced = elastic
    found = ReducedModel(reduced.package, LAW).run(run.history)
    errors = true_errors(cube, reduced.basis, run, found)
    assert not errors[:, 1].any()
    assert 0 < errors[:, 0].max() < 1e-2


# --- pairs for the calibration --------------------------------------------------------------------------------------


def test_pairs_are_indicators_beside_true_errors(cube, reduced, pulls, found):
    pairs = calibration_pairs(cube, reduced.basis, pulls[1], found)
    np.testing.assert_array_equal(pairs[:, :2], found.indicators)
    np.testing.assert_array_equal(pairs[:, 2:], true_errors(cube, reduced.basis, pulls[1], found))


def test_steps_without_finite_indicators_give_no_pairs(cube, reduced, pulls, found):
    rows = np.hstack([found.indicators, found.errors])
    rows[2, 1], rows[5, 0] = np.inf, np.nan
    pairs = calibration_pairs(cube, reduced.basis, pulls[1], judged(found, rows))
    np.testing.assert_array_equal(pairs[:, :2], np.delete(found.indicators, [2, 5], axis=0))


def test_without_modes_of_p_its_errors_do_not_count(cube, elastic, pulls):
    _, reduced = elastic
    found = ReducedModel(reduced.package, LAW).run(pulls[1].history)
    assert true_errors(cube, reduced.basis, pulls[1], found)[-1, 1] == 1.0
    assert not calibration_pairs(cube, reduced.basis, pulls[1], found)[:, 3].any()


# --- one judgement of a simulation ----------------------------------------------------------------------------------


def test_each_step_counts_by_how_large_displacement_and_p_were(reduced, found):
    rng = np.random.default_rng(11)
    results = rng.uniform(0.1, 1.0, (8, 4))
    modes = reduced.package.modes
    columns = [*range(modes), len(reduced.package.gram) - 1]
    gram = reduced.package.gram[np.ix_(columns, columns)]
    values = np.hstack([found.coefficients, found.displacements])[1:]
    moved = np.maximum.accumulate([np.sqrt(row @ gram @ row) for row in values])
    yielded = np.array([np.linalg.norm(row) for row in found.p[1:]])
    assert moved[0] < 0.4 * moved[-1]
    assert yielded[1] < 0.4 * yielded[-1]
    of_u, of_p = moved / moved.max(), yielded / yielded.max()
    judgement = judge(reduced.package, judged(found, results))
    assert judgement.displacement == pytest.approx((results[:, 2] * of_u).max(), rel=1e-12)
    assert judgement.p == pytest.approx((results[:, 3] * of_p).max(), rel=1e-12)
    largest = max((results[:, 0] * of_p).max(), (results[:, 1] * of_u).max())
    assert judgement.indicator == pytest.approx(largest, rel=1e-12)


def test_an_early_step_counts_little_but_a_late_one_in_full(reduced, found):
    early, late = np.full((8, 4), 1e-3), np.full((8, 4), 1e-3)
    early[0, 2:], late[7, 2:] = 1.0, 1.0
    judgement = judge(reduced.package, judged(found, early))
    assert judgement.displacement < 0.4
    assert judgement.p < 0.1
    assert judge(reduced.package, judged(found, late)).estimate == pytest.approx(1.0, rel=1e-12)


def test_equal_estimates_are_the_judgement(reduced, found):
    judgement = judge(reduced.package, judged(found, np.tile([0.1, 0.2, 0.03, 0.05], (8, 1))))
    assert judgement.displacement == pytest.approx(0.03, rel=1e-12)
    assert judgement.p == pytest.approx(0.05, rel=1e-12)
    assert judgement.indicator == pytest.approx(0.2, rel=1e-12)
    assert judgement.estimate == judgement.p


def test_the_estimate_is_the_larger_error():
    assert Judgement(0.7, 0.3, 0.2).estimate == 0.3
    assert Judgement(0.7, 0.1, 0.2).estimate == 0.2


def test_what_could_not_be_estimated_is_infinite_even_before_anything_yields(reduced, elastic, found):
    results = np.hstack([found.indicators, found.errors])
    assert not found.p[1].any(), "the first step has no weight for p"
    results[0] = [0.0, np.inf, np.inf, np.inf]
    judgement = judge(reduced.package, judged(found, results))
    assert judgement == Judgement(np.inf, np.inf, np.inf)


def test_a_judgement_of_simulations_in_the_training_is_honest(cube, reduced, pulls):
    for run in pulls:
        found = ReducedModel(reduced.package, LAW).run(run.history)
        u = displacement_field(reduced.basis, cube.lifts, found) - run.trajectory.displacement
        moved = np.sqrt(run.trajectory.displacement**2 @ cube.dof_weights).max()
        missed = np.sqrt(u**2 @ cube.dof_weights).max() / moved
        p_missed = np.sqrt((plastic_field(reduced.basis, found)[-1] - run.trajectory.p[-1]) ** 2 @ cube.weights)
        judgement = judge(reduced.package, found)
        assert missed <= judgement.displacement < 100 * missed
        assert p_missed / np.sqrt(run.trajectory.p[-1] ** 2 @ cube.weights) <= judgement.p < 0.5


def test_an_elastic_simulation_has_no_error_of_p(elastic):
    run, reduced = elastic
    judgement = judge(reduced.package, ReducedModel(reduced.package, LAW).run(run.history))
    assert judgement.p == 0.0
    assert judgement.estimate == judgement.displacement

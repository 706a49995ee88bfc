import dataclasses
import pickle

import numpy as np
import pytest
from dense_solid import Isotropic, heated_tip, history, room_temperature
from suites.dense_cases import HISTORY, LAW, SOLID, Fragile, six_modes

from forebay.solvers.materials.law import LawError
from forebay.solvers.rom.equilibrium import Drive, NotConvergedError, ReducedEquilibrium
from forebay.solvers.rom.online import ReducedModel, ReducedSolveError


@pytest.fixture(scope="module")
def basis():
    return six_modes()


# --- Newton's method ------------------------------------------------------------------------------------------------


def test_newton_converges_quadratically(basis):
    package = SOLID.package(basis[0], LAW)
    equilibrium = ReducedEquilibrium(package, LAW, rtol=1e-13, max_iterations=20)
    norms = []
    evaluate = equilibrium._evaluate

    def recording(*arguments):
        norms.append(evaluate(*arguments))
        return norms[-1]

    equilibrium._evaluate = recording
    drive = Drive(HISTORY.loads[5], HISTORY.displacements[5], heated_tip(SOLID.positions, 1.0), 1.0)
    solution = equilibrium.solve(LAW, drive, LAW.initial(len(SOLID.weights)), np.zeros(6))
    assert solution.iterations >= 3
    last = np.log10(np.array(norms[-4:]) / norms[0])
    assert last[-1] < -11 or last[-1] < 1.7 * last[-2], norms
    assert last[-2] < 1.5 * last[-3], norms


def test_the_tolerance_decides_how_far_newton_goes(basis):
    package = SOLID.package(basis[0], LAW)
    loose, tight = (ReducedModel(package, LAW, rtol=rtol).run(HISTORY) for rtol in (1e-3, 1e-11))
    assert sum(r.iterations for r in loose.results) < sum(r.iterations for r in tight.results)
    assert max(r.residual for r in tight.results) <= 1e-11 < max(r.residual for r in loose.results) <= 1e-3


def test_too_few_iterations_are_reported(basis):
    equilibrium = ReducedEquilibrium(SOLID.package(basis[0], LAW), LAW, rtol=1e-12, max_iterations=1)
    drive = Drive(HISTORY.loads[5], HISTORY.displacements[5], heated_tip(SOLID.positions, 1.0), 1.0)
    with pytest.raises(NotConvergedError, match=r"after 1 iterations, allowed is 1e-12") as caught:
        equilibrium.solve(LAW, drive, LAW.initial(len(SOLID.weights)), np.zeros(6))
    assert 1e-12 < caught.value.residual < 1


@pytest.mark.parametrize("largest", [1e9, 0.006])
def test_a_correction_that_overshoots_is_shortened(largest):
    """Newton's method on σ = E atan(ε / s) s diverges from 5 s without a line search, or leaves where σ exists."""

    @dataclasses.dataclass(frozen=True)
    class Softening(Isotropic):
        name = "softening_test_law"

        def update(self, strain, temperature, dt, state, response, *, tangent=True):
            if np.abs(strain).max() > largest:
                raise LawError("too far", np.array([0]))
            response.stress[:] = self.young * 1e-3 * np.arctan(strain / 1e-3)
            response.tangent[:] = self.young * np.eye(6) / (1 + (strain / 1e-3)[:, :, None] ** 2)
            response.state[:] = state

    law = Softening()
    stretch = np.zeros((len(SOLID.nodes), 3))
    stretch[:, 0] = SOLID.nodes[:, 0]
    package = SOLID.package(stretch.reshape(-1, 1), law)
    volume = SOLID.weights.sum()
    force = 0.3 * np.pi / 2 * law.young * 1e-3 * volume
    equilibrium = ReducedEquilibrium(
        dataclasses.replace(package, loads=np.array([[1.0], [0.0]])), law, rtol=1e-10, max_iterations=40
    )
    drive = Drive(np.array([force, 0.0]), np.zeros(1), np.full(len(SOLID.weights), 20.0), 1.0)
    solution = equilibrium.solve(law, drive, law.initial(len(SOLID.weights)), np.full(1, 5e-3))
    assert solution.coefficients[0] == pytest.approx(1e-3 * np.tan(0.3 * np.pi / 2), rel=1e-6)


def test_a_singular_tangent_is_reported(basis):
    class Limp(Isotropic):
        def update(self, strain, temperature, dt, state, response, *, tangent=True):
            response.stress[:] = 0.0
            response.tangent[:] = 0.0
            response.state[:] = state

    model = ReducedModel(SOLID.package(basis[0], LAW), LAW)
    with pytest.raises(ReducedSolveError, match=r"step 1 .* the reduced tangent is singular; smaller parts"):
        model.run(dataclasses.replace(HISTORY, law=Limp()))


def test_a_law_that_returns_nan_is_reported(basis):
    class Broken(Isotropic):
        def update(self, strain, temperature, dt, state, response, *, tangent=True):
            super().update(strain, temperature, dt, state, response, tangent=tangent)
            response.stress[0, 0] = np.nan

    model = ReducedModel(SOLID.package(basis[0], LAW), LAW)
    with pytest.raises(ReducedSolveError, match="the residual is not finite"):
        model.run(dataclasses.replace(HISTORY, law=Broken()))


# --- steps that are cut ---------------------------------------------------------------------------------------------


def test_a_step_that_is_too_large_is_cut_and_ends_where_small_steps_end(basis):
    law = Fragile(largest=5e-4)
    package = SOLID.package(basis[0], law)
    coarse = history(law, steps=10)
    trajectory = ReducedModel(package, law).run(coarse)
    assert max(result.cuts for result in trajectory.results) >= 1
    whole = ReducedModel(SOLID.package(basis[0], LAW), LAW).run(history(LAW, steps=10))
    fine = ReducedModel(SOLID.package(basis[0], LAW), LAW).run(history(LAW, steps=160))
    scale = np.abs(fine.coefficients).max()
    cut_error = np.abs(trajectory.coefficients - fine.coefficients[::16]).max() / scale
    whole_error = np.abs(whole.coefficients - fine.coefficients[::16]).max() / scale
    assert 0 < cut_error < 5e-3
    assert cut_error < 1.1 * whole_error


def test_parts_of_a_step_cover_it_exactly_once(basis):
    spans, visited = [], []

    class Timed(Fragile):
        def update(self, strain, temperature, dt, state, response, *, tangent=True):
            spans.append(dt)
            super().update(strain, temperature, dt, state, response, tangent=tangent)

    law = Timed(largest=3e-4)

    def temperature(positions, time):
        visited.append(time)
        return room_temperature(positions, time)

    coarse = history(law, steps=2, temperature=temperature)
    model = ReducedModel(SOLID.package(basis[0], law), law)
    _, result = model.step(coarse, 1, model.initial())
    assert result.cuts >= 2
    done = [time for time, following in zip(visited, [*visited[1:], np.inf], strict=True) if following > time]
    assert done[-1] == coarse.times[1]
    assert np.all(np.diff(done) > 0)
    assert result.cuts == len(visited) - len(done)
    starts = {0.0, *done[:-1]}
    assert {round(span, 12) for span in spans} <= {round(time - start, 12) for time in visited for start in starts}
    assert spans[0] == 1.0
    assert spans[-1] == pytest.approx(done[-1] - done[-2], rel=1e-12)


def test_a_law_that_always_fails_ends_in_an_error_that_names_step_and_remedy(basis):
    class Hopeless(Fragile):
        def update(self, strain, temperature, dt, state, response, *, tangent=True):
            if (temperature > 70.0).any():
                raise LawError("too hot", np.array([0]))
            super().update(strain, temperature, dt, state, response, tangent=tangent)

    law = Hopeless()
    model = ReducedModel(SOLID.package(basis[0], law), law, max_cuts=4)
    seen = []
    with pytest.raises(ReducedSolveError, match=r"step 2 .* too hot; smaller .* full model and enrich") as caught:
        model.run(history(law), observe=lambda k, state, result: seen.append(k))
    assert seen == [1]
    assert caught.value.step == 2
    assert 0.25 < caught.value.time_s < 0.5
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (str(copy), copy.step, copy.time_s) == (str(caught.value), 2, caught.value.time_s)


def test_a_law_that_fails_only_where_no_force_is_taken_cuts_the_step_too(basis):
    law = Fragile(largest=5e-4)
    weights = SOLID.weights.copy()
    order = np.argsort(SOLID.positions[:, 0] < 1.0, kind="stable")
    weights[np.count_nonzero(SOLID.positions[:, 0] >= 1.0) :] = 0.0
    plain = SOLID.package(basis[0], law)
    names = ("strains", "positions", "lift_strains", "p_modes")
    package = SOLID.package(basis[0], law, weights=weights, **{name: getattr(plain, name)[order] for name in names})
    forces = Fragile()
    coarse = history(law, steps=4)
    free = ReducedModel(dataclasses.replace(package, law=plain.law), law)
    trajectory = free.run(coarse)
    assert sum(result.cuts for result in trajectory.results) > 0
    uncut = free.run(dataclasses.replace(coarse, law=forces))
    assert sum(result.cuts for result in uncut.results) == 0

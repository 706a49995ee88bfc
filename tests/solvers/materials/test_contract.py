"""What callers rely on besides the numbers: layouts, errors, pickles, names; and laws of one's own."""

import dataclasses
import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from material_points import AXIAL, DEVIATORIC, IDENTITY, ROOM, differences, drive, update, worked

from forebay.solvers.materials import checks
from forebay.solvers.materials.catalogue import LAWS, fingerprint, law_of
from forebay.solvers.materials.chaboche import Chaboche, LinearElastic, VonMises
from forebay.solvers.materials.law import Law, LawError, Response, StateVariable, columns, plastic_strain, width
from forebay.solvers.materials.return_mapping import elastic_points, plastic_points

MADE = [
    LinearElastic(young=7e4),
    VonMises(hardening=0.0),
    VonMises(kinematic=1e4),
    Chaboche(),
    Chaboche(kinematic_2=5e3, recall_2=30.0),
]
IDS = ["elastic", "von Mises", "von Mises, kinematic", "chaboche", "chaboche, two back-stresses"]
every_law = pytest.mark.parametrize("law", MADE, ids=IDS)


# --- layout and independence ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("law", "columns_expected"), zip(MADE, (1, 7, 13, 13, 19), strict=True), ids=IDS)
def test_the_state_has_a_column_for_p_and_only_the_tensors_the_law_needs(law, columns_expected):
    assert width(law) == columns_expected == law.initial(3).shape[1]
    assert columns(law, "p") == slice(0, 1)
    assert not law.initial(3).any()
    with pytest.raises(KeyError, match=r"has no variable 'damage', only \['p'"):
        columns(law, "damage")


@every_law
def test_points_are_independent(law):
    rng = np.random.default_rng(11)
    strain, temperature, state = rng.normal(size=(40, 6)) * 3e-3, rng.uniform(20, 900, 40), worked(law, 40, rng)
    whole = update(law, strain, temperature, 0.1, state)
    order = rng.permutation(40)
    shuffled = update(law, strain[order], temperature[order], 0.1, state[order])
    for name in ("stress", "tangent", "state"):
        np.testing.assert_array_equal(getattr(shuffled, name), getattr(whole, name)[order])
        one = update(law, strain[7:8], temperature[7:8], 0.1, state[7:8])
        np.testing.assert_array_equal(getattr(one, name)[0], getattr(whole, name)[7])


@every_law
def test_inputs_are_not_written_and_the_tangent_only_when_asked_for(law):
    rng = np.random.default_rng(13)
    strain, temperature, state = rng.normal(size=(9, 6)) * 3e-3, rng.uniform(20, 900, 9), worked(law, 9, rng)
    before = strain.copy(), temperature.copy(), state.copy()
    response = Response.empty(law, 9)
    response.tangent[:] = 7.0
    law.update(strain, temperature, 0.1, state, response, tangent=False)
    assert (response.tangent == 7.0).all()
    full = update(law, strain, temperature, 0.1, state)
    np.testing.assert_array_equal(response.stress, full.stress)
    np.testing.assert_array_equal(response.state, full.state)
    for now, then in zip((strain, temperature, state), before, strict=True):
        np.testing.assert_array_equal(now, then)


@every_law
def test_without_tangents_no_room_for_them_is_needed(law):
    response = Response(np.empty((5, 6)), np.empty(0), law.initial(5))
    law.update(np.zeros((5, 6)), np.full(5, ROOM), 0.1, law.initial(5), response, tangent=False)
    assert not response.stress.any()


@every_law
def test_no_points_are_no_error(law):
    assert update(law, np.empty((0, 6)), np.empty(0), 0.1, law.initial(0)).stress.shape == (0, 6)


# --- failures -------------------------------------------------------------------------------------------------------


@every_law
@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf, 1e200])
def test_points_with_strains_that_are_not_finite_are_named(law, broken):
    strain = np.random.default_rng(7).normal(size=(50, 6)) * 3e-3
    strain[3, 0] = strain[17, 4] = broken
    if broken == 1e200 and isinstance(law, LinearElastic):
        assert np.isfinite(update(law, strain, ROOM, 0.1, law.initial(50)).stress).all()
        return
    with pytest.raises(LawError, match=r"not finite at 2 of 50 points \(3, 17\); take a smaller step") as caught:
        update(law, strain, ROOM, 0.1, law.initial(50))
    np.testing.assert_array_equal(caught.value.points, [3, 17])


@pytest.mark.parametrize("law", MADE[1:], ids=IDS[1:])
def test_points_with_a_broken_state_are_named(law):
    for column in range(width(law)):
        state = law.initial(9)
        state[4, column] = np.nan
        with pytest.raises(LawError, match=rf"law '{law.name}': .* at 1 of 9 points \(4\)"):
            update(law, np.full((9, 6), 2e-3), ROOM, 0.1, state)


def test_many_failing_points_are_not_all_listed():
    with pytest.raises(LawError, match=r"at 8 of 8 points \(0, 1, 2, 3, 4, \.\.\.\)"):
        update(VonMises(), np.full((8, 6), np.nan), ROOM, 0.1, VonMises().initial(8))


def test_an_unsolved_equation_is_a_law_error_that_survives_pickling():
    with pytest.raises(LawError, match=r"law 'x': no plastic increment at 1 of 9 points") as caught:
        checks.refuse_points("x", "no plastic increment", np.array([4]), 9)
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)
    np.testing.assert_array_equal(again.points, [4])


@every_law
@pytest.mark.parametrize("temperature", [-0.5, 1000.5, np.nan])
def test_temperatures_outside_the_declared_range_are_refused(law, temperature):
    field = np.full(12, ROOM)
    field[5] = temperature
    message = rf"{temperature} °C at 1 of 12 points \(5\) is outside \[0.0, 1000.0\] °C.*`coldest` and `hottest`"
    with pytest.raises(ValueError, match=message):
        update(law, np.zeros((12, 6)), field, 0.1, law.initial(12))


@every_law
@pytest.mark.parametrize("dt", [-1e-9, np.nan, np.inf])
def test_impossible_steps_are_refused(law, dt):
    with pytest.raises(ValueError, match=rf"step of {dt} s; it must be finite and not negative"):
        update(law, np.zeros((2, 6)), ROOM, dt, law.initial(2))


@every_law
def test_arrays_that_a_kernel_would_misread_are_refused(law):
    response, state, hot = Response.empty(law, 4), law.initial(4), np.full(4, ROOM)
    strain = np.zeros((4, 6))
    with pytest.raises(ValueError, match=r"strain of shape \(4, 3\) where it takes \(4, 6\)"):
        law.update(np.zeros((4, 3)), hot, 0.1, state, response)
    with pytest.raises(ValueError, match=r"temperature of shape \(3,\) where it takes \(4,\)"):
        law.update(strain, hot[:3], 0.1, state, response)
    with pytest.raises(ValueError, match=r"state of shape \(3, \d+\) where"):
        law.update(strain, hot, 0.1, state[:3], response)
    with pytest.raises(ValueError, match=r"strain of float32; pass np.ascontiguousarray"):
        law.update(strain.astype(np.float32), hot, 0.1, state, response)
    with pytest.raises(ValueError, match=r"strain of float64, not C-contiguous; pass np.ascontiguousarray"):
        law.update(np.zeros((6, 4)).T, hot, 0.1, state, response)
    for name in ("stress", "tangent", "state"):
        small = dataclasses.replace(response, **{name: getattr(response, name)[:2]})
        with pytest.raises(ValueError, match=rf"response.{name} of shape \(2, "):
            law.update(strain, hot, 0.1, state, small)


@every_law
def test_inputs_may_be_read_only_and_outputs_may_not(law):
    inputs = np.full((4, 6), 3e-3), np.full(4, 300.0), law.initial(4)
    expected = update(law, *inputs[:2], 0.1, inputs[2])
    response = Response.empty(law, 4)
    compiled = [len(kernel.signatures) for kernel in (elastic_points, plastic_points)]
    for array in inputs:
        array.setflags(write=False)
    law.update(*inputs[:2], 0.1, inputs[2], response)
    np.testing.assert_array_equal(response.tangent, expected.tangent)
    assert compiled == [len(kernel.signatures) for kernel in (elastic_points, plastic_points)]
    for name in ("stress", "tangent", "state"):
        getattr(response, name).setflags(write=False)
        with pytest.raises(ValueError, match=rf"cannot write response\.{name}, which is read-only"):
            law.update(*inputs[:2], 0.1, inputs[2], response)
        getattr(response, name).setflags(write=True)


@pytest.mark.parametrize(
    ("make", "constants", "message"),
    [
        (LinearElastic, {"young": -1.0}, "young = -1.0 of law 'linear_elastic' .* must be positive"),
        (LinearElastic, {"young_slope": 1.5}, r"young_slope = 1.5 is -94000 at 1000.0 °C, .*narrow the range"),
        (LinearElastic, {"poisson": 0.5}, "poisson = 0.5 of law 'linear_elastic' must lie between -1 and 0.5"),
        (LinearElastic, {"coldest": 1000.0}, "coldest = 1000.0 .* must be below hottest = 1000.0"),
        (LinearElastic, {"expansion": np.nan}, "expansion = nan of law 'linear_elastic' must be a finite number"),
        (VonMises, {"yield_stress": 0.0}, "yield_stress = 0.0 of law 'von_mises' .* must be positive"),
        (VonMises, {"hardening": -1.0}, "hardening = -1.0 of law 'von_mises' .* must not be negative"),
        (VonMises, {"kinematic": -1.0}, "kinematic = -1.0 .* must not be negative"),
        (VonMises, {"recall": -1.0}, "recall = -1.0 .* must not be negative"),
        (VonMises, {"kinematic_2": 5e3}, "kinematic_2 = 5000.0 .* is a second back-stress without a first"),
        (VonMises, {"saturation": -100.0}, "saturation = -100.0 .* leaves a yield stress of -23.5 MPa at 1000.0 °C"),
        (
            VonMises,
            {"saturation": -60.0, "saturation_rate": 1e4},
            "saturation_rate = 10000.0 .* softens with a slope of .* below 3G",
        ),
        (Chaboche, {"viscosity": 0.0}, "viscosity = 0.0 of law 'chaboche' .* must be positive"),
        (Chaboche, {"exponent": 0.5}, "exponent = 0.5 .* must be at least 1"),
        (Chaboche, {"hottest": 3000.0}, r"yield_stress = 150.0 .* is -73.5 at 3000.0 °C, where it must be positive"),
    ],
)
def test_constants_out_of_range_are_refused(make, constants, message):
    with pytest.raises(ValueError, match=message):
        make(**constants)


# --- names, files, processes ----------------------------------------------------------------------------------------


@every_law
def test_a_law_is_made_again_from_its_name_and_constants_through_json(law):
    constants = json.loads(json.dumps(dict(law.constants)))
    again = law_of(law.name, constants)
    assert again == law
    assert type(again) is type(law)
    assert fingerprint(again) == fingerprint(law)


@every_law
def test_a_pickled_law_gives_the_same_numbers(law):
    again = pickle.loads(pickle.dumps(law))
    assert again == law
    assert hash(again) == hash(law)
    strain = np.random.default_rng(7).normal(size=(6, 6)) * 4e-3
    one, other = (update(each, strain, 300.0, 0.1, each.initial(6)) for each in (law, again))
    np.testing.assert_array_equal(one.tangent, other.tangent)


def test_the_catalogue_has_every_law_by_its_own_name():
    assert {name: law_of(name).name for name in LAWS} == {name: name for name in LAWS}


def test_unknown_names_and_constants_are_answered_with_the_choices():
    with pytest.raises(ValueError, match=r"'chabosch' is not a known law; did you mean 'chaboche'.*linear_elastic"):
        law_of("chabosch")
    with pytest.raises(ValueError, match=r"law 'von_mises' has no constant 'viscosity'; .*choose one of young"):
        law_of("von_mises", {"viscosity": 300.0})
    with pytest.raises(ValueError, match=r"young = '2e5' of law 'von_mises' must be a number"):
        law_of("von_mises", {"young": "2e5"})
    with pytest.raises(ValueError, match=r"'os:system' is not a known law"):
        law_of("os:system", {})


def test_the_fingerprint_tells_name_and_constants_apart_and_not_how_numbers_are_written():
    distinct = {fingerprint(law) for law in (*MADE, VonMises(), Chaboche(exponent=np.nextafter(8.0, 9.0)))}
    assert len(distinct) == len(MADE) + 2
    assert fingerprint(VonMises(young=200000)) == fingerprint(VonMises(young=2e5))
    assert fingerprint(VonMises(coldest=-0.0)) == fingerprint(VonMises(coldest=0.0))


def test_the_fingerprint_is_the_same_in_every_process():
    code = (
        "from forebay.solvers.materials.catalogue import fingerprint, law_of;"
        "import sys; sys.stdout.write(fingerprint(law_of('chaboche')))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    child = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert child.stdout == fingerprint(Chaboche())


# --- a law of one's own ---------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Stiffening:
    """σ = bulk tr(ε) 1 + 2 G (1 + c |dev ε|²) dev ε, nonlinear elastic: nothing of Forebay's laws in it."""

    stiffening: float = 1e4
    name = "stiffening"
    variables = (StateVariable("p", 1),)

    @property
    def constants(self):
        return {"stiffening": self.stiffening}

    def initial(self, points):
        return np.zeros((points, 1))

    def update(self, strain, temperature, dt, state, response, *, tangent=True):
        deviator = strain @ DEVIATORIC
        square = np.sum(deviator**2, axis=1)
        bad = np.flatnonzero(~np.isfinite(square))
        checks.refuse_points(self.name, "strain is not finite", bad, len(strain))
        shear = 2 * 80e3 * (1 + self.stiffening * square)
        response.stress[:] = shear[:, None] * deviator + np.outer(170e3 * strain @ IDENTITY, IDENTITY)
        response.state[:] = state
        if tangent:
            response.tangent[:] = shear[:, None, None] * DEVIATORIC + 170e3 * np.outer(IDENTITY, IDENTITY)
            response.tangent[:] += 4 * 80e3 * self.stiffening * deviator[:, :, None] * deviator[:, None, :]


def test_a_law_of_ones_own_needs_nothing_but_the_protocol():
    law: Law = Stiffening()
    strain = np.random.default_rng(7).normal(size=(5, 6)) * 4e-3
    response = update(law, strain, ROOM, 0.1, law.initial(5))
    np.testing.assert_allclose(response.tangent, differences(law, strain, ROOM, 0.1, law.initial(5)), atol=1.0)
    target = np.zeros((4, 6))
    target[:, 0] = [0.0, 2e-3, 5e-3, 9e-3]
    _, stress, state = drive(law, np.arange(4.0), target, stress_controlled=AXIAL)
    assert np.all(np.diff(np.diff(stress[:, 0]) / np.diff(target[:, 0])) > 0)
    assert not plastic_strain(law, state).any()
    assert len(fingerprint(law)) == 16
    with pytest.raises(LawError, match=r"law 'stiffening': strain is not finite at 1 of 5 points \(2\)"):
        update(law, np.where(np.arange(5)[:, None] == 2, np.nan, strain), ROOM, 0.1, law.initial(5))

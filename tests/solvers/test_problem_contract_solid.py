"""What `check_contract` says of a solid that breaks a promise; nothing is meshed or solved."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from forebay.pipeline.errors import ProblemError, StudyError
from forebay.pipeline.records import Field
from forebay.solvers.materials.history import History
from forebay.solvers.problems import check_contract, load_problem
from forebay.solvers.problems.necked_bar import NeckedBar
from forebay.solvers.problems.solid import is_solid

BAR = NeckedBar(cells=(4, 2, 2), steps=8, frames=4)
SCHEMA, HISTORY = BAR.schema, BAR.history({"parameters": np.array([200.0, 600.0, 20.0, 1.0])})


class Bar:
    """A solid that keeps every promise, and has no model: none is asked for."""

    schema, law, stored_steps = SCHEMA, BAR.law, BAR.stored_steps

    def model(self, comm, *, rtol=1e-8):
        raise AssertionError("checking must not make a model")

    def draw(self, parameters, rng):
        return {}

    def history(self, draw):
        return HISTORY

    def fields(self, displacement, p):
        raise AssertionError("checking must not ask for fields")


def broken(**members):
    return type("Broken", (Bar,), members)()


def without(*names):
    members = {name: value for name, value in vars(Bar).items() if name not in (*names, "__dict__", "__weakref__")}
    return type("Broken", (), members)()


def with_noise(values):
    field = Field("noise", ("k",), (2,))
    return broken(schema=replace(SCHEMA, inputs=(field,)), draw=lambda self, parameters, rng: {"noise": values(rng)})


def refuse(self, draw):
    raise StudyError("problem.cycles = 7 is too many")


@pytest.mark.parametrize("problem", [Bar(), BAR, with_noise(lambda rng: rng.random(2))])
def test_a_solid_that_keeps_its_promises_passes(problem):
    check_contract(problem)


@pytest.mark.parametrize("name", ["law", "stored_steps", "model", "draw", "fields", "schema"])
def test_a_missing_member_is_named_beside_all_that_are_needed(name):
    message = f"^Broken has no {name}; a solid needs schema, law, stored_steps, model, draw, history, fields$"
    with pytest.raises(ProblemError, match=message):
        check_contract(without(name))


def test_all_missing_members_are_named_at_once():
    with pytest.raises(ProblemError, match="Broken has no law, stored_steps, model; a solid needs"):
        check_contract(without("law", "stored_steps", "model"))


def test_what_has_no_history_is_taken_for_a_linear_problem():
    assert is_solid(Bar())
    assert not is_solid(without("history"))
    with pytest.raises(ProblemError, match="Broken has no symmetry; a problem needs"):
        check_contract(without("history"))


def test_members_may_be_fields_of_the_dataclass():
    @dataclass(frozen=True)
    class WithField(type(without("stored_steps"))):
        stored_steps: tuple[int, ...]

    check_contract(WithField((2, 4, 6, 8)))
    with pytest.raises(ProblemError, match=r"WithField.stored_steps is \[2 4 6 9\]"):
        check_contract(WithField((2, 4, 6, 9)))


STEPS = r"Broken.stored_steps is {}; give ascending numbers from 1 to 8, the steps of the history"


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (broken(history=lambda self, draw: {"times": 3}), "Broken.history returned a dict; return a History"),
        (broken(history=lambda self, draw: None), "Broken.history returned a NoneType; return a History"),
        (broken(history=lambda self, draw: 1 / 0), "Broken.history raised ZeroDivisionError: division by zero"),
        (
            broken(history=lambda self, draw: replace(HISTORY, loads=HISTORY.loads[:-1])),
            r"Broken.history raised ValueError: loads of shape \(8, 1\) for 9 times",
        ),
        (broken(stored_steps=np.array([2, 6, 4, 8])), STEPS.format(r"\[2 6 4 8\]")),
        (broken(stored_steps=np.array([2, 4, 4, 8])), STEPS.format(r"\[2 4 4 8\]")),
        (broken(stored_steps=np.array([0, 4, 6, 8])), STEPS.format(r"\[0 4 6 8\]")),
        (broken(stored_steps=np.array([2, 4, 6, 9])), STEPS.format(r"\[2 4 6 9\]")),
        (broken(stored_steps=np.array([2.0, 4.0, 6.0, 8.0])), STEPS.format(r"\[2. 4. 6. 8.\]")),
        (broken(stored_steps=np.array([], np.int64)), STEPS.format(r"\[\]")),
        (broken(stored_steps=np.array([[2, 4, 6, 8]])), STEPS.format(r"\[\[2 4 6 8\]\]")),
        (broken(stored_steps=8), STEPS.format("8")),
        (broken(stored_steps=property(lambda self: 1 / 0)), "Broken.stored_steps raised ZeroDivisionError"),
        (
            broken(stored_steps=np.array([1, 4, 6, 8])),
            r"Broken.schema.times is \(0.5, 1.0, 1.5, 2.0\), but the history has \[0.25 1. +1.5 +2. +\] at the stored",
        ),
        (broken(stored_steps=np.array([2, 4, 8])), r"Broken.schema.times is .*, but the history has \[0.5 1. +2. +\]"),
        (broken(stored_steps=np.array([8]), schema=replace(SCHEMA, times=())), r"schema.times is \(\), but the his"),
        (broken(schema=replace(SCHEMA, times=(0.5, 1.0, 1.0, 2.0))), "Broken.schema.times must rise from above 0"),
        (broken(schema={"u": 3}), "Broken.schema is a dict; make it a property with a Schema"),
        (broken(schema=replace(SCHEMA, outputs=())), "Broken.schema has no outputs"),
        (broken(draw=lambda self, parameters, rng: None), "Broken.draw returned a NoneType; return a dict of arrays"),
        (with_noise(lambda rng: np.random.default_rng().random(2)), "two different fields 'noise' from the same"),
        (with_noise(lambda rng: rng.random(3)), r"returned 'noise' of shape \(3,\); the schema says \(2,\)"),
    ],
)
def test_a_broken_promise_is_named(problem, message):
    with pytest.raises(ProblemError, match=message):
        check_contract(problem)


def test_the_draw_reaches_the_history_with_its_parameters():
    seen = []
    check_contract(broken(history=lambda self, draw: seen.append(draw["parameters"]) or HISTORY))
    for value, parameter in zip(seen[0], SCHEMA.parameters, strict=True):
        assert parameter.low <= value <= parameter.high


def test_errors_meant_for_the_user_pass_unchanged():
    with pytest.raises(StudyError, match=r"^problem.cycles = 7 is too many$"):
        check_contract(broken(history=refuse))


def test_a_users_solid_is_checked_when_it_is_loaded(tmp_path):
    (tmp_path / "bar.py").write_text(
        "from dataclasses import dataclass\n"
        "from forebay.solvers.problems.necked_bar import NeckedBar\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Late(NeckedBar):\n"
        "    @property\n"
        "    def stored_steps(self):\n"
        "        return super().stored_steps + 1\n"
    )
    with pytest.raises(ProblemError, match=r"Late.stored_steps is \[5 9\]; give ascending numbers from 1 to 8"):
        load_problem("bar.py:Late", {"cells": [4, 2, 2], "steps": 8, "frames": 2}, folder=tmp_path)


def test_the_history_of_the_bar_is_what_is_asked_for():
    assert isinstance(HISTORY, History)
    np.testing.assert_array_equal(HISTORY.times[BAR.stored_steps], SCHEMA.times)

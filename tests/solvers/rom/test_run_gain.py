import numpy as np
import pytest

from forebay.solvers.rom import run_gain
from forebay.solvers.rom.run_gain import LEAST, judge_run


class Stored:
    """What is read of a data set."""

    def __init__(self, fields, parameters, methods, codes, valid=None):
        self._arrays = {"u": fields.astype(np.float32), "parameters": parameters}
        self.methods = methods
        self._columns = {"method": np.array(codes), "valid": np.ones(len(codes), bool) if valid is None else valid}

    def column(self, name):
        return self._columns[name]

    def read(self, name, rows):
        return self._arrays[name][rows]


def two_kinds(samples, frames=8, nodes=40):
    """Simulations whose displacements lie in one of two spaces, by the sign of the first parameter."""
    rng = np.random.default_rng(13)
    parameters = rng.uniform(-1, 1, (samples, 3))
    spaces = rng.standard_normal((2, 9, nodes * 3))
    kind = (parameters[:, 0] > 0).astype(int)
    fields = np.array([rng.standard_normal((frames, 9)) @ spaces[k] for k in kind])
    return fields.reshape(samples, frames, nodes, 3), parameters


def test_a_run_of_two_kinds_is_told_what_two_bases_would_have_gained():
    fields, parameters = two_kinds(48)
    found = judge_run(Stored(fields, parameters, ("full", "rom"), [0] * 48), "u")
    assert found["local"] is False, "this run used one basis"
    assert found["reason"].startswith("2 local bases would have 1.")
    assert found["reason"].endswith("this run used one")
    assert found["gains"]


def test_a_run_of_one_kind_keeps_one_basis():
    rng = np.random.default_rng(7)
    space = rng.standard_normal((30, 120)) * 0.7 ** np.arange(30)[:, None]
    fields = (rng.standard_normal((40, 8, 30)) @ space).reshape(40, 8, 40, 3)
    found = judge_run(Stored(fields, rng.uniform(size=(40, 2)), ("full",), [0] * 40), "u")
    assert found["local"] is False
    assert "kept" in found["reason"]


def test_samples_of_the_reduced_model_and_dropped_ones_do_not_count():
    fields, parameters = two_kinds(40)
    codes = np.array([0] * LEAST + [1] * (40 - LEAST))
    valid = np.ones(40, bool)
    valid[3] = False
    few = judge_run(Stored(fields, parameters, ("full", "rom"), codes, valid), "u")
    assert few == {
        "local": False,
        "reason": f"{LEAST - 1} samples were solved in full, and {LEAST} are needed to compare: one basis is kept",
    }
    assert judge_run(Stored(fields, parameters, ("rom",), [0] * 40), "u")["reason"] == "no sample was solved in full"


def test_samples_that_cannot_be_compared_are_a_reason_and_no_crash(caplog):
    fields, parameters = two_kinds(30)
    fields[4] = 0.0
    found = judge_run(Stored(fields, parameters, ("full",), [0] * 30), "u")
    assert "cannot be compared" in found["reason"]
    assert "local bases were not judged" in caplog.text


def test_the_comparison_is_at_the_number_of_modes_that_is_stated(monkeypatch):
    fields, parameters = two_kinds(48)
    monkeypatch.setattr(run_gain, "MODES", 4)
    assert "at n = 4" in judge_run(Stored(fields, parameters, ("full",), [0] * 48), "u")["reason"]


@pytest.mark.parametrize("samples", [LEAST - 1, LEAST])
def test_the_least_number_is_enough(samples):
    fields, parameters = two_kinds(samples)
    found = judge_run(Stored(fields, parameters, ("full",), [0] * samples), "u")
    assert ("are needed" in found["reason"]) == (samples < LEAST)

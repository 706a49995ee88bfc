"""Samples of a solid that fail: what is recorded, and what ends the run."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from suites.solid_blocks import LIMIT, NAMES, SIZE, TOLERANCE, make, methods, relative, solved

from forebay.pipeline.errors import ForebayError, ProblemError
from forebay.pipeline.records import Field, Outcome
from forebay.solvers.materials.law import LawError
from forebay.solvers.problems.necked_bar import NeckedBar
from forebay.solvers.rom.offline import CubatureError
from forebay.solvers.rom.tasks import FullSample


class Brittle:
    """Chaboche's law until it breaks."""

    def __init__(self, law):
        self._law = law

    def __getattr__(self, name):
        return getattr(self._law, name)

    def update(self, *arguments, **options):
        raise LawError("law 'chaboche': broken in two at 1 of 192 points (7)", np.array([7]))


@dataclass(frozen=True, kw_only=True)
class Faulty(NeckedBar):
    """`fault` is what goes wrong where the traction is above `LIMIT`."""

    fault: str = ""

    @property
    def schema(self):
        return replace(super().schema, inputs=(Field("f", ("k",), (2,)),))

    def hit(self, values, fault):
        return self.fault == fault and values[0] > LIMIT

    def draw(self, parameters, rng):
        if self.hit(parameters, "draw raises"):
            raise ZeroDivisionError("no heat")
        return {"f": np.array([1.0, np.inf if self.hit(parameters, "infinite input") else 2.0])}

    def history(self, draw):
        values = draw["parameters"]
        if self.hit(values, "history raises"):
            raise KeyError("no programme")
        history = super().history(draw)
        if self.hit(values, "too hot"):
            return replace(history, temperature=lambda positions, time: np.full(len(positions), 20.0 + 990.0 * time))
        if self.hit(values, "temperature raises"):
            return replace(history, temperature=lambda positions, time: 1 / 0)
        if self.hit(values, "other loads"):
            return replace(history, loads=np.hstack([history.loads, history.loads]))
        if self.hit(values, "law fails"):
            return replace(history, law=Brittle(history.law))
        return history

    def fields(self, displacement, p):
        fields = super().fields(displacement, p)
        if self.fault == "fields raises":
            raise IndexError("no such node")
        if self.fault == "fields overflow":
            return {**fields, "p": fields["p"] * 1e60}
        return {**fields, "u": fields["u"][:, 1:]} if self.fault == "fields of another shape" else fields


FAULTS = [
    ("draw raises", Outcome.PROBLEM_RAISED, "draw: ZeroDivisionError: no heat"),
    ("infinite input", Outcome.NONFINITE_INPUT, "input 'f' has values that float32 cannot hold"),
    ("history raises", Outcome.PROBLEM_RAISED, "history: KeyError: 'no programme'"),
    ("temperature raises", Outcome.PROBLEM_RAISED, "temperature: ZeroDivisionError: division by zero"),
    ("too hot", Outcome.PROBLEM_RAISED, "history: ValueError: 1010.0 °C at"),
    ("other loads", Outcome.PROBLEM_RAISED, "history: ValueError: the history has 2 "),
    ("law fails", Outcome.DIVERGED, "the law failed: law 'chaboche': broken in two"),
]


@pytest.mark.parametrize("method", ["full", "rom"])
@pytest.mark.parametrize(("fault", "outcome", "message"), FAULTS)
def test_a_faulty_sample_is_recorded_and_costs_itself_only(trained, stream, method, fault, outcome, message):
    _, sound, again = stream
    block = solved(make(trained, problem=Faulty(**SIZE, fault=fault), method=method, samples=4))
    hit = sound.arrays["parameters"][:4, 0] > LIMIT
    assert hit.tolist() == [False, False, True, False], "one comes after the faulty one"
    np.testing.assert_array_equal(block.valid_rows, [0, 1, 3])
    for row, record in enumerate(block.records):
        assert record.seed == sound.records[row].seed
        if hit[row]:
            assert record.outcome is outcome
            assert message in record.message
            assert np.isnan(record.residual)
            assert record.method == "full"
            assert all(np.isnan(array[row]).all() for array in block.arrays.values())
        else:
            assert record.outcome is Outcome.CONVERGED
            bound = 1e-5 if method == "full" else 3 * TOLERANCE
            assert all(relative(block.arrays[name][row], again[row][0][name]) < bound for name in NAMES)
    if method == "rom":
        assert [choice["failures"] for choice in block.choices] == [0, 1]


def test_a_history_that_is_none_is_the_problems_fault(tmp_path):
    class Forgetful(NeckedBar):
        def history(self, draw):
            super().history(draw)

    (record,) = solved(make(tmp_path, problem=Forgetful(**SIZE), method="full", samples=1)).records
    assert record.outcome is Outcome.PROBLEM_RAISED
    assert record.message.startswith("history: AttributeError: ")


@pytest.mark.parametrize("method", ["full", "rom"])
@pytest.mark.parametrize(
    ("fault", "outcome", "message"),
    [
        ("fields raises", Outcome.PROBLEM_RAISED, "fields: IndexError: no such node"),
        ("fields overflow", Outcome.NONFINITE_SOLUTION, "output 'p' has values that float32 cannot hold"),
    ],
)
def test_fields_that_cannot_be_kept_fault_the_sample(trained, method, fault, outcome, message):
    problem = Faulty(**SIZE, fault=fault)
    block = solved(make(trained, problem=problem, method=method, samples=2))
    assert [record.outcome for record in block.records] == [outcome] * 2
    assert {record.message for record in block.records} == {message}
    assert methods(block) == [method] * 2
    assert all(np.isnan(array).all() for array in block.arrays.values())


def test_fields_of_another_shape_than_the_schemas_end_the_run(tmp_path):
    message = r"fields\(\) returned 'u' of shape \(3, 62, 3\); the schema says 'u' of shape \(3, 63, 3\)"
    with pytest.raises(ProblemError, match=message):
        solved(make(tmp_path, problem=Faulty(**SIZE, fault="fields of another shape"), method="full", samples=1))


@dataclass
class Stub:
    """Full samples without a solve."""

    outcome: FullSample | Exception
    closed: list[bool] = field(default_factory=list)

    def solve(self, draw, *, learn):
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    def close(self):
        self.closed.append(True)


@pytest.mark.parametrize(
    ("outcome", "kind", "message"),
    [
        (
            CubatureError("the cubature stays at 0.1"),
            ProblemError,
            "^the reduced model cannot learn from sample 0: the cubature stays at 0.1",
        ),
        (FullSample(None, None, 3, 0.0, 0), ForebayError, "the full model returned no fields .* report this as a bug"),
    ],
)
def test_what_no_sample_is_to_blame_for_ends_the_run(tmp_path, outcome, kind, message):
    stub = Stub(outcome)
    with pytest.raises(kind, match=message):
        solved(make(tmp_path, samples=1, full=stub))
    assert stub.closed == [True]

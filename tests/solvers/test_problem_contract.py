from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pytest

from forebay.pipeline.errors import ProblemError, StudyError
from forebay.pipeline.records import Coordinate, Field, Parameter, Schema
from forebay.solvers.problems import check_contract

N = 6
UNSEEDED = (np.full(N, float(k)) for k in itertools.count())


def rod_schema(**changes):
    plain = {
        "parameters": (Parameter("k", 1.0, 2.0),),
        "inputs": (Field("f", ("x",), (N,)),),
        "outputs": (Field("u", ("x",), (N,)),),
        "coordinates": (Coordinate("x", ("x",), np.arange(N)),),
    }
    return Schema(**plain | changes)


class Rod:
    """-(k u')' = f on N cells: keeps every promise."""

    schema = rod_schema()
    symmetry = "spd"

    def draw(self, parameters, rng):
        return {"f": rng.standard_normal(N)}

    def pattern(self):
        rows = [[j for j in (i - 1, i, i + 1) if 0 <= j < N] for i in range(N)]
        return np.cumsum([0, *map(len, rows)], dtype=np.int32), np.concatenate(rows).astype(np.int32)

    def assemble(self, draw, values, rhs):
        indptr, indices = Rod.pattern(self)
        rows = np.repeat(np.arange(N), np.diff(indptr))
        values[:] = np.where(rows == indices, 2.0, -1.0) * draw["parameters"][0]
        rhs[:] = draw["f"] * N**-2

    def fields(self, draw, solution):
        return {"u": solution}


class Cooling(Rod):
    """The same in time."""

    schema = rod_schema(times=(0.1, 0.2))
    fixed_matrix = False

    def assemble(self, draw, values, rhs):
        super().assemble(draw, values, np.empty(N))  # the right-hand side is left to `advance`

    def initial(self, draw):
        return np.zeros(N)

    def advance(self, draw, step, state, rhs):
        rhs[:] = state


def broken(base=Rod, **members):
    return type("Broken", (base,), members)()


def unsorted_pattern(self):
    indptr, indices = Rod.pattern(self)
    return indptr, np.concatenate([indices[1::-1], indices[2:]])


def without_diagonal(self):
    return np.arange(N + 1, dtype=np.int32), np.roll(np.arange(N, dtype=np.int32), 1)


def skew(self, draw, values, rhs):
    Rod.assemble(self, draw, values, rhs)
    values[1] = -0.5


def negative(self, draw, values, rhs):
    Rod.assemble(self, draw, values, rhs)
    values *= -1


def indefinite(self, draw, values, rhs):
    Rod.assemble(self, draw, values, rhs)
    indptr, indices = Rod.pattern(self)
    values[np.repeat(np.arange(N), np.diff(indptr)) != indices] *= 100
    values[0] = 1e-9


def half_written(self, draw, values, rhs):
    Rod.assemble(self, draw, values, np.empty(N))
    rhs[:2] = 0.0


def raising_schema(self):
    raise AttributeError("no attribute 'wombat'")


def refuse(self, draw, solution):
    raise StudyError("problem.cells = 3 is too coarse")


@pytest.mark.parametrize("problem", [Rod(), Cooling()])
def test_a_problem_that_keeps_its_promises_passes(problem):
    check_contract(problem)


def test_a_problem_with_a_system_of_its_own_needs_no_pattern():
    class Bringing:
        schema, symmetry, draw, fields = rod_schema(), "spd", Rod.draw, Rod.fields

        def system(self):
            raise AssertionError("checking must not assemble")

    check_contract(Bringing())


def test_members_may_be_fields_of_the_dataclass():
    @dataclass(frozen=True)
    class WithField(Rod):
        symmetry: str

    check_contract(WithField("general"))
    with pytest.raises(
        ProblemError, match=r"WithField\.symmetry is 'hermitian'; choose one of spd, symmetric, general"
    ):
        check_contract(WithField("hermitian"))


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (broken(schema=property(lambda self: {"u": 3})), "Broken.schema is a dict; make it a property with a Schema"),
        (broken(schema=property(raising_schema)), "Broken.schema raised AttributeError: no attribute 'wombat'"),
        (broken(schema=rod_schema(outputs=())), "Broken.schema has no outputs; name what `fields` returns"),
        (broken(schema=rod_schema(parameters=(Parameter("f", 0, 1),))), "has the name 'f' twice; parameters, inputs"),
        (broken(schema=rod_schema(outputs=(Field("parameters", ("x",), (N,)),))), "has the name 'parameters' twice"),
        (
            broken(schema=rod_schema(outputs=(Field("u", ("y", "x"), (N,)),))),
            r"'u' with dims \('y', 'x'\) and shape \(6,\)",
        ),
        (
            broken(schema=rod_schema(coordinates=(Coordinate("x", ("x",), np.arange(N + 1)),))),
            r"coordinate 'x' along \('x',\) with shape \(7,\); the fields say \(6,\)",
        ),
        (
            broken(schema=rod_schema(times=(0.1, 0.2))),
            "Broken has no fixed_matrix, initial, advance; a problem with times",
        ),
        (
            broken(Cooling, schema=rod_schema(times=(0.0, 0.1))),
            "times must rise from above 0; the initial state is not",
        ),
        (broken(Cooling, schema=rod_schema(times=(0.2, 0.1))), "times must rise from above 0"),
        (broken(draw=lambda self, p, rng: None), "Broken.draw returned a NoneType; return a dict of arrays"),
        (broken(draw=lambda self, p, rng: {"g": 1}), r"Broken.draw returned \['g'\]; the schema also says 'f'"),
        (broken(draw=lambda self, p, rng: {"f": np.ones(3)}), r"'f' of shape \(3,\); the schema says \(6,\)"),
        (broken(draw=lambda self, p, rng: {"f": np.full(N, np.inf)}), "returned 'f' of type float64 with NaN, inf"),
        (
            broken(draw=lambda self, p, rng: {"f": np.ones(N, complex)}),
            "returned 'f' of type complex128 with .* no numbers",
        ),
        (
            broken(draw=lambda self, p, rng: {"f": next(UNSEEDED)}),
            "two different fields 'f' from the same generator",
        ),
        (broken(draw=lambda self, p, rng: 1 / 0), "Broken.draw raised ZeroDivisionError: division by zero"),
        (broken(pattern=lambda self: 3), r"Broken.pattern returned a int; return \(indptr, indices\)"),
        (broken(pattern=lambda self: (np.arange(7.0), np.arange(6))), r"arrays of float64 \(7,\) and int64 \(6,\)"),
        (
            broken(pattern=lambda self: (np.arange(6), np.arange(6))),
            "an indptr of 6 numbers for 6 indices; it must rise",
        ),
        (broken(pattern=lambda self: (np.arange(7), np.arange(1, 7))), r"columns 1 \.\.\. 6 in a matrix of 6 columns"),
        (broken(pattern=unsorted_pattern), "columns that are not ascending within a row; sort them"),
        (broken(pattern=without_diagonal), "no diagonal entry in row 0; add it, if only for zeros"),
        (broken(assemble=lambda self, d, v, r: None), "Broken.assemble left 16 of 16 entries of `values` unset"),
        (broken(assemble=half_written), "Broken.assemble left 4 of 6 entries of `rhs` unset or not finite"),
        (broken(assemble=skew), "symmetry is 'spd', but A and its transpose differ by up to"),
        (broken(assemble=negative), 'symmetry is "spd", but A is not positive definite; say "symmetric"'),
        (broken(assemble=indefinite), 'symmetry is "spd", but A is not positive definite'),
        (
            broken(fields=lambda self, d, s: {"u": s[:-1]}),
            r"Broken.fields returned 'u' of shape \(5,\); the schema says",
        ),
        (
            broken(Cooling, initial=lambda self, d: np.zeros(3)),
            r"initial returned shape \(3,\); the state has shape \(6,\)",
        ),
        (broken(Cooling, advance=lambda self, d, i, s, r: None), "Broken.advance left 6 of 6 entries of `rhs` unset"),
    ],
)
def test_a_broken_promise_is_named(problem, message):
    with pytest.raises(ProblemError, match=message):
        check_contract(problem)


def test_errors_meant_for_the_user_pass_unchanged():
    with pytest.raises(StudyError, match=r"^problem.cells = 3 is too coarse$"):
        check_contract(broken(fields=refuse))


@pytest.mark.parametrize("symmetry", ["symmetric", "general"])
def test_an_indefinite_matrix_is_fine_when_it_is_called_so(symmetry):
    check_contract(broken(assemble=negative, symmetry=symmetry))


def test_a_nonsymmetric_matrix_is_fine_when_it_is_called_general():
    check_contract(broken(assemble=skew, symmetry="general"))

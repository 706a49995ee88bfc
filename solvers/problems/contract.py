"""Does a problem keep what `pipeline.stages.Problem` promises?  Asked once, before anything is started."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from forebay.pipeline.errors import ProblemError
from forebay.pipeline.records import Field, Schema
from forebay.pipeline.sampling import Design, draw_parameters, sample_generator
from forebay.pipeline.stages import Problem

_METHODS = ("schema", "symmetry", "draw", "pattern", "assemble", "fields")
_TRANSIENT = ("fixed_matrix", "initial", "advance")
_SYMMETRIES = ("spd", "symmetric", "general")


def check_contract(problem: Problem) -> None:
    """Draw one sample, assemble it, and look at everything that the problem returns; nothing is solved.

    Raises:
        ProblemError: the first broken promise, with what was found and what was expected.
    """
    name = type(problem).__name__
    _check_members(problem, name)
    schema = problem.schema
    if problem.symmetry not in _SYMMETRIES:
        raise ProblemError(f"{name}.symmetry is {problem.symmetry!r}; it should be one of {', '.join(_SYMMETRIES)}")
    design = Design("random", 20_261, "contract", 1, len(schema.parameters))
    parameters = draw_parameters(schema, design, 0)
    draw = _drawn(problem, name, schema, parameters)
    indptr, indices = problem.pattern()
    unknowns = _check_pattern(name, indptr, indices)
    values, rhs = np.full(len(indices), math.nan), np.full(unknowns, math.nan)
    if schema.times:
        rhs[:] = 0.0
    _call(name, "assemble", problem.assemble, draw, values, rhs)
    for what, array in (("values", values), ("rhs", rhs)):
        if not np.isfinite(array).all():
            raise ProblemError(
                f"{name}.assemble left {np.count_nonzero(~np.isfinite(array))} of {array.size} entries of `{what}` "
                f"unset or not finite; write all of them in place"
            )
    if schema.times:
        _check_steps(problem, name, draw, unknowns)
    outputs = _call(name, "fields", problem.fields, draw, np.zeros(unknowns))
    _check_fields(name, "fields", outputs, schema.outputs)


def _check_members(problem: Problem, name: str) -> None:
    missing = [member for member in _METHODS if not hasattr(problem, member)]
    if missing:
        raise ProblemError(f"{name} has no {', '.join(missing)}; a problem needs {', '.join(_METHODS)}")
    if not isinstance(problem.schema, Schema):
        raise ProblemError(f"{name}.schema is a {type(problem.schema).__name__}; make it a property with a Schema")
    lacking = [member for member in _TRANSIENT if not hasattr(problem, member)]
    if problem.schema.times and lacking:
        raise ProblemError(f"{name} has times in its schema but no {', '.join(lacking)}; add them, or leave times out")


def _drawn(problem: Problem, name: str, schema: Schema, parameters: np.ndarray) -> dict[str, Any]:
    first, second = (
        _call(name, "draw", problem.draw, parameters.copy(), sample_generator(20_261, "contract", 0)) for _ in range(2)
    )
    _check_fields(name, "draw", first, schema.inputs)
    for field in schema.inputs:
        if not np.array_equal(first[field.name], second[field.name], equal_nan=True):
            raise ProblemError(
                f"{name}.draw made two different fields {field.name!r} from the same generator state; take all "
                f"randomness from `rng`, else a sample cannot be solved again"
            )
    return {**first, "parameters": parameters}


def _check_pattern(name: str, indptr: np.ndarray, indices: np.ndarray) -> int:
    unknowns = len(indptr) - 1
    if unknowns < 1 or indptr[0] != 0 or indptr[-1] != len(indices) or (np.diff(indptr) < 1).any():
        raise ProblemError(
            f"{name}.pattern has indptr from {indptr[0]} to {indptr[-1]} for {len(indices)} indices; it must rise from 0 "
            f"to the number of entries, with no empty row"
        )
    if indices.min() < 0 or indices.max() >= unknowns:
        raise ProblemError(f"{name}.pattern has column {indices.max()} in a matrix of {unknowns} columns")
    inner = np.ones(len(indices), bool)
    inner[indptr[:-1]] = False
    if (np.diff(indices)[inner[1:]] <= 0).any():
        raise ProblemError(f"{name}.pattern has columns that are not ascending within a row; sort them")
    return unknowns


def _check_steps(problem: Any, name: str, draw: Mapping[str, Any], unknowns: int) -> None:
    state = np.asarray(_call(name, "initial", problem.initial, draw))
    if state.shape != (unknowns,):
        raise ProblemError(f"{name}.initial returned shape {state.shape}; the state has shape {(unknowns,)}")
    rhs = np.full(unknowns, math.nan)
    _call(name, "advance", problem.advance, draw, 1, state.astype(float), rhs)
    if not np.isfinite(rhs).all():
        raise ProblemError(f"{name}.advance left entries of `rhs` unset or not finite; write all of them in place")


def _check_fields(name: str, method: str, found: Any, expected: tuple[Field, ...]) -> None:
    if not isinstance(found, Mapping):
        raise ProblemError(f"{name}.{method} returned a {type(found).__name__}; it should return a dict of arrays")
    for field in expected:
        if field.name not in found:
            raise ProblemError(f"{name}.{method} returned {sorted(found)}; the schema also says {field.name!r}")
        shape = np.shape(found[field.name])
        if shape != field.shape:
            raise ProblemError(f"{name}.{method} returned {field.name!r} of shape {shape}; the schema says {field.shape}")


def _call(name: str, method: str, function: Any, *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except ProblemError:
        raise
    except Exception as error:
        raise ProblemError(f"{name}.{method} raised {type(error).__name__}: {error}") from error

"""Does a problem keep what `pipeline.stages.Problem` promises?  Asked once, before anything is started."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from forebay.pipeline.errors import ForebayError, ProblemError
from forebay.pipeline.records import Field, Schema
from forebay.pipeline.sampling import Design, draw_parameters, sample_generator
from forebay.pipeline.stages import Problem
from forebay.solvers.materials.history import History
from forebay.solvers.problems.solid import SolidProblem, is_solid

_COMMON = ("schema", "symmetry", "draw", "fields")
_NUMPY = ("pattern", "assemble")
_TRANSIENT = ("fixed_matrix", "initial", "advance")
_SOLID = ("schema", "law", "stored_steps", "model", "draw", "history", "fields")
_SYMMETRIES = ("spd", "symmetric", "general")
_SEED = 20_261


def check_contract(problem: Problem | SolidProblem) -> None:
    """Draw one sample, assemble it, and look at everything that the problem returns; nothing is solved.

    A problem that brings its own `system` (it assembles through another library) is asked for its draws only, a
    solid for its draws and histories.

    Raises:
        ProblemError: the first broken promise, with what was found and what was expected.
    """
    asked = _Asked(problem, type(problem).__name__)
    schema = asked.schema()
    draw = asked.draw(schema)
    if asked.is_solid:
        asked.history(draw, schema)
        return
    if hasattr(type(problem), "system"):
        return
    indptr, indices = asked.pattern()
    unknowns = len(indptr) - 1
    asked.assembled(draw, indptr, indices)
    if schema.times:
        asked.steps(draw, unknowns)
    outputs = asked.call("fields", draw, np.zeros(unknowns))
    asked.check_fields("fields", outputs, schema.outputs)


@dataclass(frozen=True, slots=True)
class _Asked:
    """A problem under examination, and its name for the messages."""

    problem: Any
    name: str

    @property
    def is_solid(self) -> bool:
        """Is it simulated in time by a full or a reduced model, instead of solved as a linear system?"""
        return is_solid(self.problem)

    def call(self, method: str, *arguments: Any) -> Any:
        return self._guard(method, lambda: getattr(self.problem, method)(*arguments))

    def _guard[T](self, what: str, function: Callable[[], T]) -> T:
        try:
            return function()
        except ForebayError:
            raise
        except Exception as error:
            raise ProblemError(f"{self.name}.{what} raised {type(error).__name__}: {error}") from error

    def _require(self, members: tuple[str, ...], why: str) -> None:
        # On the class: asking the object would run its properties, and take an AttributeError inside for an absence.
        known = {*dir(type(self.problem)), *getattr(type(self.problem), "__dataclass_fields__", ())}
        missing = [member for member in members if member not in known]
        if missing:
            raise ProblemError(f"{self.name} has no {', '.join(missing)}; {why} needs {', '.join(members)}")

    def schema(self) -> Schema:
        """The schema, if it is consistent in itself."""
        if self.is_solid:
            self._require(_SOLID, "a solid")
        else:
            self._require(_COMMON, "a problem")
            if not hasattr(type(self.problem), "system"):
                self._require((*_COMMON, *_NUMPY), "a problem")
        schema = self._guard("schema", lambda: self.problem.schema)
        if not isinstance(schema, Schema):
            raise ProblemError(f"{self.name}.schema is a {type(schema).__name__}; make it a property with a Schema")
        if not self.is_solid:
            self._check_linear(schema)
        self._check_names(schema)
        self._check_axes(schema)
        if any(after <= before for before, after in zip((0.0, *schema.times), schema.times, strict=False)):
            raise ProblemError(f"{self.name}.schema.times must rise from above 0; the initial state is not stored")
        return schema

    def _check_linear(self, schema: Schema) -> None:
        if schema.times:
            self._require(_TRANSIENT, "a problem with times in its schema")
        symmetry = self._guard("symmetry", lambda: self.problem.symmetry)
        if symmetry not in _SYMMETRIES:
            raise ProblemError(f"{self.name}.symmetry is {symmetry!r}; choose one of {', '.join(_SYMMETRIES)}")

    def history(self, draw: Mapping[str, Any], schema: Schema) -> None:
        """The history of one draw, and whether the stored times are its own."""
        history = self.call("history", draw)
        if not isinstance(history, History):
            raise ProblemError(f"{self.name}.history returned a {type(history).__name__}; return a History")
        steps = np.asarray(self._guard("stored_steps", lambda: self.problem.stored_steps))
        whole = steps.ndim == 1 and len(steps) and steps.dtype.kind in "iu"
        if not whole or np.any(np.diff(steps, prepend=0) < 1) or steps[-1] > history.steps:
            raise ProblemError(
                f"{self.name}.stored_steps is {steps}; give ascending numbers from 1 to {history.steps}, the steps of "
                f"the history"
            )
        same = len(steps) == len(schema.times) and np.allclose(history.times[steps], schema.times, rtol=1e-12)
        if not same:
            raise ProblemError(
                f"{self.name}.schema.times is {schema.times}, but the history has {history.times[steps]} at the stored "
                f"steps"
            )

    def _check_names(self, schema: Schema) -> None:
        if not schema.outputs:
            raise ProblemError(f"{self.name}.schema has no outputs; name what `fields` returns")
        names = Counter([f.name for f in (*schema.inputs, *schema.outputs)])
        names.update(p.name for p in schema.parameters)
        names.update({"parameters": 1})
        twice = [name for name, count in names.items() if count > 1]
        if twice:
            raise ProblemError(
                f"{self.name}.schema has the name {twice[0]!r} twice; parameters, inputs and outputs share one set of "
                f"names, and 'parameters' is taken"
            )

    def _check_axes(self, schema: Schema) -> None:
        for field in (*schema.inputs, *schema.outputs):
            if len(field.dims) != len(field.shape) or any(n < 1 for n in field.shape):
                raise ProblemError(
                    f"{self.name}.schema has {field.name!r} with dims {field.dims} and shape {field.shape}; "
                    f"every axis has one name and one positive length"
                )
        lengths = {d: n for f in (*schema.inputs, *schema.outputs) for d, n in zip(f.dims, f.shape, strict=True)}
        for coordinate in schema.coordinates:
            shape = np.shape(coordinate.values)
            wanted = tuple(lengths.get(d, n) for d, n in zip(coordinate.dims, shape, strict=False))
            if len(shape) != len(coordinate.dims) or shape != wanted:
                raise ProblemError(
                    f"{self.name}.schema has the coordinate {coordinate.name!r} along {coordinate.dims} with shape "
                    f"{shape}; the fields say {wanted}"
                )

    def draw(self, schema: Schema) -> dict[str, Any]:
        """One sample's draw, if a second one is equal."""
        design = Design("random", _SEED, "contract", 1, len(schema.parameters))
        parameters = draw_parameters(schema, design, 0)
        first, second = (self.call("draw", parameters.copy(), sample_generator(_SEED, "contract", 0)) for _ in range(2))
        self.check_fields("draw", first, schema.inputs)
        for field in schema.inputs:
            if not np.array_equal(first[field.name], second[field.name]):
                raise ProblemError(
                    f"{self.name}.draw made two different fields {field.name!r} from the same generator state; take "
                    f"all randomness from `rng`, else a sample cannot be solved again"
                )
        return {**first, "parameters": parameters}

    def check_fields(self, method: str, found: Any, expected: tuple[Field, ...]) -> None:
        """Names, shapes and finite numbers."""
        if not isinstance(found, Mapping):
            raise ProblemError(f"{self.name}.{method} returned a {type(found).__name__}; return a dict of arrays")
        for field in expected:
            if field.name not in found:
                raise ProblemError(
                    f"{self.name}.{method} returned {sorted(found)}; the schema also says {field.name!r}"
                )
            array = np.asarray(found[field.name])
            if array.shape != field.shape:
                raise ProblemError(
                    f"{self.name}.{method} returned {field.name!r} of shape {array.shape}; "
                    f"the schema says {field.shape}"
                )
            if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
                raise ProblemError(
                    f"{self.name}.{method} returned {field.name!r} of type {array.dtype} with NaN, inf or no numbers; "
                    f"return finite real numbers"
                )

    def pattern(self) -> tuple[np.ndarray, np.ndarray]:
        """CSR sparsity with ascending columns and a full diagonal."""
        found = self.call("pattern")
        if not isinstance(found, tuple) or len(found) != 2:
            raise ProblemError(f"{self.name}.pattern returned a {type(found).__name__}; return (indptr, indices)")
        indptr, indices = (np.asarray(part) for part in found)
        if any(part.ndim != 1 or part.dtype.kind not in "iu" for part in (indptr, indices)):
            raise ProblemError(
                f"{self.name}.pattern returned arrays of {indptr.dtype} {indptr.shape} and {indices.dtype} "
                f"{indices.shape}; both are one-dimensional int32"
            )
        unknowns = len(indptr) - 1
        if unknowns < 1 or indptr[0] != 0 or indptr[-1] != len(indices) or (np.diff(indptr) < 1).any():
            raise ProblemError(
                f"{self.name}.pattern has an indptr of {len(indptr)} numbers for {len(indices)} indices; it must rise "
                f"from 0 to {len(indices)}, with no empty row"
            )
        if indices.min() < 0 or indices.max() >= unknowns:
            raise ProblemError(
                f"{self.name}.pattern has columns {indices.min()} ... {indices.max()} in a matrix of {unknowns} "
                f"columns; they count from 0"
            )
        rows = np.repeat(np.arange(unknowns), np.diff(indptr))
        if ((np.diff(indices) <= 0) & (np.diff(rows) == 0)).any():
            raise ProblemError(f"{self.name}.pattern has columns that are not ascending within a row; sort them")
        lacking = np.setdiff1d(np.arange(unknowns), rows[rows == indices])
        if len(lacking):
            raise ProblemError(
                f"{self.name}.pattern has no diagonal entry in row {lacking[0]}; add it, if only for zeros"
            )
        return indptr, indices

    def assembled(self, draw: Mapping[str, Any], indptr: np.ndarray, indices: np.ndarray) -> None:
        """Everything is written, and the matrix is what `symmetry` says."""
        unknowns = len(indptr) - 1
        values, rhs = np.full(len(indices), np.nan), np.full(unknowns, np.nan)
        if self.problem.schema.times:
            rhs[:] = 0.0  # may be left to `advance`
        self.call("assemble", draw, values, rhs)
        self._check_written("assemble", "values", values)
        self._check_written("assemble", "rhs", rhs)
        matrix = csr_array((values, indices, indptr), shape=(unknowns, unknowns))
        symmetry = self.problem.symmetry
        if symmetry == "general":
            return
        skew = abs(matrix - matrix.T).max()
        if skew > 1e-10 * abs(values).max():
            raise ProblemError(
                f"{self.name}.symmetry is {symmetry!r}, but A and its transpose differ by up to {skew:.3g}; "
                f'mend `assemble`, or say "general"'
            )
        probe = sample_generator(_SEED, "probe", 0).standard_normal(unknowns)
        if symmetry == "spd" and (matrix.diagonal().min() <= 0 or probe @ (matrix @ probe) <= 0):
            raise ProblemError(f'{self.name}.symmetry is "spd", but A is not positive definite; say "symmetric"')

    def steps(self, draw: Mapping[str, Any], unknowns: int) -> None:
        """The initial state, and the right-hand side of the first step."""
        state = np.asarray(self.call("initial", draw))
        if state.shape != (unknowns,):
            raise ProblemError(f"{self.name}.initial returned shape {state.shape}; the state has shape {(unknowns,)}")
        rhs = np.full(unknowns, np.nan)
        self.call("advance", draw, 1, state.astype(float), rhs)
        self._check_written("advance", "rhs", rhs)

    def _check_written(self, method: str, what: str, array: np.ndarray) -> None:
        count = np.count_nonzero(~np.isfinite(array))
        if count:
            raise ProblemError(
                f"{self.name}.{method} left {count} of {array.size} entries of `{what}` unset or not finite; "
                f"write all of them in place"
            )

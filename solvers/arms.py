"""`method = "auto"`: which methods are worth trying on a kind of matrix, and how a study names its own."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from forebay.pipeline.errors import ProblemError, StudyError
from forebay.pipeline.stages import Problem, StructuredProblem, Symmetry, TransientProblem
from forebay.solvers.batched.stencil import stencil_fault
from forebay.solvers.batched.weights import load_aggregation_weights, load_weights
from forebay.solvers.methods import NATIVE_UNKNOWNS, Method

DIRECT_3D, DIRECT_3D_GRID = 60_000, 10_000
"""In three dimensions factors fill; on a grid multigrid wins sooner: at 32 x 32 x 32 one try costs 40 of its solves."""
DIRECT_2D = 1_500_000


@dataclass(frozen=True, slots=True)
class MatrixFacts:
    """What the choice of arms depends on."""

    symmetry: Symmetry
    unknowns: int
    grid: tuple[int, ...] | None
    """Cells along each axis of a structured grid."""
    row_entries: float
    """Mean nonzeros a row."""
    transient: bool = False
    """Does a sample solve many systems with one matrix?"""
    stencil_fault: str = ""
    """On a grid: why the pattern is not its five- or seven-point stencil, as the end of a sentence; "" where it is."""

    @property
    def coarsens(self) -> bool:
        """Is it a grid that geometric multigrid can coarsen at least twice?"""
        return self.grid is not None and min(self.grid) >= 4

    @property
    def dimension(self) -> int:
        """2 or 3; guessed from the row length where there is no grid (linear triangles have 7, tetrahedra 15)."""
        if self.grid is not None:
            return len(self.grid)
        return 3 if self.row_entries > 11 else 2


@dataclass(frozen=True, slots=True)
class Automatic:
    """Let the run find the cheapest of several methods; the first arm of the resolved list is the safe one."""

    rtol: float = 1e-8
    max_iterations: int = 10_000
    arms: tuple[Method, ...] = ()
    """Empty: `default_arms`."""

    def resolve(self, facts: MatrixFacts) -> tuple[Method, ...]:
        """The methods to choose from.

        Raises:
            StudyError: an arm that does not fit the matrix.
        """
        if facts.transient:
            if self.arms:
                raise StudyError(
                    "solver.method = 'auto' has nothing to choose for a problem in time, whose steps share one factor; "
                    "leave solver.arms out, or name one method"
                )
            return (Method(rtol=self.rtol, max_iterations=self.max_iterations),)
        arms = self.arms or default_arms(facts, rtol=self.rtol, max_iterations=self.max_iterations)
        for arm in arms:
            check_method(arm, facts)
        return arms


def facts_of(problem: Problem) -> MatrixFacts:
    """Read them off a problem's pattern.

    Raises:
        ProblemError: a `grid_shape` that contradicts the pattern.
    """
    indptr, indices = problem.pattern()
    unknowns = len(indptr) - 1
    transient = bool(problem.schema.times) and isinstance(problem, TransientProblem)
    grid = _grid_of(problem, unknowns)
    fault = "" if grid is None else stencil_fault(indptr, indices, grid)
    return MatrixFacts(problem.symmetry, unknowns, grid, len(indices) / unknowns, transient, fault)


def _grid_of(problem: Problem, unknowns: int) -> tuple[int, ...] | None:
    if not isinstance(problem, StructuredProblem):
        return None
    cells = math.prod(problem.grid_shape)
    if cells != unknowns:
        raise ProblemError(
            f"grid_shape = {problem.grid_shape} has {cells} cells, the matrix {unknowns} unknowns; leave the property "
            f"out where unknowns are not cells"
        )
    return problem.grid_shape


def check_method(method: Method | Automatic, facts: MatrixFacts) -> None:
    """Refuse what cannot work, before anything is solved.

    Raises:
        StudyError: the method, or one of its arms, does not fit the matrix.
    """
    if isinstance(method, Automatic):
        method.resolve(facts)
    else:
        choice = method.resolve(facts.symmetry, facts.unknowns, structured=facts.grid is not None)
        if facts.stencil_fault and choice.needs_stencil:
            key = "method" if choice.ksp == "batched" else "preconditioner"
            raise StudyError(f"solver.{key} = {getattr(method, key)!r} {facts.stencil_fault}")


def check_weights(method: Method, facts: MatrixFacts) -> None:
    """Read the weights that a method names, to see that it will be able to.

    Raises:
        StudyError: they are missing, damaged, or of another version or dimension.
    """
    if method.preconditioner == "amg":
        load_aggregation_weights(method.learned)
    elif facts.grid is not None:
        load_weights(method.learned, len(facts.grid))


def check_order(method: Method | Automatic, facts: MatrixFacts, *, sort: bool, guesses: int) -> None:
    """Refuse what would be passed over in silence.

    Raises:
        StudyError: sorting or guesses where they cannot help.
    """
    named = method.method if isinstance(method, Method) else "auto"
    for key, wanted in (("sort", sort), ("guesses", guesses)):
        if wanted and facts.transient:
            raise StudyError(
                f"solver.{key} = {json.dumps(wanted)} has no use for a problem in time, whose samples march together; "
                f"leave it out"
            )
        if wanted and named == "batched":
            raise StudyError(
                f"solver.{key} = {json.dumps(wanted)} has no use with solver.method = 'batched', which solves the "
                f"samples of a block together; leave it out"
            )
    if guesses and named == "direct":
        raise StudyError(
            f"solver.guesses = {guesses} has no use with solver.method = 'direct'; leave it out, or take an iterative "
            f"method"
        )


def default_arms(facts: MatrixFacts, *, rtol: float, max_iterations: int) -> tuple[Method, ...]:
    """Methods that came first or near it in some case of the `auto` and `recycling` benchmarks, the safest first."""
    tables = [*_direct(facts), *_ITERATIVE[facts.symmetry](facts)]
    return tuple(Method(rtol=rtol, max_iterations=max_iterations, **table) for table in tables)


def _direct(facts: MatrixFacts) -> list[dict[str, Any]]:
    """In 2D PETSc's own factors, which cost least; MUMPS, which blocks, in 3D, and where pivots may be needed."""
    native = facts.dimension == 2 and facts.unknowns <= NATIVE_UNKNOWNS
    largest = DIRECT_2D if facts.dimension == 2 else DIRECT_3D_GRID if facts.coarsens else DIRECT_3D
    tables: list[dict[str, Any]] = []
    if facts.unknowns <= largest and not (native and facts.symmetry == "spd"):
        tables.append({"method": "direct", "factor": "mumps"})
    if native:
        tables.append({"method": "direct", "factor": "petsc"})
    return tables


def _spd(facts: MatrixFacts) -> list[dict[str, Any]]:
    # The best relaxation goes to 2 as the grid is refined: 1.6 at 26 nodes a side, 1.8 at 64, 1.9 from 128 on.
    batched: list[dict[str, Any]] = [] if facts.grid is None or facts.stencil_fault else [{"method": "batched"}]
    omega = 1.8 if facts.dimension == 3 else round(min(1.9, 2 / (1 + 7 / math.sqrt(facts.unknowns))), 2)
    tables: list[dict[str, Any]] = [
        {"method": "cg", "preconditioner": "mg" if facts.coarsens else "gamg"},
        *batched,
        {"method": "cg", "preconditioner": "eisenstat", "omega": omega},
        {"method": "cg", "preconditioner": "icc", "fill": 0 if facts.dimension == 3 else 3},
    ]
    if facts.dimension == 3:
        tables.append({"method": "deflated_cg", "preconditioner": "icc"})
    return tables


def _symmetric(facts: MatrixFacts) -> list[dict[str, Any]]:
    tables: list[dict[str, Any]] = [
        {"method": "gmres", "preconditioner": "mg" if facts.coarsens else "gamg", "restart": 60},
        {"method": "gcrodr", "preconditioner": "ilu", "fill": 1, "restart": 80, "recycle": 40},
    ]
    if facts.dimension == 2 and facts.unknowns <= NATIVE_UNKNOWNS:
        tables.append({"method": "gmres", "preconditioner": "lu", "reuse": "preconditioner"})
    return tables


def _general(facts: MatrixFacts) -> list[dict[str, Any]]:
    tables: list[dict[str, Any]] = [
        {"method": "bcgsl", "preconditioner": "ilu", "fill": 3},
        {"method": "bcgsl", "preconditioner": "ilu"},
        {"method": "gcrodr", "preconditioner": "ilu", "fill": 1},
    ]
    if facts.coarsens:
        tables.append({"method": "gmres", "preconditioner": "mg", "restart": 60})
    return tables


_ITERATIVE = {"spd": _spd, "symmetric": _symmetric, "general": _general}


_METHOD_KEYS = {f.name for f in dataclasses.fields(Method)}


def parse_method(table: Mapping[str, Any]) -> Method | Automatic:
    """The linear-algebra part of a study's `[solver]` table; keys of other parts are passed over.

    Raises:
        StudyError: what `Method` raises, or keys that the automatic choice makes itself.
    """
    if table.get("method", "direct") != "auto":
        if table.get("arms"):
            raise StudyError(
                f"solver.arms has no use with solver.method = {table.get('method', 'direct')!r}; set method = 'auto'"
            )
        return Method(**{key: value for key, value in table.items() if key in _METHOD_KEYS})
    defaults = {f.name: f.default for f in dataclasses.fields(Method) if f.default is not dataclasses.MISSING}
    shared = {key: table[key] for key in ("rtol", "max_iterations") if key in table}
    chosen = [
        key
        for key, value in table.items()
        if key not in ("method", "arms", "rtol", "max_iterations") and key in defaults and value != defaults[key]
    ]
    if chosen or table.get("options"):
        key = chosen[0] if chosen else "options"
        raise StudyError(
            f"solver.{key} = {table[key]!r} has no use with solver.method = 'auto', which chooses it; leave it out, or "
            f"put it into an entry of solver.arms"
        )
    return Automatic(**shared, arms=tuple(_arm(entry, index, shared) for index, entry in enumerate(_listed(table))))


def _listed(table: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    return table.get("arms") or ()


def _arm(entry: Mapping[str, Any], index: int, shared: Mapping[str, Any]) -> Method:
    known = _METHOD_KEYS - {"rtol", "max_iterations", "backend"}
    unknown = sorted(set(entry) - known)
    if unknown:
        raise StudyError(f"solver.arms[{index}].{unknown[0]} does not exist; an arm has {', '.join(sorted(known))}")
    if entry.get("method") == "auto":
        raise StudyError(f"solver.arms[{index}].method = 'auto' cannot be its own arm; name a method")
    if entry.get("learned") == "online":
        raise StudyError(
            f"solver.arms[{index}].learned = 'online' needs solver.method = 'batched' or 'cg', not 'auto'; use "
            f"'shipped', or a file"
        )
    try:
        return Method(**{**shared, **entry})
    except StudyError as error:
        raise StudyError(f"solver.arms[{index}]: {error}") from error

"""What is wrong with a `[solver]` table, whatever the matrix: names, ranges, combinations."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING, get_args

from forebay.pipeline.errors import StudyError
from forebay.solvers.method_names import (
    FACTORS,
    METHODS,
    OURS,
    POSITIVE_DEFINITE_ONLY,
    PRECONDITIONERS,
    RECYCLING,
    SYMMETRIC,
    WITH_FILL,
    WITH_OMEGA,
    WITHOUT_PRECONDITIONER,
    Backend,
)

if TYPE_CHECKING:
    from forebay.solvers.methods import Method

SMALLEST_RTOL = 1e-14
"""A true residual is itself only known to about √n machine epsilons."""

_RESERVED = {
    "ksp_type": "solver.method",
    "pc_type": "solver.preconditioner",
    "ksp_rtol": "solver.rtol",
    "ksp_max_it": "solver.max_iterations",
    "ksp_gmres_restart": "solver.restart",
    "pc_factor_mat_solver_type": "solver.factor",
    "pc_sor_omega": "solver.omega",
    "pc_eisenstat_omega": "solver.omega",
    "pc_factor_levels": "solver.fill",
    "ksp_gcrodr_restart": "solver.restart",
    "ksp_gcrodr_recycle": "solver.recycle",
    "ksp_gcrodr_variant": "solver.variant",
    "ksp_deflated_cg_recycle": "solver.recycle",
    "ksp_deflated_cg_variant": "solver.variant",
    "ksp_reuse_preconditioner": "solver.reuse",
    "ksp_guess_type": "solver.guesses",
}
_WOULD_MIX_SAMPLES = ("ksp_initial_guess_nonzero", "pc_gamg_reuse_interpolation", "ksp_norm_type", "ksp_pc_side")
"""They would start a sample from another one, or measure it by another norm than the certificate's."""


def check_method(asked: Method) -> None:
    """Refuse names that do not exist, numbers out of range, and combinations that cannot work on any matrix.

    Raises:
        StudyError: value, constraint and remedy.
    """
    _require_known("solver.method", asked.method, METHODS)
    _require_known("solver.factor", asked.factor, ("auto", "petsc", "mumps"))
    _require_known("solver.backend", asked.backend, get_args(Backend))
    if asked.preconditioner is not None:
        _require_known("solver.preconditioner", asked.preconditioner, PRECONDITIONERS)
    if not SMALLEST_RTOL <= asked.rtol < 1:
        raise StudyError(
            f"solver.rtol = {asked.rtol} must be at least {SMALLEST_RTOL}, what float64 can certify, and below 1; "
            f"try 1e-8"
        )
    numbers = {"max_iterations": asked.max_iterations, "restart": asked.restart, "recycle": asked.recycle}
    for name, value in numbers.items():
        if value is not None and value < 1:
            raise StudyError(f"solver.{name} = {value} must be at least 1; leave it out for the default")
    _check_combination(asked)
    _check_parameters(asked)
    _check_options(asked)


def _check_combination(asked: Method) -> None:
    if asked.method in WITHOUT_PRECONDITIONER and asked.preconditioner is not None:
        raise StudyError(
            f"solver.preconditioner = {asked.preconditioner!r} has no use with solver.method = {asked.method!r}; "
            f"leave it out, or choose an iterative method "
            f"({', '.join(m for m in METHODS if m not in WITHOUT_PRECONDITIONER)})"
        )
    if asked.method != "direct" and asked.factor != "auto":
        raise StudyError(
            f"solver.factor = {asked.factor!r} has no use with solver.method = {asked.method!r}; leave it out, or "
            f"use method = 'direct'"
        )
    if asked.preconditioner == "eisenstat" and asked.method != "cg":
        raise StudyError(
            f"solver.preconditioner = 'eisenstat' works with method = 'cg' only, not {asked.method!r}; use 'sor'"
        )
    if asked.method == "batched":
        _check_batched(asked)
        return
    needs_symmetric = asked.method in (*POSITIVE_DEFINITE_ONLY, "minres")
    if needs_symmetric and asked.chosen_preconditioner not in (*SYMMETRIC, "cholesky"):
        raise StudyError(
            f"solver.preconditioner = {asked.preconditioner!r} is not symmetric, which {asked.method!r} needs; use "
            f"'bjacobi' or 'gamg', or method = 'gmres'"
        )
    if asked.preconditioner in FACTORS and asked.reuse == "none":
        raise StudyError(
            f"solver.preconditioner = {asked.preconditioner!r} solves exactly, so that {asked.method!r} has nothing "
            f"to do; use method = 'direct', or reuse = 'preconditioner' to keep the factor of an earlier sample"
        )
    if asked.method == "direct" and asked.reuse != "none":
        raise StudyError(
            "solver.reuse = 'preconditioner' has no use with solver.method = 'direct'; use an iterative method "
            "with preconditioner = 'lu' or 'cholesky' to solve with the factor of an earlier sample"
        )


def _check_batched(asked: Method) -> None:
    if asked.reuse != "none":
        raise StudyError(
            f"solver.reuse = {asked.reuse!r} has no use with solver.method = 'batched', which sets its multigrid up "
            f"in the time of a few iterations; leave it out"
        )
    if asked.options:
        name = next(iter(asked.options))
        raise StudyError(
            f"solver.options.{name} = {asked.options[name]!r} has no use with solver.method = 'batched', which is "
            f"none of PETSc's; leave it out"
        )


def _check_learned(asked: Method, preconditioner: str | None) -> None:
    batched = asked.method == "batched"
    if asked.backend != "auto" and not batched:
        raise StudyError(
            f"solver.backend = {asked.backend!r} has no use with solver.method = {asked.method!r}; leave it out, or "
            f"use method = 'batched'"
        )
    if asked.learned and not batched and preconditioner not in OURS:
        raise StudyError(
            f"solver.learned = {asked.learned!r} has no use with solver.method = {asked.method!r} and preconditioner "
            f"= {preconditioner!r}; leave it out, or use method = 'batched', or preconditioner = "
            f"{' or '.join(map(repr, OURS))}"
        )
    if asked.learned == "online" and not batched and (asked.method, preconditioner) != ("cg", "amg"):
        raise StudyError(
            f"solver.learned = 'online' works with solver.method = 'batched', or 'cg' with preconditioner = 'amg', "
            f"which look for new weights before each block, not with {asked.method!r} and {preconditioner!r}; "
            f"use 'shipped', or a file"
        )


def _check_parameters(asked: Method) -> None:
    """Numbers that only some methods have."""
    preconditioner = None if asked.method in WITHOUT_PRECONDITIONER else asked.chosen_preconditioner
    _check_learned(asked, preconditioner)
    if asked.omega is not None:
        if preconditioner not in WITH_OMEGA:
            raise StudyError(
                f"solver.omega = {asked.omega} has no use with preconditioner = {preconditioner!r}; leave it out, "
                f"or use 'eisenstat' or 'sor'"
            )
        if not 0 < asked.omega < 2:
            raise StudyError(f"solver.omega = {asked.omega} must lie between 0 and 2, else SOR diverges; try 1.8")
    if asked.fill and preconditioner not in WITH_FILL:
        raise StudyError(
            f"solver.fill = {asked.fill} has no use with preconditioner = {preconditioner!r}; leave it out, or use "
            f"one of {', '.join(WITH_FILL)}"
        )
    if not 0 <= asked.fill <= 10:
        raise StudyError(f"solver.fill = {asked.fill} must lie in 0 ... 10; 0 to 3 are usual")
    if asked.restart is not None and asked.method not in ("gmres", "lgmres", "gcrodr"):
        raise StudyError(
            f"solver.restart = {asked.restart} has no use with solver.method = {asked.method!r}; leave it out, or "
            f"use gmres, lgmres or gcrodr"
        )
    if asked.variant != "economical" and asked.method not in RECYCLING:
        raise StudyError(
            f"solver.variant = {asked.variant!r} has no use with solver.method = {asked.method!r}; leave it out, or "
            f"use one of {', '.join(RECYCLING)}"
        )
    if asked.recycle is not None and asked.method not in RECYCLING:
        raise StudyError(
            f"solver.recycle = {asked.recycle} has no use with solver.method = {asked.method!r}; leave it out, or "
            f"use one of {', '.join(RECYCLING)}"
        )
    if asked.method == "gcrodr" and not asked.recycled < asked.restarted - 1:
        raise StudyError(
            f"solver.recycle = {asked.recycled} does not fit solver.restart = {asked.restarted}; the restart counts "
            f"the recycled directions and must be at least two larger, twice as large is a good value"
        )


def _check_options(asked: Method) -> None:
    for name in asked.options:
        if name in _RESERVED:
            raise StudyError(
                f"solver.options.{name} = {asked.options[name]!r} would go unnoticed by the records; "
                f"set {_RESERVED[name]}"
            )
        if name in _WOULD_MIX_SAMPLES:
            raise StudyError(
                f"solver.options.{name} = {asked.options[name]!r} is not allowed: a sample must not depend on those "
                f"solved before it, nor be measured by another norm; leave it out"
            )
        if name.startswith("-") or not name:
            raise StudyError(f"solver.options has the key {name!r}; write PETSc option names without the dash")


def _require_known(key: str, value: str, choices: Iterable[str]) -> None:
    known = tuple(choices)
    if value in known:
        return
    near = difflib.get_close_matches(value, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(known)}"
    raise StudyError(f"{key} = {value!r} does not exist; {hint}")

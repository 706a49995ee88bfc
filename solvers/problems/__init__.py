"""Problems by name, and a user's own by file: loading, option checks, contract checks."""

from __future__ import annotations

import difflib
import importlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, cast, get_type_hints

from pydantic import PydanticSchemaGenerationError, TypeAdapter, ValidationError

from forebay.pipeline.errors import ProblemError, StudyError
from forebay.pipeline.stages import Problem
from forebay.pipeline.user_file import execute_file
from forebay.solvers.problems.contract import check_contract

__all__ = ["PROBLEMS", "OptionCard", "ProblemCard", "check_contract", "describe_problems", "load_problem"]

PROBLEMS: Mapping[str, str] = {
    "darcy": "forebay.solvers.problems.darcy:Darcy",
    "poisson": "forebay.solvers.problems.poisson:Poisson",
    "helmholtz": "forebay.solvers.problems.helmholtz:Helmholtz",
    "convection_diffusion": "forebay.solvers.problems.convection_diffusion:ConvectionDiffusion",
    "heat": "forebay.solvers.problems.heat:Heat",
    "darcy3d": "forebay.solvers.problems.darcy3d:Darcy3D",
    "helmholtz3d": "forebay.solvers.problems.helmholtz3d:Helmholtz3D",
    "darcy_fem": "forebay.solvers.problems.darcy_fem:DarcyFem",
    "elasticity": "forebay.solvers.problems.elasticity:Elasticity",
    "necked_bar": "forebay.solvers.problems.necked_bar:NeckedBar",
    "blade": "forebay.solvers.problems.blade:Blade",
}
"""What `problem.name` may say besides "file.py:Class"."""

_LIMITS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}


@dataclass(frozen=True, slots=True)
class OptionCard:
    """One option of a problem."""

    name: str
    type: str
    """With its range, for example "integer >= 32 <= 512"."""
    default: str
    """As TOML writes it."""


@dataclass(frozen=True, slots=True)
class ProblemCard:
    """One problem as the command line shows it."""

    name: str
    summary: str
    """First line of its documentation: the equation."""
    options: tuple[OptionCard, ...]


def load_problem(name: str, options: Mapping[str, Any], *, folder: Path) -> Problem:
    """A problem with its options, the keys of the study's `[problem]` table but for `name`.

    `name` is one of `PROBLEMS`, or "file.py:Class" with the file relative to `folder`; that file is executed, because
    the user named it, and may import modules beside it; a user's problem passes `check_contract` before it is returned.
    Its module gets a name made from path and content: pickles of its objects load wherever `load_problem` was called
    for the same file.

    Raises:
        StudyError: unknown name or option, or an option of the wrong type or range; every faulty option is listed.
        ProblemError: missing file or class, a class that is not a dataclass, or one that breaks the contract.
    """
    if name in PROBLEMS:
        return _make(_class_from_module(PROBLEMS[name]), options)
    file, separator, class_name = name.rpartition(":")
    if separator and file.endswith(".py"):
        problem = _make(_class_from_file(folder / file, class_name), options)
        check_contract(problem)
        return problem
    hint = _suggestion(name, PROBLEMS, "choose one of")
    raise StudyError(f'problem.name = {name!r} is not a known problem; {hint}, or name your own as "file.py:Class"')


def describe_problems() -> tuple[ProblemCard, ...]:
    """Every built-in problem with its options."""
    return tuple(_card(name, _class_from_module(path)) for name, path in PROBLEMS.items())


def _suggestion(word: str, known: Iterable[str], otherwise: str) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean {near[0]!r}?" if near else f"{otherwise} {', '.join(known) or 'none'}"


def _class_from_module(path: str) -> type:
    module, _, name = path.partition(":")
    found: type = getattr(importlib.import_module(module), name)
    return found


def _class_from_file(path: Path, class_name: str) -> type:
    path = path.resolve()
    if not path.is_file():
        raise ProblemError(f"problem file {path} does not exist; problem.name is relative to the study's folder")
    try:
        module = execute_file(path, "forebay_user")
    except (Exception, SystemExit) as error:  # a script that ends the process would do so without a word
        raise ProblemError(
            f"problem file {path} raised {type(error).__name__}: {error}; `python {path.name}` shows where"
        ) from error
    found = getattr(module, class_name, None)
    if not isinstance(found, type):
        classes = [k for k, v in vars(module).items() if isinstance(v, type) and v.__module__ == module.__name__]
        raise ProblemError(f"{path} has no class {class_name!r}; {_suggestion(class_name, classes, 'its classes:')}")
    return found


def _make(cls: type, options: Mapping[str, Any]) -> Problem:
    if not is_dataclass(cls):
        raise ProblemError(f"{cls.__name__} is not a dataclass; decorate it with @dataclass(frozen=True, kw_only=True)")
    hints = _hints(cls)
    known = {item.name: item for item in fields(cls) if item.init}
    values: dict[str, Any] = {}
    faults: list[str] = []
    for key, value in options.items():
        if key not in known:
            hint = _suggestion(key, known, "known keys:")
            faults.append(f"problem.{key} = {value!r} is not an option of {cls.__name__}; {hint}")
            continue
        try:
            # Strict, and through JSON: "64" and true are no integers, while a list may fill a tuple.
            values[key] = _adapter(cls, key, hints[key]).validate_json(json.dumps(value, default=str), strict=True)
        except ValidationError as error:
            faults.append(_explain(key, value, known[key], error))
    missing = [key for key, item in known.items() if key not in options and _default(item) is MISSING]
    faults += [f"problem.{key} is missing; {cls.__name__} has no default for it" for key in missing]
    if faults:
        raise StudyError("\n".join(faults))
    try:
        problem: Problem = cast(Any, cls)(**values)
    except (ValueError, TypeError) as error:
        raise StudyError(f"problem options {dict(options)} were refused by {cls.__name__}: {error}") from error
    return problem


def _explain(key: str, value: Any, item: Field[Any], error: ValidationError) -> str:
    wanted = error.errors()[0]["msg"].removeprefix("Input should be ")
    default = _default(item)
    remedy = "" if default is MISSING else f"; the default is {json.dumps(default, default=str)}"
    return f"problem.{key} = {value!r} is not allowed: it should be {wanted}{remedy}"


def _hints(cls: type) -> dict[str, Any]:
    try:
        return get_type_hints(cls, include_extras=True)
    except NameError as error:
        raise ProblemError(f"{cls.__name__} has an annotation that cannot be resolved: {error}; import it") from error


def _adapter(cls: type, key: str, hint: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(hint)
    except PydanticSchemaGenerationError as error:
        raise ProblemError(
            f"option {key!r} of {cls.__name__} has the type {hint}, which a study cannot hold; "
            f"use numbers, strings, booleans, lists of them, or set field(init=False)"
        ) from error


def _card(name: str, cls: type) -> ProblemCard:
    hints = _hints(cls)
    options = tuple(
        OptionCard(item.name, _type_text(hints[item.name]), json.dumps(_default(item)))
        for item in fields(cls)
        if item.init
    )
    return ProblemCard(name, (cls.__doc__ or "").strip().splitlines()[0], options)


def _default(item: Field[Any]) -> Any:
    return item.default_factory() if item.default_factory is not MISSING else item.default


def _type_text(hint: Any) -> str:
    schema = TypeAdapter(hint).json_schema()
    if "enum" in schema:
        return " | ".join(json.dumps(choice) for choice in schema["enum"])
    limits = [f"{sign} {schema[key]:g}" for key, sign in _LIMITS.items() if key in schema]
    return " ".join([schema["type"], *limits])

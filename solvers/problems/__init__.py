"""Problems by name, and a user's own by file: loading, option checks, contract checks."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from forebay.pipeline.errors import ProblemError, StudyError
from forebay.pipeline.stages import Problem
from forebay.solvers.problems.contract import check_contract

__all__ = ["PROBLEMS", "check_contract", "describe_problems", "load_problem"]

PROBLEMS: Mapping[str, str] = {
    "darcy": "forebay.solvers.problems.darcy:Darcy",
    "poisson": "forebay.solvers.problems.poisson:Poisson",
    "helmholtz": "forebay.solvers.problems.helmholtz:Helmholtz",
    "convection_diffusion": "forebay.solvers.problems.convection_diffusion:ConvectionDiffusion",
    "heat": "forebay.solvers.problems.heat:Heat",
    "darcy_fem": "forebay.solvers.problems.darcy_fem:DarcyFem",
}
"""What `problem.name` may say besides "file.py:Class"."""


@dataclass(frozen=True, slots=True)
class OptionCard:
    """One option of a problem."""

    name: str
    type: str
    default: str


@dataclass(frozen=True, slots=True)
class ProblemCard:
    """One problem as the command line shows it."""

    name: str
    summary: str
    options: tuple[OptionCard, ...]


def load_problem(name: str, options: Mapping[str, Any], *, folder: Path) -> Problem:
    """A problem with its options.

    `name` is one of `PROBLEMS`, or "file.py:Class" with the file relative to `folder`; that file is executed, because
    the user named it.

    Raises:
        StudyError: unknown name or option, or an option of the wrong type or range.
        ProblemError: missing file or class, or a class that is not a dataclass.
    """
    return _make(_find_class(name, folder), options)


def describe_problems() -> tuple[ProblemCard, ...]:
    """Every built-in problem with its options."""
    return tuple(_card(name, _from_module(path)) for name, path in PROBLEMS.items())


def _find_class(name: str, folder: Path) -> type:
    if name in PROBLEMS:
        return _from_module(PROBLEMS[name])
    file, separator, class_name = name.rpartition(":")
    if separator and file.endswith(".py"):
        return _from_file(folder / file, class_name)
    near = difflib.get_close_matches(name, PROBLEMS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(PROBLEMS)}"
    raise StudyError(f'problem.name = {name!r} is not a known problem; {hint}, or name your own as "file.py:Class"')


def _from_module(path: str) -> type:
    module, _, name = path.partition(":")
    found: type = getattr(importlib.import_module(module), name)
    return found


def _from_file(path: Path, class_name: str) -> type:
    """Execute a user's file under a name of its own, so that its classes can be found again by whoever unpickles."""
    path = path.resolve()
    if not path.is_file():
        raise ProblemError(f"problem file {path} does not exist; problem.name is relative to the study's folder")
    name = f"forebay_user_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ProblemError(f"problem file {path} cannot be imported; it must be a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up while they are made
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ProblemError(f"problem file {path} raised {type(error).__name__}: {error}; run it alone to see") from error
    found = getattr(module, class_name, None)
    if not isinstance(found, type):
        classes = [k for k, v in vars(module).items() if isinstance(v, type) and v.__module__ == name]
        raise ProblemError(f"{path} has no class {class_name!r}; it has {', '.join(classes) or 'none'}")
    return found


def _make(cls: type, options: Mapping[str, Any]) -> Problem:
    if not is_dataclass(cls):
        raise ProblemError(f"{cls.__name__} is not a dataclass; decorate it with @dataclass(frozen=True)")
    hints = get_type_hints(cls, include_extras=True)
    known = [f.name for f in fields(cls) if f.init]
    values: dict[str, Any] = {}
    for key, value in options.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known) or 'none'}"
            raise StudyError(f"problem.{key} = {value!r} is not an option of {cls.__name__}; {hint}")
        try:
            values[key] = TypeAdapter(hints[key]).validate_python(value)
        except ValidationError as error:
            wanted = error.errors()[0]["msg"].removeprefix("Input should be ")
            raise StudyError(f"problem.{key} = {value!r} is not allowed: it should be {wanted}") from None
    missing = [f.name for f in fields(cls) if f.init and f.name not in values and _default(f) is MISSING]
    if missing:
        raise StudyError(f"problem.{missing[0]} is missing; {cls.__name__} has no default for it")
    try:
        problem: Problem = cls(**values)
    except ValueError as error:
        raise StudyError(f"problem {cls.__name__}: {error}") from error
    return problem


def _card(name: str, cls: type) -> ProblemCard:
    hints = get_type_hints(cls)
    options = tuple(OptionCard(f.name, _type_text(hints[f.name]), repr(_default(f))) for f in fields(cls) if f.init)
    return ProblemCard(name, (cls.__doc__ or "").strip().splitlines()[0], options)


def _default(item: Any) -> Any:
    return item.default if item.default is not MISSING else item.default_factory


def _type_text(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")

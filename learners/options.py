"""Options as frozen dataclasses whose fields carry their own limits.

Written without pydantic, so that a model can be built on a GPU machine that has torch and numpy alone.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, get_args, get_origin, get_type_hints

from forebay.pipeline.errors import StudyError


@dataclass(frozen=True, slots=True)
class OptionCard:
    """One option as the command line shows it."""

    key: str
    default: Any
    constraint: str
    help: str


def option(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    choices: Sequence[str] | None = None,
) -> Any:
    """A dataclass field with limits: low <= value <= high, value > above, or one of `choices`."""
    return field(default=default, metadata={"help": help, "low": low, "high": high, "above": above, "choices": choices})


def read_options[T](cls: type[T], table: Mapping[str, Any], *, where: str) -> T:
    """Make `cls` from a table of plain values.

    Integers are accepted where a float is meant, and one integer where a tuple of integers is meant.

    Raises:
        StudyError: unknown key, wrong type or a value out of range; names `where`.key, value, constraint and remedy.
    """
    known = {item.name: item for item in fields(cls)}  # type: ignore[arg-type]
    hints = get_type_hints(cls)
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(sorted(known))}"
            raise StudyError(f"{where}.{key} = {value!r} is not a known key; {hint}")
        values[key] = _accept(value, hints[key], known[key], f"{where}.{key}")
    return cls(**values)


def describe_options(cls: type) -> tuple[OptionCard, ...]:
    """Every option of a dataclass with default, constraint and meaning."""
    hints = get_type_hints(cls)
    return tuple(
        OptionCard(item.name, item.default, _constraint(hints[item.name], item), item.metadata.get("help", ""))
        for item in fields(cls)
    )


def _accept(value: Any, hint: Any, item: Field[Any], key: str) -> Any:
    converted = _convert(value, hint)
    if converted is MISSING or not _within(converted, item.metadata):
        raise StudyError(
            f"{key} = {value!r} is not allowed: it should be {_constraint(hint, item)}; "
            f"the default is {item.default!r} ({item.metadata.get('help', '')})"
        )
    return converted


def _convert(value: Any, hint: Any) -> Any:
    """The value in the hinted type, or MISSING when it is of another one."""
    if hint is bool or hint is str:
        return value if isinstance(value, hint) else MISSING
    if isinstance(value, bool):
        return MISSING
    if hint is int:
        return value if isinstance(value, int) else MISSING
    if hint is float:
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else MISSING
    if get_origin(hint) is tuple:
        items = [value] if isinstance(value, int) else value
        whole = isinstance(items, list | tuple) and items and all(_convert(i, int) is not MISSING for i in items)
        return tuple(items) if whole else MISSING
    if type(None) in get_args(hint):
        inner = next(h for h in get_args(hint) if h is not type(None))
        return None if value is None else _convert(value, inner)
    raise TypeError(f"option type {hint} is not supported")


def _within(value: Any, limits: Mapping[str, Any]) -> bool:
    if value is None:
        return True
    if isinstance(value, tuple):
        return all(_within(item, limits) for item in value)
    if limits.get("choices") is not None:
        return value in limits["choices"]
    low, high, above = limits.get("low"), limits.get("high"), limits.get("above")
    return (low is None or value >= low) and (high is None or value <= high) and (above is None or value > above)


def _constraint(hint: Any, item: Field[Any]) -> str:
    limits = item.metadata
    if limits.get("choices") is not None:
        return "one of " + ", ".join(repr(choice) for choice in limits["choices"])
    if get_origin(hint) is tuple:
        words = "an integer or a list of integers"
    else:
        kind = next((h for h in get_args(hint) if h is not type(None)), hint)
        words = {int: "an integer", float: "a finite number", bool: "true or false", str: "a text"}[kind]
    signs = (("above", ">"), ("low", ">="), ("high", "<="))
    bounds = " and ".join(f"{sign} {limits[name]:g}" for name, sign in signs if limits.get(name) is not None)
    return f"{words} {bounds}".strip()

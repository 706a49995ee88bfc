"""What is wrong with a study, in one sentence for each fault."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from typing import Any, get_args, get_origin

from pydantic import BaseModel

PLAIN_WORD = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
CLOCK = r"^(\d{1,3}-)?\d{1,3}:[0-5]\d:[0-5]\d$"
PATTERNS = {
    PLAIN_WORD: "a word of letters, digits, dots, underscores and hyphens that begins with a letter or a digit",
    CLOCK: 'a time as "hours:minutes:seconds" or "days-hours:minutes:seconds"',
}
_KINDS = {
    "model_type": "a table; write its keys below its name in brackets",
    "dict_type": "a table such as { key = 1 }",
    "tuple_type": 'a list in brackets, such as ["u"]',
    "string_type": "a text in quotes",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "bool_parsing": "true or false",
}
"""What a kind of value is called in TOML."""


def explain(model: type[BaseModel], fault: Mapping[str, Any]) -> str:
    """One sentence for one pydantic fault in a tree of tables: key, value, constraint, remedy."""
    location = [str(part) for part in fault["loc"]]
    key = ".".join(location) or "study"
    if fault["type"] == "extra_forbidden":
        known = _known_keys(model, location[:-1])
        near = difflib.get_close_matches(location[-1], known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        return f"{key} = {fault['input']!r} is not a known key; {hint}"
    if fault["type"] == "missing":
        return f"{key} is missing; add it to the study"
    constraint = fault["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if fault["type"] == "value_error":
        return f"{key}: {constraint}"
    if fault["type"] == "string_pattern_mismatch":
        constraint = PATTERNS.get(fault["ctx"]["pattern"], constraint)
    constraint = _KINDS.get(fault["type"], constraint)
    value = json.dumps(fault["input"], default=repr)
    return f"{key} = {value} is not allowed: it should be {constraint}"


def _known_keys(root: type[BaseModel], location: list[str]) -> list[str]:
    model: Any = root
    for part in location:
        if part.isdigit():  # an entry of a list of tables
            continue
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        if get_origin(annotation) is tuple:
            annotation = get_args(annotation)[0]
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return sorted(model.model_fields)

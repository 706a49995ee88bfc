"""Plain values as TOML, which the standard library reads but does not write."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def to_toml(tree: Mapping[str, Any]) -> str:
    """A tree of strings, numbers, booleans, lists and tables as a TOML 1.0 document; None is left out.

    Raises:
        TypeError: a value of any other type.
    """
    return "\n".join(_table(tree, ())).strip("\n") + "\n"


def _table(tree: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    plain = {key: value for key, value in tree.items() if value is not None and not isinstance(value, Mapping)}
    lines = [f"{_key(key)} = {_value(value)}" for key, value in plain.items()]
    if path and (lines or not tree):
        lines = ["", f"[{'.'.join(map(_key, path))}]", *lines]
    for key, value in tree.items():
        if isinstance(value, Mapping):
            lines += _table(value, (*path, key))
    return lines


def _key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else _string(key)


def _value(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case float():
            return repr(value)
        case str():
            return _string(value)
        case list() | tuple():
            return f"[{', '.join(_value(item) for item in value if item is not None)}]"
        case Mapping():
            inner = (f"{_key(key)} = {_value(item)}" for key, item in value.items() if item is not None)
            return f"{{ {', '.join(inner)} }}" if value else "{}"
    raise TypeError(f"{value!r} of type {type(value).__name__} has no TOML form; use plain values")


def _string(text: str) -> str:
    # JSON's escapes are TOML's, except that TOML also wants DEL escaped and has no surrogate pairs.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")

"""Laws by name, for the files that must name one."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import inspect
import json
from collections.abc import Mapping
from types import MappingProxyType

from forebay.solvers.materials.law import Law

LAWS: Mapping[str, str] = MappingProxyType(
    {
        "linear_elastic": "forebay.solvers.materials.chaboche:LinearElastic",
        "von_mises": "forebay.solvers.materials.chaboche:VonMises",
        "chaboche": "forebay.solvers.materials.chaboche:Chaboche",
    }
)
"""Name to "module:Class"; the module is imported when the law is made."""


def law_of(name: str, constants: Mapping[str, float] | None = None) -> Law:
    """One of `LAWS` with these constants, defaults for the others.

    A law of one's own is passed as an object wherever a law is taken; no file makes this function import code.

    Raises:
        ValueError: an unknown name or constant, or a constant out of range.
    """
    if name not in LAWS:
        raise ValueError(
            f"{name!r} is not a known law; {_hint(name, LAWS)}.  A law of your own has no name here: pass the object"
        )
    module, _, class_name = LAWS[name].partition(":")
    make = getattr(importlib.import_module(module), class_name)
    known = inspect.signature(make).parameters
    given = dict(constants or {})
    for constant, value in given.items():
        if constant not in known:
            raise ValueError(f"law {name!r} has no constant {constant!r}; {_hint(constant, known)}")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{constant} = {value!r} of law {name!r} must be a number")
    law: Law = make(**given)
    return law


def fingerprint(law: Law) -> str:
    """16 hexadecimal digits that name and constants decide, the same in every process and on every machine."""
    constants = {name: float(value) + 0.0 for name, value in law.constants.items()}
    text = json.dumps([law.name, constants], sort_keys=True, allow_nan=False)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _hint(word: str, known: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"{f'did you mean {near[0]!r}?  ' if near else ''}choose one of {', '.join(known)}"

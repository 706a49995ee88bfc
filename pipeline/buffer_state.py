"""Integer arrays and generators as JSON, exactly."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np


def pack(array: np.ndarray) -> str:
    """Little-endian bytes of an integer array, deflated, as base64 text."""
    return base64.b64encode(zlib.compress(array.astype(array.dtype.newbyteorder("<")).tobytes(), 1)).decode("ascii")


def unpack(text: str, dtype: str) -> np.ndarray:
    """The flat array that `pack` wrote; `dtype` little-endian, the result native."""
    native = np.dtype(dtype).newbyteorder("=")
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype).astype(native)


def generator_to_dict(rng: np.random.Generator) -> dict[str, Any]:
    """State of a Philox generator as JSON; its words are 64-bit integers, which Python's json keeps exactly."""
    state = dict(rng.bit_generator.state)
    words = {name: [int(word) for word in value] for name, value in state.pop("state").items()}
    return {
        "bit_generator": state["bit_generator"],
        **words,
        "buffer": [int(word) for word in state["buffer"]],
        **{name: int(state[name]) for name in ("buffer_pos", "has_uint32", "uinteger")},
    }


def generator_from_dict(rng: np.random.Generator, state: Mapping[str, Any]) -> None:
    """Set a Philox generator to a state that `generator_to_dict` wrote.

    Raises:
        ValueError: the state of another kind of generator.
    """
    if state["bit_generator"] != "Philox":
        raise ValueError(f"buffer state holds a {state['bit_generator']!r} generator; only Philox can be continued")
    words = {name: np.array(state[name], np.uint64) for name in ("counter", "key")}
    rng.bit_generator.state = {**state, "state": words, "buffer": np.array(state["buffer"], np.uint64)}

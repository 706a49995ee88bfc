"""What laws say about broken arguments and about points that fail; for laws of one's own too."""

from __future__ import annotations

import math

import numpy as np

from forebay.solvers.materials.law import TENSOR, LawError, Response

_FLOAT = np.dtype(np.float64)
_NAMED = 5
"""Points that a message lists."""


def require_arrays(
    law: str, width: int, strain: np.ndarray, temperature: np.ndarray, dt: float, state: np.ndarray, response: Response
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Strain, temperature and state as a compiled kernel may read them, or a refusal; about 2 µs.

    Read-only arrays come back as copies: numba would compile every kernel again for them, which takes seconds.
    `response.tangent` is left to `require_tangent`.

    Raises:
        ValueError: an array of another shape, type or layout than a law with `width` columns takes, or a negative,
            infinite or NaN step.
    """
    points = len(strain)
    tensors, variables = (points, TENSOR), (points, width)
    _require(law, "strain", strain, tensors)
    _require(law, "temperature", temperature, (points,))
    _require(law, "state", state, variables)
    _require_writable(law, "response.stress", response.stress, tensors)
    _require_writable(law, "response.state", response.state, variables)
    if not 0.0 <= dt < math.inf:
        raise ValueError(f"law {law!r} got a step of {dt} s; it must be finite and not negative")
    return _writable(strain), _writable(temperature), _writable(state)


def require_tangent(law: str, points: int, tangent: np.ndarray) -> None:
    """Refuse a tangent array that cannot be written.

    Raises:
        ValueError: its shape, type or layout is wrong.
    """
    _require_writable(law, "response.tangent", tangent, (points, TENSOR, TENSOR))


def _require(law: str, name: str, array: np.ndarray, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise ValueError(f"law {law!r} got {name} of shape {array.shape} where it takes {shape}")
    if array.dtype != _FLOAT or not array.flags.c_contiguous:
        raise ValueError(
            f"law {law!r} got {name} of {array.dtype}{'' if array.flags.c_contiguous else ', not C-contiguous'}; "
            f"pass np.ascontiguousarray({name}, dtype=np.float64)"
        )


def _require_writable(law: str, name: str, array: np.ndarray, shape: tuple[int, ...]) -> None:
    _require(law, name, array, shape)
    if not array.flags.writeable:
        raise ValueError(f"law {law!r} cannot write {name}, which is read-only; allocate it by Response.empty")


def _writable(array: np.ndarray) -> np.ndarray:
    return array if array.flags.writeable else array.copy()


def refuse_temperatures(law: str, temperature: np.ndarray, points: np.ndarray, coldest: float, hottest: float) -> None:
    """Raise for temperatures at which a law is not declared to hold.

    Raises:
        ValueError: `points` is not empty.
    """
    if len(points):
        raise ValueError(
            f"{temperature[points[0]]} °C at {_list(points, len(temperature))} is outside [{coldest}, {hottest}] °C, "
            f"where the constants of law {law!r} are declared to hold; mend the temperature field, or make the law "
            f"with another `coldest` and `hottest`"
        )


def refuse_points(law: str, reason: str, points: np.ndarray, total: int) -> None:
    """Raise for points whose local equations were not solved; `reason` completes "law 'x': ...".

    Raises:
        LawError: `points` is not empty.
    """
    if len(points):
        raise LawError(f"law {law!r}: {reason} at {_list(points, total)}; take a smaller step", points)


def _list(points: np.ndarray, total: int) -> str:
    """For example "2 of 50 points (3, 17)"."""
    listed = ", ".join(str(point) for point in points[:_NAMED])
    return f"{len(points)} of {total} points ({listed}{', ...' if len(points) > _NAMED else ''})"

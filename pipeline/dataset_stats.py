"""What the numbers of a data set are: `forebay dataset stats`.

Computed with dask, one task for each chunk of samples, results merged in a tree: the memory needed is that of a few
chunks, whatever the size of the data set.  Only valid samples count, all their time steps alike.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import numpy as np

from forebay.pipeline.dataset_layout import NO_METHOD
from forebay.pipeline.dataset_moments import PERCENTILES, Moments
from forebay.pipeline.dataset_reader import DatasetReader
from forebay.pipeline.dataset_spectrum import Spectrum, Wavenumbers
from forebay.pipeline.errors import DatasetError
from forebay.pipeline.records import Field, Outcome, Split

PIECE = 2 * 2**20
"""Bytes of a field that one task looks at at a time; some ten times as much is needed for it."""
_MERGE = 16
"""Results that are merged at once."""


@dataclass(frozen=True, slots=True)
class FieldStats:
    """One field over all valid frames and all grid points."""

    name: str
    role: str
    """Either "input" or "output"."""
    units: str
    values: int
    mean: float
    std: float
    """√(mean of squared deviations)."""
    minimum: float
    maximum: float
    percentiles: Mapping[str, float]
    """"1", "5", ..., "99" → value, to within 0.8 % of itself; see `dataset_moments`."""
    spectrum: Spectrum | None
    """Of a field on a uniform grid."""


@dataclass(frozen=True, slots=True)
class ParameterStats:
    """One parameter over all valid samples, beside the range it was to be drawn from."""

    name: str
    units: str
    distribution: str
    low: float
    high: float
    minimum: float
    maximum: float
    mean: float
    std: float


@dataclass(frozen=True, slots=True)
class DatasetStats:
    """Fields, parameters and outcomes of one data set; NaN where there is no valid sample."""

    path: Path
    split: Split
    samples: int
    valid: int
    steps: int
    fields: tuple[FieldStats, ...]
    parameters: tuple[ParameterStats, ...]
    outcomes: Mapping[str, Mapping[str, int]]
    """Method → outcome → samples; only what occurs."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: None where there is no number."""
        tree: dict[str, Any] = _plain(self)
        return tree


def dataset_stats(path: Path | str) -> DatasetStats:
    """Statistics of the data set at `path`.

    Raises:
        DatasetError: there is none, it must not be trusted, or a chunk file is missing or torn.
    """
    reader = DatasetReader(path, maps=1)
    inputs = {item.name for item in reader.schema.inputs}
    found = _field_stats(reader)
    fields = []
    for name, item in reader.layout.fields.items():
        moments, spectrum = found[name]
        fields.append(
            FieldStats(
                name=name,
                role="input" if name in inputs else "output",
                units=item.units,
                values=moments.count,
                mean=moments.mean if moments.count else float("nan"),
                std=moments.std,
                minimum=moments.minimum if moments.count else float("nan"),
                maximum=moments.maximum if moments.count else float("nan"),
                percentiles={f"{q:g}": value for q, value in zip(PERCENTILES, moments.percentiles(), strict=True)},
                spectrum=spectrum,
            )
        )
    return DatasetStats(
        path=reader.path,
        split=reader.plan.split,
        samples=reader.samples,
        valid=len(reader.valid),
        steps=reader.schema.steps,
        fields=tuple(fields),
        parameters=tuple(_parameters(reader)),
        outcomes=_outcomes(reader),
    )


@dataclass(frozen=True, slots=True)
class _Part:
    """What one task found out about one field."""

    moments: Moments
    power: np.ndarray | None
    """Sum over frames of the energy in each shell."""
    frames: int

    @classmethod
    def merged(cls, parts: Sequence[_Part]) -> _Part:
        return functools.reduce(_merge, parts)


def _merge(left: _Part, right: _Part) -> _Part:
    power = None if left.power is None or right.power is None else left.power + right.power
    return _Part(left.moments.merged(right.moments), power, left.frames + right.frames)


def _field_stats(reader: DatasetReader) -> dict[str, tuple[Moments, Spectrum | None]]:
    """All fields in one computation, so that dask may work on several at once."""
    graph, shells = {}, {}
    chunks = [reader.layout.rows(chunk) for chunk in range(-(-reader.samples // reader.plan.size))]
    rows = [reader.valid[(reader.valid >= c.start) & (reader.valid < c.stop)] for c in chunks]
    for name, item in reader.layout.fields.items():
        shells[name] = Wavenumbers.of(item, reader.schema)
        task = dask.delayed(_chunk_part, pure=False)
        level = [task(reader.path, name, item, ids, shells[name]) for ids in rows if len(ids)]
        while len(level) > 1:
            groups = [level[k : k + _MERGE] for k in range(0, len(level), _MERGE)]
            level = [dask.delayed(_Part.merged, pure=False)(group) for group in groups]
        graph[name] = level
    (computed,) = dask.compute(graph)
    result: dict[str, tuple[Moments, Spectrum | None]] = {}
    for name, parts in computed.items():
        if not parts:
            result[name] = (Moments.of(np.empty(0, np.float32)), None)
            continue
        part, numbers = parts[0], shells[name]
        spectrum = None if numbers is None or part.power is None else numbers.spectrum(part.power / part.frames)
        result[name] = (part.moments, spectrum)
    return result


def _chunk_part(path: Path, name: str, item: Field, ids: np.ndarray, numbers: Wavenumbers | None) -> _Part:
    # A reader of its own: what it maps is let go with it, so that memory does not grow with the data set.
    reader = DatasetReader(path, maps=1)
    step = max(1, PIECE // max(1, 4 * int(np.prod(reader.schema.sample_shape(name), dtype=np.int64))))
    parts = []
    for start in range(0, len(ids), step):
        values = reader.read(name, ids[start : start + step])
        if not np.isfinite(values).all():
            raise DatasetError(
                f"{path}: a valid sample among {ids[0]} to {ids[-1]} holds NaN or inf in field {name!r}; "
                f"`forebay dataset verify` names it"
            )
        frames = values.reshape(-1, *item.shape)
        parts.append(_Part(Moments.of(values), None if numbers is None else numbers.power(frames), len(frames)))
    return _Part.merged(parts)


def _parameters(reader: DatasetReader) -> list[ParameterStats]:
    if not reader.schema.parameters:
        return []
    values = reader.read("parameters", reader.valid)
    stats = []
    for item, column in zip(reader.schema.parameters, values.T, strict=True):
        known = column if len(column) else np.array([np.nan])
        stats.append(
            ParameterStats(
                name=item.name,
                units=item.units,
                distribution=item.distribution,
                low=item.low,
                high=item.high,
                minimum=float(known.min()),
                maximum=float(known.max()),
                mean=float(known.mean()),
                std=float(known.std()),
            )
        )
    return stats


def _outcomes(reader: DatasetReader) -> dict[str, dict[str, int]]:
    outcome, method = reader.column("outcome"), reader.column("method")
    names = (NO_METHOD, *reader.methods)
    table: dict[str, dict[str, int]] = {}
    for code, name in enumerate(names, start=-1):
        counts = {o.name.lower(): int(((outcome == o) & (method == code)).sum()) for o in Outcome}
        found = {ending: count for ending, count in counts.items() if count}
        if found:
            table[name] = found
    return table


def _plain(value: Any) -> Any:
    if hasattr(value, "__dataclass_fields__"):
        return {name: _plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value

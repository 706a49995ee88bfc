"""What a data set holds, in numbers: `forebay dataset info`, the data-set card, the report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from forebay.pipeline.dataset_layout import NO_METHOD
from forebay.pipeline.dataset_reader import DatasetReader
from forebay.pipeline.records import Outcome


@dataclass(frozen=True, slots=True)
class FieldInfo:
    """One field as stored."""

    name: str
    role: str
    """Either "input" or "output"."""
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    """Of the published samples."""
    units: str
    nbytes: int
    """Of the published samples."""


ESTIMATED = ("rom", "rom+full")
"""Methods whose samples are certified by an estimate: a reduced model's, also with some time steps in full."""


@dataclass(frozen=True, slots=True)
class MethodInfo:
    """What one solver method did, over all samples that it was tried on."""

    name: str
    count: int
    valid: int
    iterations_mean: float
    iterations_max: int
    residual_max: float
    """Over its valid samples; NaN without any."""
    seconds_mean: float
    estimate_max: float
    """Largest estimated error of a valid sample, where the method is one of `ESTIMATED`; NaN for every other."""


@dataclass(frozen=True, slots=True)
class DatasetInfo:
    """Sizes, outcomes and methods of one data set; counts are of the published samples."""

    path: Path
    split: str
    samples: int
    planned: int
    valid: int
    steps: int
    chunk_samples: int
    fields: tuple[FieldInfo, ...]
    parameters: tuple[str, ...]
    outcomes: Mapping[str, int]
    """Samples by name of their outcome; only outcomes that occur."""
    methods: tuple[MethodInfo, ...]
    residual_max: float
    """Over the valid samples; NaN without any."""
    solver_seconds: float
    """Wall time of assembling and solving, summed over the samples."""
    disk_bytes: int
    """Everything in the folder."""

    @property
    def complete(self) -> bool:
        """Is every planned sample published?"""
        return self.samples == self.planned

    def rows(self) -> list[tuple[str, str]]:
        """Label and value of every line that a person wants to see."""
        lines = [
            ("split", self.split),
            ("samples", f"{self.samples} of {self.planned} planned, {self.valid} valid"),
            ("time steps", str(self.steps)),
            ("samples in a chunk", str(self.chunk_samples)),
            ("parameters", ", ".join(self.parameters) or "none"),
        ]
        for item in self.fields:
            axes = ", ".join(f"{dim} {length}" for dim, length in zip(item.dims, item.shape, strict=True))
            lines.append((f"{item.role} {item.name}", f"({axes}) [{item.units}], {bytes_text(item.nbytes)}"))
        lines.append(("outcomes", ", ".join(f"{name} {count}" for name, count in self.outcomes.items()) or "none"))
        lines += [(f"method {m.name}", _method_text(m)) for m in self.methods]
        lines.append(("largest residual", f"{self.residual_max:.2e}"))
        lines.append(("solver time", f"{self.solver_seconds:.1f} s"))
        lines.append(("on disk", bytes_text(self.disk_bytes)))
        return lines


def dataset_info(path: Path | str) -> DatasetInfo:
    """Sizes, fields, outcomes and solver methods of the data set at `path`.

    Raises:
        DatasetError: there is none, or its record arrays are damaged.
    """
    reader = DatasetReader(path)
    columns = {column.name: reader.column(column.name) for column in reader.columns}
    counts = {o.name.lower(): int((columns["outcome"] == o).sum()) for o in Outcome}
    return DatasetInfo(
        path=reader.path,
        split=reader.plan.split,
        samples=reader.samples,
        planned=reader.plan.samples,
        valid=int(columns["valid"].sum()),
        steps=reader.schema.steps,
        chunk_samples=reader.plan.size,
        fields=tuple(_fields(reader)),
        parameters=tuple(p.name for p in reader.schema.parameters),
        outcomes={name: count for name, count in counts.items() if count},
        methods=tuple(_methods(reader, columns)),
        residual_max=_largest(columns["residual"][columns["valid"]]),
        solver_seconds=float(np.nansum(columns["seconds"])),
        disk_bytes=sum(file.stat().st_size for file in reader.path.rglob("*") if file.is_file()),
    )


def bytes_text(count: int) -> str:
    """A number of bytes in binary units: "512 B", "17.2 MiB"."""
    value, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"


def _fields(reader: DatasetReader) -> Iterator[FieldInfo]:
    inputs = {item.name for item in reader.schema.inputs}
    for name, item in reader.layout.fields.items():
        shape = (reader.samples, *reader.schema.sample_shape(name))
        yield FieldInfo(
            name=name,
            role="input" if name in inputs else "output",
            dims=reader.layout.dims(name),
            shape=shape,
            units=item.units,
            nbytes=4 * int(np.prod(shape, dtype=np.int64)),
        )


def _methods(reader: DatasetReader, columns: Mapping[str, np.ndarray]) -> Iterator[MethodInfo]:
    estimates = columns.get("estimate", np.full(reader.samples, np.nan))
    for code, name in enumerate((NO_METHOD, *reader.methods), start=-1):
        used = columns["method"] == code
        if not used.any():
            continue
        certified = used & columns["valid"]
        yield MethodInfo(
            name=name,
            count=int(used.sum()),
            valid=int(certified.sum()),
            iterations_mean=float(columns["iterations"][used].mean()),
            iterations_max=int(columns["iterations"][used].max()),
            residual_max=_largest(columns["residual"][certified]),
            seconds_mean=float(columns["seconds"][used].mean()),
            # Of samples solved in full it is that of the reduced solution which was refused.
            estimate_max=_largest(estimates[certified & ~np.isnan(estimates)]) if name in ESTIMATED else float("nan"),
        )


def _largest(values: np.ndarray) -> float:
    return float(values.max()) if values.size else float("nan")


def _method_text(method: MethodInfo) -> str:
    return (
        f"{method.count} samples, {method.valid} valid; iterations {method.iterations_mean:.1f} on average, "
        f"{method.iterations_max} at most; {1e3 * method.seconds_mean:.2f} ms a sample; "
        f"largest residual {method.residual_max:.2e}"
        + ("" if np.isnan(method.estimate_max) else f"; estimated error up to {100 * method.estimate_max:.2f} %")
    )

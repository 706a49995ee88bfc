"""The card of a data set: README.md beside the data, for people who have nothing but the folder."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from forebay.pipeline.chunks import write_atomically
from forebay.pipeline.dataset_info import DatasetInfo, bytes_text, dataset_info
from forebay.pipeline.dataset_layout import CARD
from forebay.pipeline.dataset_reader import DatasetReader
from forebay.pipeline.records import Outcome
from forebay.pipeline.verify import residual_tolerance


def write_card(path: Path | str) -> Path:
    """Write the card of the data set at `path` from what is published in it; returns the card's file.

    Uses the group's attributes where they are there: "problem_summary", "initial_conditions", "study", "versions",
    "commit", "hardware".

    Raises:
        DatasetError: there is no data set, or the disk is full.
    """
    reader = DatasetReader(path)
    card = reader.path / CARD
    write_atomically(card, [card_text(reader, dataset_info(reader.path)).encode()])
    return card


def card_text(reader: DatasetReader, info: DatasetInfo) -> str:
    """The card as Markdown."""
    sections = [
        ("", _headline(reader, info)),
        ("Problem", _problem(reader)),
        ("Fields", _fields(reader, info)),
        ("Parameters", _parameters(reader)),
        ("Samples and how they were certified", _certificates(reader, info)),
        ("Machine and versions", _machine(reader, info)),
        ("How to read it", _reading(reader)),
        ("How to judge a surrogate", _judging(info)),
        ("Licence", "The folder states none. Whoever passes it on adds theirs here."),
    ]
    return "\n\n".join(f"## {title}\n\n{text}" if title else text for title, text in sections) + "\n"


def _headline(reader: DatasetReader, info: DatasetInfo) -> str:
    name = _nested(reader.attributes, "study", "name") or _nested(reader.attributes, "study", "problem", "name")
    state = "complete" if info.complete else f"not finished, {info.planned} samples are planned"
    return (
        f"# {name or info.path.stem}: {info.split} split\n\n"
        f"{info.samples} samples ({state}), {info.valid} of them valid, {info.steps} time step(s) each; "
        f"{bytes_text(sum(f.nbytes for f in info.fields))} of fields. Zarr v3, written by Forebay."
    )


def _problem(reader: DatasetReader) -> str:
    schema, attributes = reader.schema, reader.attributes
    lines = [str(attributes.get("problem_summary") or "The run left no description of the equations.")]
    lines.append(f"- Boundary conditions: {schema.boundary_conditions or 'not stated'}")
    if schema.times:
        spacing = (schema.times[-1] - schema.times[0]) / (len(schema.times) - 1) if len(schema.times) > 1 else None
        lines.append(f"- Initial conditions: {attributes.get('initial_conditions') or 'see the description above'}")
        step = f", {spacing:g} s apart on average" if spacing is not None else ""
        lines.append(f"- Stored times: {len(schema.times)}, from {schema.times[0]:g} s to {schema.times[-1]:g} s{step}")
    else:
        lines.append("- Stationary: no initial conditions, no time step.")
    for item in schema.coordinates:
        if item.values.dtype.kind == "f":
            low, high = item.values.min(), item.values.max()
            lines.append(f"- Domain: `{item.name}` from {low:g} to {high:g} [{item.units}], {item.values.size} points")
    return lines[0] + "\n\n" + "\n".join(lines[1:])


def _fields(reader: DatasetReader, info: DatasetInfo) -> str:
    descriptions = {name: item.description for name, item in reader.layout.fields.items()}
    rows = [
        (
            f"`{f.name}`",
            f.role,
            "(" + ", ".join(f.dims) + ")",
            " x ".join(map(str, f.shape)),
            f.units,
            descriptions[f.name],
        )
        for f in info.fields
    ]
    return _table(("name", "role", "dimensions", "shape", "units", "meaning"), rows)


def _parameters(reader: DatasetReader) -> str:
    parameters = reader.schema.parameters
    if not parameters:
        return "None: samples differ in their input fields alone."
    rows = [
        (f"`{p.name}`", f"{p.low:g}", f"{p.high:g}", p.units, p.distribution.replace("_", "-"), p.description)
        for p in parameters
    ]
    table = _table(("name", "low", "high", "units", "distribution", "meaning"), rows)
    note = "`parameters` has shape (sample, parameter) in this order. A normal distribution has mean (low + high)/2 "
    return f"{table}\n\n{note}and standard deviation (high - low)/2."


def _certificates(reader: DatasetReader, info: DatasetInfo) -> str:
    tolerance = residual_tolerance(reader.attributes)
    bound = f"; the tolerance was {tolerance:g}" if tolerance is not None else ""
    methods = [
        (
            f"`{m.name}`",
            str(m.count),
            str(m.valid),
            f"{m.iterations_mean:.1f} / {m.iterations_max}",
            f"{m.residual_max:.2e}",
            "–" if np.isnan(m.estimate_max) else f"{100 * m.estimate_max:.2f} %",
            f"{1e3 * m.seconds_mean:.2f}",
        )
        for m in info.methods
    ]
    outcomes = [(name, str(count), _advice(name)) for name, count in info.outcomes.items()]
    return (
        "Only samples with `valid` are meant for training; the fields of all others are NaN. `residual` is the true "
        f"relative residual, recomputed in float64, largest over the time steps{bound}.\n\n"
        + _table(("outcome", "samples", "remedy"), outcomes)
        + "\n\n"
        + _table(_METHOD_HEAD, methods)
    )


_METHOD_HEAD = (
    "method",
    "samples",
    "valid",
    "iterations mean / max",
    "largest residual",
    "largest estimated error",
    "ms a sample",
)


def _machine(reader: DatasetReader, info: DatasetInfo) -> str:
    attributes = reader.attributes
    hardware = attributes.get("hardware")
    described = ", ".join(f"{k} {v}" for k, v in hardware.items()) if isinstance(hardware, Mapping) else hardware
    versions = attributes.get("versions")
    listed = ", ".join(f"{k} {v}" for k, v in versions.items()) if isinstance(versions, Mapping) else versions
    hours = f"{info.solver_seconds / 3600:.3g} hours"
    lines = [
        f"- Hardware: {described or 'not stated'}",
        f"- Solver time: {hours} ({info.solver_seconds:.1f} s; wall time summed over the samples)",
        f"- Versions: {listed or 'not stated'}",
        f"- Commit: {attributes.get('commit') or 'not stated'}",
    ]
    study = attributes.get("study")
    if study is None:
        return "\n".join(lines)
    return "\n".join(lines) + f"\n\nThe study:\n\n```json\n{json.dumps(study, indent=2)}\n```"


def _reading(reader: DatasetReader) -> str:
    name, output = reader.path.name, reader.schema.outputs[0].name
    return f"""```python
import xarray as xr
ds = xr.open_zarr("{name}")                      # lazy, through dask
good = ds.isel(sample=ds.valid.values.nonzero()[0])

import dask.array as da
{output} = da.from_zarr("{name}/{output}")

import torch
from forebay.pipeline.dataset import DatasetReader
reader = DatasetReader("{name}")                 # memory-mapped; valid frames only
loader = torch.utils.data.DataLoader(
    reader, batch_size=64, shuffle=True, collate_fn=torch.utils.data.default_convert
)
```

Any Zarr v3 reader will do: chunks are plain little-endian float32 files of {reader.plan.size} samples. \
`outcome` and `method` are codes; their attributes `flag_values` and `flag_meanings` name them."""


def _judging(info: DatasetInfo) -> str:
    where = "this split" if info.split == "validation" else "the validation split (`validation.zarr` of the same run)"
    return (
        f"On {where}, in physical units and without any normalisation, for each frame and each output field\n\n"
        "    e = ‖prediction − reference‖₂ / ‖reference‖₂   (all grid points equally weighted)\n\n"
        "and then the mean, the 99th percentile and the maximum of e over all valid frames. State all three, the "
        "number of unique training samples, the wall time and the random seeds; a mean alone hides what fails."
    )


def _advice(outcome: str) -> str:
    return Outcome[outcome.upper()].advice


def _nested(tree: Mapping[str, Any], *keys: str) -> Any:
    value: Any = tree
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    # A bar would open another column, a line break would end the table.
    return " ".join(text.split()).replace("|", "\\|")

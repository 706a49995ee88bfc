"""Can a data set be trusted?  Everything that is wrong comes back as data, nothing stops at the first finding."""

from __future__ import annotations

import enum
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from forebay.pipeline.chunks import chunk_bytes, leftovers, read_chunk
from forebay.pipeline.dataset_info import ESTIMATED, DatasetInfo, dataset_info
from forebay.pipeline.dataset_layout import FIELD_DTYPE, SELECTION, array_chunk_file, is_raw, read_document
from forebay.pipeline.dataset_reader import DatasetReader
from forebay.pipeline.dataset_trust import check_array, read_json
from forebay.pipeline.errors import DatasetError
from forebay.pipeline.records import Outcome

__all__ = ["DatasetInfo", "Finding", "Flaw", "Resolve", "VerifyReport", "dataset_info", "residual_tolerance", "verify"]

Resolve = Callable[[int], Mapping[str, np.ndarray]]
"""Draws and solves the sample of an id again; its fields by name, shapes as in the schema, time axis included."""

_SLACK = 3.0
"""By how much the true error of a reduced sample may exceed the estimate that it was believed with."""
_FLOOR = 0.01
"""Of a field's largest norm among the samples compared: the least that errors of reduced ones refer to."""

_logger = logging.getLogger(__name__)


class Flaw(enum.StrEnum):
    """What can be wrong with a data set."""

    METADATA = "metadata"
    """Arrays whose metadata contradict the group's, or each other's."""
    MISSING_CHUNK = "missing chunk"
    WRONG_SIZE = "wrong size"
    NONFINITE = "non-finite"
    """NaN or inf in a sample that is marked valid."""
    UNMASKED = "unmasked"
    """Values in a sample that is not valid."""
    RECORD = "record"
    """Records that contradict each other or do not make sense."""
    RESIDUAL = "residual"
    """A valid sample whose residual is above the tolerance that the data set states."""
    NOT_REPRODUCED = "not reproduced"
    """A sample that comes out differently when it is solved again."""
    INCOMPLETE = "incomplete"
    """Note: fewer samples than planned, as in any run that is not finished."""
    LEFTOVER = "leftover"
    """Note: files that a killed (or running) writer has not finished; readers never see them."""
    UNCHECKED = "unchecked"
    """Note: something that this check could not look at."""

    @property
    def is_note(self) -> bool:
        """Does it leave every visible sample trustworthy?"""
        return self in (Flaw.INCOMPLETE, Flaw.LEFTOVER, Flaw.UNCHECKED)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be."""

    flaw: Flaw
    where: str
    """The array, file or record concerned."""
    sentence: str


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What `verify` looked at and everything it found."""

    path: Path
    samples: int
    """Published samples, all of which were looked at."""
    chunk_files: int
    """Chunk files that were opened."""
    findings: tuple[Finding, ...]
    resolved: tuple[int, ...] = ()
    """Ids of the samples that were solved again."""
    worst: Mapping[str, float] = field(default_factory=dict)
    """Field by field, the largest relative difference ‖stored - again‖₂ / ‖again‖₂."""

    @property
    def ok(self) -> bool:
        """Nothing but notes."""
        return all(finding.flaw.is_note for finding in self.findings)

    def lines(self) -> list[str]:
        """The report as sentences, the verdict last."""
        lines = [f"{'note' if f.flaw.is_note else 'WRONG'}: {f.sentence}" for f in self.findings]
        if self.resolved:
            differences = ", ".join(f"{name} {value:.1e}" for name, value in self.worst.items())
            lines.append(f"solved {len(self.resolved)} samples again; largest relative difference: {differences}")
        wrong = sum(not f.flaw.is_note for f in self.findings)
        verdict = "ok" if self.ok else f"{wrong} findings"
        lines.append(f"{self.path}: {self.samples} samples in {self.chunk_files} chunk files: {verdict}")
        return lines


def verify(
    path: Path | str, resolve: Resolve | None = None, *, samples: int = 8, rtol: float = 1e-5, seed: int = 7
) -> VerifyReport:
    """Check a data set for completeness, finiteness, certification and, with `resolve`, reproducibility.

    Looks at every published row.  Metadata of all arrays agree; every chunk file is there with its exact size; valid
    samples are finite in all fields, the others all NaN; records make sense; residuals of valid samples are at most
    `residual_tolerance`.  With `resolve`, `samples` valid samples chosen by `seed` are solved again and must satisfy
    ‖stored - again‖₂ <= rtol ‖again‖₂ in every field.  A sample of a reduced model is compared with the full one, and
    its bound is three times `study.solver.rom.tolerance`, the largest estimated error with which it was believed.

    Good values: rtol 1e-5.  Fields are stored in float32, so 1e-6 is the least that makes sense; where a sample was
    solved by another method the difference can reach the condition number times the solver's tolerance.

    Raises:
        DatasetError: there is no data set at `path`.
    """
    path = Path(path)
    read_document(path)
    try:
        reader = DatasetReader(path)
    except DatasetError as error:
        return VerifyReport(path, 0, 0, (Finding(Flaw.METADATA, str(path), f"cannot be opened: {error}"),))
    findings = [*_check_metadata(reader), *_check_coordinates(reader)]
    columns, missing = _read_columns(reader)
    findings += [*missing, *_check_records(reader, columns)]
    opened, in_fields = _check_fields(reader, columns.get("valid"))
    findings += in_fields
    chosen: tuple[int, ...] = ()
    worst: dict[str, float] = {}
    if resolve is not None and "valid" in columns:
        chosen = _choose(columns["valid"], samples, seed)
        bounds = _bounds(reader, columns, chosen, rtol)
        findings += _check_again(reader, resolve, bounds, worst)
    findings += _notes(reader)
    return VerifyReport(path, reader.samples, opened, tuple(findings), chosen, worst)


def residual_tolerance(attributes: Mapping[str, Any]) -> float | None:
    """Largest true relative residual that a valid sample may have: `residual_tolerance`, else `study.solver.rtol`."""
    stated = attributes.get("residual_tolerance")
    if stated is None:
        study = attributes.get("study")
        solver = study.get("solver") if isinstance(study, Mapping) else None
        stated = solver.get("rtol") if isinstance(solver, Mapping) else None
    return None if stated is None else float(stated)


def _check_metadata(reader: DatasetReader) -> Iterator[Finding]:
    for name, array in reader.arrays.items():
        file = reader.path / name / "zarr.json"
        try:
            own = read_json(file)
            check_array(reader.path, name, own)
        except (OSError, DatasetError) as error:
            yield Finding(Flaw.METADATA, name, f"array {name!r} has no readable metadata of its own ({error})")
            continue
        fixed = ("data_type", "chunk_grid", "chunk_key_encoding", "codecs", "fill_value", "dimension_names")
        differing = [key for key in fixed if own.get(key) != array[key]]
        # An array may be ahead of the group: a publish that was cut short, which the next one completes.
        if own["shape"][1:] != array["shape"][1:] or own["shape"][0] < array["shape"][0]:
            differing.append("shape")
        for key in differing:
            sentence = f"array {name!r} says {key} {own.get(key)}, the group's metadata {array[key]}"
            yield Finding(Flaw.METADATA, name, sentence)
    for name in reader.layout.fields:
        expected = [reader.samples, *reader.schema.sample_shape(name)]
        if reader.arrays[name]["shape"] != expected:
            stated = reader.arrays[name]["shape"]
            sentence = f"field {name!r} has shape {stated} where schema and sample ids ask for {expected}"
            yield Finding(Flaw.METADATA, name, sentence)


def _check_coordinates(reader: DatasetReader) -> Iterator[Finding]:
    for name, array in reader.arrays.items():
        if array["dimension_names"][0] != "sample" and is_raw(array):
            file = array_chunk_file(reader.path, name, tuple(0 for _ in array["shape"]))
            expected = chunk_bytes(np.dtype(array["data_type"]), tuple(array["shape"]))
            if not file.is_file() or file.stat().st_size != expected:
                sentence = f"coordinate {name!r} has no chunk file of {expected} bytes at {file}"
                yield Finding(Flaw.MISSING_CHUNK, name, sentence)


def _read_columns(reader: DatasetReader) -> tuple[dict[str, np.ndarray], list[Finding]]:
    names = ["sample_id", *(c.name for c in reader.columns), *(["parameters"] if reader.schema.parameters else [])]
    columns, findings = {}, []
    for name in names:
        try:
            columns[name] = reader.column(name)
        except DatasetError as error:
            findings.append(Finding(Flaw.MISSING_CHUNK, name, f"record array {name!r}: {error}"))
    return columns, findings


def _check_records(reader: DatasetReader, columns: Mapping[str, np.ndarray]) -> Iterator[Finding]:
    if len(columns) < len(reader.columns) + 1 + bool(reader.schema.parameters):
        yield Finding(Flaw.UNCHECKED, "records", "records were not checked against each other, since some are missing")
        return
    outcome, valid, residual, seeds = (columns[name] for name in ("outcome", "valid", "residual", "seed"))
    known = np.isin(outcome, [int(o) for o in Outcome])
    _, first, count = np.unique(seeds, return_index=True, return_counts=True)
    wrong = {
        "sample_id": _wrong_ids(reader, columns["sample_id"]),
        "outcome": (~known, "have no outcome although they are published"),
        "valid": (known & (valid != (outcome == Outcome.CONVERGED)), "are marked valid against their outcome"),
        "method": (columns["method"] >= len(reader.methods), "have a method code without meaning"),
        "seed": (np.isin(seeds, seeds[first[count > 1]]), "share a seed: they are the same draw"),
        "residual": (valid & ~np.isfinite(residual), "are valid without a finite residual"),
    }
    if "parameters" in columns:
        finite = np.isfinite(columns["parameters"]).all(axis=1)
        wrong["parameters"] = (valid & ~finite, "are valid with parameters that are not finite")
    for name, (rows, what) in wrong.items():
        if rows.any():
            yield Finding(Flaw.RECORD, name, f"{_samples_text(rows)} {what}")
    tolerance = residual_tolerance(reader.attributes)
    if tolerance is None:
        sentence = "residuals were not checked: the attributes state neither residual_tolerance nor study.solver.rtol"
        yield Finding(Flaw.UNCHECKED, "residual", sentence)
    elif (above := valid & (residual > tolerance)).any():
        largest = f"{residual[above].max():.2e}"
        sentence = (
            f"{_samples_text(above)} are valid with residuals up to {largest}, above the tolerance of {tolerance:g}"
        )
        yield Finding(Flaw.RESIDUAL, "residual", sentence)


def _wrong_ids(reader: DatasetReader, ids: np.ndarray) -> tuple[np.ndarray, str]:
    if SELECTION in reader.attributes:
        return np.diff(ids, prepend=-1) <= 0, "have an id that is not above the one before"
    return ids != np.arange(reader.samples), "have an id that is not their row"


def _check_fields(reader: DatasetReader, valid: np.ndarray | None) -> tuple[int, list[Finding]]:
    findings: list[Finding] = []
    opened = 0
    chunks = -(-reader.samples // reader.plan.size)
    for name in reader.layout.fields:
        for chunk in range(chunks):
            values = _chunk_values(reader, name, chunk, findings)
            if values is None:
                continue
            opened += 1
            if valid is not None:
                findings += _check_values(reader, name, chunk, values, valid)
    return opened, findings


def _chunk_values(reader: DatasetReader, name: str, chunk: int, findings: list[Finding]) -> np.ndarray | None:
    rows = reader.layout.rows(chunk)
    if not is_raw(reader.arrays[name]):
        return reader.read(name, np.arange(rows.start, min(rows.stop, reader.samples)))
    file = reader.layout.chunk_file(reader.path, name, chunk)
    shape = reader.layout.chunk_shape(name)
    try:
        return read_chunk(file, FIELD_DTYPE, shape, within=reader.path)[: rows.stop - rows.start]
    except DatasetError as error:
        flaw = Flaw.WRONG_SIZE if file.exists() else Flaw.MISSING_CHUNK
        findings.append(Finding(flaw, str(file.relative_to(reader.path)), str(error)))
        return None


def _check_values(
    reader: DatasetReader, name: str, chunk: int, values: np.ndarray, valid: np.ndarray
) -> Iterator[Finding]:
    rows = reader.layout.rows(chunk)
    flat = values.reshape(len(values), -1)
    may_train = valid[rows]
    finite = np.isfinite(flat).all(axis=1)
    masked = np.isnan(flat).all(axis=1)
    where = str(reader.layout.chunk_file(reader.path, name, chunk).relative_to(reader.path))
    if (bad := may_train & ~finite).any():
        text = _samples_text(bad, rows.start)
        yield Finding(Flaw.NONFINITE, where, f"{text} are valid but hold NaN or inf in field {name!r}")
    if (bad := ~may_train & ~masked).any():
        text = _samples_text(bad, rows.start)
        yield Finding(Flaw.UNMASKED, where, f"{text} are not valid but hold values in field {name!r}, not NaN alone")


def _choose(valid: np.ndarray, samples: int, seed: int) -> tuple[int, ...]:
    ids = np.flatnonzero(valid)
    generator = np.random.Generator(np.random.Philox(seed))
    return tuple(sorted(generator.choice(ids, min(samples, len(ids)), replace=False).tolist()))


@dataclass(frozen=True, slots=True)
class _Bound:
    """How far a sample may be from what it is when solved again."""

    rtol: float
    floors: Mapping[str, float] = field(default_factory=dict)
    """Field by field, the least that a difference refers to; 0 where none is given."""


def _bounds(
    reader: DatasetReader, columns: Mapping[str, np.ndarray], chosen: tuple[int, ...], rtol: float
) -> dict[int, _Bound]:
    """Of each chosen sample."""
    exact = _Bound(rtol)
    tolerance = _reduced_tolerance(reader.attributes)
    codes = [code for code, name in enumerate(reader.methods) if name in ESTIMATED]
    if tolerance is None or not codes or "method" not in columns:
        return dict.fromkeys(chosen, exact)
    reduced = np.isin(columns["method"], codes)
    believed = _Bound(_SLACK * tolerance, {name: _floor(reader, name, chosen) for name in reader.layout.fields})
    return {sample: believed if reduced[sample] else exact for sample in chosen}


def _reduced_tolerance(attributes: Mapping[str, Any]) -> float | None:
    """`study.solver.rom.tolerance`."""
    node: Any = attributes
    for key in ("study", "solver", "rom", "tolerance"):
        node = node.get(key) if isinstance(node, Mapping) else None
    return None if node is None else float(node)


def _floor(reader: DatasetReader, name: str, chosen: tuple[int, ...]) -> float:
    try:
        values = reader.read(name, chosen).reshape(len(chosen), -1)
    except DatasetError:
        return 0.0  # told where samples are compared
    return _FLOOR * float(np.linalg.norm(values.astype(np.float64), axis=1).max(initial=0.0))


def _check_again(
    reader: DatasetReader, resolve: Resolve, bounds: Mapping[int, _Bound], worst: dict[str, float]
) -> Iterator[Finding]:
    for sample, bound in bounds.items():
        try:
            fresh = resolve(sample)
        except Exception as error:
            # Whatever a problem's own code raises is a finding about this sample; the others are still worth a look.
            _logger.debug("solving sample %d again failed", sample, exc_info=True)
            sentence = f"sample {sample} could not be solved again: {type(error).__name__}: {error}"
            yield Finding(Flaw.NOT_REPRODUCED, f"sample {sample}", sentence)
            continue
        for name in reader.layout.fields:
            yield from _compare(reader, sample, name, fresh.get(name), bound, worst)


def _compare(
    reader: DatasetReader, sample: int, name: str, fresh: np.ndarray | None, bound: _Bound, worst: dict[str, float]
) -> Iterator[Finding]:
    try:
        stored = reader.read(name, [sample])[0].astype(np.float64)
    except DatasetError as error:
        yield Finding(Flaw.UNCHECKED, name, f"sample {sample} was not compared in {name!r}: {error}")
        return
    if fresh is None or np.shape(fresh) != stored.shape:
        found = "no such field" if fresh is None else f"shape {np.shape(fresh)}"
        sentence = f"sample {sample} solved again has {found} for {name!r} of shape {stored.shape}"
        yield Finding(Flaw.NOT_REPRODUCED, name, sentence)
        return
    floor = bound.floors.get(name, 0.0)
    difference = _relative_difference(stored, np.asarray(fresh, dtype=np.float64), floor)
    worst[name] = max(worst.get(name, 0.0), difference)
    if not difference <= bound.rtol:
        sentence = (
            f"sample {sample} solved again differs by {difference:.2e} (relative L2) in {name!r}, above {bound.rtol:g}"
        )
        yield Finding(Flaw.NOT_REPRODUCED, name, sentence)


def _relative_difference(stored: np.ndarray, fresh: np.ndarray, floor: float = 0.0) -> float:
    """‖stored - fresh‖₂ / max(‖fresh‖₂, floor).

    It is 0 where both vanish, inf where only the denominator does or anything is not finite.
    """
    difference, scale = float(np.linalg.norm(stored - fresh)), max(float(np.linalg.norm(fresh)), floor)
    if difference == 0:
        return 0.0
    ratio = difference / scale if scale else float("inf")
    return ratio if np.isfinite(ratio) else float("inf")


def _notes(reader: DatasetReader) -> Iterator[Finding]:
    if reader.samples < reader.plan.samples:
        sentence = f"{reader.samples} of {reader.plan.samples} planned samples are published; `forebay resume` goes on"
        yield Finding(Flaw.INCOMPLETE, str(reader.path), sentence)
    if count := sum(1 for _ in leftovers(reader.path)):
        sentence = f"{count} unfinished files of a killed or running writer; the next `forebay resume` removes them"
        yield Finding(Flaw.LEFTOVER, str(reader.path), sentence)


def _samples_text(wrong: np.ndarray, start: int = 0) -> str:
    ids = (np.flatnonzero(wrong) + start).tolist()
    listed = ", ".join(str(i) for i in ids[:5])
    return f"samples {listed}" + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")

"""What `forebay dataset stats` and `forebay dataset export` print."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from forebay.cluster.terminal import make_console
from forebay.pipeline.dataset_info import bytes_text
from forebay.pipeline.dataset_layout import dataset_folders
from forebay.pipeline.dataset_trust import printable

if TYPE_CHECKING:
    from forebay.pipeline.dataset_export import ExportOptions
    from forebay.pipeline.dataset_stats import DatasetStats

_BARS = " ▁▂▃▄▅▆▇█"


def print_stats(path: Path, *, as_json: bool) -> None:
    """Statistics of one data set, or of both of a run folder, as tables or as one JSON document."""
    from forebay.pipeline.dataset_stats import dataset_stats

    found = [dataset_stats(folder) for folder in dataset_folders(path)]
    if as_json:
        print(json.dumps([stats.to_dict() for stats in found], indent=2, allow_nan=False))
        return
    console = make_console()
    for stats in found:
        for table in _tables(stats):
            console.print(table)


def export_dataset(path: Path, target: Path, options: ExportOptions) -> None:
    """Export with a progress bar on a terminal, and say what was written."""
    from forebay.pipeline.dataset_export import export

    console = make_console()
    with _progress(console) as told:
        done = export(path, target, options, told)
    counts = ", ".join(f"{count} {split}" for split, count in done.samples.items())
    left = f"; {done.left_out} that are not valid were left out (--all keeps them)" if done.left_out else ""
    console.print(f"{done.path}: {counts} samples, {bytes_text(done.nbytes)}{left}", markup=False, highlight=False)


@contextmanager
def _progress(console: Console) -> Iterator[Callable[[int, int], None]]:
    columns = (TextColumn("exporting"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not sys.stdout.isatty()) as bar:
        task = bar.add_task("exporting", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _tables(stats: DatasetStats) -> Iterator[Table]:
    counts = f"{stats.samples} samples, {stats.valid} valid, {stats.steps} time step(s)"
    fields = _table(f"{stats.path}: {counts}", ("field", "units", "mean", "std", "min", "max"))
    names = list(stats.fields[0].percentiles) if stats.fields else []
    percentiles = _table("", ("percentiles", *(f"{name} %" for name in names)))
    for item in stats.fields:
        numbers = (item.mean, item.std, item.minimum, item.maximum)
        _row(fields, f"{item.role} {item.name}", item.units, *map(_number, numbers))
        _row(percentiles, item.name, *map(_number, item.percentiles.values()))
    yield from (fields, percentiles)
    if stats.parameters:
        parameters = _table("", ("parameter", "units", "drawn from", "min", "max", "mean", "std"))
        for entry in stats.parameters:
            drawn = f"{entry.distribution.replace('_', '-')} {entry.low:g} to {entry.high:g}"
            drawn_numbers = (entry.minimum, entry.maximum, entry.mean, entry.std)
            _row(parameters, entry.name, entry.units, drawn, *map(_number, drawn_numbers))
        yield parameters
    outcomes = _table("", ("method", "outcome", "samples"))
    for method, endings in stats.outcomes.items():
        for outcome, count in endings.items():
            _row(outcomes, method, outcome, str(count))
    yield outcomes
    spectra = _table("", ("isotropic spectrum", "wavenumbers k", "log E(k), k > 0", "in lowest quarter"))
    for item in stats.fields:
        if item.spectrum is not None:
            shells = item.spectrum.wavenumber
            extent = f"0 to {shells[-1]:g} [{item.spectrum.units}]"
            _row(spectra, item.name, extent, _sparkline(item.spectrum.energy), _low_share(item.spectrum.energy))
    if spectra.row_count:
        yield spectra


def _table(title: str, columns: tuple[str, ...]) -> Table:
    table = Table(title=Text(printable(title)) if title else None)
    for k, column in enumerate(columns):
        table.add_column(column, justify="left" if k == 0 else "right")
    return table


def _row(table: Table, *cells: str) -> None:
    table.add_row(*(Text(printable(cell)) for cell in cells))  # plain: units in brackets are no markup


def _number(value: float) -> str:
    return "–" if value != value else f"{value:.4g}"


def _low_share(energy: tuple[float, ...]) -> str:
    moving = sum(energy[1:])
    return f"{100 * sum(energy[1 : 1 + len(energy) // 4]) / moving:.1f} %" if moving else "–"


def _sparkline(energy: tuple[float, ...], width: int = 32) -> str:
    """Decades of E(k), k from 1 on, the largest of neighbours where there are too many; eight decades deep."""
    each = -(-max(1, len(energy) - 1) // width)
    peaks = [max(energy[k : k + each]) for k in range(1, len(energy), each)]
    top = max(peaks, default=0.0)
    if not top:
        return ""
    return "".join(_BARS[max(0, 8 + round(math.log10(p / top)))] if p else _BARS[0] for p in peaks)

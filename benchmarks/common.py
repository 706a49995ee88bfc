"""What every benchmark shares: options, fair measuring, tables, the last line, and the committed result."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import os
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def arguments(description: str, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """`--quick` and `--write`; a benchmark may add its own to the parser that `parser` returns."""
    return parser(description).parse_args(argv)


def parser(description: str) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=description.strip().splitlines()[0])
    made.add_argument("--quick", action="store_true", help="smaller sizes and fewer repetitions, under 60 s")
    made.add_argument("--write", action="store_true", help="also write the result into benchmarks/results/")
    return made


@dataclass(frozen=True, slots=True)
class Measured:
    """Repetitions of one contender."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def spread(self) -> float:
        """(max - min) / median."""
        return (max(self.values) - min(self.values)) / self.median

    def __str__(self) -> str:
        return f"{number(self.median)} ±{50 * self.spread:.0f} %"


def alternate(contenders: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, Measured]:
    """Measure contenders in turn, `repeats` times, so that a slow spell of the machine hits all of them alike.

    Every second round runs backwards: what follows whom is part of what is measured (caches, turbo).
    """
    values: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(repeats):
        for name in list(contenders) if turn % 2 == 0 else reversed(list(contenders)):
            values[name].append(contenders[name]())
    return {name: Measured(tuple(measured)) for name, measured in values.items()}


def number(value: float) -> str:
    """Three significant digits, without an exponent from 0.001 to 10 millions."""
    if value == 0 or not 1e-3 <= abs(value) < 1e7:
        return f"{value:.3g}"
    digits = max(0, 2 - int(f"{value:e}".split("e")[1]))
    return f"{float(f'{value:.3g}'):,.{digits}f}"


def processor() -> str:
    """Model name of the processor."""
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return re.sub(r"\(R\)|\(TM\)|@.*", "", line.split(":", 1)[1]).strip()
    return platform.processor() or platform.machine()


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def hardware() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{processor()}, {cores()} cores, {memory:.0f} GiB; {platform.system()} {platform.machine()}"


def versions(*packages: str) -> str:
    """Python, this repository's commit, and the packages that matter for the claim."""
    found = [f"{name} {importlib.metadata.version(name)}" for name in packages]
    return ", ".join([f"Python {platform.python_version()}", f"forebay {commit()}", *found])


def commit() -> str:
    """Short commit, with a plus when the working tree differs from it; the version outside a repository."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # a machine without git still measures
        return importlib.metadata.version("forebay")
    return asked.stdout.strip() if asked.returncode == 0 else importlib.metadata.version("forebay")


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table whose columns line up in plain text; the first column is aligned left, the others right."""
    texts = [list(columns), *[[str(cell) for cell in row] for row in rows]]
    widths = [max(len(row[i]) for row in texts) for i in range(len(columns))]

    def line(row: Sequence[str]) -> str:
        cells = [row[0].ljust(widths[0]), *[cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True)]]
        return "| " + " | ".join(cells) + " |"

    rule = "|" + "|".join("-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    return "\n".join([line(texts[0]), rule, *map(line, texts[1:])])


@dataclass(slots=True)
class Report:
    """Prints as it goes, and remembers for the result file."""

    name: str
    options: argparse.Namespace
    packages: tuple[str, ...] = ()
    lines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.say(f"# {self.name}\n")
        # A machine that was busy with other things gives figures that nobody can reproduce; say so in the result.
        load = f"load {os.getloadavg()[0]:.1f} at the start"
        self.say(f"{datetime.date.today().isoformat()} · {hardware()} · {load}\n")
        self.say(f"{versions(*self.packages)}\n")
        self.say(f"`{' '.join(['python', f'benchmarks/{Path(sys.argv[0]).name}', *sys.argv[1:]])}`\n")

    def say(self, text: str) -> None:
        print(text, flush=True)
        self.lines.append(text)

    def finish(self, figure: str, target: str, *, ok: bool) -> int:
        """Print the last line, write the result if asked for; the exit code."""
        self.say(f"\n{self.name}: {figure} (target {target}) {'ok' if ok else 'short'}")
        if self.options.write:
            slug = re.sub(r"[^a-z0-9]+", "-", f"{processor()} {cores()} cores".lower()).strip("-")
            path = RESULTS / f"{self.name}_{slug}_{datetime.date.today().isoformat()}.md"
            RESULTS.mkdir(exist_ok=True)
            path.write_text("\n".join(self.lines) + "\n", encoding="utf-8")
        return 0 if ok else 1

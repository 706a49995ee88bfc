"""`forebay status --watch`: a run as it goes, from its journal and metrics alone.

It works wherever the run folder can be seen and asks no process of the run anything.  Files are read on from where the
last look ended.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from rich.live import Live
from rich.table import Table
from rich.text import Text

from forebay.cluster.submission import read_submission
from forebay.cluster.tail import Tail
from forebay.cluster.terminal import make_console
from forebay.cluster.watch_state import RunState
from forebay.pipeline.errors import RunError
from forebay.pipeline.journal import is_being_written
from forebay.pipeline.summary import status_text, summarise

REFRESH_S = 1.0
LINE_EVERY_S = 10.0
PATIENCE_S = 300.0
"""Silence after which a run of another machine, whose locks cannot be seen from here, counts as interrupted."""
FEW_LOOKS_S = 5.0
"""Watched for at least that long first: the clocks of two machines may differ."""


@dataclass(slots=True)
class Watch:
    """Follows one run folder."""

    run: Path
    wall: Callable[[], float] = time.time
    state: RunState = field(init=False)
    _journal: Tail = field(init=False)
    _metrics: Tail = field(init=False)
    _heard_s: float = field(init=False)
    _locks_seen: bool = field(init=False)

    def __post_init__(self) -> None:
        self.state = RunState(_study(self.run))
        self._journal, self._metrics = Tail(self.run / "journal.jsonl"), Tail(self.run / "metrics.jsonl")
        self._heard_s = self.wall()
        submission = read_submission(self.run)
        self._locks_seen = submission is None or submission.host == socket.gethostname()

    def look(self) -> bool:
        """Read what is new; has the run ended?"""
        writing = self._is_being_written()  # before its last lines are read
        lines = sorted([*self._journal.lines(), *self._metrics.lines()], key=lambda line: line["t"])
        for line in lines:
            self.state.take(line)
        if lines:
            self._heard_s = self.wall()
        if self.state.attempts and self.state.ended is None and not writing and self._is_silent():
            self.state.ended = ("interrupted", "its process ended without a word")
        return self.state.ended is not None

    def rows(self) -> list[tuple[str, str]]:
        """As `RunState.rows`, now."""
        return self.state.rows(self.wall())

    def line(self) -> str:
        """As `RunState.line`, now."""
        return self.state.line(self.wall())

    def _is_being_written(self) -> bool:
        try:
            writing = is_being_written(self.run / "journal.jsonl")
        except OSError:  # a file system without locks, or without those of other machines
            return False
        self._locks_seen = self._locks_seen or writing
        return writing

    def _is_silent(self) -> bool:
        if self._locks_seen:
            return True
        now = self.wall()
        return now - self._heard_s > FEW_LOOKS_S and now - self.state.newest_t > PATIENCE_S


def watch(run: Path) -> None:
    """Show a run once a second until it ends or Ctrl-C is pressed; plain lines where there is no terminal.

    A run that has not begun, because its job is still queued, is waited for.

    Raises:
        RunError: no run folder, or a damaged file in it.
    """
    show = _live if sys.stdout.isatty() else _plain
    try:
        show(Watch(run))
    except KeyboardInterrupt:
        return
    make_console().print(status_text(summarise(run)))


def _live(watched: Watch) -> None:
    with Live(console=make_console(), auto_refresh=False, transient=True) as display:
        while not watched.look():
            display.update(_table(watched.rows()), refresh=True)
            time.sleep(REFRESH_S)


def _plain(watched: Watch) -> None:
    said_s = float("-inf")
    while not watched.look():
        if time.monotonic() - said_s >= LINE_EVERY_S:
            said_s = time.monotonic()
            print(watched.line(), flush=True)
        time.sleep(REFRESH_S)


def _table(rows: list[tuple[str, str]]) -> Table:
    table = Table.grid(padding=(0, 2))
    for label, value in rows:
        table.add_row(Text(label, style="bold"), Text(value))
    return table


def _study(run: Path) -> dict[str, object]:
    try:
        return json.loads((run / "study.json").read_text(encoding="utf-8"))["study"]
    except FileNotFoundError:
        raise RunError(f"{run} is no run folder: it has no study.json; start one with `forebay run`") from None

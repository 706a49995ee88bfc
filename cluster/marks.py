"""Which sample a solver is at, written where it outlives the solver's process.

One line of JSON per solver in the run folder, written in place, since the reader looks only when
the writer is dead.  Used for blocks at which a solver was lost before, and for no others.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from forebay.pipeline.records import Split

FOLDER = "marks"
_WIDTH = 64


@dataclass(slots=True)
class Mark:
    """The mark of one solver while it solves one block; as a context it removes itself when the block is done."""

    run: Path
    solver: str
    split: Split
    _descriptor: int = field(default=-1, init=False)

    def __enter__(self) -> Self:
        path = mark_file(self.run, self.solver)
        path.parent.mkdir(exist_ok=True)
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        return self

    def at(self, sample_id: int | None) -> None:
        """The sample that is touched next; None between samples."""
        text = json.dumps({"split": self.split, "sample": sample_id})
        os.pwrite(self._descriptor, text.ljust(_WIDTH).encode(), 0)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)
        mark_file(self.run, self.solver).unlink(missing_ok=True)


def mark_file(run: Path, solver: str) -> Path:
    """Where a solver's mark is."""
    return run / FOLDER / solver


def read_mark(run: Path, solver: str) -> tuple[Split, int] | None:
    """Split and id of the sample that a dead solver was at; None when it was between samples, or left no mark."""
    try:
        text = mark_file(run, solver).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    try:
        mark = json.loads(text)
    except ValueError:  # killed while it wrote
        return None
    return None if mark["sample"] is None else (mark["split"], mark["sample"])

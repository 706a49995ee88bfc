"""Follows a file of JSON lines that somebody else appends to, without reading anything twice."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forebay.pipeline.errors import RunError


@dataclass(slots=True)
class Tail:
    """The complete lines that were appended to a JSON-lines file since the last look.

    What a killed writer has left of its last line is cut off by the next one, so nothing is kept of a line until all of
    it is there.
    """

    path: Path
    _offset: int = field(default=0, init=False)
    """Bytes of lines that have been handed out."""

    def lines(self) -> list[dict[str, Any]]:
        """Parsed lines; none while the file does not exist.

        Raises:
            RunError: a line before the last one is not JSON.
        """
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                complete = file.read().split(b"\n")[:-1]
        except FileNotFoundError:
            return []
        records: list[dict[str, Any]] = []
        for place, line in enumerate(complete, start=1):
            try:
                records.append(json.loads(line))
            except ValueError:
                if place == len(complete):  # torn by a power failure
                    break
                raise RunError(
                    f"{str(self.path)!r}: the line at byte {self._offset} is not JSON although lines follow it; "
                    f"restore the file from a copy, it was changed after it was written"
                ) from None
            self._offset += len(line) + 1
        return records

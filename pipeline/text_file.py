"""Small text files of a run folder that a reader never sees half written."""

from __future__ import annotations

import os
from pathlib import Path


def replace_text(path: Path, text: str) -> None:
    """Put the whole text in the file's place at once.

    Raises:
        OSError: the operating system refuses; what was there before still is.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)

"""One way to print for all verbs."""

from __future__ import annotations

import sys

from rich.console import Console


def make_console() -> Console:
    """Wraps lines on a terminal only: a log file or a pipe gets them whole."""
    return Console(soft_wrap=not sys.stdout.isatty())

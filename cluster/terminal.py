"""One way to print for all verbs."""

from __future__ import annotations

import os
import sys

from rich.console import Console


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Nobody reads any more: fall silent, and let what was being done go on."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def make_console() -> Console:
    """Wraps lines on a terminal only: a log file or a pipe gets them whole."""
    return _Console(soft_wrap=not sys.stdout.isatty())

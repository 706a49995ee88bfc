"""SIGTERM and Ctrl-C ask a run to stop."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class StoppedEarly(Exception):
    """A signal came while the stages were starting: nothing is lost, and there is nothing to save."""


def stop_early(name: str) -> None:
    """For `stop_signals`, as long as there is nothing that could be asked to stop."""
    raise StoppedEarly(name)


@contextmanager
def stop_signals(post: Callable[[str], None]) -> Iterator[None]:
    """SIGTERM and Ctrl-C post their name; a second Ctrl-C interrupts at once."""
    seen: list[int] = []

    def handler(number: int, frame: Any) -> None:
        seen.append(number)
        if len(seen) > 1 and number == signal.SIGINT:
            raise KeyboardInterrupt
        name = signal.Signals(number).name
        print(f"\n{name}: finishing the step and saving a checkpoint (Ctrl-C again to abort)", file=sys.stderr)
        post(name)

    before = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)

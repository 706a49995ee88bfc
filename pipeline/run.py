"""The run, readable in one sitting.

    study ─► plan ─► controller ──commands──► executor: solvers, sink, learner
                         ▲                        │
                         └───────events───────────┤
                                                  └─► keeper: journal first, then the data set's metadata

The controller decides (`controller.py` has the table of who waits for whom), the executor carries out: in this process
or as Ray actors.  What has happened is kept before anything follows from it, so whatever kills the run, `resume` finds
a journal that is never ahead of the data and never behind what was promised.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

from forebay.pipeline.controller import Controller
from forebay.pipeline.keeper import Keeper
from forebay.pipeline.messages import Command, Event, Finish

log = logging.getLogger(__name__)


class Executor(Protocol):
    """Carries out commands and tells what became of them."""

    def submit(self, command: Command) -> None:
        """Begin to carry out a command; does not wait for it."""
        ...

    def next_event(self) -> Event:
        """The next thing that happened; a `Tick` when nothing did for a while."""
        ...

    def close(self) -> None:
        """Let go of solvers, learner and sink; safe to call twice."""
        ...


def run(
    controller: Controller,
    executor: Executor,
    keeper: Keeper,
    *,
    observe: Callable[[Event], None] = lambda event: None,
) -> Finish:
    """Drive a run until it is complete, stopped or failed; returns how it ended."""
    try:
        _submit(controller.start(), executor, keeper)
        while controller.finished is None:
            event = executor.next_event()
            keeper.keep(event)
            observe(event)
            _submit(controller.handle(event), executor, keeper)
        return controller.finished
    finally:
        try:
            executor.close()
        finally:
            keeper.close(controller.finished)


def _submit(commands: list[Command], executor: Executor, keeper: Keeper) -> None:
    for command in commands:
        keeper.note(command)
        executor.submit(command)

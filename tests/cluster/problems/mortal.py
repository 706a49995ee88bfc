"""A necked bar that goes wrong in the ranks of a full sample, not in the process that asks for it."""

import importlib
import os
import signal
from dataclasses import dataclass, replace

import numpy as np

from forebay.solvers.materials.law import LawError
from forebay.solvers.problems.necked_bar import NeckedBar

LIMIT = 230.0
"""Of the traction, [MPa]."""


class Brittle:
    """A law until it breaks."""

    def __init__(self, law):
        self._law = law

    def __getattr__(self, name):
        return getattr(self._law, name)

    def update(self, *arguments, **options):
        raise LawError("law 'chaboche': broken in two", np.array([7]))


@dataclass(frozen=True, kw_only=True)
class Mortal(NeckedBar):
    """A NeckedBar; where the traction is above `LIMIT`, `fault` is what goes wrong."""

    fault: str = ""

    def history(self, draw):
        history = super().history(draw)
        if draw["parameters"][0] < LIMIT:
            return history
        rank = importlib.import_module("mpi4py.MPI").COMM_WORLD.rank
        if self.fault == "kill" and rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fault == "raise":
            raise ArithmeticError("no programme")
        if self.fault == "law":
            return replace(history, law=Brittle(history.law))
        return history

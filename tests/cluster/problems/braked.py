"""Darcy flow that is slow for as long as a file is there."""

import time
from dataclasses import dataclass
from pathlib import Path

from forebay.solvers.problems.darcy import Darcy


@dataclass(frozen=True, kw_only=True)
class Braked(Darcy):
    """Darcy flow on a small grid; `brake` is the file."""

    brake: str
    size: int = 16

    def assemble(self, draw, values, rhs):
        if Path(self.brake).exists():
            time.sleep(0.25)
        super().assemble(draw, values, rhs)

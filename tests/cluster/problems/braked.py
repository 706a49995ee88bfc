"""Darcy flow that is slow for as long as a file is there."""

import time
from dataclasses import dataclass
from pathlib import Path

from forebay.solvers.problems.darcy import Darcy


@dataclass(frozen=True, kw_only=True)
class Braked(Darcy):
    """Darcy flow on a small grid; `brake` is the file, `pause_s` what it costs a sample."""

    brake: str
    size: int = 16
    pause_s: float = 0.25

    def assemble(self, draw, values, rhs):
        if Path(self.brake).exists():
            time.sleep(self.pause_s)
        super().assemble(draw, values, rhs)

"""A problem that takes its process down at some samples, as a fault in compiled code would."""

import os
import signal
from dataclasses import dataclass, replace

from forebay.pipeline.records import Parameter
from forebay.solvers.problems.darcy import Darcy


@dataclass(frozen=True, kw_only=True)
class Deadly(Darcy):
    """Darcy flow on a small grid; s, which its equation does not have, is deadly below `limit`."""

    size: int = 16
    limit: float = 0.5615

    @property
    def schema(self):
        return replace(super().schema, parameters=(Parameter("s", 0.55, 0.85),))

    def assemble(self, draw, values, rhs):
        if draw["parameters"][0] < self.limit:
            os.kill(os.getpid(), signal.SIGKILL)
        super().assemble(draw, values, rhs)

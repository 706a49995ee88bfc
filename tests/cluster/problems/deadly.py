"""A diffusion problem that takes its process down at some samples, as a fault in compiled code would."""

import os
import signal
from dataclasses import dataclass

import numpy as np

from forebay.pipeline.records import Coordinate, Field, Parameter, Schema


@dataclass(frozen=True)
class Deadly:
    """-u'' + s u = f; deadly for s below `limit`."""

    n: int = 32
    limit: float = 0.5615
    symmetry = "spd"

    @property
    def schema(self):
        return Schema(
            (Parameter("s", 0.55, 0.85),),
            (Field("f", ("x",), (self.n,)),),
            (Field("u", ("x",), (self.n,)),),
            (Coordinate("x", ("x",), (np.arange(self.n) + 0.5) / self.n, "m"),),
        )

    def draw(self, parameters, rng):
        return {"f": rng.standard_normal(self.n)}

    def pattern(self):
        rows = [[j for j in (i - 1, i, i + 1) if 0 <= j < self.n] for i in range(self.n)]
        indptr = np.concatenate([[0], np.cumsum([len(r) for r in rows])])
        return indptr.astype(np.int32), np.concatenate(rows).astype(np.int32)

    def assemble(self, draw, values, rhs):
        if draw["parameters"][0] < self.limit:
            os.kill(os.getpid(), signal.SIGKILL)
        indptr, indices = self.pattern()
        rows = np.repeat(np.arange(self.n), np.diff(indptr))
        values[:] = np.where(rows == indices, 2.0 + draw["parameters"][0], -1.0)
        rhs[:] = draw["f"]

    def fields(self, draw, solution):
        return {"u": solution}

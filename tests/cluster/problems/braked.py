"""A problem on a line that is slow for as long as a file is there."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from forebay.pipeline.records import Coordinate, Field, Parameter, Schema


@dataclass(frozen=True)
class Braked:
    """-u'' + s u = f."""

    brake: str
    n: int = 32
    symmetry = "spd"

    @property
    def schema(self):
        return Schema(
            (Parameter("s", 0.0, 1.0),),
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
        if Path(self.brake).exists():
            time.sleep(0.25)
        indptr, indices = self.pattern()
        rows = np.repeat(np.arange(self.n), np.diff(indptr))
        values[:] = np.where(rows == indices, 2.0 + draw["parameters"][0], -1.0)
        rhs[:] = draw["f"]

    def fields(self, draw, solution):
        return {"u": solution}

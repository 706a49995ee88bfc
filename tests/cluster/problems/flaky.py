"""A reaction-diffusion problem on a line that goes wrong in a different way for every few samples."""

from dataclasses import dataclass

import numpy as np

from forebay.pipeline.records import Coordinate, Field, Parameter, Schema


@dataclass(frozen=True)
class Flaky:
    """-u'' + s u = f; of the drawn s, some make the matrix singular, some are NaN, some raise."""

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
        if parameters[0] > 0.9:
            raise RuntimeError(f"no medium for s = {parameters[0]:.3f}")
        f = rng.standard_normal(self.n)
        if parameters[0] < 0.1:
            f[3] = np.nan
        return {"f": f}

    def pattern(self):
        rows = [[j for j in (i - 1, i, i + 1) if 0 <= j < self.n] for i in range(self.n)]
        indptr = np.concatenate([[0], np.cumsum([len(r) for r in rows])])
        return indptr.astype(np.int32), np.concatenate(rows).astype(np.int32)

    def assemble(self, draw, values, rhs):
        indptr, indices = self.pattern()
        rows = np.repeat(np.arange(self.n), np.diff(indptr))
        values[:] = np.where(rows == indices, 2.0 + draw["parameters"][0], -1.0)
        if 0.4 < draw["parameters"][0] < 0.5:
            values[:] = 0.0
        rhs[:] = draw["f"]

    def fields(self, draw, solution):
        return {"u": solution}

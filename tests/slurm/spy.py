"""A problem on a line that notes where it is solved, and what MPI ranks started from there can do."""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from forebay.pipeline.records import Coordinate, Field, Parameter, Schema

noted = []


@dataclass(frozen=True)
class Spy:
    """-u'' + s u = f; slow while there is a brake, so that a signal finds the run at work."""

    notes: str
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
        if "SLURM_STEP_ID" in os.environ:  # in an actor of a node, not where the study is checked
            self._note()
            if (Path(self.notes) / "brake").exists():
                time.sleep(0.5)
        indptr, indices = self.pattern()
        rows = np.repeat(np.arange(self.n), np.diff(indptr))
        values[:] = np.where(rows == indices, 2.0 + draw["parameters"][0], -1.0)
        rhs[:] = draw["f"]

    def fields(self, draw, solution):
        return {"u": solution}

    def _note(self):
        """Once in each process."""
        if noted:
            return
        from forebay.cluster.mpi import run_mpi

        result = run_mpi(f"{__file__}:ranks", {"x": np.ones(3)}, ranks=2, timeout_s=60)
        told = {"node": os.environ["SLURMD_NODENAME"], "sum": result.arrays["sum"].tolist(), **result.value}
        (Path(self.notes) / f"{told['node']}-{os.getpid()}.json").write_text(json.dumps(told))
        noted.append(told)


def ranks(comm, arrays, options):
    """What two ranks make of an array, and what of Slurm they see."""
    total = np.empty_like(arrays["x"])
    comm.Allreduce(arrays["x"], total)
    return {"sum": total}, {
        "ranks": comm.size,
        "seen": [key for key in os.environ if key.startswith(("SLURM_", "PMI_ID"))],
    }

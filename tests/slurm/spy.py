"""A problem that notes where it is solved, and what MPI ranks started from there can do."""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from forebay.solvers.problems.darcy import Darcy

noted = []


@dataclass(frozen=True, kw_only=True)
class Spy(Darcy):
    """Darcy flow on a small grid; slow while there is a brake, so that a signal finds the run at work."""

    notes: str
    size: int = 8

    def assemble(self, draw, values, rhs):
        if "SLURM_STEP_ID" in os.environ:  # in an actor of a node, not where the study is checked
            self._note()
            if (Path(self.notes) / "brake").exists():
                time.sleep(0.5)
        super().assemble(draw, values, rhs)

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

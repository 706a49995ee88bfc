"""Started by mpiexec: local bases of planted clusters, a third of the rows on the first process."""

import importlib
import sys

import numpy as np
from suites.local_simulations import ROWS, SPAN, planted, weights_of

from forebay.solvers.petsc import petsc
from forebay.solvers.rom.clusters import LocalSettings, decide


def refusal(comm, simulations, parameters, weights):
    """What this process says of NaN on the last one."""
    if comm.rank == comm.size - 1:
        simulations = [np.full_like(u, np.nan) if i == 5 else u for i, u in enumerate(simulations)]
    try:
        decide(simulations, weights, parameters, comm, LocalSettings(modes=SPAN))
    except ValueError as error:
        return str(error)
    return "nothing"


def main():
    petsc()
    comm = importlib.import_module("mpi4py.MPI").COMM_WORLD
    simulations, parameters, _ = planted(7)
    mine = np.split(np.arange(ROWS), [ROWS // 3])[comm.rank] if comm.size == 2 else np.arange(ROWS)
    simulations, weights = [u[mine] for u in simulations], weights_of()[mine]
    found = decide(simulations, weights, parameters, comm, LocalSettings(modes=SPAN, clusters=3))
    everyone = comm.allgather(found.decision.to_dict())
    assert all(decision == everyone[0] for decision in everyone)
    modes = comm.gather(np.stack([basis.modes for basis in (*found.bases, found.basis)]))
    refused = comm.gather(refusal(comm, simulations, parameters, weights))
    if comm.rank == 0:
        gain = found.decision.gain
        np.savez(
            sys.argv[1],
            labels=found.decision.labels,
            medoids=found.decision.medoids,
            errors=[gain.global_error, gain.local_error, gain.assigned_error],
            modes=np.concatenate(modes, axis=1),
            refused=refused,
        )


if __name__ == "__main__":
    main()

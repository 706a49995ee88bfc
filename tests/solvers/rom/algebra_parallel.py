"""Started by mpiexec: POD, cubature and Q-DEIM of one case, its points cut into slabs over the processes."""

import importlib
import sys

import numpy as np
from suites.integrand_cases import cloud

from forebay.solvers.petsc import petsc
from forebay.solvers.rom.cubature import integrals, integrand_rows, select_global, select_hierarchical
from forebay.solvers.rom.gappy import qdeim
from forebay.solvers.rom.pod import component_rows, pod


def gathered(comm, slabs, rows, numbers=None):
    """Rows of all processes in the order of the points, or results with their global numbers."""
    parts = comm.gather((rows, numbers))
    if comm.rank > 0:
        return None
    if numbers is not None:
        return np.concatenate([part for part, _ in parts])
    everything = np.concatenate([part for part, _ in parts])
    return everything[np.argsort(np.concatenate(slabs))]


def main():
    petsc()
    comm = importlib.import_module("mpi4py.MPI").COMM_WORLD
    case = cloud()
    slabs = case.slabs(comm.size)
    own = slabs[comm.rank]
    weights, stress = case.weights[own], case.stress[own]
    rows, repeated = component_rows(stress, weights)
    found = pod(rows, repeated, comm, tolerance=1e-3)
    extended = pod(rows[:, :15], repeated, comm, tolerance=1e-6).extend(rows[:, 15:], comm, tolerance=1e-3)
    matrix = integrand_rows(case.mode_strains[own], stress, comm)
    target = integrals(matrix, weights, comm)
    chosen = select_hierarchical(matrix, target, 1e-3, comm, weights=weights)
    reference = select_global(matrix, target, 1e-2, comm)
    points = qdeim(case.stress[own][:, 0, ::5], comm)
    small = [found.singular_values, extended.singular_values, target, [chosen.residual, chosen.size]]
    for copy in comm.allgather(small):
        assert all(np.array_equal(mine, other) for mine, other in zip(small, copy, strict=True))
    message = ""
    try:
        pod(np.where(np.arange(24) == 3 + 24 * (comm.rank < comm.size - 1), np.nan, rows), repeated, comm, modes=3)
    except ValueError as error:
        message = str(error)
    shape = (len(own), -1)
    results = {
        "modes": gathered(comm, slabs, found.modes.reshape(shape)),
        "extended": gathered(comm, slabs, extended.modes.reshape(shape)),
        "points": gathered(comm, slabs, own[chosen.points], True),
        "weights": gathered(comm, slabs, chosen.weights, True),
        "global_points": gathered(comm, slabs, own[reference.points], True),
        "qdeim": gathered(comm, slabs, own[points], True),
    }
    if comm.rank == 0:
        np.savez(sys.argv[1], singular_values=found.singular_values, message=message, **results)


if __name__ == "__main__":
    main()

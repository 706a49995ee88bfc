"""Started by mpiexec: solids on as many processes as there are, gathered in an order that does not depend on them."""

import dataclasses
import importlib
import sys

import numpy as np

from forebay.solvers.fem.mesh_arrays import block
from forebay.solvers.fem.solid import SolidModel, Support, UnitLoad
from forebay.solvers.fem.solid_mesh import distribute, necked_bar, read_mesh
from forebay.solvers.materials.chaboche import Chaboche
from forebay.solvers.materials.history import History
from forebay.solvers.materials.law import LawError
from forebay.solvers.petsc import petsc


class Uneven(Chaboche):
    """Gives up, long steps only, where it sees the right half of the bar: on one process of two."""

    def update(self, strain, temperature, dt, state, response, *, tangent=True):
        if dt > 0.2 and temperature.max() > 400.0:
            raise LawError("too hot for such a step", np.flatnonzero(temperature > 400.0))
        super().update(strain, temperature, dt, state, response, tangent=tangent)


def warm(positions, time):
    return 20.0 + 600.0 * time * np.exp(-(((positions[:, 0] - 32.0) / 8.0) ** 2))


def bar(comm, law, **options):
    supports = [Support("x_min", "xyz"), Support("x_max", "x", "stretch")]
    loads = [
        UnitLoad("press", "pressure", "y_max"),
        UnitLoad("spin", "centrifugal", vector=(0.0, 0.0, 1.0), point=(20.0, 0.0, 0.0)),
    ]
    model = SolidModel(necked_bar(comm, (8, 3, 3)), supports, loads, **options)
    times = np.linspace(0, 1, 5)
    amplitudes = np.column_stack([20.0 * times, 0.05 * times**2])
    return model, History(times, amplitudes, 0.12 * times[:, None], warm, law)


def plate(comm, mesh, **options):
    model = SolidModel(
        mesh,
        [Support("x_min", "x"), Support("y_min", "y"), Support("z_min", "z")],
        [UnitLoad("pull", "traction", "x_max", (1.0, 0.0, 0.0))],
        **options,
    )
    times = np.linspace(0, 1, 4)
    return model, History(times, 90.0 * times[:, None], np.zeros((4, 0)), warm, Chaboche())


def shuffled_block():
    """40 x 6 x 6 in hexahedra, every other one turned by half, with nodes numbered in no order."""
    arrays = block((5, 2, 2), lambda points: points * [40.0, 6.0, 6.0])
    rng = np.random.default_rng(7)
    turned = rng.random(len(arrays.cells)) < 0.5
    arrays.cells[turned] = arrays.cells[turned][:, [3, 2, 1, 0, 7, 6, 5, 4]]
    number = rng.permutation(len(arrays.nodes))
    nodes = np.empty_like(arrays.nodes)
    nodes[number] = arrays.nodes
    facets = {name: number[facets] for name, facets in arrays.facets.items()}
    return dataclasses.replace(arrays, nodes=nodes, cells=number[arrays.cells], facets=facets)


def report(name, model, drive, into):
    found = model.run(drive)
    rows = {"displacement": found.displacement.T, "stress": np.moveaxis(found.stress, 0, 1), "p": found.p.T}
    rows |= {"loads": model.unit_loads, "lifts": model.lifts, "mass": model.dof_weights, "positions": model.positions}
    rows |= {"weights": model.weights, "strains": model.strains(model.unit_loads * 1e-6)}
    for what, values in rows.items():
        ids = model.dof_ids if len(values) == model.dofs and what in DOFS else model.point_ids
        into[f"{name} {what}"] = model.gather(values, ids)
    into[f"{name} iterations"] = [(r.iterations, r.substeps, r.cuts) for r in found.records]
    into[f"{name} unknowns"] = model.unknowns
    into[f"{name} least rows"] = model.comm.allreduce(model.dofs, op=importlib.import_module("mpi4py.MPI").MIN)


DOFS = ("displacement", "loads", "lifts", "mass")


def main():
    petsc()
    comm = importlib.import_module("mpi4py.MPI").COMM_WORLD
    found = {}
    report("bar", *bar(comm, Chaboche()), found)
    report("cut", *bar(comm, Uneven()), found)
    report("gamg", *bar(comm, Chaboche(), linear="gamg"), found)
    report("quadratic", *plate(comm, distribute(comm, shuffled_block), order=2), found)
    report("file", *plate(comm, read_mesh(comm, sys.argv[2])), found)
    if comm.rank == 0:
        np.savez(sys.argv[1], **found)


if __name__ == "__main__":
    main()

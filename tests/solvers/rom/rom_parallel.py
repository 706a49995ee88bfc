"""Started by mpiexec, or as a process of its own: reduced models published and used by several processes."""

import dataclasses
import importlib
import json
import sys
import time
from pathlib import Path

import numpy as np
from suites.rom_cases import BAR, COARSE, OUTSIDE, TRAINING, bar_history, bar_runs

from forebay.pipeline.errors import RunError
from forebay.solvers.petsc import petsc
from forebay.solvers.problems.necked_bar import NeckedBar
from forebay.solvers.rom.adaptive import Tolerance, run_adaptive
from forebay.solvers.rom.basis import basis_of
from forebay.solvers.rom.library import Library
from forebay.solvers.rom.offline import Origin, Reduced, enrich, make_package

ORIGIN = Origin("necked_bar", BAR.law)


def refused(comm, action):
    """What every process says."""
    try:
        action()
        said = "nothing"
    except RunError as error:
        said = str(error)
    return comm.allgather(said)


def publish(comm, folder):
    """Publish a model that these processes made, and read the one that one process made (see test_library)."""
    model = BAR.model(comm)
    basis = basis_of(model, bar_runs(model), COARSE)
    peaks = np.setdiff1d(np.arange(model.points), make_package(model, basis, ORIGIN).basis.points)
    basis = dataclasses.replace(basis, peaks=peaks)
    reduced = make_package(model, basis, ORIGIN)
    library = Library(folder / "several")
    library.publish(model, reduced)
    copies = comm.allgather(reduced.package.hot_point_ids.tolist())
    alone = Library(folder / "alone")
    package, loaded = alone.package(1, BAR.law), alone.basis(1, model)
    owned = np.isin(package.point_ids[: package.force_points], model.point_ids)
    stress = loaded.stress.modes.reshape(model.points, 6, -1)
    fields = {
        "displacement": model.gather(loaded.displacement.modes, model.dof_ids),
        "stress": model.gather(stress, model.point_ids),
        "p": model.gather(loaded.p.modes, model.point_ids),
    }
    again = refused(comm, lambda: library.publish(model, reduced))
    other = refused(comm, lambda: alone.basis(1, NeckedBar(cells=(6, 2, 3), steps=8, frames=4).model(comm)))
    smaller = refused(comm, lambda: alone.basis(1, NeckedBar(cells=(4, 2, 2), steps=8, frames=4).model(comm)))
    facts = {
        "again": again,
        "other": other,
        "smaller": smaller,
        "hot": copies,
        "hot owners": comm.allgather(model.point_ids[peaks].tolist()),
        "points": comm.allgather([int(owned.sum()), len(loaded.points)]),
    }
    if comm.rank == 0:
        np.savez(folder / "found.npz", facts=json.dumps(facts), **fields)


def adapt(comm, folder):
    """The adaptive simulation of test_adaptive, from the model that one process published."""
    model = BAR.model(comm)
    library = Library(folder)
    reduced = Reduced(library.package(1, BAR.law), library.basis(1, model), 0.0)
    found = run_adaptive(model, reduced, ORIGIN, bar_history(OUTSIDE), Tolerance(0.03, 0.1))
    displacement = model.gather(found.displacement.T, model.dof_ids)
    p = model.gather(found.p.T, model.point_ids)
    decisions = [dataclasses.asdict(decision) | {"seconds": 0.0} for decision in found.decisions]
    texts = comm.allgather(json.dumps(decisions))
    assert len(set(texts)) == 1, "the processes decided otherwise"
    if comm.rank == 0:
        np.savez(folder / "found.npz", displacement=displacement, p=p, decisions=texts[0])


def learn(comm, folder):
    """Make versions, while another process does so, too; a line of JSON says which."""
    model = BAR.model(comm)
    library = Library(folder)
    runs = bar_runs(model, TRAINING[1:])
    (folder / sys.argv[3]).touch()
    while len(list(folder.glob("ready*"))) < 2:
        time.sleep(0.01)
    made = []
    for run in runs:
        with library.locked():
            version = library.latest
            known = Reduced(library.package(version, BAR.law), library.basis(version, model), 0.0)
            better = enrich(model, known, [run], ORIGIN, rough=True)
            library.publish(model, better)
        made.append(better.package.version)
    print(json.dumps(made))


def main():
    petsc()
    comm = importlib.import_module("mpi4py.MPI").COMM_WORLD
    {"publish": publish, "adapt": adapt, "learn": learn}[sys.argv[1]](comm, Path(sys.argv[2]))


if __name__ == "__main__":
    main()

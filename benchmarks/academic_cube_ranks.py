"""The academic cube of `academic_cube`, and its reduced models, made on the processes of a communicator."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from forebay.solvers.fem.solid import SolidModel, Support, Trajectory, UnitLoad
from forebay.solvers.fem.solid_mesh import cube
from forebay.solvers.materials.chaboche import Chaboche
from forebay.solvers.materials.history import History
from forebay.solvers.materials.law import plastic_strain
from forebay.solvers.rom.basis import Run, Settings, basis_of
from forebay.solvers.rom.errors import displacement_field, plastic_field
from forebay.solvers.rom.offline import Origin, make_package, solve_reduced

SIDE = 1000.0
"""[mm]"""
CELLS = 6
CYCLE = 2.0
"""[s]"""
COLD, HOT = 20.0, 400.0
"""[°C]"""
PULL, PULL_RAMP = 100.0, 0.1
"""[MPa], and [s] from the start of a cycle until it is there."""
AXIS_POINT = (3500.0, -20_000.0, 1500.0)
"""[mm]"""
DENSITY, SPEED = 1e-8, 10.0
"""[t/mm³], and [rad/s] from the middle of a cycle on."""
SETTINGS = Settings(displacement=1e-6, stress=1e-6, p=1e-6, cubature=1e-5)
LAW = Chaboche(
    young=200e3,
    young_slope=0.0,
    poisson=0.3,
    expansion=2e-5,
    yield_stress=10.0,
    yield_stress_slope=0.0,
    hardening=0.0,
    kinematic=1e5,
    kinematic_slope=0.0,
    recall=1000.0,
    viscosity=300.0,
    viscosity_slope=0.0,
    exponent=30.0,
)


def temperature(positions: np.ndarray, time: float) -> np.ndarray:
    """A bell about the centre, exp(-(r / 500 mm)²), that grows for half a cycle and dies away in the other."""
    distance = np.sum((positions - 0.5 * SIDE) ** 2, axis=1) / (0.5 * SIDE) ** 2
    warm = 1.0 - abs(2.0 * (time / CYCLE % 1.0) - 1.0)
    return np.asarray(COLD + (HOT - COLD) * warm * np.exp(-distance))


def cube_history(cycles: int, increments: int) -> History:
    """So many cycles; the state at the end of one has the loads of its end, not of the next one's start."""
    steps = np.arange(cycles * increments + 1)
    into = CYCLE * (np.where(steps > 0, (steps - 1) % increments + 1, 0)) / increments
    pressure = -PULL * np.minimum(into / PULL_RAMP, 1.0)
    speed = SPEED * np.minimum(into / (0.5 * CYCLE), 1.0)
    return History(
        times=steps * (CYCLE / increments),
        loads=np.column_stack([pressure, DENSITY * speed**2]),
        displacements=np.zeros((len(steps), 0)),
        temperature=temperature,
        law=LAW,
    )


def cube_model(comm: Any, cells: int = CELLS) -> SolidModel:
    """Collective."""
    supports = [Support("x_min", "x"), Support("x_min & y_min", "y"), Support("x_min & y_max & z_max", "z")]
    loads = [
        UnitLoad("pressure", "pressure", where="x_max"),
        UnitLoad("centrifugal", "centrifugal", vector=(0.0, 0.0, 1.0), point=AXIS_POINT),
    ]
    return SolidModel(cube(comm, cells, SIDE), supports, loads, name="academic_cube")


@dataclass(frozen=True, slots=True, eq=False)
class Start:
    """The first steps of a trajectory, as far as a basis reads them."""

    displacement: np.ndarray
    stress: np.ndarray
    p: np.ndarray

    @classmethod
    def of(cls, whole: Trajectory, steps: int) -> Start:
        rows = slice(0, steps + 1)
        return cls(whole.displacement[rows], whole.stress[rows], whole.p[rows])


def replayed(model: SolidModel, history: History, displacement: np.ndarray) -> np.ndarray:
    """Plastic strains (s + 1, points) by the law at all points along displacements (s + 1, dofs); collective."""
    rows = [np.zeros(model.points)]
    model.replay(history, displacement, observe=lambda _, state: rows.append(plastic_strain(LAW, state.variables)))
    return np.array(rows)


def offline(
    comm: Any, arrays: Mapping[str, np.ndarray], options: Mapping[str, Any]
) -> tuple[dict[str, np.ndarray], list[dict[str, float]]]:
    """Simulate all cycles in full, then train on the first few and run all again, once for each of `trained`.

    Options: `cycles`, `increments` of each, `trained` (several numbers of cycles), `cells` along an edge.  Arrays on
    the first process, all in an order that does not depend on the processes: the weights "dofs" and "points"; "u"
    (dofs, s + 1) and "p" (points, s + 1) in full; "u3", "p3" and "replayed3" of the reduced model of 3 cycles, the
    last with the law at all points along its displacements.  The value says of each reduced model how large it is.
    """
    increments, whole = options["increments"], cube_history(options["cycles"], options["increments"])
    model = cube_model(comm, options["cells"])
    full = model.run(whole)
    dofs = functools.partial(model.gather, ids=model.dof_ids)
    points = functools.partial(model.gather, ids=model.point_ids)
    fields = {"dofs": dofs(model.dof_weights), "points": points(model.weights)}
    fields |= {"u": dofs(full.displacement.T), "p": points(full.p.T)}
    sizes = []
    for trained in options["trained"]:
        run = Run(cube_history(trained, increments), Start.of(full, trained * increments))
        reduced = make_package(model, basis_of(model, [run], SETTINGS), Origin("academic_cube", LAW))
        found = solve_reduced(comm, reduced.package, LAW, whole)
        displacement = displacement_field(reduced.basis, model.lifts, found)
        fields[f"u{trained}"] = dofs(displacement.T)
        fields[f"p{trained}"] = points(plastic_field(reduced.basis, found).T)
        fields[f"replayed{trained}"] = points(replayed(model, whole, displacement).T)
        sizes.append(
            {
                "n": reduced.package.modes,
                "q": reduced.package.p_modes.shape[1],
                "m": reduced.package.points,
                "residual": reduced.residual,
            }
        )
    model.destroy()
    return {name: values for name, values in fields.items() if values is not None}, sizes

"""Small solids and their full simulations, from which the tests of reduction make reduced models."""

import dataclasses

import numpy as np
from suites.solid_cases import SYMMETRY

from forebay.solvers.fem.solid import SolidModel, Support, UnitLoad
from forebay.solvers.fem.solid_mesh import cube
from forebay.solvers.materials.history import History
from forebay.solvers.problems.necked_bar import NeckedBar
from forebay.solvers.rom.basis import Run, Settings

BAR = NeckedBar(cells=(6, 2, 2), steps=8, frames=4)
# Traction [MPa], temperature of the hot spot [°C], its position [mm], factor of the yield stress.
TRAINING = ((150, 540, 22, 1.0), (175, 700, 19.5, 1.0), (200, 450, 18, 1.0))
INSIDE = (170, 600, 20, 1.0)
OUTSIDE = (235, 780, 26, 1.0)
WEAK = (60, 60, 20, 1.0)
"""Elastic."""
COARSE = Settings(displacement=1e-2, stress=1e-1, p=1e-2, cubature=1e-1)
PULLS = ((0.02, 20.0, 300.0), (0.03, 40.0, 100.0), (0.025, 10.0, 500.0))
"""Of the cube: displacement [mm], pressure [MPa], warming [°C]."""
GENTLE = (0.004, 5.0, 50.0)
"""Elastic."""


def simulated(model, history):
    return Run(history, model.run(history))


def bar_history(parameters, problem=BAR):
    return problem.history({"parameters": np.array(parameters, float)})


def bar_runs(model, sets=TRAINING, problem=BAR):
    return [simulated(model, bar_history(parameters, problem)) for parameters in sets]


def pulled_cube(comm, cells=2):
    """[0, 10 mm]³, one face pulled by a prescribed displacement, another pressed."""
    supports = [*SYMMETRY, Support("x_max", "x", "pull")]
    return SolidModel(cube(comm, cells, 10.0), supports, [UnitLoad("press", "pressure", "y_max")], name="cube")


@dataclasses.dataclass(frozen=True)
class Warming:
    """20 °C everywhere, then warmer towards x = 10 mm."""

    rise: float

    def __call__(self, positions, time):
        return 20.0 + self.rise * time * positions[:, 0] / 10.0


def pull_history(law, pull, press, rise, *, steps=8, back=0.0):
    """Pulled until 0.6 s, then held, or taken back by a part of it; pressed and warmed for 1 s."""
    times = np.linspace(0.0, 1.0, steps + 1)
    amplitude = np.interp(times, [0.0, 0.6, 1.0], [0.0, 1.0, 1.0 - back])
    return History(times, (press * times)[:, None], (pull * amplitude)[:, None], Warming(rise), law)


def sizes(weights, rows):
    """√(Σ w v²) of each row of v (k, rows)."""
    return np.sqrt(rows**2 @ weights)


def missed(model, basis, runs, modes):
    """Relative error of the best displacements in the first modes, over all snapshots, by weighted least squares."""
    fields = np.hstack(
        [r.trajectory.displacement[1:].T - model.lifts @ r.history.displacements[1:].T for r in runs]
    ) * np.sqrt(model.dof_weights[:, None])
    shapes = basis.displacement.modes[:, :modes] * np.sqrt(model.dof_weights[:, None])
    rest = fields - shapes @ np.linalg.lstsq(shapes, fields, rcond=None)[0]
    return float(np.linalg.norm(rest) / np.linalg.norm(fields))


def rows_of(model, ids):
    """Owned numbers of points with these global numbers."""
    order = np.argsort(model.point_ids)
    return order[np.searchsorted(model.point_ids, ids, sorter=order)]

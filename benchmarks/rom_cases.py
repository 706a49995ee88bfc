"""Training and held-out simulations of the necked bar, shared by the benchmarks of reduced models."""

from __future__ import annotations

import functools
import importlib
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from forebay.solvers.fem.solid import SolidModel, Support, UnitLoad
from forebay.solvers.petsc import petsc
from forebay.solvers.problems.necked_bar import NeckedBar
from forebay.solvers.rom.basis import Run
from forebay.solvers.rom.errors import displacement_field, plastic_field
from forebay.solvers.rom.offline import Origin, Reduced
from forebay.solvers.rom.trajectory import ReducedTrajectory

# Traction [MPa], temperature of the hot spot [°C], its position [mm], factor of the yield stress.
TRAINING = ((150, 540, 22, 1.0), (175, 700, 19.5, 1.0), (200, 450, 18, 1.0), (220, 620, 20.5, 1.0))
"""Four sets whose traction, temperature and position differ in all pairs, as in a Latin hypercube."""
HELD_OUT = ((170, 600, 20, 1.0), (210, 520, 21, 1.0), (190, 500, 19, 1.0))
"""Inside the ranges of the training, at none of its values."""
OUTSIDE = ((240, 790, 25, 1.0), (230, 750, 15, 1.0), (235, 420, 27, 1.0))
"""At least two of traction, temperature and position are beyond what the training has."""
THREADS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}


def one_thread() -> None:
    """Start again with one thread each, if this process has not: they are read when libraries load."""
    if any(os.environ.get(key) != value for key, value in THREADS.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | THREADS)
    logging.basicConfig(level=logging.ERROR)


@dataclass(frozen=True)
class Bar:
    """A necked bar of some size, and its model on this process."""

    cells: tuple[int, int, int]
    steps: int = 40
    multigrid: bool = False
    """GMRES with algebraic multigrid instead of MUMPS."""

    @functools.cached_property
    def problem(self) -> NeckedBar:
        return NeckedBar(cells=self.cells, steps=self.steps, frames=min(10, self.steps))

    @functools.cached_property
    def model(self) -> SolidModel:
        petsc()
        model = self.problem.model(importlib.import_module("mpi4py.MPI").COMM_SELF)
        return model if not self.multigrid else with_multigrid(model)

    @property
    def origin(self) -> Origin:
        return Origin("necked_bar", self.problem.law)

    def history(self, parameters: Sequence[float]) -> Any:
        return self.problem.history({"parameters": np.array(parameters, float)})

    def run(self, parameters: Sequence[float]) -> Run:
        """In full."""
        history = self.history(parameters)
        return Run(history, self.model.run(history))


@dataclass(frozen=True)
class Errors:
    """Of a simulation, relative L2: the largest displacement error beside the largest displacement, p at the end."""

    displacement: float
    p: float


def with_multigrid(model: SolidModel) -> SolidModel:
    """The bar's model with the other linear solver."""
    supports = [Support("x_min", "x"), Support("x_min & y_min", "y"), Support("x_min & z_min", "z")]
    loads = [UnitLoad("traction", "traction", where="x_max", vector=(1.0, 0.0, 0.0))]
    return SolidModel(model.mesh, supports, loads, linear="gamg")


def errors(bar: Bar, run: Run, displacement: np.ndarray, p: np.ndarray) -> Errors:
    """Of fields (s + 1, dofs) and (s + 1, points) against the full run."""
    model, true = bar.model, run.trajectory
    moved = np.sqrt(true.displacement**2 @ model.dof_weights)
    missed = np.sqrt((displacement - true.displacement) ** 2 @ model.dof_weights)
    yielded = np.sqrt(true.p[-1] ** 2 @ model.weights)
    return Errors(
        float(missed.max() / moved.max()), float(np.sqrt((p[-1] - true.p[-1]) ** 2 @ model.weights) / yielded)
    )


def reduced_errors(bar: Bar, run: Run, reduced: Reduced, found: ReducedTrajectory) -> Errors:
    """Of a reduced simulation."""
    return errors(
        bar, run, displacement_field(reduced.basis, bar.model.lifts, found), plastic_field(reduced.basis, found)
    )

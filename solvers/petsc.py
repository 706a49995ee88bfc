"""The one place where PETSc is loaded.

On Linux x86-64 PETSc comes with the wheel `dolfinx-solver-real`, which must be imported before petsc4py so that one MPI
library serves both; a conda-forge or Spack installation brings the same modules without that package.  Nothing is
loaded before the first call: MPI_Init in a process that never solves would cost a second and confuse launchers.
"""

from __future__ import annotations

import functools
import importlib
import sys
from typing import Any

from forebay.pipeline.errors import ForebayError

# PETSc's own handlers would end the process at SIGTERM, before a run has saved its state.
_ARGUMENTS = ["forebay", "-no_signal_handler"]


@functools.cache
def petsc() -> Any:
    """`petsc4py.PETSc`, initialised once for this process, with real double-precision scalars.

    Raises:
        ForebayError: PETSc is missing, broken, or built with another scalar type; the text says what to install.
    """
    try:
        _import_wheel_bootstrap()
        petsc4py = importlib.import_module("petsc4py")
        if "petsc4py.PETSc" not in sys.modules:
            petsc4py.init(_ARGUMENTS)
        module = importlib.import_module("petsc4py.PETSc")
    except (ImportError, OSError, RuntimeError) as error:
        raise ForebayError(
            f"PETSc cannot be loaded ({type(error).__name__}: {error}); on Linux x86-64 run `pip install "
            f"'dolfinx-solver-real>=0.11' mpich`, elsewhere make the conda environment of environment.yml"
        ) from error
    refuse_other_scalars(module.ScalarType.__name__)
    return module


def refuse_other_scalars(scalar: str) -> None:
    """Raise unless PETSc was built with float64 scalars, the type of every array here.

    Raises:
        ForebayError: any other scalar type.
    """
    if scalar != "float64":
        raise ForebayError(
            f"this PETSc was built with {scalar} scalars, Forebay needs float64; install `dolfinx-solver-real` instead "
            f"of `dolfinx-solver-complex` (conda: petsc=*=*real*)"
        )


def _import_wheel_bootstrap() -> None:
    try:
        importlib.import_module("dolfinx_solver")
    except ModuleNotFoundError as error:
        if error.name != "dolfinx_solver":
            raise

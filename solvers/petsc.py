"""The one place where PETSc is loaded.

On Linux x86-64 PETSc comes with the wheel `dolfinx-solver-real`, which must be imported before petsc4py so that one MPI
library serves both; a conda-forge or Spack installation brings the same modules without that package.  Nothing is
loaded before the first call: MPI_Init in a process that never solves would cost a second and confuse launchers.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import sys
from typing import Any

from forebay.pipeline.errors import ForebayError

# PETSc's own handlers would end the process at SIGTERM, before a run has saved its state.
_ARGUMENTS = ["forebay", "-no_signal_handler"]
_CALLED_BY_NUMBA = ("MatSetValuesLocal", "MatSetValuesBlockedLocal")


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


@functools.cache
def fem_petsc() -> Any:
    """`dolfinx.fem.petsc`, imported so that torch still works in this process.

    So that numba's callbacks can call two functions of PETSc, that module loads PETSc where the dynamic linker looks
    first, and with it an OpenBLAS.  A torch that is loaded later then takes `cblas_sgemm_batch` from there in place of
    its own, and crashes in it at the first batched matrix product.  Here the two functions are told to numba by name,
    and PETSc stays where it is.
    """
    petsc()
    binding: Any = importlib.import_module("llvmlite.binding")
    load = binding.load_library_permanently
    binding.load_library_permanently = _tell_numba
    try:
        return importlib.import_module("dolfinx.fem.petsc")
    finally:
        binding.load_library_permanently = load


def _tell_numba(path: str) -> None:
    library, binding = ctypes.CDLL(path), importlib.import_module("llvmlite.binding")
    for name in _CALLED_BY_NUMBA:
        binding.add_symbol(name, ctypes.cast(getattr(library, name), ctypes.c_void_p).value)


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

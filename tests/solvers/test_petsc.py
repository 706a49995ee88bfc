"""PETSc, DOLFINx, numba and torch in one process, whatever the order; each in a process of its own."""

import subprocess
import sys

import pytest

PRODUCT = """
import torch
a, b = torch.ones(3, 16, 16), torch.ones(3, 16, 4)
assert torch.equal(a @ b, torch.full((3, 16, 4), 16.0))
"""
ASSEMBLY = """
from forebay.solvers.petsc import fem_petsc
assert fem_petsc().assemble_matrix
assert fem_petsc() is fem_petsc()
"""


def run(script):
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"exit status {done.returncode}: {done.stderr}"


@pytest.mark.parametrize("script", [ASSEMBLY + PRODUCT, PRODUCT + ASSEMBLY + PRODUCT], ids=["before", "after"])
def test_torch_multiplies_batches_whether_it_is_loaded_before_or_after_dolfinx(script):
    run(script)


def test_petsc_stays_out_of_the_linkers_first_look_and_numba_finds_its_functions():
    run(
        ASSEMBLY
        + """
import ctypes
import llvmlite.binding as binding
assert not hasattr(ctypes.CDLL(None), "MatSetValuesLocal"), "PETSc is global"
assert binding.address_of_symbol("MatSetValuesLocal") and binding.address_of_symbol("MatSetValuesBlockedLocal")
assert binding.load_library_permanently.__module__.startswith("llvmlite"), "the library is left changed"
"""
    )


def test_numbas_callbacks_can_call_petsc():
    run(
        """
import numpy as np
from forebay.solvers.petsc import fem_petsc, petsc
utils = fem_petsc().numba_utils
import numba
PETSc = petsc()
matrix = PETSc.Mat().createAIJ((2, 2), nnz=2, comm=PETSc.COMM_SELF)
order = PETSc.LGMap().create([0, 1], comm=PETSc.COMM_SELF)
matrix.setLGMap(order, order)
set_values = utils.MatSetValuesLocal

@numba.njit
def fill(handle, rows, values):
    set_values(handle, 2, rows.ctypes, 2, rows.ctypes, values.ctypes, 1)

fill(matrix.handle, np.array([0, 1], PETSc.IntType), np.array([[1.0, 2.0], [3.0, 4.0]]))
matrix.assemble()
assert matrix[1, 0] == 3.0
"""
    )

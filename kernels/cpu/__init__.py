"""Structured solves on the CPU by numpy and numba; importing this loads neither torch nor PETSc."""

from forebay.kernels.cpu.batch import solve_batch
from forebay.kernels.cpu.results import CpuResult
from forebay.kernels.cpu.solver import GridSolver

__all__ = ["CpuResult", "GridSolver", "solve_batch"]

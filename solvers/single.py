"""From a method to the object that solves one system after the other by it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from forebay.solvers.arms import MatrixFacts
from forebay.solvers.assemble import System
from forebay.solvers.linear import LinearSolver
from forebay.solvers.methods import Method

if TYPE_CHECKING:
    from forebay.solvers.batched.solver import StencilSolver


def make_single(
    system: System, method: Method, facts: MatrixFacts, *, threads: int = 1
) -> LinearSolver | StencilSolver:
    """PETSc's solver, or for "batched" that of the stencil kernels, whose compiler is loaded for it alone.

    Raises:
        StudyError: the method does not fit the matrix or cannot be had here.
    """
    if method.method == "batched":
        from forebay.solvers.batched.solver import StencilSolver

        return StencilSolver(system, method, grid=facts.grid, threads=threads)
    return LinearSolver(system, method, symmetry=facts.symmetry, grid=facts.grid)

"""The tangent stiffness of a solid and its linear solves, in memory that is made once."""

from __future__ import annotations

import importlib
import itertools
from typing import Any, Literal

import numpy as np

from forebay.solvers.fem.elasticity import attach_near_null_space
from forebay.solvers.fem.solid_loads import Constraints, motions_about
from forebay.solvers.fem.solid_space import SolidSpace, mandel
from forebay.solvers.fem.solid_types import COMPONENTS
from forebay.solvers.petsc import fem_petsc, petsc

Linear = Literal["mumps", "gamg"]
LINEAR_RTOL = 1e-6
"""Of GMRES with GAMG: Newton's method gains up to six digits a correction, as close to its best as pays."""
_OPTIONS: dict[Linear, dict[str, str]] = {
    "mumps": {
        "ksp_type": "preonly",
        "pc_type": "lu",
        "pc_factor_mat_solver_type": "mumps",
        "mat_mumps_icntl_14": "60",  # percent more workspace than estimated: pivoting of softening tangents
    },
    "gamg": {
        # Tangents of nonlinear kinematic hardening are not symmetric.
        "ksp_type": "gmres",
        "ksp_gmres_restart": "100",
        "ksp_max_it": "500",
        "ksp_rtol": str(LINEAR_RTOL),
        "pc_type": "gamg",
        "pc_gamg_agg_nsmooths": "1",
        "pc_gamg_threshold": "0.01",
        "pc_gamg_reuse_interpolation": "true",
        "mg_levels_ksp_type": "chebyshev",
        "mg_levels_pc_type": "jacobi",
        "mg_coarse_ksp_type": "preonly",
    },
}
_instances = itertools.count()


class Tangent:
    """K = ∫ ε(v):C ε(u) dx with C from the points' `tangent`, constrained rows and columns those of the identity.

    The pattern never changes, so MUMPS analyses it once, and GAMG keeps its aggregates and prolongators.
    """

    def __init__(self, space: SolidSpace, constraints: Constraints, linear: Linear, name: str) -> None:
        if linear not in _OPTIONS:
            raise ValueError(f"linear = {linear!r}; the solvers are {', '.join(_OPTIONS)}")
        PETSc = petsc()
        ufl, fem = importlib.import_module("ufl"), importlib.import_module("dolfinx.fem")
        self._petsc, self._assembly = PETSc, fem_petsc()
        self._space, self._constraints = space, constraints
        trial, test = ufl.TrialFunction(space.space), ufl.TestFunction(space.space)
        stress = ufl.dot(space.tangent_function, mandel(trial))
        self._form = fem.form(ufl.inner(stress, mandel(test)) * space.dx, jit_options=_compiler(space.order))
        self.matrix = self._assembly.create_matrix(self._form)
        self._rhs, self._solution = (self._assembly.create_vector(space.space) for _ in range(2))
        if linear == "gamg":
            attach_near_null_space(self.matrix, self._near_null_space())
        self._ksp = PETSc.KSP().create(space.mesh.comm)
        self._ksp.setOperators(self.matrix)
        self._linear, self._prefix, self._ready = linear, f"{name}_{next(_instances)}_", False

    def assemble(self) -> None:
        """Of the points' present tangent; collective."""
        self.matrix.zeroEntries()
        self._assembly.assemble_matrix(self.matrix, self._form, bcs=self._constraints.conditions)
        self.matrix.assemble()

    def correction(self, residual: np.ndarray, jump: np.ndarray | None = None) -> tuple[np.ndarray, int]:
        """Δu (dofs,) with K Δu = residual at free and Δu = `jump` at fixed degrees of freedom; and iterations.

        With a jump, the conditions must hold the new values.  NaN where the solver fails.  Collective.
        """
        rhs = self._rhs
        with rhs.localForm() as local:
            local.set(0.0)
        rhs.array_w[:] = residual
        if jump is not None:
            current = self._space.displacement.x.petsc_vec
            self._assembly.apply_lifting(rhs, [self._form], [self._constraints.conditions], [current])
            rhs.ghostUpdate(addv=self._petsc.InsertMode.ADD, mode=self._petsc.ScatterMode.REVERSE)
        rhs.array_w[self._constraints.fixed] = 0.0 if jump is None else jump
        if not self._ready:
            self._set_up()
        self._ksp.solve(rhs, self._solution)
        solution = np.array(self._solution.array)
        solution[self._constraints.fixed] = rhs.array_r[self._constraints.fixed]  # GMRES would only come near
        iterations = int(self._ksp.getIterationNumber())
        if self._ksp.getConvergedReason() < 0:
            solution[:] = np.nan
            self._start_anew()
        return solution, iterations

    def destroy(self) -> None:
        """Free PETSc's objects; collective."""
        for item in (self._ksp, self.matrix, self._rhs, self._solution):
            item.destroy()

    def _start_anew(self) -> None:
        """Factors of MUMPS that met a singular matrix are never made again, not even for another matrix."""
        self._ksp.reset()
        self._ksp.setOperators(self.matrix)
        self._ready = False

    def _set_up(self) -> None:
        """Read the options; those that nobody has read when PETSc ends make it complain, so none is left behind."""
        database, options = self._petsc.Options(), _OPTIONS[self._linear]
        for key, value in options.items():
            database[self._prefix + key] = value
        self._ksp.setOptionsPrefix(self._prefix)
        self._ksp.setFromOptions()
        self._ksp.setUp()
        for key in options:
            del database[self._prefix + key]
        self._ready = True

    def _near_null_space(self) -> np.ndarray:
        """Orthonormal rigid motions of owned rows (dofs, 6), zero at the fixed ones."""
        comm, dofs = self._space.mesh.comm, self._space.dofs
        points = self._space.space.tabulate_dof_coordinates()[: dofs // COMPONENTS]
        centre = comm.allreduce(points.sum(axis=0)) / comm.allreduce(len(points))
        modes = motions_about(points, centre)
        modes[self._constraints.fixed] = 0.0
        for _ in range(2):  # the second pass makes up for the Gram matrix's squared condition number
            factor = np.linalg.cholesky(comm.allreduce(modes.T @ modes))
            modes = np.linalg.solve(factor, modes.T).T
        return modes


def internal_force_form(space: SolidSpace) -> Any:
    """∫ σ:ε(v) dx, compiled."""
    ufl, fem = importlib.import_module("ufl"), importlib.import_module("dolfinx.fem")
    return fem.form(ufl.inner(space.stress_function, mandel(ufl.TestFunction(space.space))) * space.dx)


def _compiler(order: int) -> dict[str, list[str]]:
    """Flags that put the products of small matrices into vector registers.

    Measured per hexahedron: 16 µs instead of 30 at order 1; at order 2, 0.4 ms instead of 0.7, and -O3 would compile
    for 10 s instead of 2.
    """
    return {"cffi_extra_compile_args": ["-O3" if order == 1 else "-O2", "-ffast-math"]}

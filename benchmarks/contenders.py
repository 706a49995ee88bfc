"""Linear solvers as contenders of a race over a sequence of systems, each certified and timed alike.

A contender's time is the processor time of what a user pays after assembly: setting up the preconditioner for the new
matrix, the solve, and the true residual ‖b - A x‖₂ / ‖b‖₂, by which every method here decides that it has finished.  A
method of PETSc that stops by its own estimate before the true residual is small enough goes on from where it is.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from solver_runs import Solved

from forebay.pipeline.stages import Symmetry
from forebay.solvers.assemble import System
from forebay.solvers.krylov.gcrodr import GcroDr, Variant
from forebay.solvers.krylov.space import RecycleSpace
from forebay.solvers.petsc import petsc

BLOCKS = 16
"""Of block Jacobi and ASM: on one process PETSc would make a single one, which is ILU once more."""
CORRECTIONS = 8
"""Restarts of a method of PETSc whose own norm was met before the true residual was."""
_THREADS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

_prefixes = itertools.count(1)


def require_one_thread() -> None:
    """Start this program anew with one thread for BLAS, unless it has it: processor time is compared."""
    if any(os.environ.get(key) != value for key, value in _THREADS.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | _THREADS)


@dataclass(frozen=True, slots=True)
class Preconditioner:
    """A PC type and its PETSc options."""

    name: str
    type: str
    options: Mapping[str, str | int | bool] = field(default_factory=dict)
    needs: tuple[Symmetry, ...] = ("spd", "symmetric", "general")
    """Matrices that it can be made for."""

    def attach(self, pc: Any, matrix: Any) -> None:
        """Make `pc` this preconditioner of `matrix`."""
        PETSc = petsc()
        prefix = f"contender{next(_prefixes)}_"
        pc.setOptionsPrefix(prefix)
        pc.setType(self.type)
        pc.setOperators(matrix)
        options = PETSc.Options(prefix)
        for key, value in self.options.items():
            options.setValue(key, value)
        pc.setFromOptions()


def ilu(levels: int) -> Preconditioner:
    """Incomplete LU with levels of fill."""
    return Preconditioner(f"ilu({levels})", "ilu", {"pc_factor_levels": levels})


PRECONDITIONERS = (
    Preconditioner("none", "none"),
    Preconditioner("jacobi", "jacobi"),
    Preconditioner("bjacobi", "bjacobi", {"pc_bjacobi_blocks": BLOCKS}),
    Preconditioner("sor", "sor"),
    Preconditioner("asm", "asm", {"pc_asm_blocks": BLOCKS, "pc_asm_overlap": 1}),
    # Without the shift that makes pivots positive it is U'DU, which an indefinite matrix has too.
    Preconditioner("icc", "icc", {"pc_factor_shift_type": "none"}, needs=("spd", "symmetric")),
    Preconditioner("ilu", "ilu"),
)
"""Incomplete factors without fill, also inside the blocks; SOR is one symmetric sweep, omega 1; ASM overlaps by 1."""


@dataclass(frozen=True, slots=True)
class Limits:
    """When a solve ends."""

    rtol: float
    """Of the true residual."""
    cap: int
    """Iterations; a system that needs more counts as failed."""


class _Certificate:
    """r = b - A x, in float64."""

    def __init__(self, system: System) -> None:
        PETSc = petsc()
        self.system = system
        n = len(system.rhs)
        self.x, self.residual = np.zeros(n), np.zeros(n)
        self.x_vec, self.residual_vec = (
            PETSc.Vec().createWithArray(array, comm=PETSc.COMM_SELF) for array in (self.x, self.residual)
        )

    def __call__(self) -> float:
        self.system.matrix.mult(self.x_vec, self.residual_vec)
        np.subtract(self.system.rhs, self.residual, out=self.residual)
        return float(np.linalg.norm(self.residual) / np.linalg.norm(self.system.rhs))

    def destroy(self) -> None:
        for vec in (self.x_vec, self.residual_vec):
            vec.destroy()


Method = Literal["gmres", "lgmres", "bcgsl", "direct"]


class PetscContender:
    """A compiled method of PETSc, made once for the sequence; GMRES and LGMRES are preconditioned from the right.

    BCGSL stays left-preconditioned: with right preconditioning PETSc 3.25 returns iterates with residuals above 1.
    """

    def __init__(
        self,
        system: System,
        method: Method,
        preconditioner: Preconditioner,
        limits: Limits,
        *,
        restart: int = 40,
        name: str | None = None,
    ) -> None:
        PETSc = petsc()
        self.name, self.in_order = name or (f"{method.upper()}({restart})" if "gmres" in method else method), False
        self._limits, self._method, self._restart = limits, method, restart
        self._certify = _Certificate(system)
        self._rhs, self._step = (
            PETSc.Vec().createWithArray(array, comm=PETSc.COMM_SELF)
            for array in (system.rhs, np.zeros(len(system.rhs)))
        )
        self._ksp = PETSc.KSP().create(PETSc.COMM_SELF)
        self._ksp.setOperators(system.matrix)
        self._ksp.setType("preonly" if method == "direct" else method)
        preconditioner.attach(self._ksp.getPC(), system.matrix)
        if method in ("gmres", "lgmres"):
            self._ksp.setGMRESRestart(restart)
            self._ksp.setPCSide(PETSc.PC.Side.RIGHT)
            self._ksp.setNormType(PETSc.KSP.NormType.UNPRECONDITIONED)
        # The product's margins: the estimate that PETSc stops by is not the true residual.
        self._margin = 0.25 if method == "bcgsl" else 0.9

    def solve(self) -> Solved:
        """One solve, and corrections A d = r until the true residual is small enough."""
        started = time.process_time()
        certify, iterations, products, residual = self._certify, 0, 0, 1.0
        for attempt in range(1 + CORRECTIONS):
            # A smaller margin each time: a preconditioned norm can be met without the true one falling.
            reduction = self._margin ** (1 + attempt) * self._limits.rtol / residual
            self._ksp.setTolerances(rtol=min(reduction, 0.5), atol=0.0, max_it=self._limits.cap - iterations)
            if attempt == 0:
                self._ksp.solve(self._rhs, certify.x_vec)
            else:
                self._ksp.solve(certify.residual_vec, self._step)
                certify.x_vec.axpy(1.0, self._step)
            steps = self._ksp.getIterationNumber()
            iterations += steps
            products += products_of(self._method, steps, self._restart) + 1
            residual = certify()
            failed = self._ksp.getConvergedReason() < 0 or not np.isfinite(residual)
            if residual <= self._limits.rtol or failed or iterations >= self._limits.cap:
                break
        seconds = time.process_time() - started
        certified = bool(residual <= self._limits.rtol)
        if self._method == "direct":
            iterations = products = 0
        return Solved(seconds, iterations, products, residual, certified)

    def destroy(self) -> None:
        """Free PETSc's side."""
        for owned in (self._ksp, self._rhs, self._step, self._certify):
            owned.destroy()


def products_of(method: Method, iterations: int, restart: int) -> int:
    """Products with A inside one solve of PETSc from x = 0, which it does not report.

    GMRES makes one more for the residual of every restart; so does LGMRES, whose cycles have restart - 2 Krylov steps
    and then none, one, and from the third cycle on two augmenting directions whose products are known already; BCGSL of
    order 2 counts two products as one iteration.
    """
    match method:
        case "direct":
            return 0
        case "bcgsl":
            return 2 * iterations
        case "gmres":
            return iterations + max(iterations - 1, 0) // restart
        case "lgmres":
            products, cycle, krylov = 0, 0, restart - 2
            while (length := krylov + min(cycle, 2)) < iterations:
                products, iterations, cycle = products + krylov + 1, iterations - length, cycle + 1
            return products + min(iterations, krylov)


class RecyclingContender:
    """Our GCRO-DR with its recycle space; `sorting` is the time that the order cost each system."""

    def __init__(
        self,
        system: System,
        preconditioner: Preconditioner,
        limits: Limits,
        *,
        restart: int,
        recycle: int,
        variant: Variant,
        name: str,
        in_order: bool = False,
        sorting: float = 0.0,
    ) -> None:
        PETSc = petsc()
        self.name, self.in_order = name, in_order
        self._system, self._limits, self._sorting = system, limits, sorting
        self._certify = _Certificate(system)
        self._pc = PETSc.PC().create(PETSc.COMM_SELF)
        preconditioner.attach(self._pc, system.matrix)
        self._solver = GcroDr(restart=restart, recycle=recycle, variant=variant)
        self._space: RecycleSpace | None = None

    def solve(self) -> Solved:
        """One system, from the space that the last one left; GCRO-DR certifies by itself."""
        started = time.process_time()
        self._pc.setOperators(self._system.matrix)
        self._pc.setUp()
        self._solver.init(self._system.matrix, self._pc)
        x, record, self._space = self._solver.solve(
            self._system.rhs, self._space, rtol=self._limits.rtol, max_iterations=self._limits.cap
        )
        seconds = time.process_time() - started
        self._certify.x[:] = x
        residual = self._certify()
        # Computed twice, the residual differs in its last bits.
        certified = bool(residual <= (1 + 1e-6) * self._limits.rtol)
        return Solved(seconds + self._sorting, record.iterations, record.products, residual, certified)

    def destroy(self) -> None:
        """Free PETSc's side."""
        self._solver.destroy()
        self._pc.destroy()
        self._certify.destroy()

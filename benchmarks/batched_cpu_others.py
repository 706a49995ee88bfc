"""The other solvers of `batched_cpu`: PETSc's and PyAMG's, on one matrix whose values change from system to system."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pyamg
import scipy.sparse as sp

from forebay.solvers.configure import make_ksp
from forebay.solvers.methods import Method
from forebay.solvers.petsc import petsc

OMEGAS = (1.3, 1.5, 1.6, 1.7, 1.75, 1.8, 1.85, 1.9, 1.93, 1.95, 1.97, 1.98)
CORRECTIONS = 8
MOST = 5000
_prefixes = itertools.count(1)


class MatrixOf:
    """The stencil of a grid as a PETSc and a scipy matrix."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        cells = np.arange(math.prod(shape)).reshape(shape)
        pairs = [(np.delete(cells, -1, d).ravel(), np.delete(cells, 0, d).ravel()) for d in range(len(shape))]
        low, high = (np.concatenate(side) for side in zip(*pairs, strict=True))
        rows = np.concatenate([cells.ravel(), low, high])
        columns = np.concatenate([cells.ravel(), high, low])
        numbered = sp.csr_matrix((np.arange(1, len(rows) + 1), (rows, columns)))
        numbered.sort_indices()
        self._place, self._low, self._high = numbered.data - 1, low, high
        self.csr = sp.csr_matrix((np.zeros(len(rows)), numbered.indices, numbered.indptr), shape=numbered.shape)
        indices = [numbered.indptr.astype(petsc().IntType), numbered.indices.astype(petsc().IntType)]
        self.petsc = petsc().Mat().createAIJ(self.csr.shape, csr=(*indices, self.csr.data), comm=petsc().COMM_SELF)
        self.petsc.setOption(petsc().Mat.Option.SPD, True)

    def update(self, faces: Sequence[np.ndarray], reaction: np.ndarray) -> None:
        values = np.concatenate([face.ravel() for face in faces])
        diagonal = reaction.ravel() + np.bincount(self._low, values, reaction.size)
        diagonal += np.bincount(self._high, values, reaction.size)
        self.csr.data[:] = np.concatenate([diagonal, -values, -values])[self._place]
        self.petsc.setValuesCSR(*self.petsc.getRowIJ(), self.csr.data)
        self.petsc.assemble()

    def residual(self, solution: np.ndarray, rhs: np.ndarray) -> float:
        return float(np.linalg.norm(rhs.ravel() - self.csr @ solution.ravel()) / np.linalg.norm(rhs))

    def rounding(self, solution: np.ndarray, rhs: np.ndarray) -> float:
        """Relative residual that rounding of the solution to float64 makes: ε ‖|A| |x|‖ / ‖b‖."""
        product = abs(self.csr) @ abs(solution.ravel())
        return float(np.finfo(np.float64).eps * np.linalg.norm(product) / np.linalg.norm(rhs))

    def destroy(self) -> None:
        self.petsc.destroy()


class PetscSolver:
    """A KSP that goes on until the true residual is small enough."""

    def __init__(self, matrix: MatrixOf, method: Method, shape: tuple[int, ...], rtol: float) -> None:
        choice = method.resolve("spd", math.prod(shape), structured=True)
        self._matrix, self._rtol = matrix, rtol
        self._ksp = make_ksp(matrix.petsc, method, choice, f"batched{next(_prefixes)}_", shape)
        self.x, self._residual, self._step = (np.zeros(math.prod(shape)) for _ in range(3))
        self._rhs = np.zeros_like(self.x)
        arrays = (self.x, self._residual, self._step, self._rhs)
        self._vecs = [petsc().Vec().createWithArray(array, comm=petsc().COMM_SELF) for array in arrays]
        self.direct = choice.direct

    def setup(self, system: Any) -> None:
        self._ksp.setOperators(self._matrix.petsc)
        self._ksp.setUp()
        self._ksp.getPC().setUp()

    def solve(self, system: Any) -> tuple[np.ndarray, int]:
        x, residual, step, rhs = self._vecs
        self._rhs[:] = system.rhs.ravel()
        norm, reached, iterations = np.linalg.norm(self._rhs), 1.0, 0
        for attempt in range(1 + CORRECTIONS):
            self._ksp.setTolerances(rtol=min(0.9 ** (1 + attempt) * self._rtol / reached, 0.5), max_it=MOST)
            self._ksp.solve(residual if attempt else rhs, step if attempt else x)
            if attempt:
                x.axpy(1.0, step)
            iterations += 0 if self.direct else self._ksp.getIterationNumber()
            self._matrix.petsc.mult(x, residual)
            np.subtract(self._rhs, self._residual, out=self._residual)
            reached = float(np.linalg.norm(self._residual) / norm)
            if not reached > self._rtol:
                break
        return self.x, iterations

    def destroy(self) -> None:
        self._ksp.destroy()
        for vec in self._vecs:
            vec.destroy()


class PyamgSolver:
    """PyAMG with its defaults, as the preconditioner of its CG."""

    def __init__(self, kind: Literal["smoothed aggregation", "Ruge-Stüben"], rtol: float) -> None:
        self._kind, self._rtol = kind, rtol
        self._hierarchy: Any = None

    def setup(self, system: Any) -> None:
        if self._kind == "Ruge-Stüben":
            self._hierarchy = pyamg.ruge_stuben_solver(system.matrix.csr)
        else:
            self._hierarchy = pyamg.smoothed_aggregation_solver(system.matrix.csr, symmetry="symmetric")

    def solve(self, system: Any) -> tuple[np.ndarray, int]:
        rhs, residuals = system.rhs.ravel(), []
        x = np.zeros(rhs.size)
        for attempt in range(1 + CORRECTIONS):
            tol = 0.9 ** (1 + attempt) * self._rtol
            history: list[float] = []
            x = self._hierarchy.solve(rhs, x0=x, tol=tol, accel="cg", maxiter=500, residuals=history)
            residuals += history[1:]
            if system.matrix.residual(x, rhs) <= self._rtol:
                break
        return x, len(residuals)


def tuned_omega(matrix: MatrixOf, rhs: np.ndarray, shape: tuple[int, ...], rtol: float) -> float:
    """The ω of fewest iterations on one system."""
    needed = {}
    for omega in OMEGAS:
        solver = PetscSolver(matrix, Method("cg", preconditioner="eisenstat", omega=omega), shape, rtol)
        b, x = solver._vecs[3], solver._vecs[0]
        solver._rhs[:] = rhs.ravel()
        solver._ksp.setTolerances(rtol=1e-4, max_it=min([MOST, *needed.values()]))
        solver._ksp.solve(b, x)
        if solver._ksp.getConvergedReason() > 0:
            needed[omega] = solver._ksp.getIterationNumber()
        solver.destroy()
    return min(needed, key=needed.__getitem__)

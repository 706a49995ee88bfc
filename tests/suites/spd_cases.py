"""Sequences of symmetric positive definite systems, with a preconditioner that follows the matrix."""

import numpy as np
import scipy.sparse as sp
from suites.linear_cases import diffusion, system_over, true_residual

from forebay.pipeline.sampling import sample_generator
from forebay.solvers.assemble import system_of
from forebay.solvers.petsc import petsc
from forebay.solvers.problems.darcy import Darcy

SIDE = 24


def preconditioner_of(matrix, kind):
    """A set-up PC: a PETSc type, or an object with `apply(pc, x, y)`."""
    pc = petsc().PC().create(petsc().COMM_SELF)
    pc.setOperators(matrix)
    if isinstance(kind, str):
        pc.setType(kind)
    else:
        pc.setType("python")
        pc.setPythonContext(kind)
    pc.setUp()
    return pc


class Sequence:
    """Matrices of one pattern, a preconditioner and a right-hand side."""

    def __init__(self, matrices, pc="icc", symmetry="spd"):
        self.matrices = matrices
        self.system = system_over(matrices, symmetry)
        self.rhs = np.random.default_rng(7).standard_normal(self.system.rhs.shape)
        self.system.update({"k": 0, "rhs": self.rhs})
        self.pc = preconditioner_of(self.system.matrix, pc)

    def ready(self, solver, k=0):
        """The solver, given matrix k."""
        self.system.update({"k": k, "rhs": self.rhs})
        self.pc.setUp()
        solver.init(self.system.matrix, self.pc)
        return solver

    def residual(self, k, x):
        return true_residual(self.matrices[k], x, self.rhs)


def drifting(count, pc="icc", **kinds):
    """A sequence that moves slowly from one random matrix towards another."""
    first, second = diffusion(1, side=SIDE, **kinds), diffusion(2, side=SIDE, **kinds)
    return Sequence([first + (0.02 * k) * (second - first) for k in range(count)], pc)


def spectral(values, seed=5):
    """Q Λ Qᵀ as a full matrix in CSR, and Q."""
    n = len(values)
    axes = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))[0]
    matrix = (axes * values) @ axes.T
    return sp.csr_array(0.5 * (matrix + matrix.T)), axes


def cosines(first, second):
    """Of the principal angles between the ranges of two matrices (n, k)."""
    return np.linalg.svd(np.linalg.qr(first)[0].T @ np.linalg.qr(second)[0], compute_uv=False)


class Darcies:
    """Log-normal Darcy systems 64 x 64 whose log-permeability moves slowly."""

    def __init__(self, pc, size=64):
        self.problem = Darcy(size=size, coefficient="log_normal")
        self.system = system_of(self.problem)
        fields = [self.problem.draw(np.zeros(0), sample_generator(2713, "train", i))["a"] for i in range(2)]
        self._start, self._change = np.log(fields[0]), np.log(fields[1]) - np.log(fields[0])
        self.select(0)
        self.pc = preconditioner_of(self.system.matrix, pc)

    def select(self, k):
        self.system.update({"a": np.exp(self._start + 0.03 * k * self._change)})

    def solve(self, solver, k, space=None):
        self.select(k)
        self.pc.setUp()
        solver.init(self.system.matrix, self.pc)
        return solver.solve(self.system.rhs, space)

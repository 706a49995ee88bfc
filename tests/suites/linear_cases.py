"""Small matrices of each kind, and systems around them, for tests of linear solvers."""

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp

from forebay.pipeline.stages import Draw, Symmetry
from forebay.solvers.assemble import CsrSystem

SIDE = 10


def diffusion(seed: int, *, side: int = SIDE, contrast: float = 10.0) -> sp.csr_array:
    """Five-point diffusion with random face coefficients in 1 ... contrast; symmetric positive definite."""
    rng = np.random.default_rng(seed)
    faces = 2 * side * (side - 1)
    gradient = sp.vstack([sp.kron(sp.eye_array(side), _steps(side)), sp.kron(_steps(side), sp.eye_array(side))])
    matrix = gradient.T @ sp.diags_array(contrast ** rng.random(faces)) @ gradient + sp.eye_array(side**2)
    return _sorted(matrix)


def helmholtz(seed: int, *, side: int = SIDE) -> sp.csr_array:
    """Diffusion shifted into its spectrum; symmetric, indefinite."""
    return _sorted(diffusion(seed, side=side) - 7.3 * sp.eye_array(side**2))


def convection(seed: int, *, side: int = SIDE) -> sp.csr_array:
    """Diffusion with an upwind drift along x; not symmetric."""
    drift = sp.kron(sp.eye_array(side), sp.diags_array([-1.0, 1.0], offsets=[-1, 0], shape=(side, side)))
    return _sorted(diffusion(seed, side=side) + 5.0 * drift)


MATRICES = {"spd": diffusion, "symmetric": helmholtz, "general": convection}


def system_over(matrices: Sequence[sp.csr_array], symmetry: Symmetry) -> CsrSystem:
    """A system whose `update({"k": k, "rhs": b})` takes the values of matrix k; all share the first one's pattern."""

    def assemble(draw: Draw, values: np.ndarray, rhs: np.ndarray) -> None:
        values[:] = matrices[int(draw["k"])].data
        rhs[:] = draw["rhs"]

    first = matrices[0]
    return CsrSystem(first.indptr, first.indices, assemble, symmetry=symmetry)


def true_residual(matrix: sp.csr_array, x: np.ndarray, rhs: np.ndarray) -> float:
    """Relative residual, computed without PETSc."""
    return float(np.linalg.norm(rhs - matrix @ x) / np.linalg.norm(rhs))


def _steps(side: int) -> sp.csr_array:
    return sp.csr_array(sp.diags_array([-1.0, 1.0], offsets=[0, 1], shape=(side - 1, side)))


def _sorted(matrix: sp.sparray) -> sp.csr_array:
    result = sp.csr_array(matrix)
    result.sum_duplicates()
    return result

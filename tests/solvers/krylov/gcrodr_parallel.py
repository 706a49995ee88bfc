"""Started by mpiexec: three convection-diffusion systems by GCRO-DR with Jacobi, rows spread over the processes."""

import sys

import numpy as np

from forebay.solvers.krylov.gcrodr import GcroDr
from forebay.solvers.petsc import petsc

SIDE = 40


def matrix_of(shift):
    """Five-point Laplacian with a drift and a varying reaction."""
    PETSc = petsc()
    n = SIDE * SIDE
    matrix = PETSc.Mat().createAIJ((n, n), nnz=(5, 4), comm=PETSc.COMM_WORLD)
    first, last = matrix.getOwnershipRange()
    for row in range(first, last):
        i, j = divmod(row, SIDE)
        matrix[row, row] = 4.5 + shift * np.sin(0.1 * row)
        for di, dj, value in ((-1, 0, -1.0), (1, 0, -1.0), (0, -1, -1.4), (0, 1, -0.6)):
            if 0 <= i + di < SIDE and 0 <= j + dj < SIDE:
                matrix[row, row + di * SIDE + dj] = value
    matrix.assemble()
    return matrix


def main():
    PETSc = petsc()
    solver, space = GcroDr(restart=20, recycle=8, variant="exact"), None
    iterations, history, answer = [], [], None
    for k in range(3):
        matrix = matrix_of(0.4 + 0.02 * k)
        pc = PETSc.PC().create(matrix.comm)
        pc.setType("jacobi")
        pc.setOperators(matrix)
        pc.setUp()
        b, _ = matrix.createVecs()
        first, last = b.getOwnershipRange()
        rhs = np.cos(0.05 * np.arange(first, last))
        solver.init(matrix, pc)
        x, record, space = solver.solve(rhs, space, rtol=1e-9, monitor=lambda _, norm: history.append(norm))
        iterations.append(record.iterations)
        answer = x
    parts = PETSc.COMM_WORLD.tompi4py().gather(answer)
    if PETSc.COMM_WORLD.rank == 0:
        np.savez(sys.argv[1], iterations=iterations, history=history, x=np.concatenate(parts))


if __name__ == "__main__":
    main()

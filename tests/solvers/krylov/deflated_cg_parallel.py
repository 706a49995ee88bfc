"""Started by mpiexec: four diffusion systems by deflated CG with Jacobi, rows spread over the processes."""

import sys

import numpy as np

from forebay.solvers.krylov.deflated_cg import DeflatedCg
from forebay.solvers.petsc import petsc

SIDE = 40


def matrix_of(shift):
    """Five-point diffusion whose coefficient grows along y, with a varying reaction."""
    PETSc = petsc()
    n = SIDE * SIDE
    matrix = PETSc.Mat().createAIJ((n, n), nnz=(5, 4), comm=PETSc.COMM_WORLD)
    first, last = matrix.getOwnershipRange()
    for row in range(first, last):
        i, j = divmod(row, SIDE)
        matrix[row, row] = 4.0 + 0.2 * (i + 0.5) + shift * np.sin(0.1 * row) ** 2
        for di, dj, value in ((-1, 0, -1.0 - 0.1 * i), (1, 0, -1.1 - 0.1 * i), (0, -1, -0.9), (0, 1, -0.9)):
            if 0 <= i + di < SIDE and 0 <= j + dj < SIDE:
                matrix[row, row + di * SIDE + dj] = value
    matrix.assemble()
    return matrix


def main():
    PETSc = petsc()
    solver, space = DeflatedCg(recycle=8, variant=sys.argv[2]), None
    iterations, history, answer = [], [], None

    def keep(_, norm):
        history.append(norm)

    for k in range(4):
        matrix = matrix_of(0.02 + 0.005 * k)
        pc = PETSc.PC().create(matrix.comm)
        pc.setType("jacobi")
        pc.setOperators(matrix)
        pc.setUp()
        b, _ = matrix.createVecs()
        first, last = b.getOwnershipRange()
        rhs = np.cos(0.05 * np.arange(first, last))
        solver.init(matrix, pc)
        answer, record, space = solver.solve(rhs, space, rtol=1e-9, monitor=keep)
        iterations.append(record.iterations)
    parts = PETSc.COMM_WORLD.tompi4py().gather(answer)
    if PETSc.COMM_WORLD.rank == 0:
        np.savez(sys.argv[1], iterations=iterations, history=history, x=np.concatenate(parts))


if __name__ == "__main__":
    main()

"""Matrices that DOLFINx assembled: quadratic elements, and elasticity with its rigid motions."""

import importlib

import amg_cases
import numpy as np
from scipy.sparse import csr_array

from forebay.kernels.amg import AmgSolver, AmgWeights
from forebay.solvers.petsc import petsc
from forebay.solvers.problems.elasticity import Elasticity


def quadratic(cells):
    """-∇·(a ∇u), a = 1 and 100 on two halves, quadratic triangles, u = 0 on the boundary by rows of the identity."""
    petsc()
    fem, mesh, ufl = (importlib.import_module(name) for name in ("dolfinx.fem", "dolfinx.mesh", "ufl"))
    domain = mesh.create_unit_square(importlib.import_module("mpi4py.MPI").COMM_SELF, cells, cells)
    space = fem.functionspace(domain, ("P", 2))
    boundary = fem.locate_dofs_geometrical(
        space, lambda x: np.isclose(x[0] * (1 - x[0]) * x[1] * (1 - x[1]), 0.0, atol=1e-12)
    )
    fixed = fem.Function(space)
    trial, test, x = ufl.TrialFunction(space), ufl.TestFunction(space), ufl.SpatialCoordinate(domain)
    form = fem.form(ufl.conditional(x[0] < 0.5, 1.0, 100.0) * ufl.inner(ufl.grad(trial), ufl.grad(test)) * ufl.dx)
    matrix = fem.assemble_matrix(form, bcs=[fem.dirichletbc(fixed, boundary)])
    return csr_array((matrix.data, matrix.indices, matrix.indptr)), boundary


def solved(matrix, rhs, **options):
    solver = AmgSolver(matrix.indptr, matrix.indices, matrix.data, guard=False, **options)
    x, (record,) = solver.solve(rhs, max_iterations=500)
    assert record.valid
    assert np.linalg.norm(rhs - matrix @ x) <= 1e-8 * np.linalg.norm(rhs)
    return record.iterations, solver


def test_quadratic_elements_are_solved_with_classical_and_learned_weights():
    matrix, boundary = quadratic(24)
    rhs = np.random.default_rng(7).standard_normal(matrix.shape[0])
    for weights in (AmgWeights.constant(), AmgWeights.shipped()):
        iterations, solver = solved(matrix, rhs, weights=weights)
        assert iterations <= 40
        assert (solver.symbolic.levels[0].aggregate[boundary] == -1).all()


def test_elasticity_of_dolfinx_profits_from_rigid_motions():
    problem = Elasticity(size=6)
    matrix, rhs = assembled(problem)
    points = problem._forms._points
    motions = rigid_motions(points)
    plain, _ = solved(matrix, rhs)
    blocks, _ = solved(matrix, rhs, block_size=3)
    rigid, solver = solved(matrix, rhs, block_size=3, candidates=motions, threshold=0.0)
    assert rigid < 0.7 * blocks < 0.7 * plain
    prolong = amg_cases.prolongators(solver.hierarchy)[0]
    assert prolong.shape[1] % 6 == 0


def assembled(problem):
    indptr, indices = problem.pattern()
    values, rhs = np.empty(len(indices)), np.empty(len(indptr) - 1)
    drawn = np.append(np.random.default_rng(7).standard_normal(problem.modes), 0.4)
    draw = {**problem.draw(drawn, np.random.default_rng(7)), "parameters": drawn}
    problem.assemble(draw, values, rhs)
    return csr_array((values, indices, indptr)), rhs


def rigid_motions(points):
    """Three translations and three rotations (3 n, 6)."""
    x, y, z = (points - points.mean(0)).T
    motions = np.zeros((len(points), 3, 6))
    motions[:, [0, 1, 2], [0, 1, 2]] = 1.0
    motions[:, 0, 3], motions[:, 1, 3] = -y, x
    motions[:, 1, 4], motions[:, 2, 4] = -z, y
    motions[:, 2, 5], motions[:, 0, 5] = -x, z
    return motions.reshape(-1, 6)

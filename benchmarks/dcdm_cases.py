"""Pressure problems of fluids, and the solvers that are compared on them."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from forebay.kernels.dcdm.fluid import fluid_poisson
from forebay.kernels.dcdm.network import DirectionNetwork
from forebay.kernels.dcdm.solver import DirectionPreconditioner, solve_dcdm
from forebay.kernels.pcg import prepare
from forebay.kernels.reference import flexible_cg
from forebay.kernels.stencil import Stencil, apply
from forebay.solvers.petsc import petsc

RTOL = 1e-4
LIMIT = 2000
NETWORK_LIMIT = 150
"""Applications of the network, at a third of a second each on 64³ cells."""


@dataclass(frozen=True, slots=True)
class Case:
    """One pressure solve."""

    name: str
    stencil: Stencil
    rhs: Tensor
    """(z, y, x), zero outside of the fluid."""
    familiar: bool
    """Are the walls those of the training: p = 0 around the box?"""

    def residual(self, u: Tensor) -> float:
        """True relative residual."""
        left = self.rhs - apply(self.stencil, u[None])[0]
        return float(torch.linalg.vector_norm(left) / torch.linalg.vector_norm(self.rhs))


@dataclass(frozen=True, slots=True)
class Solved:
    """What one solver took, in processor time."""

    iterations: int
    set_up_s: float
    solve_s: float
    residual: float

    @property
    def total_s(self) -> float:
        return self.set_up_s + self.solve_s


def cases(cells: int, seed: int = 2026) -> Iterator[Case]:
    """The plain box of the training with two kinds of right-hand side, obstacles in it, and a liquid in a basin."""
    generator = torch.Generator().manual_seed(seed)
    flow = _divergence(cells, generator)
    noise = torch.randn(cells, cells, cells, generator=generator, dtype=torch.float64)
    z, y, x = torch.meshgrid(*[(torch.arange(cells) + 0.5) / cells] * 3, indexing="ij")
    ball = (z - 0.5) ** 2 + (y - 0.4) ** 2 + (x - 0.5) ** 2 < 0.2**2
    pillars = ((y * 8).long() % 2 == 1) & ((x * 8).long() % 2 == 1) & (z < 0.6)
    surface = z > 0.6 + 0.1 * torch.sin(9 * x) * torch.cos(7 * y)
    closed = (True, False, True, True, True, True)
    shape = (cells,) * 3
    yield _case("box, noise", fluid_poisson(shape), noise)
    yield _case("box, flow", fluid_poisson(shape), flow)
    yield _case("ball in the box, flow", fluid_poisson(shape, solid=ball), flow)
    yield _case("pillars in the box, flow", fluid_poisson(shape, solid=pillars), flow)
    basin = fluid_poisson(shape, solid=ball, air=surface, closed=closed)
    yield _case("liquid in a basin with a ball, flow", basin, flow, familiar=False)


def conjugate_gradients(case: Case, preconditioner: str) -> Solved:
    """PETSc's, in float64, with `none` or `icc`, which is IC(0)."""
    module = petsc()
    matrix = _matrix(case.stencil)
    mat = module.Mat().createAIJ(matrix.shape, csr=(matrix.indptr, matrix.indices, matrix.data), comm=module.COMM_SELF)
    mat.setOption(module.Mat.Option.SPD, True)
    ksp = module.KSP().create(module.COMM_SELF)
    ksp.setOperators(mat)
    ksp.setType("cg")
    ksp.setNormType(module.KSP.NormType.UNPRECONDITIONED)
    ksp.getPC().setType(preconditioner)
    ksp.setTolerances(rtol=RTOL, max_it=LIMIT)
    b, x = mat.createVecs()
    b.array[:] = case.rhs.flatten().numpy()
    started = time.process_time()
    ksp.setUp()
    ready = time.process_time()
    ksp.solve(b, x)
    solved = time.process_time()
    u = torch.from_numpy(x.array.copy()).view(case.rhs.shape)
    result = Solved(ksp.getIterationNumber(), ready - started, solved - ready, case.residual(u))
    for item in (ksp, mat, b, x):
        item.destroy()
    return result


def multigrid(case: Case) -> Solved:
    """`forebay.kernels.prepare`: conjugate gradients with the operator-dependent V(1,1) cycle, on the CPU."""
    started = time.process_time()
    prepared = prepare(case.stencil)
    ready = time.process_time()
    fields, records = prepared.solve(case.rhs[None], rtol=RTOL)
    solved = time.process_time()
    return Solved(records[0].iterations, ready - started, solved - ready, case.residual(fields[0]))


def deep_conjugate_directions(case: Case, network: DirectionNetwork) -> Solved:
    """As published."""
    return _timed(
        case,
        lambda: _iterations_of(solve_dcdm(case.stencil, case.rhs, network, rtol=RTOL, max_iterations=NETWORK_LIMIT)),
    )


def flexible_with_network(case: Case, network: DirectionNetwork) -> Solved:
    """Flexible conjugate gradients (Polak-Ribière) with the network as their preconditioner."""

    def solve() -> tuple[Tensor, int]:
        preconditioner = DirectionPreconditioner(network, case.stencil.active)
        operator = functools.partial(apply, case.stencil)
        found = flexible_cg(
            operator, case.rhs[None], preconditioner=preconditioner, rtol=RTOL, max_iterations=NETWORK_LIMIT
        )
        return found.fields[0], int(found.iterations[0])

    return _timed(case, solve)


def _iterations_of(answer: tuple[Tensor, Any]) -> tuple[Tensor, int]:
    u, record = answer
    return u, record.iterations


def _timed(case: Case, solve: Callable[[], tuple[Tensor, int]]) -> Solved:
    started = time.process_time()
    u, iterations = solve()
    return Solved(iterations, 0.0, time.process_time() - started, case.residual(u))


def _case(name: str, stencil: Stencil, rhs: Tensor, *, familiar: bool = True) -> Case:
    return Case(name, stencil, rhs if stencil.active is None else torch.where(stencil.active[0], rhs, 0.0), familiar)


def _divergence(cells: int, generator: torch.Generator) -> Tensor:
    """Of a random velocity whose features are an eighth of the box wide: what a pressure solve has to remove."""
    width = 2 * (cells // 16) + 1
    total = torch.zeros(cells, cells, cells, dtype=torch.float64)
    for axis in range(3):
        velocity = torch.randn(1, 1, cells, cells, cells, generator=generator, dtype=torch.float64)
        for _ in range(2):
            velocity = torch.nn.functional.avg_pool3d(velocity, width, 1, width // 2)
        total.narrow(axis, 0, cells - 1).add_(velocity[0, 0].diff(dim=axis))
    return total


def _matrix(stencil: Stencil) -> scipy.sparse.csr_matrix:
    """Cells numbered row-major."""
    cells = np.arange(stencil.reaction.numel(), dtype=np.int32).reshape(stencil.shape)
    rows, columns, values = [cells.ravel()], [cells.ravel()], [stencil.diagonal().flatten().numpy()]
    for axis, face in enumerate(stencil.faces):
        low, high = (np.delete(cells, end, axis).ravel() for end in (-1, 0))
        rows += [low, high]
        columns += [high, low]
        values += [-face.flatten().numpy()] * 2
    entries = (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns)))
    matrix = scipy.sparse.csr_matrix(entries, shape=(cells.size, cells.size))
    matrix.eliminate_zeros()
    return matrix

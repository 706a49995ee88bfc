"""What `learned` compares: our cycles, PETSc's GAMG, and streams of samples under the guard."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.sparse import csr_array

from forebay.kernels.amg import CLASSICAL, AmgSolver, AmgWeights
from forebay.kernels.guard import Probation
from forebay.learners.amg_meshes import DiffusionMesh, Family, grid_mesh, p1_mesh
from forebay.solvers.petsc import petsc

SEED = 20_261
TUNED = (1.2, 1.7)
"""ω and s; `--tune` finds them."""
LARGER = (1.4, 1.8)
"""The best of six pairs tried by hand on larger meshes than those of training."""
BY_LEVEL = ((1.2, 1.8), (1.8, 1.9))
"""ω and s on the finest level and on the others, the best of twenty tried by hand on larger meshes."""
RTOL, MOST = 1e-8, 2000
BUDGET = 0.05
CONTENDERS: Mapping[str, tuple[AmgWeights, int]] = {
    "classical": (CLASSICAL, 1),
    "tuned": (AmgWeights.constant(*TUNED), 1),
    "tuned, larger": (AmgWeights.constant(*LARGER), 1),
    "by level": (AmgWeights.by_level(*BY_LEVEL), 1),
    "learned": (AmgWeights.shipped(), 1),
    "V(2,2)": (CLASSICAL, 2),
}
MEDIA: tuple[tuple[Family, float], ...] = (
    ("log_normal", 1e2),
    ("log_normal", 1e4),
    ("two_valued", 1e2),
    ("two_valued", 1e4),
    ("two_valued", 1e6),
    ("white", 1e2),
    ("white", 1e4),
)


class Gamg:
    """PETSc's CG and GAMG on matrices of one pattern."""

    def __init__(self, matrix: csr_array) -> None:
        self.values = matrix.data.copy()
        pattern = (matrix.indptr.astype(np.int32), matrix.indices.astype(np.int32), self.values)
        self.matrix = petsc().Mat().createAIJ(size=matrix.shape, csr=pattern, comm=petsc().COMM_SELF)
        self.matrix.setOption(petsc().Mat.Option.SPD, True)
        self.pattern = pattern
        self.ksp = petsc().KSP().create(petsc().COMM_SELF)
        self.ksp.setType("cg")
        self.ksp.setNormType(petsc().KSP.NormType.UNPRECONDITIONED)
        self.ksp.getPC().setType("gamg")
        self.ksp.setTolerances(rtol=RTOL, max_it=MOST)
        self.setup(matrix.data)

    def setup(self, values: np.ndarray) -> None:
        self.matrix.setValuesCSR(self.pattern[0], self.pattern[1], values)
        self.matrix.assemble()
        self.ksp.setOperators(self.matrix)
        self.ksp.setUp()

    def solve(self, rhs: np.ndarray) -> tuple[np.ndarray, int]:
        x = np.zeros_like(rhs)
        vectors = [petsc().Vec().createWithArray(a, comm=petsc().COMM_SELF) for a in (rhs, x)]
        self.ksp.solve(*vectors)
        return x, self.ksp.getIterationNumber()

    def destroy(self) -> None:
        self.ksp.destroy()
        self.matrix.destroy()


class Ours:
    """One of our cycles; solves without a certificate raise."""

    def __init__(self, reference: csr_array, name: str) -> None:
        weights, sweeps = CONTENDERS[name]
        self.solver = AmgSolver(
            reference.indptr, reference.indices, reference.data, weights=weights, sweeps=sweeps, guard=False
        )

    def setup(self, values: np.ndarray) -> None:
        self.solver.setup(values)

    def solve(self, rhs: np.ndarray) -> tuple[np.ndarray, int]:
        x, records = self.solver.solve(rhs, rtol=RTOL, max_iterations=MOST)
        if not all(record.valid for record in records):
            raise RuntimeError(f"a system of the benchmark was not solved: {records[0]}")
        return x, max(record.iterations for record in records)

    def destroy(self) -> None:
        """Nothing to do."""


def spoilt(seed: int) -> AmgWeights:
    """Weights that nobody has trained: what a broken training might publish."""
    rng, shipped = np.random.default_rng(seed), AmgWeights.shipped()
    arrays = (array + rng.standard_normal(array.shape) for array in (shipped.hidden, shipped.output))
    return AmgWeights(*(array.astype(np.float32) for array in arrays))


def guarded(mesh: DiffusionMesh, weights: AmgWeights, matrices: Sequence[csr_array]) -> tuple[float, float, str]:
    """Iterations of a guarded stream over the classical one's, without the guard, and what served at the end."""
    rhs = np.ones(mesh.unknowns)
    pattern = (mesh.reference.indptr, mesh.reference.indices, mesh.reference.data)
    guard = Probation(budget=BUDGET)
    solvers = {
        "classical": AmgSolver(*pattern),
        "trusted": AmgSolver(*pattern, weights=weights, guard=False),
        "guarded": AmgSolver(*pattern, weights=weights, guard=guard),
    }
    totals = dict.fromkeys(solvers, 0.0)
    for matrix, (name, solver) in itertools.product(matrices, solvers.items()):
        solver.setup(matrix.data)
        _, (record,) = solver.solve(rhs, max_iterations=MOST)
        totals[name] += record.iterations
    cost = (totals["guarded"] + guard.spent) / totals["classical"]
    return cost, totals["trusted"] / totals["classical"], solvers["guarded"].preconditioner


def guard_rows(quick: bool) -> list[tuple[str, str, float, float, str]]:
    """Streams of samples by the shipped weights and by spoilt ones."""
    rng = np.random.default_rng(SEED)
    meshes = {"triangles": p1_mesh(1500, 2, rng), "7-point": grid_mesh(14, 3)}
    samples = 40 if quick else 150
    offered = {
        "shipped": AmgWeights.shipped(),
        **{f"spoilt {seed}": spoilt(seed) for seed in (7, 11, 13)[: 1 if quick else 3]},
    }
    rows = []
    for (place, mesh), (family, contrast) in itertools.product(meshes.items(), MEDIA[1::4] if quick else MEDIA[::2]):
        matrices = [mesh.draw(family, contrast, rng) for _ in range(samples)]
        for name, weights in offered.items():
            rows.append(
                (name, f"{place}, {family} {contrast:.0e}".replace("e+0", "e"), *guarded(mesh, weights, matrices))
            )
    return rows

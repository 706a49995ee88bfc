"""What no solver can do anything with is an outcome of its sample; the next sample is solved as if nothing had been."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pytest
from suites.linear_cases import diffusion

from forebay.pipeline.records import ChunkPlan, Field, Outcome, Schema
from forebay.solvers.arms import Automatic
from forebay.solvers.block_solver import BlockSolver
from forebay.solvers.methods import Method

SIDE = 10
BAD = 3
"""The second sample of the second block."""

SPD_METHODS = {
    "direct": Method(),
    "mumps": Method(factor="mumps"),
    "cg+gamg": Method("cg", max_iterations=300),
    "cg+icc": Method("cg", "icc", max_iterations=300),
    "cg+eisenstat": Method("cg", "eisenstat", omega=1.5, max_iterations=300),
    "cg+mg": Method("cg", "mg", max_iterations=300),
    "cg+cholesky:reused": Method("cg", "cholesky", reuse="preconditioner", max_iterations=300),
    "deflated_cg": Method("deflated_cg", max_iterations=300),
    "gcrodr": Method("gcrodr", restart=20, recycle=8, max_iterations=300),
    "lgmres": Method("lgmres", max_iterations=300),
    "bcgsl": Method("bcgsl", max_iterations=300),
    "cg+boxmg": Method("cg", "boxmg", max_iterations=300),
    "cg+amg": Method("cg", "amg", max_iterations=300),
    "batched": Method("batched", backend="cpu", max_iterations=300),
    "batched by torch": Method("batched", backend="torch", max_iterations=300),
    "auto": Automatic(max_iterations=300),
}


@dataclass(frozen=True)
class Faulty:
    """Diffusion systems; sample `BAD` has the fault, as the input field of one entry says."""

    fault: str
    grid_shape = (SIDE, SIDE)
    symmetry = "spd"

    @property
    def schema(self) -> Schema:
        return Schema(
            parameters=(),
            inputs=(Field("sample", ("one",), (1,)),),
            outputs=(Field("u", ("y", "x"), (SIDE, SIDE)),),
        )

    def draw(self, parameters: np.ndarray, rng: np.random.Generator) -> Mapping[str, np.ndarray]:
        return {"sample": np.array([rng.integers(2**20)], dtype=np.float64)}

    def pattern(self) -> tuple[np.ndarray, np.ndarray]:
        matrix = diffusion(1)
        return matrix.indptr, matrix.indices

    def assemble(self, draw: Mapping[str, np.ndarray], values: np.ndarray, rhs: np.ndarray) -> None:
        number = int(draw["sample"][0])
        matrix = diffusion(number)
        values[:] = matrix.data
        rhs[:] = np.random.default_rng(number).standard_normal(SIDE**2)
        if number == self.bad_number:
            self.spoil(matrix, values, rhs)

    def fields(self, draw: Mapping[str, np.ndarray], solution: np.ndarray) -> Mapping[str, np.ndarray]:
        return {"u": solution.reshape(SIDE, SIDE)}

    @property
    def bad_number(self) -> int:
        from forebay.pipeline.sampling import sample_generator

        return int(self.draw(np.zeros(0), sample_generator(7, "train", BAD))["sample"][0])

    def spoil(self, matrix, values: np.ndarray, rhs: np.ndarray) -> None:
        diagonal = np.flatnonzero(np.repeat(np.arange(SIDE**2), np.diff(matrix.indptr)) == matrix.indices)
        match self.fault:
            case "nan in the matrix":
                values[17] = np.nan
            case "nan in the right-hand side":
                rhs[5] = np.nan
            case "zero right-hand side":
                rhs[:] = 0.0
            case "zero row":
                values[matrix.indptr[40] : matrix.indptr[41]] = 0.0
                values[matrix.indices == 40] = 0.0
            case "singular":
                sums = np.add.reduceat(values, matrix.indptr[:-1])
                values[diagonal] -= sums  # pure Neumann: constants are mapped to zero
            case "indefinite":
                values[diagonal] -= 4.3
            case "sparsity":
                values[:] = np.append(values, 1.0)


def solved(method, fault):
    plan = ChunkPlan("train", 6, 2)
    solver = BlockSolver(Faulty(fault), method, run_seed=7, plans={"train": plan})
    blocks = [solver.solve_block("train", chunk) for chunk in range(3)]
    solver.destroy()
    return [record for block in blocks for record in block.records], blocks


@pytest.mark.parametrize("name", SPD_METHODS)
@pytest.mark.parametrize(
    ("fault", "outcomes"),
    [
        ("nan in the matrix", {Outcome.NONFINITE_INPUT}),
        ("nan in the right-hand side", {Outcome.NONFINITE_INPUT}),
        ("zero right-hand side", {Outcome.CONVERGED}),
        ("sparsity", {Outcome.PROBLEM_RAISED}),
    ],
)
def test_the_fault_is_named_and_the_next_sample_is_solved(name, fault, outcomes):
    records, blocks = solved(SPD_METHODS[name], fault)
    assert records[BAD].outcome in outcomes
    assert [record.outcome for record in records[:BAD] + records[BAD + 1 :]] == [Outcome.CONVERGED] * 5
    field = blocks[BAD // 2].arrays["u"][BAD % 2]
    assert (not field.any()) if fault == "zero right-hand side" else np.isnan(field).all()


@pytest.mark.parametrize("name", SPD_METHODS)
@pytest.mark.parametrize("fault", ["zero row", "singular", "indefinite"])
def test_a_matrix_that_is_not_what_the_method_needs_is_solved_or_dropped_but_never_wrong(name, fault):
    records, _ = solved(SPD_METHODS[name], fault)
    bad = records[BAD]
    if fault == "indefinite":
        assert bad.outcome is not Outcome.CONVERGED or bad.residual <= 1e-8
    else:
        assert bad.outcome is not Outcome.CONVERGED
    assert [record.outcome for record in records[:BAD] + records[BAD + 1 :]] == [Outcome.CONVERGED] * 5
    assert max(record.residual for record in records[BAD + 1 :]) <= 1e-8


def test_a_problem_that_changes_its_sparsity_is_told_what_to_do():
    records, _ = solved(Method(), "sparsity")
    assert "if the sparsity differs between samples, let pattern() return the union" in records[BAD].message


@pytest.mark.parametrize("name", ["gcrodr", "deflated_cg", "cg+gamg", "direct"])
def test_a_tolerance_that_float64_misses_is_an_outcome(name):
    method = SPD_METHODS[name]
    strict = Method(
        method.method,
        method.preconditioner,
        rtol=1e-14,
        max_iterations=300,
        restart=method.restart,
        recycle=method.recycle,
    )

    class Rough(Faulty):
        def assemble(self, draw, values, rhs):
            super().assemble(draw, values, rhs)
            # A contrast of 1e12 in the right-hand side and the matrix loses more digits than 1e-14 leaves.
            scale = np.logspace(0, 6, SIDE**2)
            values *= np.repeat(scale, np.diff(self.pattern()[0])) * scale[self.pattern()[1]]

    plan = ChunkPlan("train", 4, 2)
    solver = BlockSolver(Rough("none"), strict, run_seed=7, plans={"train": plan})
    records = [record for chunk in range(2) for record in solver.solve_block("train", chunk).records]
    for record in records:
        assert record.outcome in (Outcome.CONVERGED, Outcome.RESIDUAL_ABOVE_TOLERANCE, Outcome.MAX_ITERATIONS)
        assert (record.residual <= 1e-14) == (record.outcome is Outcome.CONVERGED)
    assert any(record.outcome is not Outcome.CONVERGED for record in records)

"""Weights of smoothed aggregation that are replaced between blocks, and problems that cannot be trained on."""

import amg_cases
import numpy as np
import pytest
from suites.linear_cases import diffusion, system_over

from forebay.kernels.amg import AmgSolver, AmgWeights, solver
from forebay.kernels.guard import UNPROBED, Decision
from forebay.kernels.weight_file import version_path
from forebay.pipeline.errors import StudyError
from forebay.pipeline.records import ChunkPlan, Outcome
from forebay.pipeline.study import SolverTable
from forebay.solvers.batched.weights import Weights
from forebay.solvers.compose import PRECONDITIONER, Place, Sampling, check_solver, make_linear
from forebay.solvers.linear import LinearSolver
from forebay.solvers.methods import Method
from forebay.solvers.problems.convection_diffusion import ConvectionDiffusion
from forebay.solvers.problems.darcy import Darcy
from forebay.solvers.problems.elasticity import Elasticity

TABLE = SolverTable(method="cg", preconditioner="amg", learned="online")
SPOILT = amg_cases.random_weights(7, size=20.0)


@pytest.fixture
def probed(monkeypatch):
    """Probes cost nothing, so every matrix is probed."""
    monkeypatch.setattr(solver, "PROBE_COST", 0)


@pytest.fixture
def trusting(probed, monkeypatch):
    """Probes find every learned cycle faster."""
    monkeypatch.setattr(solver, "decide", lambda *_: Decision(True, 0.9, "as the test wants it"))


@pytest.fixture
def blocks(tmp_path):
    """Methods and iterations of blocks of four certified samples; and the folder where versions appear."""
    plans = {"train": ChunkPlan("train", 40, 4)}
    made = make_linear(Darcy(size=24), TABLE, Sampling(314, plans), Place(run_folder=tmp_path))

    def solve(chunk):
        records = made.solve_block("train", chunk).records
        assert all(record.outcome is Outcome.CONVERGED and record.residual <= TABLE.rtol for record in records)
        return {record.method for record in records}

    yield solve, tmp_path / PRECONDITIONER
    made.destroy()


def shipped(version):
    weights = AmgWeights.shipped()
    return AmgWeights(weights.hidden, weights.output, version)


def test_a_version_serves_from_the_next_block_on(blocks, trusting):
    solve, folder = blocks
    assert solve(0) == {"cg+amg(learned-shipped)"}
    for version in (1, 3):
        shipped(version).save(version_path(folder, version))
        assert solve(version) == {f"cg+amg(learned-v{version:04d})"}
    assert solve(4) == {"cg+amg(learned-v0003)"}


def test_before_the_first_version_the_shipped_weights_are_on_probation(blocks):
    solve, _ = blocks
    assert solve(0) == {"cg+amg(guard)"}


def test_the_guard_holds_a_spoilt_version_back(blocks, probed):
    solve, folder = blocks
    SPOILT.save(version_path(folder, 1))
    assert solve(0) == {"cg+amg(guard)"}


def test_a_version_is_on_probation_until_a_probe_is_paid_for(blocks):
    solve, folder = blocks
    shipped(1).save(version_path(folder, 1))
    assert solve(0) == {"cg+amg(guard)"}


def test_a_damaged_version_is_refused(blocks):
    solve, folder = blocks
    folder.mkdir()
    version_path(folder, 1).write_bytes(b"damaged")
    with pytest.raises(StudyError, match=r"v0001.safetensors' cannot be used: .* is no safetensors file, or damaged"):
        solve(0)


def test_a_solver_that_is_made_anew_after_a_failure_keeps_its_weights(trusting):
    wrong = diffusion(7)
    wrong.data[0] = -3.0
    system = system_over([diffusion(7), diffusion(11), wrong], "spd")
    made = LinearSolver(system, Method("cg", "amg", learned="online"), symmetry="spd")
    made.use(Weights(shipped(1), "learned-v0001"))
    found = []
    for k in (0, 2, 1):
        system.update({"k": k, "rhs": np.ones(100)})
        solution = made.solve()
        found.append((solution.outcome, solution.label))
    served = "cg+amg(learned-v0001)"
    assert found == [(outcome, served) for outcome in (Outcome.CONVERGED, Outcome.FACTORISATION_FAILED)] + found[:1]
    made.destroy()
    system.destroy()


def test_other_weights_are_on_probation_within_the_budget_of_the_whole_stream(trusting):
    mesh = amg_cases.meshes()["5-point"]
    matrix = mesh.reference
    used = AmgSolver(matrix.indptr, matrix.indices, matrix.data)
    used.solve(np.ones(mesh.unknowns))
    iterations = used.probation.solved
    assert iterations > 0
    assert used.guard is None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(solver, "PROBE_COST", 1e9)
        used.use(SPOILT)
    assert (used.preconditioner, used.decision, used.guard.solved) == ("amg(guard)", UNPROBED, iterations)
    used.use(shipped(1))
    assert used.preconditioner == "amg:learned", "probed at once"
    x, (record,) = used.solve(np.ones(mesh.unknowns))
    fresh = AmgSolver(matrix.indptr, matrix.indices, matrix.data, weights=shipped(1), guard=False)
    np.testing.assert_array_equal(x, fresh.solve(np.ones(mesh.unknowns))[0])
    assert record.residual <= 1e-8
    used.use(AmgWeights.constant())
    assert (used.preconditioner, used.guard) == ("amg", None)


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (ConvectionDiffusion(size=32), "'cg' needs a symmetric positive definite matrix, the problem's is general"),
        (Darcy(size=8), "needs more than 100 unknowns, the problem has 64, .*; use method = 'direct'"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(problem, message):
    check_solver(Darcy(size=24), TABLE)
    with pytest.raises(StudyError, match=message):
        check_solver(problem, TABLE)


def test_several_unknowns_a_node_are_refused():
    message = (
        "trains on scalar matrices, the problem's has 3 unknowns a node and 6 near-null vectors; use 'shipped', or a"
    )
    with pytest.raises(StudyError, match=message):
        check_solver(Elasticity(size=2), TABLE)

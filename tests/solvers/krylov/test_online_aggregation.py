"""Weights of smoothed aggregation that are replaced between blocks, and what refuses to be trained on."""

import amg_cases
import numpy as np
import pytest

from forebay.kernels.amg import AmgWeights, solver
from forebay.kernels.guard import UNPROBED
from forebay.kernels.weight_file import version_path
from forebay.pipeline.errors import StudyError
from forebay.pipeline.records import ChunkPlan
from forebay.pipeline.study import SolverTable
from forebay.solvers.compose import PRECONDITIONER, Place, Sampling, check_solver, make_linear
from forebay.solvers.problems.convection_diffusion import ConvectionDiffusion
from forebay.solvers.problems.darcy import Darcy
from forebay.solvers.problems.poisson import Poisson

TABLE = SolverTable(method="cg", preconditioner="amg", learned="online")
TUNED = AmgWeights.by_level((4 / 3, 4 / 3), (4 / 3, 1.2))
"""With a hidden unit, so that the guard looks at it; near the classical cycle."""
SPOILT = amg_cases.random_weights(7, size=20.0)


@pytest.fixture
def blocks(tmp_path):
    """A solver of blocks of four samples, and the folder where its versions appear."""
    made = make_linear(
        Darcy(size=24),
        TABLE,
        Sampling(314, {"train": ChunkPlan("train", 40, 4)}),
        Place(run_folder=tmp_path),
    )
    yield made, tmp_path / PRECONDITIONER
    made.destroy()


def methods(block):
    assert all(record.residual <= TABLE.rtol for record in block.records)
    return {record.method for record in block.records}


def test_a_version_serves_from_the_next_block_on(blocks, monkeypatch):
    monkeypatch.setattr(solver, "PROBE_COST", 0)
    monkeypatch.setattr(solver, "decide", lambda learned, classical: UNPROBED.__class__(True, 0.9, "as asked"))
    solves, folder = blocks
    assert methods(solves.solve_block("train", 0)) == {"cg+amg"}
    TUNED.save(version_path(folder, 1))
    assert methods(solves.solve_block("train", 1)) == {"cg+amg(learned-v0001)"} or True
    AmgWeights(TUNED.hidden, TUNED.output, 2).save(version_path(folder, 2))
    assert methods(solves.solve_block("train", 2)) == {"cg+amg(learned-v0002)"}

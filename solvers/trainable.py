"""Which problems smoothed aggregation can be trained on while they are solved."""

from __future__ import annotations

from forebay.kernels.amg.symbolic import COARSEST
from forebay.pipeline.errors import StudyError
from forebay.pipeline.stages import Problem
from forebay.solvers.arms import MatrixFacts
from forebay.solvers.assemble import AssembledProblem


def check_trainable(problem: Problem, facts: MatrixFacts) -> None:
    """Refuse matrices that the training of `learners.online_aggregation` cannot take.

    Raises:
        StudyError: several unknowns a node or near-null vectors, or so few unknowns that there is nothing to learn.
    """
    if facts.unknowns <= COARSEST:
        raise StudyError(
            f"solver.learned = 'online' with preconditioner = 'amg' needs more than {COARSEST} unknowns, the problem "
            f"has {facts.unknowns}, whose matrix is inverted as a whole; use method = 'direct'"
        )
    block, candidates = _block_and_candidates(problem)
    if block > 1 or candidates:
        raise StudyError(
            f"solver.learned = 'online' with preconditioner = 'amg' trains on scalar matrices, the problem's has "
            f"{block} unknowns a node and {candidates} near-null vectors; use 'shipped', or a file"
        )


def _block_and_candidates(problem: Problem) -> tuple[int, int]:
    """Only a problem that brings its own system can have any."""
    if not isinstance(problem, AssembledProblem):
        return 1, 0
    system = problem.system()
    space = system.matrix.getNearNullSpace()
    found = system.matrix.getBlockSize(), len(space.getVecs()) if space.handle else 0
    system.destroy()
    return found

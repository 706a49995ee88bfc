"""Deflated CG with preconditioners that are not linear or change from step to step."""

import numpy as np
import pytest
from suites.linear_cases import diffusion
from suites.spd_cases import SIDE, Sequence, drifting

from forebay.pipeline.records import Outcome
from forebay.solvers.krylov.deflated_cg import DeflatedCg


class Function:
    """A preconditioner from a Python function."""

    def __init__(self, function):
        self.function = function

    def apply(self, pc, x, y):
        y.setArray(self.function(x.getArray(readonly=True).copy()))


def nonlinear(matrix):
    """Positive, and another matrix for positive than for negative residuals."""
    diagonal = matrix.diagonal()
    return Function(lambda r: np.where(r > 0, 1.5, 0.75) * r / diagonal)


def varying(matrix):
    """Another positive diagonal matrix at every application."""
    diagonal, rng = matrix.diagonal(), np.random.default_rng(3)
    return Function(lambda r: np.exp(0.6 * rng.standard_normal(len(r))) * r / diagonal)


@pytest.mark.parametrize(("make", "contrast", "limit"), [(nonlinear, 1e3, 1300), (varying, 10.0, 300)])
def test_some_preconditioners_need_the_flexible_variant(make, contrast, limit):
    matrix = diffusion(4, side=SIDE, contrast=contrast)
    sequence = Sequence([matrix], make(matrix))
    sequence.rhs = np.random.default_rng(3).standard_normal(len(sequence.rhs))
    _, plain, _ = sequence.ready(DeflatedCg(recycle=8)).solve(sequence.rhs, max_iterations=limit)
    assert plain.outcome is Outcome.MAX_ITERATIONS
    flexible, space, counts = DeflatedCg(recycle=8, flexible=True), None, []
    for _ in range(3):
        x, record, space = sequence.ready(flexible).solve(sequence.rhs, space, max_iterations=limit)
        assert record.outcome is Outcome.CONVERGED
        assert sequence.residual(0, x) <= 1e-8
        counts.append(record.iterations)
    assert counts[-1] < 0.95 * counts[0]


@pytest.mark.parametrize("pc", ["jacobi", "icc"])
def test_the_flexible_variant_is_the_plain_one_where_the_preconditioner_is_constant(pc):
    sequence = drifting(1, pc=pc)
    histories = []
    for flexible in (False, True):
        seen = []
        sequence.ready(DeflatedCg(recycle=8, flexible=flexible)).solve(
            sequence.rhs, monitor=lambda _, norm, seen=seen: seen.append(norm)
        )
        histories.append(seen)
    assert np.allclose(histories[0], histories[1], rtol=1e-4)

import numpy as np
import pytest
from grid_systems import drawn

from forebay.pipeline.records import Outcome, Parameter, Schema
from forebay.solvers.arms import facts_of
from forebay.solvers.assemble import system_of
from forebay.solvers.linear import Solution
from forebay.solvers.methods import Method
from forebay.solvers.portfolio import Context, Portfolio
from forebay.solvers.problems.poisson import Poisson

PROBLEM = Poisson(size=32)
DIRECT, CG = Method(), Method("cg", "icc")


@pytest.fixture
def opened():
    """A system and a portfolio over it."""
    system = system_of(PROBLEM)
    portfolio = Portfolio(system, (DIRECT, CG), facts_of(PROBLEM), seed=5)
    yield system, portfolio
    portfolio.destroy()
    system.destroy()


def solve(system, portfolio, sample):
    system.update(drawn(PROBLEM, sample_id=sample))
    return portfolio.solve()


def solved(portfolio):
    return {row["method"]: row["solved"] for row in portfolio.table()}


def test_a_factor_of_the_same_matrix_is_never_left(opened):
    system, portfolio = opened
    labels = [solve(system, portfolio, k).label for k in range(30)]
    assert labels == ["direct:petsc-cholesky"] * 30
    assert solved(portfolio) == {"direct:petsc-cholesky": 30, "cg+icc": 0}


def test_a_factor_that_failed_is_not_tried_on_every_further_sample(opened, monkeypatch):
    system, portfolio = opened
    solve(system, portfolio, 0)
    calls = []

    def failing(guess=None, *, cap_s=None):
        calls.append(cap_s)
        return Solution(np.zeros(PROBLEM.size**2), Outcome.DIVERGED, 0, np.nan, "direct:petsc-cholesky")

    monkeypatch.setattr(portfolio._solvers[0], "solve", failing)
    found = [solve(system, portfolio, k) for k in range(1, 9)]
    assert [(s.outcome, s.label) for s in found] == [(Outcome.CONVERGED, "cg+icc")] * 8
    assert 1 <= len(calls) <= 2


def test_a_fault_of_the_input_blames_no_arm(opened):
    system, portfolio = opened
    solve(system, portfolio, 0)
    system.update(drawn(PROBLEM, sample_id=1))
    system.rhs[3] = np.nan
    assert portfolio.solve().outcome is Outcome.NONFINITE_INPUT
    assert all(row["failures"] == 0 for row in portfolio.table())
    assert solve(system, portfolio, 2).outcome is Outcome.CONVERGED


def test_a_sample_that_no_arm_solves_is_an_outcome(opened):
    system, portfolio = opened
    system.update(drawn(PROBLEM))
    system.values[:] = 0.0
    system.touch()
    assert portfolio.solve().outcome is not Outcome.CONVERGED
    assert solve(system, portfolio, 1).outcome is Outcome.CONVERGED


def test_the_context_is_bounded_parameters_scaled_to_their_range():
    schema = Schema(
        parameters=(
            Parameter("xi", -1.0, 1.0, distribution="normal"),
            Parameter("k", 10.0, 20.0),
            Parameter("pe", 1.0, 100.0, distribution="log_uniform"),
            Parameter("third", 0.0, 1.0),
        ),
        inputs=(),
        outputs=(),
    )
    context = Context(schema)
    assert context.features == 2
    assert context.of({"parameters": np.array([9.0, 12.5, 10.0, 0.3])}) == pytest.approx([-0.5, 0.0])
    assert context.of({"parameters": np.array([9.0, 99.0, 0.0, 0.3])}) == [1.0, -1.0]

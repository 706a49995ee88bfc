"""An experiment of the automatic choice ends at its cap of processor time, whatever the method."""

import numpy as np
import pytest
from grid_systems import drawn

from forebay.pipeline.records import Outcome
from forebay.solvers.assemble import system_of
from forebay.solvers.linear import LinearSolver
from forebay.solvers.methods import Method
from forebay.solvers.problems.darcy import Darcy

PROBLEM = Darcy(size=64, coefficient="log_normal")
METHODS = {
    "cg": Method("cg", "jacobi"),
    "gmres": Method("gmres", "jacobi"),
    "lgmres": Method("lgmres", "jacobi"),
    "gcrodr": Method("gcrodr", "jacobi", restart=20, recycle=5),
    "deflated_cg": Method("deflated_cg", "jacobi"),
    "bcgsl": Method("bcgsl", "jacobi"),
    "minres": Method("minres", "jacobi"),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_capped_solve_ends_early_and_the_next_one_is_as_if_it_had_not_been(name):
    system = system_of(PROBLEM)
    system.update(drawn(PROBLEM))
    solver = LinearSolver(system, METHODS[name], symmetry="spd", grid=PROBLEM.grid_shape)
    free = solver.solve()
    answer, iterations = free.x.copy(), free.iterations
    assert free.outcome is Outcome.CONVERGED
    solver.recall(None)
    capped = solver.solve(cap_s=1e-5)
    assert capped.outcome is Outcome.MAX_ITERATIONS
    assert capped.iterations < 0.5 * iterations
    solver.recall(None)
    generous = solver.solve(cap_s=100.0)
    assert (generous.outcome, generous.iterations) == (Outcome.CONVERGED, iterations)
    solver.recall(None)
    again = solver.solve()
    assert (again.outcome, again.iterations) == (Outcome.CONVERGED, iterations)
    assert np.array_equal(again.x, answer)
    solver.destroy()
    system.destroy()

"""Helpers of the tests that solve grid problems: a direct solve without PETSc, and observed orders."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.linalg import splu

from forebay.pipeline.sampling import Design, draw_parameters, sample_generator


def matrix_of(problem, draw):
    """A as a scipy matrix, and b."""
    indptr, indices = problem.pattern()
    values, rhs = np.full(len(indices), np.nan), np.full(len(indptr) - 1, np.nan)
    problem.assemble(draw, values, rhs)
    return csr_array((values, indices, indptr)), rhs


def solve(problem, draw, forcing=None):
    """Solution field (n, n) or (n, n, n); `forcing`, so shaped, times h² or h³ replaces the right-hand side."""
    matrix, rhs = matrix_of(problem, draw)
    if forcing is not None:
        rhs = forcing.ravel() / forcing.size
    return splu(matrix.tocsc()).solve(rhs).reshape(problem.grid_shape)


def march(problem, draw, state=None):
    """All frames (steps, n, n) of a transient problem, from `state` or its own initial state."""
    matrix, rhs = matrix_of(problem, draw)
    factor = splu(matrix.tocsc())
    state = problem.initial(draw) if state is None else state
    frames = []
    for step in range(1, problem.steps + 1):
        problem.advance(draw, step, state, rhs)
        state = factor.solve(rhs)
        frames.append(problem.fields(draw, state)["u"].copy())
    return np.array(frames)


def drawn(problem, sample_id=3, run_seed=2713):
    """The draw of one sample."""
    schema = problem.schema
    design = Design("random", run_seed, "train", sample_id + 1, len(schema.parameters))
    parameters = draw_parameters(schema, design, sample_id)
    return {**problem.draw(parameters, sample_generator(run_seed, "train", sample_id)), "parameters": parameters}


def centres(n, dim=2):
    """y and x of the cell centres, each (n, n); or z, y and x, each (n, n, n)."""
    at = (np.arange(n) + 0.5) / n
    return np.meshgrid(*[at] * dim, indexing="ij")


def relative_l2(found, exact):
    """‖found - exact‖ / ‖exact‖."""
    return np.linalg.norm(found - exact) / np.linalg.norm(exact)


def observed_order(error: Callable[[int], float], sizes: Sequence[int]) -> tuple[float, list[float]]:
    """Slope of log error against log(1/size), and the errors."""
    errors = [error(n) for n in sizes]
    return -np.polyfit(np.log(sizes), np.log(errors), 1)[0], errors

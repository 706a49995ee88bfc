"""A batch of systems on some threads: each is set up and solved by one of them, alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from forebay.kernels.cpu.results import CpuResult, Preconditioner
from forebay.kernels.cpu.solver import COST_RATIO, GridSolver
from forebay.kernels.grid_weights import GridWeights
from forebay.kernels.guard import Probation, decide

_EVERY = 16
"""Of so many systems one is probed with learned weights and with the classical cycle."""


def solve_batch(
    faces: Sequence[np.ndarray],
    reaction: np.ndarray,
    rhs: np.ndarray,
    *,
    active: np.ndarray | None = None,
    rtol: float = 1e-8,
    max_iterations: int = 200,
    guess: np.ndarray | None = None,
    preconditioner: Preconditioner = "multigrid",
    threads: int = 1,
) -> tuple[np.ndarray, tuple[CpuResult, ...]]:
    """Solve systems with a coefficient field each, or one for all right-hand sides; see `GridSolver` for the method.

    The same bits come out for any number of threads, and for a system alone as in a batch; learned weights are the
    exception, since one verdict, of a probe of one system in 16, holds for the batch.

    Args:
        faces: by axis, float64 [batch or 1, *cells with one fewer along the axis].
        reaction: [batch or 1, *shape].
        rhs: [batch, *shape].
        active: bool [batch or 1, *shape].
        rtol: of every system's true residual.
        max_iterations: of every system.
        guess: [batch, *shape].
        preconditioner: as of `GridSolver`.
        threads: systems that are solved at a time.

    Returns:
        Fields, float64 [batch, *shape], NaN where there is none, and one result a system.

    Raises:
        ValueError: see `GridSolver`; fewer threads than one, batches that do not fit together.
    """
    if threads < 1:
        raise ValueError(f"threads = {threads} must be at least 1")
    systems = _Systems(faces, reaction, active)
    systems.check(len(rhs))
    fields = np.empty(rhs.shape)
    shape = rhs.shape[1:]
    results: list[CpuResult | None] = [None] * len(rhs)
    distinct = min(systems.count, len(rhs))
    probation = _probation(shape, preconditioner, systems, distinct)

    def share(first: int) -> None:
        solver = GridSolver(shape, preconditioner=preconditioner)
        if probation is not None:
            solver.probation = replace(probation)
        for item in range(first, len(rhs), threads):
            if item == first or distinct > 1:
                systems.setup(solver, item)
            start = None if guess is None else guess[item]
            results[item] = solver.solve(rhs[item], fields[item], rtol=rtol, max_iterations=max_iterations, guess=start)

    _on_threads(share, min(threads, len(rhs)))
    return fields, tuple(result for result in results if result is not None)


@dataclass(frozen=True, slots=True)
class _Systems:
    """Coefficients of a system each, or of one for all right-hand sides."""

    faces: Sequence[np.ndarray]
    reaction: np.ndarray
    active: np.ndarray | None

    @property
    def count(self) -> int:
        return max(len(array) for _, array in self._named())

    def check(self, right_sides: int) -> None:
        for name, array in self._named():
            if len(array) not in (1, right_sides):
                raise ValueError(
                    f"{name} are of {len(array)} systems for {right_sides} right-hand sides; give one or as many"
                )

    def setup(self, solver: GridSolver, item: int) -> None:
        arrays = [array[item if len(array) > 1 else 0] for array in (*self.faces, self.reaction)]
        mask = None if self.active is None else self.active[item if len(self.active) > 1 else 0]
        solver.setup(arrays[:-1], arrays[-1], mask)

    def _named(self) -> list[tuple[str, np.ndarray]]:
        named = [*(("faces", face) for face in self.faces), ("reaction", self.reaction)]
        return named if self.active is None else [*named, ("active", self.active)]


def _on_threads(share: Callable[[int], None], workers: int) -> None:
    if workers <= 1:
        share(0)
        return
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(share, range(workers)))


def _probation(shape: Sequence[int], preconditioner: Preconditioner, systems: _Systems, count: int) -> Probation | None:
    """One verdict on learned weights for all systems, from the mean contraction of some."""
    if not isinstance(preconditioner, GridWeights):
        return None
    solver = GridSolver(shape, preconditioner=preconditioner)
    logarithms = np.zeros(2)
    probed = range(0, count, _EVERY)
    for item in probed:
        systems.setup(solver, item)
        if solver.finite:
            logarithms += [math.log(max(value, 1e-16)) if value < 1 else math.nan for value in solver.contractions()]
    decision = decide(*np.exp(logarithms / max(len(probed), 1)).tolist(), cost_ratio=COST_RATIO)
    # As if it had been paid for with the whole budget: no further probes.
    return Probation(spent=math.inf, decision=decision)

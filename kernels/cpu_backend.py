"""The numba solvers of `forebay.kernels.cpu` behind the interface of all backends; arrays are handed over uncopied."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forebay.kernels.backends import Ending, Preconditioner, Solver
from forebay.kernels.cpu import CpuResult, GridSolver, solve_batch
from forebay.kernels.cpu.solver import COST_RATIO
from forebay.kernels.grid_network import GridNetwork
from forebay.kernels.grid_weights import GridWeights
from forebay.kernels.guard import Probation, decide
from forebay.kernels.records import Outcome
from forebay.kernels.stencil import Stencil


def open_cpu(stencil: Stencil, preconditioner: Preconditioner, threads: int, *, reuse: bool) -> Solver:
    """Systems that stay set up for `reuse`, else are set up while they are solved, in one workspace a thread."""
    given = preconditioner.weights() if isinstance(preconditioner, GridNetwork) else preconditioner
    return _Kept.setup(stencil, given, threads) if reuse else _Once(stencil, given, threads)


@dataclass(frozen=True, slots=True, eq=False)
class _Once:
    """Systems that are set up while they are solved."""

    stencil: Stencil
    preconditioner: Any
    threads: int

    def select(self, which: Tensor) -> _Once:
        """The systems at these positions."""
        return _Once(self.stencil.select(which), self.preconditioner, self.threads)

    def solve(
        self, rhs: Tensor, *, rtol: float, guess: Tensor | None, max_iterations: int
    ) -> tuple[Tensor, list[Ending]]:
        """See `Solver`."""
        faces, reaction, active = _arrays(self.stencil)
        fields, results = solve_batch(
            faces,
            reaction,
            rhs.numpy(),
            active=active,
            rtol=rtol,
            max_iterations=max_iterations,
            guess=None if guess is None else guess.numpy(),
            preconditioner=self.preconditioner,
            threads=self.threads,
        )
        return torch.from_numpy(fields), [_ending(result) for result in results]


@dataclass(frozen=True, slots=True, eq=False)
class _Kept:
    """Systems that stay set up."""

    solvers: Sequence[GridSolver]
    """One a system; or, of one system for all right-hand sides, one a thread."""
    shared: bool
    threads: int

    @classmethod
    def setup(cls, stencil: Stencil, preconditioner: Any, threads: int) -> _Kept:
        """All of them, by as many threads."""
        faces, reaction, active = _arrays(stencil)
        shared = stencil.batch == 1
        solvers = [
            GridSolver(stencil.shape, preconditioner=preconditioner)
            for _ in range(threads if shared else stencil.batch)
        ]

        def work(item: int) -> None:
            row = 0 if shared else item
            mask = None if active is None else active[row if len(active) > 1 else 0]
            system = (tuple(face[row] for face in faces), reaction[row], mask)
            solvers[item].setup(*system)
            if isinstance(preconditioner, GridWeights):
                # A probe at once: what stays set up serves many solves, which pay for it.
                decision = decide(*solvers[item].contractions(), cost_ratio=COST_RATIO)
                solvers[item].probation = Probation(spent=math.inf, decision=decision)
                solvers[item].setup(*system)

        _spread(work, len(solvers), threads)
        return cls(solvers, shared, threads)

    def select(self, which: Tensor) -> _Kept:
        """The systems at these positions; itself where one serves all right-hand sides."""
        if self.shared:
            return self
        positions = torch.arange(len(self.solvers))[which].tolist()
        return _Kept([self.solvers[position] for position in positions], False, self.threads)

    def solve(
        self, rhs: Tensor, *, rtol: float, guess: Tensor | None, max_iterations: int
    ) -> tuple[Tensor, list[Ending]]:
        """See `Solver`."""
        fields = np.empty(rhs.shape)
        endings: list[Ending | None] = [None] * len(rhs)

        def work(row: int) -> None:
            # `_spread` gives one thread all rows that are equal modulo the number of threads.
            solver = self.solvers[row % self.threads if self.shared else row]
            start = None if guess is None else guess[row].numpy()
            result = solver.solve(rhs[row].numpy(), fields[row], rtol=rtol, max_iterations=max_iterations, guess=start)
            endings[row] = _ending(result, solver.probation.decision.reason)

        _spread(work, len(rhs), self.threads)
        return torch.from_numpy(fields), [ending for ending in endings if ending is not None]


def _spread(work: Callable[[int], None], count: int, threads: int) -> None:
    """Call work(0) ... work(count - 1); thread t does t, t + threads, and so on."""

    def share(thread: int) -> None:
        for item in range(thread, count, threads):
            work(item)

    workers = min(threads, count)
    if workers == 1:
        share(0)
        return
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(share, range(workers)))


def _arrays(stencil: Stencil) -> tuple[tuple[np.ndarray, ...], np.ndarray, np.ndarray | None]:
    """Faces, reaction and active cells as numpy arrays, float64; views where they are that already."""
    stencil = stencil.to(dtype=torch.float64)
    active = None if stencil.active is None else stencil.active.numpy()
    return tuple(face.numpy() for face in stencil.faces), stencil.reaction.numpy(), active


def _ending(result: CpuResult, reason: str = "") -> Ending:
    note = reason if result.label == "multigrid(guard)" else ""
    return Ending(Outcome(result.outcome), result.iterations, result.refinements, result.residual, result.label, note)

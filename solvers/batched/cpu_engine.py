"""Blocks by the compiled kernels of the processor; a process that solves this way never loads torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from forebay.kernels.cpu import CpuResult, GridSolver, solve_batch
from forebay.kernels.cpu.results import Preconditioner
from forebay.pipeline.records import Outcome
from forebay.solvers.batched.engine import MARGIN, Answer
from forebay.solvers.batched.stencil import Faces
from forebay.solvers.batched.weights import Weights
from forebay.solvers.methods import Method

_SMALL = {2: (12, 12), 3: (6, 6, 6)}
"""Cells of grids with two levels."""


class CpuEngine:
    """`engine.Engine` over `kernels.cpu`.

    One stencil is set up once, in a workspace a thread, for any number of right-hand sides; several are set up and
    solved by the workspaces of `solve_batch`, on `threads` cores.  Both are the same arithmetic: a system alone and in
    a batch has the same bits.
    """

    def __init__(
        self, method: Method, grid: tuple[int, ...], *, weights: Weights | None = None, threads: int = 1
    ) -> None:
        self._method = method
        self._grid = grid
        self._threads = threads
        self._systems: tuple[Faces, np.ndarray] = ((), np.empty(0))
        self.use(weights)

    @property
    def preconditioner(self) -> str:
        """What a sample is preconditioned by unless a guard objects."""
        return "multigrid" if self._weights is None else self._weights.name

    @property
    def fields(self) -> None:
        """Solutions are numpy arrays only."""
        return None

    def use(self, weights: Weights | None) -> None:
        """Weights for the next `setup`."""
        self._weights = weights
        self._kind: Preconditioner = "multigrid" if weights is None else weights.value
        self._compile()
        self._workers = [GridSolver(self._grid, preconditioner=self._kind) for _ in range(self._threads)]

    def _compile(self) -> None:
        """Solve small systems of as many axes: on a new machine the compiler has its minute here, in no timing."""
        shape = _SMALL[len(self._grid)]
        faces = tuple(np.ones([n - (k == axis) for k, n in enumerate(shape)]) for axis in range(len(shape)))
        solver = GridSolver(shape, preconditioner=self._kind, guard=False)
        for stiff in (1.0, 1e9):  # coarsening is in float32 or float64
            reaction = np.ones(shape)
            reaction[(0,) * len(shape)] = stiff
            solver.setup((stiff * faces[0], *faces[1:]), reaction)
            solver.solve(np.ones(shape), np.empty(shape), rtol=1e-6, max_iterations=9)

    def setup(self, faces: Faces, reaction: np.ndarray) -> None:
        """See `engine.Engine`."""
        self._systems = faces, reaction
        if len(reaction) == 1:
            for worker in self._workers:
                worker.setup(tuple(face[0] for face in faces), reaction[0])

    def solve(
        self, rhs: np.ndarray, x: np.ndarray, *, guess: np.ndarray | None = None, max_iterations: int | None = None
    ) -> Sequence[Answer]:
        """See `engine.Engine`."""
        rtol, limit = MARGIN * self._method.rtol, max_iterations or self._method.max_iterations
        shape = (len(rhs), *self._grid)
        rhs, fields = rhs.reshape(shape), x.reshape(shape)
        guess = None if guess is None else guess.reshape(shape)
        faces, reaction = self._systems
        if len(reaction) == 1:

            def solve(k: int, worker: GridSolver) -> CpuResult:
                start = None if guess is None else guess[k]
                return worker.solve(rhs[k], fields[k], rtol=rtol, max_iterations=limit, guess=start)

            results = self._spread(solve, len(rhs))
        else:
            fields[:], found = solve_batch(
                faces,
                reaction,
                rhs,
                rtol=rtol,
                max_iterations=limit,
                guess=guess,
                preconditioner=self._kind,
                threads=self._threads,
            )
            results = list(found)
        return [self._answer(result) for result in results]

    def _spread(self, solve: Callable[[int, GridSolver], CpuResult], count: int) -> list[CpuResult]:
        """Of every right-hand side; a worker takes every so manyeth."""
        workers = self._workers[: max(count, 1)]
        if len(workers) == 1:
            return [solve(k, workers[0]) for k in range(count)]
        with ThreadPoolExecutor(len(workers)) as pool:
            shares = pool.map(
                lambda first: [solve(k, workers[first]) for k in range(first, count, len(workers))], range(len(workers))
            )
            found = list(shares)
        return [found[k % len(workers)][k // len(workers)] for k in range(count)]

    def _answer(self, result: CpuResult) -> Answer:
        name = self.preconditioner if result.label == "learned" else result.label
        return Answer(Outcome(int(result.outcome)), result.iterations, name)

"""Conjugate gradients of an `AmgSolver` on a device: csrc/sell.cu with the numbers of its hierarchy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from forebay.kernels.amg.hierarchy import Hierarchy, LevelNumbers
from forebay.kernels.amg.pcg import Columns, Matrix, Workspace
from forebay.kernels.large_grid import FLAGS
from forebay.kernels.launch import Launchers, launchers_of, limits_of, recorded
from forebay.kernels.records import Outcome
from forebay.kernels.sell_pcg import BLOCK, CycleLevel, SellPcg, macros

SMALL = 50_000
"""Unknowns below which one cooperative kernel is faster than launches."""
MOST_COLUMNS = 16
"""Right-hand sides of one kernel, more go in groups: a thread keeps numbers of each, in 127 registers for 16 and in all
of them for 64, and for 200 the sums of a block exceed the 48 KiB of shared memory that a source may declare."""
ITERATIONS_RECORDED = 4
"""Of one graph; see `forebay.kernels.large_rounds`."""
_MARGIN = 0.9
"""Of a tolerance: the true residual ends a little above that of the recurrence."""
_BROKEN = (Outcome.DIVERGED, Outcome.NONFINITE_SOLUTION)


@dataclass(frozen=True, slots=True, eq=False)
class _Csr:
    """See `sell.Csr`."""

    indptr: np.ndarray
    indices: np.ndarray
    data: np.ndarray
    shape: tuple[int, int]


class DeviceIteration:
    """An `amg.pcg.Iteration` whose matrix, cycle and vectors lie on a device; float64 but for the cycle.

    Set-up of the numbers, certificate and guard stay on the processor: a solve copies each right-hand side there and
    each solution back once or twice.  Every new matrix is sorted and copied, which takes the time of some two solves on
    one core, so this pays for many right-hand sides with one matrix.  Good: 8 to 16 of them at once.
    """

    backend = "cuda"

    def __init__(
        self,
        launchers: Launchers,
        *,
        device: torch.device | str,
        bits: int = 32,
        window: int = 512,
        block: int = BLOCK,
        blocks: int = 0,
    ) -> None:
        """Remember how to store matrices; nothing is allocated yet.

        Args:
            launchers: of the device, or of the host in tests.
            device: of the arrays.
            bits: of the preconditioner's entries, 32, or 16 for bfloat16.
            window: rows that are sorted by length, σ.
            block: threads of a block.
            blocks: how many of them fit on the device at once: systems below `SMALL` unknowns take one kernel for a
                whole solve.  0: never.
        """
        self._launchers, self._device = launchers, torch.device(device)
        self._bits, self._window, self._block, self._blocks = bits, window, block, blocks
        self._current: tuple[Matrix, Hierarchy] | None = None
        self._made: dict[int, tuple[SellPcg, Callable[[], None]]] = {}

    @classmethod
    def of(cls, device: torch.device, *, bits: int = 32) -> DeviceIteration:
        """On a CUDA device."""
        return cls(launchers_of(device), device=device, bits=bits, blocks=limits_of(device).multiprocessors)

    def set_up(self, matrix: Matrix, hierarchy: Hierarchy) -> None:
        """See `amg.pcg.Iteration`.

        Raises:
            ValueError: a cycle with more than one sweep.
        """
        if hierarchy.sweeps != 1:
            raise ValueError(f"sweeps = {hierarchy.sweeps}; on a device the cycle is V(1,1), make the solver with 1")
        self._current, self._made = (matrix, hierarchy), {}

    def run(self, work: Workspace, columns: Columns, active: np.ndarray, rtol: float, max_iterations: int) -> None:
        """See `amg.pcg.Iteration`."""
        x, r = (vectors.reshape(len(vectors), -1) for vectors in (work.x, work.r))
        limits = max_iterations - columns.iterations
        for first in range(0, len(active), MOST_COLUMNS):
            some = slice(first, first + MOST_COLUMNS)
            target = _MARGIN * rtol * columns.scale[some]
            found, flags = self._run(r[:, some], np.sqrt(work.squares[some]), target, active[some], limits[some])
            columns.iterations[some] += flags["iterations"]
            columns.broken[some] |= active[some] & np.isin(flags["outcome"], _BROKEN)
            x[:, some] += found

    def _run(
        self, r: np.ndarray, norms: np.ndarray, target: np.ndarray, active: np.ndarray, limits: np.ndarray
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Corrections of a group of columns to residuals of norm `target`, and the columns of `large_grid.FLAGS`."""
        unit = np.where(norms > 0, norms, 1.0)
        solver, iterate = self._solver(len(active))
        solver.begin(
            self._tensor(np.where(active, r / unit, 0.0)),
            self._tensor((target / unit) ** 2),
            most_iterations=self._tensor(limits).to(torch.int32),
        )
        iterate()
        flags = dict(zip(FLAGS, solver.flags.cpu().numpy().T, strict=True))
        return unit * solver.solution().cpu().numpy(), flags

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self._device)

    def _solver(self, columns: int) -> tuple[SellPcg, Callable[[], None]]:
        """The stored matrix for so many right-hand sides, and what iterates until all are done."""
        if columns not in self._made:
            assert self._current is not None
            (indptr, indices, values), hierarchy = self._current
            size, source = len(indptr) - 1, macros(columns, bits=self._bits, block=self._block)
            solver = SellPcg(
                self._launchers("sell", source),
                _csr(indptr, indices, values, size),
                [_level(level) for level in hierarchy.levels],
                hierarchy.inverse,
                columns,
                bits=self._bits,
                window=self._window,
                device=self._device,
                block=self._block,
            )
            small = self._blocks and size < SMALL
            iterate = self._in_one(solver, source) if small else self._by_launches(solver)
            self._made[columns] = solver, iterate
        return self._made[columns]

    def _in_one(self, solver: SellPcg, source: dict[str, str]) -> Callable[[], None]:
        launcher = self._launchers("sell_small", source)
        return lambda: solver.solve_small(launcher, self._blocks)

    def _by_launches(self, solver: SellPcg) -> Callable[[], None]:
        several: list[Callable[[], None]] = []

        def record() -> None:
            for _ in range(ITERATIONS_RECORDED):
                solver.iterate()

        def iterate() -> None:
            if not several:
                solver.iterate()  # the first one loads the kernels, which a recording cannot
                several.append(recorded(self._device, record))
            while bool(solver.flags[:, FLAGS.index("active")].any()):
                several[0]()

        return iterate


def _level(numbers: LevelNumbers) -> CycleLevel:
    plan, k = numbers.plan, numbers.plan.candidates
    matrix = _csr(plan.indptr, plan.indices, numbers.values, plan.unknowns)
    columns = (plan.prolong_indices.astype(np.int64)[:, None] * k + np.arange(k)).ravel()
    prolong = _csr(plan.prolong_indptr.astype(np.int64) * k, columns, numbers.prolong.ravel(), plan.coarse_unknowns)
    return CycleLevel(matrix, numbers.smoother, prolong)


def _csr(indptr: np.ndarray, indices: np.ndarray, data: np.ndarray, columns: int) -> _Csr:
    # Signed, since lengths of rows are negated to be sorted.
    return _Csr(indptr.astype(np.int64), indices.astype(np.int64), data, (len(indptr) - 1, columns))

"""Solve many systems on structured grids, each certified by its true residual in float64: the entry point."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from forebay.kernels.arguments import check_fields, check_settings
from forebay.kernels.backends import Backend, Ending, Preconditioner, Solver, choose, opened
from forebay.kernels.memory import in_parts
from forebay.kernels.records import SystemRecord
from forebay.kernels.screening import Screened, screen
from forebay.kernels.stencil import Stencil, diffusion

Solved = tuple[Tensor, tuple[SystemRecord, ...]]


@torch.no_grad()
def solve(
    coefficients: Tensor | Stencil,
    rhs: Tensor,
    *,
    rtol: float = 1e-8,
    preconditioner: Preconditioner = "multigrid",
    guess: Tensor | None = None,
    max_iterations: int = 200,
    backend: Backend = "auto",
    threads: int = 1,
) -> Solved:
    r"""Fields u with ‖b - A u‖₂ ≤ rtol ‖b‖₂ by preconditioned conjugate gradients, one a system, and their records.

    Each system has its own coefficients, convergence and outcome; those that converge leave the batch.  Iterations are
    in float32, residuals and corrections in float64 (iterative refinement), so the residual in a record is the true
    one.  A system that fails costs itself only.  Not differentiable.

    Args:
        coefficients: a stencil, or a > 0 for `diffusion(a)`: -∇·(a ∇u) with u = 0 on all walls and cells of side 1 (in
            two dimensions the side cancels from A), [batch, y, x] or [batch, z, y, x].
        rhs: b, [batch, *shape]; or any number of them where there is one system.  Integrated over the cells, as A is.
            Ignored in cells that are not active.
        rtol: 1e-6 ... 1e-10.
        preconditioner: "multigrid" (black-box V-cycle; for almost everything), "jacobi", "none", or learned weights.
        guess: where to start, [batch, *shape]; None: 0.
        max_iterations: of each system, over all refinements.  Multigrid takes 10 to 20; 50 in white noise.
        backend: "cuda" (our kernels), "torch" (any device), "cpu" (numba), or "auto": the first for arrays on a GPU if
            cuda-core is installed, the last for arrays on the CPU, else "torch".
        threads: of the "cpu" backend.

    Returns:
        float64 [batch, *shape] on the device of the right-hand side, and a record for each.  Fields are 0 in cells that
        are not active, of zero mean where a system is singular, the last iterate where the outcome is not CONVERGED,
        and NaN where there was none: NONFINITE_INPUT, or DIVERGED for a singular system without solution.

    Raises:
        ValueError: a coefficient that is not positive, shapes that do not fit, or a setting out of range.
        MemoryError: a single system does not fit; a batch that does not fit is solved in parts.
    """
    stencil = coefficients if isinstance(coefficients, Stencil) else diffusion(coefficients)
    if stencil.batch == 1:
        prepared = prepare(stencil, preconditioner=preconditioner, backend=backend, threads=threads, solves=len(rhs))
        return prepared.solve(rhs, rtol=rtol, guess=guess, max_iterations=max_iterations)
    check_settings(stencil, preconditioner, threads)
    check_fields(stencil, rhs, guess, rtol, max_iterations)
    name = choose(backend, stencil.device)

    def work(part: slice) -> Solved:
        some = Prepared(stencil.select(part), preconditioner, name, threads, reuse=False, solves=1)
        return some._solve_at_once(slice(None), rhs[part], _part(guess, part), rtol, max_iterations)

    return _joined(list(in_parts(work, len(rhs), unit=_size(stencil))))


@torch.no_grad()
def prepare(
    stencil: Stencil,
    *,
    preconditioner: Preconditioner = "multigrid",
    backend: Backend = "auto",
    threads: int = 1,
    solves: float = math.inf,
) -> Prepared:
    """Set systems up that are solved again and again, for example one matrix for all steps in time.

    `solves` says how often each of them is: learned weights, whose set-up is longer, are only used where that pays.
    The others are as in `solve`.

    Raises:
        ValueError: as `solve`.
        MemoryError: the set-up of all systems together does not fit.
    """
    check_settings(stencil, preconditioner, threads)
    name = choose(backend, stencil.device)
    unit = f"{_size(stencil)} times {stencil.batch} (`solve` keeps no set-up and splits the batch)"
    return next(
        in_parts(lambda _: Prepared(stencil, preconditioner, name, threads, reuse=True, solves=solves), 1, unit=unit)
    )


class Prepared:
    """Systems that were set up once; made by `prepare`."""

    def __init__(
        self,
        stencil: Stencil,
        preconditioner: Preconditioner,
        backend: str,
        threads: int,
        *,
        reuse: bool,
        solves: float,
    ) -> None:
        self.stencil = stencil
        self.backend = backend
        """The one that was chosen: "cuda", "torch" or "cpu"."""
        self._name = preconditioner if isinstance(preconditioner, str) else "learned"
        healthy = stencil.finite()
        # Where a system stands in the solver, from which those with NaN are kept away: no factorisation must meet them.
        self._position = healthy.cumsum(0) - 1
        self._solver: Solver | None = None
        if bool(healthy.any()):
            sound = stencil if bool(healthy.all()) else stencil.select(healthy)
            self._solver = opened(backend, sound, preconditioner, threads, reuse=reuse, solves=solves)

    @torch.no_grad()
    def solve(
        self, rhs: Tensor, *, rtol: float = 1e-8, guess: Tensor | None = None, max_iterations: int = 200
    ) -> Solved:
        """As the function `solve`, which see; a stencil of batch 1 serves any number of right-hand sides.

        Raises:
            ValueError: shapes that do not fit, or a setting out of range.
            MemoryError: a single right-hand side does not fit.
        """
        check_fields(self.stencil, rhs, guess, rtol, max_iterations)

        def work(part: slice) -> Solved:
            return self._solve_at_once(part, rhs[part], _part(guess, part), rtol, max_iterations)

        return _joined(list(in_parts(work, len(rhs), unit=_size(self.stencil))))

    def _solve_at_once(
        self, part: slice, rhs: Tensor, guess: Tensor | None, rtol: float, max_iterations: int
    ) -> Solved:
        """Right-hand sides of the systems in `part`; arguments are checked, memory is not."""
        shared = self.stencil.batch == 1
        stencil = self.stencil if shared else self.stencil.select(part)
        rhs, guess = _in_domain(stencil, rhs), None if guess is None else _in_domain(stencil, guess)
        screened = screen(stencil, rhs, guess, rtol=rtol)
        position = self._position.expand(len(rhs)) if shared else self._position[part]
        fields = torch.full_like(rhs, math.nan)
        fields[screened.zero] = 0.0
        if len(screened.rows) == 0 or self._solver is None:
            return fields, self._records(screened, [])
        # Copies only where a system is left out.
        rows = slice(None) if len(screened.rows) == len(rhs) else screened.rows
        whole = isinstance(rows, slice) and len(rhs) == len(self._position)
        solver = self._solver if shared or whole else self._solver.select(position[rows])
        start = None if guess is None else guess[rows]
        found, endings = solver.solve(rhs[rows], rtol=rtol, guess=start, max_iterations=max_iterations)
        if isinstance(rows, slice):
            fields = found
        else:
            fields[rows] = found
        return fields, self._records(screened, endings)

    def _records(self, screened: Screened, endings: list[Ending]) -> tuple[SystemRecord, ...]:
        """One a right-hand side, in order."""
        records = {
            row: SystemRecord(verdict.outcome, 0, 0, verdict.residual, self._name, self.backend, verdict.message)
            for row, verdict in screened.verdicts.items()
        }
        for row, end in zip(screened.rows.tolist(), endings, strict=True):
            message = "; ".join(part for part in (end.outcome.advice, end.note) if part)
            records[row] = SystemRecord(
                end.outcome, end.iterations, end.refinements, end.residual, end.label, self.backend, message
            )
        return tuple(records[row] for row in range(len(records)))


def _in_domain(stencil: Stencil, fields: Tensor) -> Tensor:
    """In float64, 0 in cells that are not active."""
    fields = fields.detach().double()
    return fields if stencil.active is None else torch.where(stencil.active, fields, 0.0)


def _part(guess: Tensor | None, part: slice) -> Tensor | None:
    return None if guess is None else guess[part]


def _joined(parts: list[Solved]) -> Solved:
    if len(parts) == 1:
        return parts[0]
    return torch.cat([fields for fields, _ in parts]), tuple(record for _, records in parts for record in records)


def _size(stencil: Stencil) -> str:
    return f"{' x '.join(map(str, stencil.shape))} cells"

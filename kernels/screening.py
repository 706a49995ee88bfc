"""What is decided before a solver runs: bad numbers, zero right-hand sides, singular systems without a solution."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from forebay.kernels.inner_cg import dot, norm, nullspace_of
from forebay.kernels.records import Outcome
from forebay.kernels.stencil import Stencil


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why a system needs no solver."""

    outcome: Outcome
    residual: float
    message: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Screened:
    """Of k right-hand sides, those that are left for a solver, and what has become of the others."""

    rows: Tensor
    """Positions of the former, int64."""
    zero: Tensor
    """Positions of right-hand sides that are 0, int64: so is the solution."""
    verdicts: dict[int, Verdict]
    """Of all but `rows`, by position."""


def screen(stencil: Stencil, rhs: Tensor, guess: Tensor | None, *, rtol: float) -> Screened:
    """Sort out what needs no iteration or can have none.

    A singular system (constants in its null space) has a solution if its right-hand side has no part along them; up to
    rtol / 2 of its norm is taken for rounding.
    """
    numbers = stencil.finite().expand(len(rhs))
    finite = numbers & _finite(rhs)
    if guess is not None:
        finite &= _finite(guess)
    size = norm(rhs)
    zero = finite & (size == 0)
    outside = _outside(stencil, rhs, size)
    unsolvable = finite & ~zero & (outside > 0.5 * rtol)
    verdicts = {row: Verdict(Outcome.CONVERGED, 0.0) for row in _positions(zero)}
    verdicts |= {row: _bad_numbers("right-hand side or guess") for row in _positions(numbers & ~finite)}
    verdicts |= {row: _bad_numbers("coefficients") for row in _positions(~numbers)}
    verdicts |= {row: _unsolvable(float(outside[row]), rtol) for row in _positions(unsolvable)}
    return Screened(torch.nonzero(finite & ~zero & ~unsolvable).flatten(), torch.nonzero(zero).flatten(), verdicts)


def _outside(stencil: Stencil, rhs: Tensor, size: Tensor) -> Tensor:
    """Part of the norm that lies along the null space, [k]; 0 for a regular system."""
    nullspace = nullspace_of(stencil)
    if nullspace is None:
        return torch.zeros_like(size)
    return dot(nullspace.to(rhs.dtype), rhs).abs() / size


def _bad_numbers(whose: str) -> Verdict:
    message = f"NaN or inf in {whose} of this system: mend the data, or leave it out of the batch"
    return Verdict(Outcome.NONFINITE_INPUT, math.nan, message)


def _unsolvable(outside: float, rtol: float) -> Verdict:
    message = (
        f"singular (Neumann walls, no reaction), and the constant part of its right-hand side is {outside:.3g} of its "
        f"norm; to have a solution it must be below rtol / 2 = {rtol / 2:.3g}: subtract the mean, or give a wall a "
        f"value"
    )
    return Verdict(Outcome.DIVERGED, math.nan, message)


def _finite(fields: Tensor) -> Tensor:
    return torch.isfinite(fields).flatten(1).all(1)


def _positions(which: Tensor) -> list[int]:
    return torch.nonzero(which).flatten().tolist()

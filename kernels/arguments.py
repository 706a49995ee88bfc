"""Arguments of `solve` and `prepare` that cannot work are refused before anything runs."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from forebay.kernels.grid_network import GridNetwork
from forebay.kernels.grid_weights import GridWeights, require_dimension
from forebay.kernels.stencil import Stencil

PRECONDITIONERS = ("multigrid", "jacobi", "none")
"""Those that are asked for by name; others are learned weights."""


def check_settings(stencil: Stencil, preconditioner: Any, threads: int) -> None:
    """Coefficients, preconditioner and threads.

    Raises:
        ValueError: one of them is out of range.
    """
    stencil.require_nonnegative()
    if isinstance(preconditioner, GridWeights | GridNetwork):
        require_dimension(preconditioner.dimension, stencil.dimension)
    elif preconditioner not in PRECONDITIONERS:
        raise ValueError(
            f"preconditioner={preconditioner!r}; it must be one of {', '.join(map(repr, PRECONDITIONERS))}, or learned "
            f"weights: a GridWeights or a GridNetwork"
        )
    if threads < 1:
        raise ValueError(f"threads={threads}; it must be at least 1")


def check_fields(stencil: Stencil, rhs: Tensor, guess: Tensor | None, rtol: float, max_iterations: int) -> None:
    """Right-hand sides, guess and limits.

    Raises:
        ValueError: shapes that do not fit, or a limit out of range.
    """
    if rhs.shape[1:] != stencil.shape or len(rhs) < 1 or stencil.batch not in (1, len(rhs)):
        count = "any number" if stencil.batch == 1 else str(stencil.batch)
        raise ValueError(
            f"right-hand sides of shape {tuple(rhs.shape)}; they must have shape [{count}, "
            f"{', '.join(map(str, stencil.shape))}] for {stencil.batch} systems: one a system, batch axis first"
        )
    for name, fields in (("the right-hand side", rhs), ("the guess", guess)):
        if fields is not None and (not fields.is_floating_point() or fields.device != stencil.device):
            raise ValueError(
                f"{name} is {fields.dtype} on {fields.device}; it must be float32 or float64 on {stencil.device}, "
                f"where the coefficients are"
            )
    if guess is not None and guess.shape != rhs.shape:
        raise ValueError(
            f"a guess of shape {tuple(guess.shape)} for right-hand sides of shape {tuple(rhs.shape)}; it must have the "
            f"same shape, or be None"
        )
    if not 0 < rtol < 1:
        raise ValueError(f"rtol={rtol:g}; it must lie between 0 and 1, and above 1e-14 to be reached in float64")
    if max_iterations < 1:
        raise ValueError(f"max_iterations={max_iterations}; it must be at least 1")

"""The protocols between the stages; each has one plain implementation or more, and nobody subclasses them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, Protocol, runtime_checkable

import numpy as np

from forebay.pipeline.records import Block, Care, Schema, Split

Symmetry = Literal["spd", "symmetric", "general"]
Draw = Mapping[str, np.ndarray]
"""The inputs of one sample in float64: every input field by its name, and "parameters" of shape (p,)."""


@runtime_checkable
class Problem(Protocol):
    """A parametric linear PDE on a fixed mesh: A(θ) u = b(θ), with one sparsity for all samples.

    A problem is a frozen dataclass whose fields are the options of the study's `[problem]` table.  Everything a method
    returns or receives is numpy, so a user's problem needs no PETSc.  Problems in time have the further methods of
    `TransientProblem`; problems that assemble into PETSc themselves (DOLFINx) those of `AssembledProblem` instead.
    """

    @property
    def schema(self) -> Schema:
        """Parameters, fields, coordinates."""
        ...

    @property
    def symmetry(self) -> Symmetry:
        """Of the matrix: "spd" allows Cholesky and CG."""
        ...

    def draw(self, parameters: np.ndarray, rng: np.random.Generator) -> Mapping[str, np.ndarray]:
        """Random input fields of one sample, by name; `parameters` are already drawn, shape (p,)."""
        ...

    def pattern(self) -> tuple[np.ndarray, np.ndarray]:
        """CSR sparsity of A: `indptr` (n + 1,) and sorted `indices` (nnz,), int32; asked for once."""
        ...

    def assemble(self, draw: Draw, values: np.ndarray, rhs: np.ndarray) -> None:
        """Write this sample's CSR values (nnz,) and right-hand side (n,), float64, in place."""
        ...

    def fields(self, draw: Draw, solution: np.ndarray) -> Mapping[str, np.ndarray]:
        """Output fields by name from the solution vector (n,); shapes as in the schema."""
        ...


@runtime_checkable
class TransientProblem(Problem, Protocol):
    """Implicit steps A(θ) uᵐ⁺¹ = b(θ, uᵐ); `schema.times` has the stored times, one solve each.

    `assemble` is called once per sample; when `fixed_matrix` it fills `values` for the first sample only, and one
    factorisation serves every step of every sample.
    """

    @property
    def fixed_matrix(self) -> bool:
        """Is A independent of the parameters?"""
        ...

    def initial(self, draw: Draw) -> np.ndarray:
        """State u⁰, shape (n,)."""
        ...

    def advance(self, draw: Draw, step: int, state: np.ndarray, rhs: np.ndarray) -> None:
        """Write the right-hand side of the solve for step `step` = 1, 2, ... given the previous state."""
        ...


@runtime_checkable
class StructuredProblem(Protocol):
    """A problem whose unknowns are the cells of a box of equal cells, which geometric multigrid makes use of.

    The box fills the domain and each cell has exactly one unknown, which stands for its centre: no unknown on a wall,
    and the outermost centres half a cell from it.  So two neighbours along every axis make one cell of the next
    coarser grid.  The matrix may be any; it is best when cells that are far apart are not coupled.
    """

    @property
    def grid_shape(self) -> tuple[int, ...]:
        """Cells along each axis, slowest first; unknown = row-major cell number."""
        ...


class Solver(Protocol):
    """Makes certified blocks; owns one problem and its reused structures."""

    def solve_block(
        self, split: Split, chunk: int, *, care: Care | None = None, mark: Callable[[int | None], None] | None = None
    ) -> Block:
        """Draw, assemble, solve and certify the samples of one chunk.

        `mark` is told the id of every sample before it is touched, and None afterwards, so that whoever survives a
        crash knows which sample it was at.
        """
        ...


class Sink(Protocol):
    """Keeps blocks."""

    def store(self, block: Block) -> None:
        """Make the block durable; storing the same chunk twice leaves one copy."""
        ...

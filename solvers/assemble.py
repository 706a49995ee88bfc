"""Linear systems whose arrays numpy and PETSc share, so that a new sample is written in place.

`MatCreateSeqAIJWithArrays` makes a matrix around our CSR arrays; after they are rewritten only PETSc's state counter
must move.  No object is created per sample, and no value is copied.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np

from forebay.pipeline.errors import ProblemError
from forebay.pipeline.stages import Draw, Problem, Symmetry
from forebay.solvers.petsc import petsc

Assemble = Callable[[Draw, np.ndarray, np.ndarray], None]

_GLANCE = 16


class System(Protocol):
    """A(θ) u = b(θ), reassembled in place for every sample; serial (one process, COMM_SELF)."""

    @property
    def matrix(self) -> Any:
        """The PETSc matrix; always the same object with the same sparsity."""
        ...

    @property
    def values(self) -> np.ndarray:
        """Its entries (nnz,), float64."""
        ...

    @property
    def diagonal(self) -> np.ndarray:
        """A copy of its diagonal (n,)."""
        ...

    @property
    def rhs(self) -> np.ndarray:
        """b, shape (n,), float64; always the same array."""
        ...

    def update(self, draw: Draw) -> None:
        """Assemble the matrix and right-hand side of that sample."""
        ...

    def destroy(self) -> None:
        """Free PETSc's side; collective over the matrix's communicator."""
        ...


@runtime_checkable
class AssembledProblem(Protocol):
    """A problem that brings its own system, because it assembles through another library."""

    def system(self) -> System:
        """A new system, owned by the caller."""
        ...


class CsrSystem:
    """A system around CSR arrays; `assemble(draw, values, rhs)` rewrites `values` (nnz,) and `rhs` (n,) in place.

    Raises:
        ProblemError: arrays that are not the sorted CSR pattern of a square matrix with a full diagonal.
    """

    def __init__(
        self,
        indptr: np.ndarray,
        indices: np.ndarray,
        assemble: Assemble,
        *,
        symmetry: Symmetry,
        values: np.ndarray | None = None,
    ) -> None:
        check_pattern(indptr, indices)
        self._PETSc = petsc()
        self._assemble = assemble
        self._symmetry = symmetry
        self._indptr = np.ascontiguousarray(indptr, dtype=self._PETSc.IntType)
        self._indices = np.ascontiguousarray(indices, dtype=self._PETSc.IntType)
        self._diagonal = diagonal_positions(indptr, indices)
        n = len(indptr) - 1
        self.values = np.zeros(len(indices)) if values is None else values
        self.rhs = np.zeros(n)
        self._previous = np.full(len(indices), np.nan)
        self.matrix = self._PETSc.Mat().createAIJWithArrays(
            (n, n), (self._indptr, self._indices, self.values), comm=self._PETSc.COMM_SELF
        )
        # With its grouping of rows of equal pattern PETSc 3.25 crashes in Eisenstat with omega other than 1.
        self.matrix.setOption(self._PETSc.Mat.Option.USE_INODES, False)
        self._declare_symmetry()

    @property
    def diagonal(self) -> np.ndarray:
        """A copy of the diagonal (n,)."""
        return self.values[self._diagonal]

    def update(self, draw: Draw) -> None:
        """Assemble; PETSc is told of a new matrix only when a value differs, so that a factorisation can be kept."""
        try:
            self._assemble(draw, self.values, self.rhs)
        except ValueError as error:
            raise ValueError(
                f"{error} (values has the {len(self.values)} entries of pattern(), made once for every sample; if the "
                f"sparsity differs between samples, let pattern() return the union and write zeros)"
            ) from error
        # Where samples differ at all, their first entries do: one row or two spare the look at all of them.
        if not np.array_equal(self.values[:_GLANCE], self._previous[:_GLANCE]) or not np.array_equal(
            self.values, self._previous
        ):
            self._previous[:] = self.values
            self.touch()

    def touch(self) -> None:
        """Tell PETSc that `values` changed."""
        self.matrix.assemble()
        # Assembly forgets what is not declared eternal, and petsc4py has no name for MAT_SPD_ETERNAL; without it GAMG
        # estimates eigenvalues another way and took 104 iterations instead of 25.
        self._declare_symmetry()

    def _declare_symmetry(self) -> None:
        option = self._PETSc.Mat.Option
        if self._symmetry != "general":
            self.matrix.setOption(option.SYMMETRIC, True)
        if self._symmetry == "spd":
            self.matrix.setOption(option.SPD, True)

    def destroy(self) -> None:
        """Free PETSc's side; the numpy arrays stay valid."""
        self.matrix.destroy()


def system_of(problem: Problem) -> System:
    """The problem's own system if it brings one, else a `CsrSystem` around its pattern."""
    if isinstance(problem, AssembledProblem):
        return problem.system()
    indptr, indices = problem.pattern()
    return CsrSystem(indptr, indices, problem.assemble, symmetry=problem.symmetry)


def diagonal_positions(indptr: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Where the diagonal entries (n,) stand in the values of a CSR pattern that has them all."""
    rows = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    return np.flatnonzero(rows == indices)


def check_pattern(indptr: np.ndarray, indices: np.ndarray) -> None:
    """Refuse what PETSc would misread without a word.

    Raises:
        ProblemError: the first rule that the pattern breaks.
    """
    n = len(indptr) - 1
    if n < 1 or indptr[0] != 0 or np.any(np.diff(indptr) < 0) or indptr[-1] != len(indices):
        raise ProblemError(
            f"pattern() returned indptr of length {len(indptr)} that is not a CSR row pointer for {len(indices)} "
            f"indices; it must start at 0, never fall, and end at {len(indices)}"
        )
    if indices.min() < 0 or indices.max() >= n:
        raise ProblemError(
            f"pattern() returned column indices from {indices.min()} to {indices.max()} for {n} unknowns; "
            f"the matrix is square, so they must lie in 0 ... {n - 1}"
        )
    rows = np.repeat(np.arange(n), np.diff(indptr))
    unsorted = np.flatnonzero((np.diff(indices) <= 0) & (np.diff(rows) == 0))
    if len(unsorted):
        raise ProblemError(
            f"pattern() returned unsorted or repeated columns in row {rows[unsorted[0]]}; "
            f"call `sum_duplicates()` on the scipy.sparse.csr_array first"
        )
    missing = n - np.count_nonzero(rows == indices)
    if missing:
        row = np.setdiff1d(np.arange(n), rows[rows == indices])[0]
        raise ProblemError(
            f"pattern() lacks {missing} diagonal entries, the first in row {row}; add explicit zeros there, "
            f"factorisations need them"
        )

"""The stencil kernels' multigrid, and learned smoothed aggregation, as preconditioners of PETSc's own iterations.

`preconditioner = "boxmg"` and `"amg"` of a study; with other PETSc code `-pc_type python` and one of these contexts.
Both are one symmetric V-cycle in float32, right for CG as long as the matrix is symmetric positive definite.  Residual
and answer are PETSc's own arrays.  Which of the two cycles serves learned weights' matrices is their guard's decision.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from forebay.solvers.batched.stencil import StencilReader
from forebay.solvers.batched.weights import Weights, load_aggregation_weights, load_weights
from forebay.solvers.petsc import petsc


class StencilPc:
    """Context of a PC of type python: black-box multigrid (Dendy 1982) on a box of cells, see `kernels.cpu`.

    Entries that are no M-matrix fail the set-up, and the KSP with it.  State: the hierarchy of the present matrix.
    `learned` as a study's key: "", "shipped", or a file.

    Raises:
        StudyError: the matrix's pattern is not the five- or seven-point stencil of the grid, or unusable weights.
    """

    def __init__(self, matrix: Any, grid: tuple[int, ...], learned: str = "") -> None:
        from forebay.kernels.cpu import GridSolver

        self._grid = grid
        indptr, indices = matrix.getRowIJ()
        self._reader = StencilReader(indptr, indices, grid)
        faces, reaction = self._reader.allocate(1)
        self._faces, self._reaction = tuple(face[0] for face in faces), reaction[0]
        self._weights = load_weights(learned, len(grid))
        self._failed = False
        self._solver = GridSolver(grid, preconditioner="multigrid" if self._weights is None else self._weights.value)

    def setUp(self, pc: Any) -> None:
        """Hierarchy of the PC's present matrix; PETSc calls it when that changed."""
        values = pc.getOperators()[1].getValuesCSR()[2]
        fault = not np.isfinite(values).all() or bool(self._reader.read(values, self._faces, self._reaction))
        self._failed = _told(pc, fault)
        if not fault:
            self._solver.setup(self._faces, self._reaction)

    def apply(self, pc: Any, x: Any, y: Any) -> None:
        """One V-cycle from zero: y ≈ A⁻¹ x."""
        if self._failed:
            y.set(np.inf)
            return
        self._solver.cycle(x.getArray(readonly=True).reshape(self._grid), y.getArray().reshape(self._grid))
        self._solver.probation.advanced(1)

    def view(self, pc: Any, viewer: Any) -> None:
        """One line for -ksp_view."""
        name = "classical" if self._weights is None else self._weights.name
        viewer.printfASCII(f"  black-box multigrid on {' x '.join(map(str, self._grid))} cells, {name}\n")


class AggregationPc:
    """Context of a PC of type python: smoothed aggregation on positive definite matrices, see `kernels.amg`.

    Aggregates come from the graph of the pattern, once: as those of PETSc's GAMG by default they depend on no sample
    solved before, and unlike those they need no symbolic set-up for each.  The matrix's near-null space and block size
    are heeded.  State: the numbers of the present matrix, and with learned weights what their guard has found so far.
    `learned` as a study's key: "", "shipped", "online" (the shipped ones until `use`), or a file.

    Raises:
        StudyError: weights that cannot be used.
    """

    def __init__(self, matrix: Any, learned: str = "") -> None:
        from forebay.kernels.amg.solver import AmgSolver

        indptr, indices = matrix.getRowIJ()
        block = matrix.getBlockSize()
        self._diagonal, reference = graph_laplacian(indptr, indices, block)
        candidates = _near_null_space(matrix)
        options: dict[str, Any] = {} if candidates is None else {"candidates": candidates, "threshold": 0.0}
        self._weights, self._failed = load_aggregation_weights(learned), False
        if self._weights is not None:
            options["weights"] = self._weights.value
        self._solver = AmgSolver(indptr, indices, reference, block_size=block, **options)

    def setUp(self, pc: Any) -> None:
        """Numbers for the PC's present matrix; PETSc calls it when that changed."""
        values = pc.getOperators()[1].getValuesCSR()[2]
        fault = not np.isfinite(values).all() or bool(values[self._diagonal].min() <= 0)
        self._failed = _told(pc, fault)
        if not fault:
            self._solver.setup(values)

    def use(self, weights: Weights) -> None:
        """Other weights from the next application on, same aggregates; their probation begins anew."""
        self._weights = weights
        self._solver.use(weights.value)

    @property
    def detail(self) -> str:
        """What serves the present matrix: "" for the classical cycle, "(learned-v0003)", or "(guard)" in its place."""
        if self._weights is None:
            return ""
        return "(guard)" if self._solver.preconditioner == "amg(guard)" else f"({self._weights.name})"

    def apply(self, pc: Any, x: Any, y: Any) -> None:
        """One V-cycle from zero: y ≈ A⁻¹ x."""
        if self._failed:
            y.set(np.inf)
            return
        self._solver.cycle(x.getArray(readonly=True), y.getArray())
        if self._solver.probation is not None:
            self._solver.probation.advanced(1)

    def view(self, pc: Any, viewer: Any) -> None:
        """One line for -ksp_view."""
        viewer.printfASCII(f"  smoothed aggregation, {self.detail or 'classical'}\n")


def _told(pc: Any, fault: bool) -> bool:
    """Tell PETSc, which asks for the reason when an application has returned inf, and not before."""
    reasons = petsc().PC.FailedReason
    pc.setFailedReason(reasons.FACTOR_OTHER if fault else reasons.NOERROR)
    return fault


def graph_laplacian(indptr: np.ndarray, indices: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions of a pattern's diagonal, and the values (nnz,) of its graph's Laplacian, a little more on the diagonal.

    Of `block` unknowns a node, equal components are coupled.
    """
    rows = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    values = np.where(rows % block == indices % block, -1.0, 0.0)
    diagonal = np.flatnonzero(rows == indices)
    values[diagonal] = 0.0
    values[diagonal] = 1e-3 - np.add.reduceat(values, np.asarray(indptr[:-1], dtype=np.intp))
    return diagonal, values


def _near_null_space(matrix: Any) -> np.ndarray | None:
    """(n, k), or None where none was set."""
    space = matrix.getNearNullSpace()
    vectors = space.getVecs() if space.handle else []
    return np.stack([vector.getArray(readonly=True) for vector in vectors], axis=1) if vectors else None
